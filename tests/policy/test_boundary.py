"""The policies share no code with the program, so that no mistake is checked by itself."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

POLICY = Path(__file__).parents[2] / "policy"
FILES = sorted(POLICY.rglob("*.py"))
ALLOWED = {"pulumi_policy", *sys.stdlib_module_names}


def imports(source: str) -> Iterator[str]:
    """Names of the modules that a module of the pack imports from outside of the pack."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.module or ""
            elif node.level > 1:
                yield "a parent of the pack"


def strangers(source: str) -> list[str]:
    return [name for name in imports(source) if name.partition(".")[0] not in ALLOWED]


def test_nothing_of_the_rest_is_imported() -> None:
    assert len(FILES) > 5
    for file in FILES:
        assert strangers(file.read_text("utf-8")) == [], file.name


def test_a_crossed_boundary_would_be_seen() -> None:
    assert strangers("from components.capacity import fits") == ["components.capacity"]
    assert strangers("def f():\n    import startup.node") == ["startup.node"]
    assert strangers("from .. import components") == ["a parent of the pack"]
    assert strangers("import json\nfrom . import values\nfrom pulumi_policy import Policy") == []


def test_nothing_of_the_rest_is_read_or_linked() -> None:
    for file in POLICY.rglob("*"):
        assert not file.is_symlink(), file
    for file in FILES:
        text = file.read_text("utf-8")
        for name in ("components/", "startup/", "lab/", "ops/", "tools/toolchain/"):
            assert name not in text, f"{file.name} names {name}"


def test_only_main_and_pack_know_the_server() -> None:
    for file in FILES:
        if file.name not in {"pack.py", "__main__.py"}:
            assert "PolicyPack(" not in file.read_text("utf-8"), file.name
