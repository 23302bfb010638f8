"""The ping that `make lab` ends with, and what it says where there is none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fleet import pings, talk
from lab.fleet.pings import NoPingError, Reached
from lab.machines import processes
from tests.lab.fleet.fleet import CONFIG
from tests.lab.standin.client import standin, wait_for, whitelist
from tests.lab.standin.conftest import artifacts
from tests.lab.standin.test_daemons import Fleet

__all__ = ["artifacts"]


def test_where_there_is_none_it_says_why(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = pings.report(CONFIG, "qemu")
    assert said.startswith("no ping: ")
    assert "LAB_DRIVER=container" in said
    assert pings.report(CONFIG, "container") == "no ping: swarm-1 does not run"
    # A VM without agents: this machine.
    monkeypatch.setattr(processes, "find", lambda *_: os.getpid())
    monkeypatch.setattr(processes, "first_in", lambda _: os.getpid())
    monkeypatch.setattr(pings, "_SOCKETS", (f"{state.relative_to('/')}/*.sock",))
    assert pings.report(CONFIG, "container") == "no ping: swarm-1 runs no agent"
    # No socket, or root's: not an agent's.
    (state / "10000.sock").touch()
    if os.geteuid() == 0:
        os.mknod(state / "09999.sock", 0o140600)
        assert pings.report(CONFIG, "container") == "no ping: swarm-1 runs no agent"
    # The first one, by whichever layout.
    user = 610 if os.geteuid() == 0 else os.geteuid()
    for port in (10002, 10001):
        os.mknod(state / f"{port}.sock", 0o140600)
        os.chown(state / f"{port}.sock", user, -1)
    found = pings.agent_on(CONFIG, "swarm-1")
    assert (found.name, found.socket) == (
        "swarm-1's agent on port 10001",
        str(state / "10001.sock"),
    )
    assert found.as_its_user[:3] == ["nsenter", "--target", str(os.getpid())]
    assert found.as_its_user[3:6] == ["--all", "--root", f"--setuid={user}"]


@pytest.mark.parametrize(
    "words", [[], ["s"], ["s", "node", "1"], ["s", "ping"], ["s", "trust", "1", "x"], ["s", "go"]]
)
def test_a_command_line_that_cannot_be_used(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk.main(words) == 2
    assert "talk.py SOCKET ping NODE" in capsys.readouterr().err


@pytest.fixture
def pair(artifacts: Path, tmp_path: Path) -> Iterator[list[Reached]]:
    """Two real agents that nothing has to be entered for."""
    whitelist(tmp_path / "registry")
    fleet = Fleet(artifacts, tmp_path / "agents", 2)
    with standin(tmp_path / "registry") as running:
        try:
            for daemon in fleet.daemons:
                daemon.start("{}:{}".format(*running.registry), str(running.running["beacon"]))
            for daemon in fleet.daemons:
                wait_for(daemon.ready, "its socket")
            yield [
                Reached(name=name, socket=str(daemon.socket), as_its_user=[])
                for name, daemon in zip(("one", "the other"), fleet.daemons, strict=True)
            ]
        finally:
            fleet.stop()


@pytest.mark.engine
def test_two_agents(pair: list[Reached]) -> None:
    said = re.compile(r"one pings the other: \d+\.\d ms, direct")
    assert said.fullmatch(pings.ping(*pair))
    # As a second `make lab` does: the trust is there.
    assert said.fullmatch(pings.ping(*pair))
    with pytest.raises(NoPingError, match=r"one: .*node 1000: node not found"):
        pings.ask(pair[0], "trust", "1000", "1")
    with pytest.raises(NoPingError, match=r"nobody: .*No such file"):
        pings.ping(pair[0], Reached(name="nobody", socket="/nowhere", as_its_user=[]))
