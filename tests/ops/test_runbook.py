"""The commands of docs/RUNBOOK.md work as it says, and the tests in docs/INCIDENTS.md exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lab.cloud.server import serve
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
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
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


def line_with(text: str) -> str:
    """The runbook's line with `text`, as it runs here: the checkout and its Python are others."""
    (line,) = (line for line in RUNBOOK.splitlines() if text in line)
    line = re.sub(r"(\$PWD/)?\.venv/bin/python", lambda _: sys.executable, line)
    return line.replace("/srv/fleet", str(ROOT)).replace("vulture-vision-cloud", "p1")


def test_the_line_for_cron_mails_what_it_found(tmp_path: Path) -> None:
    """cron runs in a home with few variables; `mail` reads the text of the mail."""
    line = line_with("*/5 * * * *").removeprefix("*/5 * * * * ")
    mails = tmp_path / "mails"
    mail = tmp_path / "mail"
    mail.write_text(f"#!/bin/sh\ncat >>{mails}\n")
    mail.chmod(0o755)

    def cron(line: str, endpoint: str) -> str:
        environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
        environment["PILOT_ENDPOINT"] = endpoint
        mails.unlink(missing_ok=True)
        command = ["/bin/sh", "-c", line]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout + done.stderr == "", "cron would mail that by itself"
        return mails.read_text() if mails.exists() else ""

    with serve(tmp_path / "state") as serving:
        simulated = Simulated(serving, {"swarm-1": 30})
        simulated.tick()
        assert cron(line, serving.url) == ""
        simulated.nodes["swarm-1"].changes["ghosts"] = ("startup-script",)
        simulated.tick()
        assert "ALERT swarm-1/ghost" in cron(line, serving.url)
        assert cron(line, "http://192.0.2.1").startswith("ops: 'http://192.0.2.1' is no endpoint")
        assert "/nowhere" in cron(line.replace(str(ROOT), "/nowhere"), serving.url)


def test_the_alias_works_from_anywhere(tmp_path: Path, command: Path) -> None:
    there = shlex.quote(str(command.parents[2]))
    alias = line_with("alias ops=")
    script = f"shopt -s expand_aliases\ncd {there}\n{alias}\ncd /\nops --help\n"
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done
    assert "audit" in done.stdout


def test_every_command_is_in_the_runbook() -> None:
    shown = {shlex.split(command)[0] for command, _ in commands()}
    # It needs a terminal (tests/ops/test_live.py).
    assert "```sh\nops live\n```" in RUNBOOK
    shown.add("live")
    there = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert shown == {name for name, command in there.items() if not command.hidden}


def test_every_test_of_an_incident_exists() -> None:
    named = _TEST.findall(INCIDENTS)
    assert len(named) > 20
    for file, name in named:
        text = (ROOT / file).read_text()
        pattern = rf"\bRow\(\"{name}\"," if file.endswith("/rows.py") else rf"^def {name}\b"
        assert not name or re.search(pattern, text, re.MULTILINE), f"{file}: no {name}"


def test_every_incident_has_a_test() -> None:
    rows = [line for line in INCIDENTS.splitlines() if line.startswith("| ")]
    cells = [row.strip("| ").split(" | ") for row in rows if "---" not in row]
    for row in cells:
        assert row[-1] == "shown by" or _TEST.search(row[-1]), row[0]
