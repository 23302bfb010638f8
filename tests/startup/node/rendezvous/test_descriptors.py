"""The limit of descriptors follows the number of agents."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from startup.node.machine import proc
from tests.startup.node.rendezvous.fleet import Fleet


@pytest.mark.parametrize(("has", "error"), [(2248, False), (2247, True)], ids=["enough", "too few"])
def test_a_host_that_gives_no_more_descriptors_is_said_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, has: int, error: bool
) -> None:
    fleet.until(fleet.serving, "a rendezvous that serves")
    fleet.said.clear()

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    # On another user's process it is refused altogether where the host keeps the capability.
    monkeypatch.setattr(resource, "prlimit", refused)
    monkeypatch.setattr(proc, "most_descriptors", lambda pid: has)
    for _ in range(100):
        fleet.round()
    (said,) = [line for line in fleet.said if "descriptors" in line]
    assert said.startswith(f"the rendezvous has {has} descriptors and cannot have 4496: ")
    assert (fleet.status()["last_error"] is not None) == error


def test_few_descriptors_that_are_left_are_said_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "a rendezvous that serves")
    fleet.said.clear()
    monkeypatch.setattr(proc, "most_descriptors", lambda pid: 5000.0)
    monkeypatch.setattr(proc, "descriptors", lambda pid: 4000)
    for _ in range(40):
        fleet.round()
    assert fleet.it.last_error is None
    counts = iter(range(4001, 4900))
    monkeypatch.setattr(proc, "descriptors", lambda pid: next(counts))
    for _ in range(100):
        fleet.round()
    (said,) = [line for line in fleet.said if "LimitNOFILE" in line]
    assert said.startswith("LimitNOFILE of pilot-rendezvous.service: more than 80% of 5000: ")
    assert fleet.status()["last_error"]["text"] == said


def test_descriptors_are_counted() -> None:
    before = proc.descriptors(os.getpid())
    assert before
    with Path("/dev/null").open(encoding="ascii"):
        assert proc.descriptors(os.getpid()) == before + 1
    with pytest.raises(ProcessLookupError):
        proc.descriptors(1 << 30)
