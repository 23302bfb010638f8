"""The commands of docs/UPGRADE.md work as it says, on a clone and on the lab's API."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.server import serve
from ops.cli import main
from startup.node.report.status import ScriptStatus
from tests.components.fleet import ROOT
from tests.ops.simulated import RENDEZVOUS, Simulated

PAGE = (ROOT / "docs" / "UPGRADE.md").read_text()
_SECTION = re.compile(r"^## (.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections() -> dict[str, list[tuple[str, list[str]]]]:
    """(command line, lines that it prints) by section."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    titles = [*_SECTION.finditer(PAGE)]
    for title, end in zip(titles, [*(t.start() for t in titles[1:]), len(PAGE)], strict=True):
        mine = found.setdefault(title[1], [])
        for block in _BLOCK.findall(PAGE[title.end() : end]):
            for line in block.splitlines():
                if line.startswith("$ "):
                    mine.append((line.removeprefix("$ "), []))
                else:
                    mine[-1][1].append(line)
    return {name: commands for name, commands in found.items() if commands}


def state_of(section: str, vm: str) -> ScriptStatus:
    """The state of a VM's script while the commands of a section run."""
    turn = time.time() + 200
    if section == "When a VM is half way" and vm == "swarm-3":
        return ScriptStatus(expected="ee" * 32, state="failed", error="it was run")
    if section == "The way forward" and vm != "swarm-3":
        return ScriptStatus(expected="ee" * 32, state="waiting", turn=turn)
    return ScriptStatus(expected="ee" * 32)


def words(line: str) -> str:
    return " ".join(line.split())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone that is a commit behind its origin."""
    folder = tmp_path / "clone"

    def git(*arguments: str, cwd: Path = tmp_path) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True)

    origin = tmp_path / "origin"
    git("init", "-q", "-b", "main", str(origin))
    file = origin / "startup" / "node" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    git("add", "-A", cwd=origin)
    git("commit", "-q", "-m", "A unit", cwd=origin)
    git("clone", "-q", str(origin), str(folder))
    (origin / "startup" / "unit").write_text("another\n")
    git("add", "-A", cwd=origin)
    git("commit", "-q", "-m", "Another unit\n\nRestarts-agents: 50", cwd=origin)
    return folder


def _head(checkout: Path) -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.check_output(command, cwd=checkout, text=True).strip()


def test_every_command_is_run_in_its_order(tmp_path: Path, checkout: Path) -> None:
    programs, made = tmp_path / "bin", tmp_path / "made"
    programs.mkdir()

    def program(name: str, text: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)

    # Its effect, where it can have one.
    program(
        "make", f'echo "$(git rev-parse HEAD) $*" >>{made}\nexec /usr/bin/make -n -C {ROOT} "$@"'
    )
    with serve(tmp_path / "state") as serving:
        simulated = Simulated(serving, {"swarm-1": 30, "swarm-2": 50, "swarm-3": 15})
        simulated.console(b"startup-script exit status 1\n")
        before = ["--endpoint", serving.url, "--project", "p1", "--poll", "0.02"]
        python = shlex.join([sys.executable, "-m", "ops", *before])
        program("ops", f'cd {ROOT} && exec {python} "$@"')
        path = {"PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "200"}
        environment = dict(os.environ) | path
        variables = ""
        for section, commands in sections().items():
            changes: dict[str, dict[str, Any]] = {
                vm: {"project_script": state_of(section, vm)} for vm in simulated.nodes
            }
            for vm, change in changes.items():
                simulated.nodes[vm].changes.update(change)
            simulated.tick()
            for command, printed in commands:
                done = subprocess.run(
                    ["/bin/bash", "-c", f"{variables}\n{command}"],
                    cwd=checkout,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                # `ops watch` finds the alert of this section.
                expected = 1 if command.startswith("ops watch") else 0
                assert done.returncode == expected, (section, command, done)
                if command.startswith("before="):
                    # Its value of now, not of when it is used.
                    variables = f"before={_head(checkout)}"
                said = words(re.sub(r"\b[0-9a-f]{7}\b", "2222222", done.stdout))
                for line in printed:
                    assert words(line) in said, f"{command} prints {line!r}? It printed:\n{done}"
    commits = [line.split() for line in made.read_text().splitlines()]
    forward, back = commits[1][0], commits[2][0]
    assert forward != back == commits[3][0]
    assert {" ".join(words) for _, *words in commits} == {"preview", "up", "lab", "lab-down"}


def test_a_waiting_vm_is_shown_and_no_alert(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path / "state") as serving:
        simulated = Simulated(serving, {"swarm-1": 30, "swarm-3": 15})
        for vm in ("swarm-1", RENDEZVOUS):
            simulated.nodes[vm].changes["project_script"] = state_of("The way forward", vm)
        simulated.tick()
        before = ["--endpoint", serving.url, "--project", "p1"]
        assert main([*before, "status"]) == 0
        said = words(capfd.readouterr().out)
        assert "its turn with eeeeeeeeeeee comes in 3 min" in said
        assert main([*before, "watch", "--once"]) == 0
