"""docs/RUNBOOK.md does what it says, and docs/INCIDENTS.md names tests that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lab.server import serve
from ops.cli import app, main
from tests.components.fleet import ROOT
from tests.ops.simulated import Simulated

RUNBOOK = (ROOT / "docs" / "RUNBOOK.md").read_text()
INCIDENTS = (ROOT / "docs" / "INCIDENTS.md").read_text()
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"`(tests/[a-z_/]+\.py)(?:::(\w+))?`")


def commands() -> list[tuple[str, list[str]]]:
    """(command line without `ops`, lines that it prints)."""
    found: list[tuple[str, list[str]]] = []
    for block in _BLOCK.findall(RUNBOOK):
        for line in block.splitlines():
            if line.startswith("$ ops "):
                found.append((line.removeprefix("$ ops "), []))
            elif line.strip():
                found[-1][1].append(line)
    return found


def words(line: str) -> str:
    return " ".join(line.split())


def test_every_command_is_run_in_its_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the lab's API, with as many agents as the lab's fleet."""
    with serve(tmp_path / "state") as serving:
        simulated = Simulated(serving, {"swarm-1": 30, "swarm-2": 50, "swarm-3": 15})
        simulated.tick()
        simulated.console(b"startup-script exit status 0\n")
        monkeypatch.setattr(serving.lab.driver, "forward", lambda machine, port: port)
        before = ["--endpoint", serving.url, "--project", "p1", "--poll", "0.02"]
        for command, printed in commands():
            capfd.readouterr()
            with simulated.running():
                code = main([*before, *shlex.split(command)])
            said = capfd.readouterr()
            assert code == 0, (command, said)
            lines = [words(line) for line in said.out.splitlines()]
            at = 0
            for line in printed:
                assert words(line) in lines[at:], f"{command} prints {line!r}? It printed:\n{said}"
                at = lines.index(words(line), at) + 1


def test_every_command_is_in_the_runbook() -> None:
    shown = {shlex.split(command)[0] for command, _ in commands()}
    there = {each.name or each.callback.__name__ for each in app.registered_commands}  # type: ignore[union-attr]
    assert shown == there


def test_every_test_that_an_incident_names_is_there() -> None:
    named = _TEST.findall(INCIDENTS)
    assert len(named) > 20
    for file, name in named:
        text = (ROOT / file).read_text()
        pattern = rf"\bRow\(\"{name}\"," if file.endswith("/rows.py") else rf"^def {name}\b"
        assert not name or re.search(pattern, text, re.MULTILINE), f"{file}: no {name}"


def test_no_incident_is_without_a_test() -> None:
    rows = [line for line in INCIDENTS.splitlines() if line.startswith("| ")]
    cells = [row.strip("| ").split(" | ") for row in rows if "---" not in row]
    for row in cells:
        assert row[-1] == "shown by" or _TEST.search(row[-1]), row[0]
