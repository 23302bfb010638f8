"""The process is looked at, and what is wrong with it is said."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from lab.machines import processes
from lab.standin.build import archive
from startup.node.desired.spec import RendezvousSpec
from startup.node.rendezvous.process import Health, ask
from startup.node.rendezvous_loop import WATCH
from startup.node.report.status import Published, document
from tests.startup.node.rendezvous.fleet import Fleet, back, rejected


def test_an_exit_says_its_last_line_and_the_wall(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    path = fleet.paths.at("/proc/sys/fs/file-nr")
    path.parent.mkdir(parents=True)
    path.write_text("1990 0 2000\n")
    fleet.declare_binary(
        b"#!/bin/sh\necho accept: too many open files in system >&2\nexit 3\n", "2"
    )
    fleet.until(lambda: rejected(fleet), "rejected")
    assert fleet.it.roll is not None
    said = "exits: exit status 3: accept: too many open files in system [hit file-max: "
    assert said in fleet.it.roll.reason
    assert any(line.startswith(f"the rendezvous {said}1990 of 2000]") for line in fleet.said)


def test_one_that_was_killed_is_said_to_be_and_by_what(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    before = len(fleet.said)
    with fleet.unit.log.open("a") as log:
        log.write('{"level":"WARN","msg":"unknown message type"}\n')
    assert processes.tell(fleet.pid(), signal.SIGKILL)
    fleet.until(lambda: any("exits" in line for line in fleet.said[before:]), "said")
    assert "the rendezvous exits: killed by SIGKILL" in fleet.said[before:]
    found = document(fleet.it.facts(Published(), started=1.0))
    assert found["last_error"]["text"] == "the rendezvous exits: killed by SIGKILL"


@pytest.mark.parametrize(
    ("failures", "after"),
    [(0, 0), (1, 0), (0, WATCH * 2 // 3)],
    ids=["at once", "the old one had failed", "near its end"],
)
def test_one_that_falls_silent_is_not_accepted(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, failures: int, after: int
) -> None:
    fleet.until(fleet.serving, "serving")
    silent = False

    def ask_(spec: RendezvousSpec, before: Health, *, numbers: bool) -> Health:
        return Health(why="timed out") if silent else ask(spec, before, numbers=numbers)

    monkeypatch.setattr("startup.node.rendezvous.observer.ask", ask_)
    fleet.declare_binary(archive() + b"\n", "2.0")
    if failures:
        # What the old one did is not the new one's merit either.
        fleet.it.observer.judged = replace(
            fleet.it.observer.judged, up=None, failures=failures, why="exits"
        )
        silent = True
        fleet.round()
        assert fleet.it.roll is not None
        assert fleet.it.roll.watch is not None
        silent = False
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "on trial, and answering")
    for _ in range(after):
        fleet.round()
    silent = True
    fleet.until(lambda: rejected(fleet), "rejected")
    silent = False
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.it.roll is not None
    assert "no answer for 20 s: timed out" in fleet.it.roll.reason


@pytest.mark.parametrize("who", ["the same pilot-node", "another pilot-node"])
def test_an_accepted_one_that_falls_silent_is_said_and_not_stopped(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    fleet.until(fleet.serving, "serving")
    pid = fleet.pid()
    silent = Health(why="/healthz: timed out")
    monkeypatch.setattr("startup.node.rendezvous.observer.ask", lambda *_, **__: silent)
    if who == "another pilot-node":
        fleet.it = fleet.service()
    for _ in range(10):
        fleet.round()
    assert fleet.status()["phase"] == "starting"
    assert fleet.it.last_error is None
    begun = fleet.now
    while fleet.now < begun + 120:
        fleet.round()
    assert (fleet.pid(), fleet.unit.starts) == (pid, 1)
    assert fleet.unit.wanted
    assert fleet.status()["phase"] == "failed"
    text = fleet.status()["last_error"]["text"]
    assert text.startswith("the rendezvous does not answer: /healthz: timed out: ")
    assert f"`ops undrain {fleet.spec.name}`" in text
    assert len([line for line in fleet.said if "does not answer" in line]) == 1
    monkeypatch.undo()
    fleet.until(fleet.serving, "serving again")
    assert (fleet.pid(), fleet.unit.starts) == (pid, 1)


def test_one_that_never_answered_hangs_for_another_pilot_node_too(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "startup.node.rendezvous.observer.ask", lambda *_, **__: Health(why="refused")
    )
    fleet.until(lambda: fleet.unit.child is not None, "a process")
    fleet.it = fleet.service()
    begun = fleet.now
    fleet.hurried = True
    while fleet.now < begun + 95:
        fleet.round()
    assert any("hangs" in line for line in fleet.said)
