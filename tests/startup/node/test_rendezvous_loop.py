"""The turn of the rendezvous' loop, and its status."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab.standin.build import archive
from startup.node.machine.paths import Paths
from startup.node.rendezvous import registry_copies, runs
from startup.node.rendezvous.access_tokens import Tokens
from startup.node.rendezvous_loop import RendezvousLoop
from startup.node.rollout import roll_state
from tests.startup.node.rendezvous.fleet import Fleet, aged


def test_a_missing_accepted_release_is_in_the_status(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    assert fleet.status()["last_error"] is None
    problem = "releases/pilot-rendezvous: no answer from the bucket"
    fleet.it.fetcher._problems[fleet.good] = problem
    fleet.round()
    assert fleet.status()["last_error"]["text"] == problem


def test_releases_that_nobody_needs_are_removed(fleet: Fleet) -> None:
    gone = [fleet.binary(b"older %d" % number) for number in range(3)]
    fleet.until(fleet.serving, "serving")
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "on trial")
    assert aged(fleet) == {*gone, fleet.good, new}
    fleet.it.at_once("prune")
    fleet.round()
    # What is on trial, and the way back from it.
    assert aged(fleet) == {fleet.good, new}
    accepted = roll_state.Release(version="2.0", sha256=new)
    fleet.until(lambda: fleet.it.accepted(fleet.spec) == accepted, "accepted")
    newer = fleet.declare_binary(archive() + b"\n\n", "3.0")
    fleet.until(lambda: fleet.it.accepted(fleet.spec).sha256 == newer, "the next one accepted")
    aged(fleet)
    fleet.it.at_once("prune")
    fleet.round()
    # The one before, as on swarm VMs, and no more.
    assert aged(fleet) == {new, newer}
    fleet.now += 61
    late = fleet.binary(b"late")
    aged(fleet)
    fleet.round()
    assert late not in aged(fleet)


def test_a_roll_that_cannot_begin_holds_up_nothing_else(
    fleet: Fleet, refusing: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    refusing()
    fleet.follower.order(restart="r1")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    fleet.tokens = Tokens(values={"admin": "secret"})
    fleet.follower.declare(secrets={"admin": "projects/p/secrets/admin"})
    fleet.until(lambda: fleet.unit.starts == 3 and fleet.serving(), "a third start")
    saved: list[bool] = []
    monkeypatch.setattr(fleet.it.keeper, "save", lambda: saved.append(True))
    fleet.follower.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
    for _ in range(10):
        fleet.round()
    assert saved
    running = runs.running(fleet.paths)
    assert running is not None
    assert running.release == fleet.good
    assert fleet.status()["roll"]["state"] == "waiting"
    assert "No space left on device" in "\n".join(fleet.said)
    monkeypatch.undo()
    fleet.until(lambda: fleet.it.accepted(fleet.spec).sha256 == new, "the new release")


def test_copies_are_taken_also_where_other_steps_fail(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    fleet.it.keeper.save()
    for path in (fleet.paths.registry / "copies").iterdir():
        path.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "roll.json")

    monkeypatch.setattr(RendezvousLoop, "_advance", full)
    fleet.now += 300
    fleet.round()
    assert fleet.it.last_error is not None
    assert "roll.json" in fleet.it.last_error.text
    assert registry_copies.copies(fleet.paths)[-1].keys == 5


def test_a_registry_that_cannot_be_read_is_named(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")

    def broken(paths: Paths) -> list[registry_copies.Copy]:
        raise OSError(5, "Input/output error", str(paths.registry))

    monkeypatch.setattr(registry_copies, "copies", broken)
    assert "Input/output error" in fleet.status()["last_error"]["text"]


def test_a_number_of_the_kernel_that_is_not_there_is_told(fleet: Fleet) -> None:
    fleet.it.check_kernel()
    assert fleet.it.last_error is None
    written = {
        "/proc/sys/kernel/pid_max": "32768\n",
        "/etc/sysctl.d/60-pilot.conf": "# Ours.\nkernel.pid_max = 4194304\n",
        "/dev/console": "",
    }
    for name, text in written.items():
        path = fleet.paths.at(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    fleet.it.check_kernel()
    problem = (
        "kernel: kernel.pid_max is 32768, not 4194304:"
        " `sysctl --load=/etc/sysctl.d/60-pilot.conf` sets it, or says why not"
    )
    assert fleet.status()["last_error"]["text"] == problem
    assert fleet.paths.at("/dev/console").read_bytes() == f"pilot: {problem}\r\n".encode()
    # It is the script's to set.
    assert fleet.paths.at("/proc/sys/kernel/pid_max").read_text() == "32768\n"
