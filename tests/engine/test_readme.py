"""The documented commands do what they say, and the documented plan is the plan that is made."""

from __future__ import annotations

import re
import subprocess

import pytest

from components.config_reader import ConfigError
from components.stack_file import parse
from tests.components.fleet import ROOT

pytestmark = pytest.mark.engine

INDEX = (ROOT / "docs" / "index.md").read_text()


def git_status() -> str:
    return subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_make_preview_makes_the_plan_that_the_docs_show(pulumi_env: dict[str, str]) -> None:
    assert "$ make preview" in INDEX
    before = git_status()
    done = subprocess.run(
        ["make", "preview"],
        cwd=ROOT,
        env=pulumi_env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (shown,) = re.findall(r"```text\nvms : \{\n(.*?)\}\n```", INDEX, re.DOTALL)
    for line in shown.splitlines():
        name, text = line.split(":", 1)
        assert re.search(rf"{name.strip()}\s*: {re.escape(text.strip())}", done.stdout), line
    assert "this plan was made without asking Google" in done.stdout
    assert "✅" in done.stdout
    assert git_status() == before


def test_the_refusals_that_the_docs_show_are_those_of_the_reader() -> None:
    text = (ROOT / "Pulumi.swarm.yaml").read_text()
    text = text.replace("agents: 1500", "agents: 3500").replace("name: swarm-2", "name: swarm-1")
    with pytest.raises(ConfigError) as caught:
        parse(text, "Pulumi.swarm.yaml")
    (shown,) = re.findall(r"```text\n(pilot-fleet:swarm.*?)```", INDEX, re.DOTALL)
    assert {str(problem) for problem in caught.value.problems} >= set(shown.splitlines())


def test_make_alone_lists_every_command() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("preview", "up", "lab", "lab-down", "test", "check", "bench"):
        assert re.search(rf"make {target}\b", done.stdout), done.stdout
