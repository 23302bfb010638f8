"""What documents and comments refer to is in this repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
_HEADING = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")
_DOCUMENT = re.compile(r"\bdocs/[A-Za-z]+\.md\b")
_SECTION = re.compile(r'\b([A-Z]+)\.md\)?, "([^"\n]+)"')


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_every_link_of_a_document_leads_somewhere() -> None:
    pages = tracked("*.md")
    assert len(pages) > 10
    for page in pages:
        for link in _LINK.findall(page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_every_document_that_is_named_is_there() -> None:
    for path in tracked("*.py", "*.md", "*.yaml", "*.yml", "*.j2", "*.service", "*.slice"):
        for name in _DOCUMENT.findall(path.read_text("utf-8")):
            assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)}: {name}"


def test_every_section_that_is_named_is_there() -> None:
    named = [
        (path, *found)
        for path in tracked("*.py", "*.md", "*.yaml", "*.yml")
        for found in _SECTION.findall(path.read_text("utf-8"))
    ]
    assert len(named) > 4
    for path, page, section in named:
        text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
        assert f"## {section}\n" in text, f"{path.relative_to(ROOT)}: {page}.md, {section}"


def test_the_readme_leads_to_the_index_and_the_index_to_every_document() -> None:
    assert "docs/index.md" in _LINK.findall((ROOT / "README.md").read_text("utf-8"))
    index = ROOT / "docs" / "index.md"
    led_to = set(_LINK.findall(index.read_text("utf-8")))
    for page in tracked("docs/*.md"):
        assert page == index or page.name in led_to, page.name


def test_every_heading_that_a_link_names_is_there() -> None:
    for page in tracked("*.md"):
        for link, heading in _HEADING.findall(page.read_text("utf-8")):
            target = page.parent / link if link else page
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page.relative_to(ROOT)}: {link}#{heading}"
