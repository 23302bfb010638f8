"""A new binary on trial: accepted, or back to the old one and its registry."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from lab.standin.build import archive
from lab.standin.state import Node, State, sealed
from startup.node.desired.orders import REJECT, Orders, ReleaseVerdict
from startup.node.rendezvous import registry_copies, registry_file, trials
from startup.node.rollout import roll_state
from tests.startup.node.rendezvous.fleet import BAD, Fleet, back, emptied, emptying, rejected


def test_a_good_binary_is_accepted(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(
        lambda: (
            fleet.it.roll is not None
            and fleet.it.roll.accepted == roll_state.Release(version="2.0", sha256=new)
        ),
        "the new binary accepted",
    )
    assert fleet.serving()
    assert fleet.health().total == 5
    assert os.readlink(fleet.paths.opt / "current").endswith(new)  # noqa: PTH115
    assert fleet.unit.starts == 2


@pytest.mark.parametrize("how", BAD)
def test_a_bad_binary_goes_back_and_stays_rejected(fleet: Fleet, how: str) -> None:
    fleet.until(fleet.serving, "serving")
    known = fleet.register(8)
    good = fleet.paths.opt / "releases" / fleet.good / "pilot-rendezvous"
    store = fleet.paths.registry / registry_file.NAME
    content = BAD[how] or f'#!/bin/sh\nrm -f {store}\nexec {good} "$@"\n'.encode()
    fleet.declare_binary(content, "2.0")
    fleet.hurried = how == "hangs"
    fleet.until(lambda: rejected(fleet), "rejected")
    fleet.hurried = False
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 8
    read = json.loads(store.read_bytes())["pub_key_idx"]
    assert {key: read.get(key) for key in known} == known
    starts = fleet.unit.starts
    # A reboot: what was rejected stays so.
    fleet.unit.end()
    (fleet.paths.run / "rendezvous-run.json").unlink()
    fleet.it = fleet.service()
    fleet.until(fleet.serving, "serving after a reboot")
    for _ in range(10):
        fleet.round()
    assert fleet.unit.starts == starts + 1
    assert fleet.status()["roll"]["state"] == "halted"


@pytest.mark.parametrize("when", ["before it is rejected", "once it is rejected"])
def test_a_power_off_hides_no_emptied_store(fleet: Fleet, when: str) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(8)
    fleet.declare_binary(emptying(fleet), "2.0")
    if when == "once it is rejected":
        fleet.until(lambda: rejected(fleet), "rejected")
    else:
        fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    emptied(fleet)
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 8
    assert not (fleet.paths.node_state / "trial.json").exists()


def test_a_restart_of_pilot_node_hides_no_emptied_store(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(8)
    fleet.declare_binary(emptying(fleet), "2.0")
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    fleet.until(fleet.health_answers, "an answer")
    store = fleet.paths.registry / registry_file.NAME
    store.write_bytes(sealed(State(started=time.time()).snapshot()))
    fleet.it = fleet.service()
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 8


@pytest.mark.parametrize("how", ["timer", "maintenance", "restart of pilot-node", "reboot"])
@pytest.mark.parametrize("what", ["another format", "fewer keys"])
def test_nothing_is_copied_in_a_trial(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    """The way back is the store as it was before, whatever the new binary saved in between."""
    fleet.until(fleet.serving, "serving")
    known = fleet.register(10)
    fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "on trial")
    before = [copy.name for copy in registry_copies.copies(fleet.paths)]
    assert before
    # What it makes of the store, and the log that it leaves.
    store = fleet.paths.registry / registry_file.NAME
    log = fleet.paths.registry / registry_file.LOG
    if what == "another format":
        content = store.read_bytes().replace(b'"version":1', b'"version":2', 1)
        document = content[: content.rindex(b',"checksum"')] + b"}"
        content = document[:-1] + b',"checksum":"' + hashlib.sha256(document).hexdigest().encode()
        content += b'"}'
    else:
        lost = State(started=time.time())
        for number, key in enumerate(list(known)[:6], 1):
            lost.add(
                Node(
                    id=number,
                    key=key,
                    owner=f"a-{number}@x.invalid",
                    address="10.0.0.2:1",
                    version="2.0",
                    created=time.time(),
                    last_seen=time.time(),
                )
            )
        content = sealed(lost.snapshot())
    temporary = store.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(store)
    log.write_bytes(b"what it did since")
    saved = registry_file.examine(store)
    assert saved is not None
    assert (saved.version, saved.keys) == ((2, 10) if what == "another format" else (1, 6))
    if how == "timer":
        fleet.it.at_once("copy")
        fleet.round()
    elif how == "maintenance":
        # What runs would save; the file is to stay as it was "left".
        with monkeypatch.context() as patched:
            patched.setattr("startup.node.rendezvous.registry_keeper.post", lambda *_: 200)
            fleet.follower.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
            fleet.round()
    elif how == "restart of pilot-node":
        fleet.it = fleet.service()
        fleet.round()
    else:
        fleet.unit.end()
        (fleet.paths.run / "rendezvous-run.json").unlink()
        fleet.it = fleet.service()
        fleet.it.roll = roll_state.recall(fleet.paths, print)
        fleet.it.registry.copy()
    assert [copy.name for copy in registry_copies.copies(fleet.paths)] == before
    # It is killed, for it would save what it knows, and rejected.
    fleet.unit.end()
    sha256 = fleet.spec.binary.sha256
    fleet.follower.standing = replace(
        fleet.follower.standing, orders=Orders(roll=ReleaseVerdict(sha256=sha256, verdict=REJECT))
    )
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 10
    read = json.loads(store.read_bytes())["pub_key_idx"]
    assert {key: read.get(key) for key in known} == known
    assert not log.exists()
    assert any(
        name.startswith(registry_file.LOG) for name in registry_copies.set_aside_names(fleet.paths)
    )
    # And then they are again.
    fleet.register(1, first=20)
    fleet.it.keeper.save()
    assert registry_copies.copies(fleet.paths)[-1].keys == 11


def test_a_trial_goes_back_to_the_registry_before_it_and_no_further(fleet: Fleet) -> None:
    """A registry that has started empty is not the release's fault, nor mended by the way back."""
    fleet.until(fleet.serving, "serving")
    fleet.register(9)
    fleet.it.keeper.save()
    fleet.unit.end()
    store = fleet.paths.registry / registry_file.NAME
    store.write_bytes(sealed(State(started=time.time()).snapshot()))
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "started empty")
    fleet.register(2, first=20)
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(lambda: fleet.unit.starts == 3, "on trial")
    assert json.loads((fleet.paths.node_state / "trial.json").read_bytes())["keys"] == 2
    fleet.until(
        lambda: rejected(fleet) or fleet.it.accepted(fleet.spec).sha256 == new, "the end of it"
    )
    assert not rejected(fleet)
    assert fleet.health().total == 2


def test_there_is_no_trial_without_a_copy(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "copies")

    monkeypatch.setattr(registry_copies, "take_copy", full)
    fleet.declare_binary(archive() + b"\n", "2.0")
    for _ in range(10):
        fleet.round()
    assert fleet.unit.starts == 1
    assert fleet.unit.wanted
    assert not (fleet.paths.node_state / "trial.json").exists()
    assert not any("is stopped" in line for line in fleet.said)
    assert "No space left" in str(fleet.status()["last_error"])
    monkeypatch.undo()
    fleet.now += 60
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    assert registry_copies.copies(fleet.paths)[-1].keys == 5


def test_a_copy_that_came_to_harm_is_passed_over_on_the_way_back(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    for count, first in ((8, 0), (1, 8)):
        fleet.register(count, first)
        fleet.it.keeper.save()
    newest = fleet.paths.registry / "copies" / registry_copies.copies(fleet.paths)[-1].name
    newest.write_bytes(b"{")
    (fleet.paths.node_state / "trial.json").write_text('{"release": "another", "keys": 9}')
    emptied(fleet)
    fleet.until(fleet.serving, "serving")
    assert fleet.health().total == 8


def test_a_trial_that_was_accepted_is_over(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    record = fleet.paths.node_state / "trial.json"
    fleet.until(record.exists, "what is tried, on disk")
    assert fleet.unit.starts == 1
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    assert json.loads(record.read_bytes()) == {"keys": 5, "release": new}
    fleet.until(lambda: not record.exists(), "the end of the trial")
    assert fleet.it.roll is not None
    assert fleet.it.roll.accepted == roll_state.Release(version="2.0", sha256=new)


def test_the_way_back_needs_no_disk(
    fleet: Fleet, refusing: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    bad = fleet.declare_binary(BAD["exits"], "2.0")
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    refusing()
    fleet.until(lambda: back(fleet), "back on the old binary")
    assert fleet.health().total == 5
    monkeypatch.undo()
    fleet.round()
    assert bad in {each.sha256 for each in roll_state.recall(fleet.paths, print).rejected}


def test_a_trial_that_has_begun_is_watched_without_a_disk(
    fleet: Fleet, refusing: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")
    new = fleet.declare_binary(archive() + b"\n", "2.0")
    fleet.until(lambda: fleet.unit.starts == 2, "on trial")
    refusing()
    fleet.until(lambda: fleet.status()["roll"]["state"] == "watching", "watched")
    fleet.until(lambda: fleet.it.accepted(fleet.spec).sha256 == new, "the new release")
    assert roll_state.recall(fleet.paths, print).state == "rolling"
    monkeypatch.undo()
    fleet.round()
    accepted = roll_state.recall(fleet.paths, print).accepted
    assert accepted is not None
    assert accepted.sha256 == new


def test_a_trial_that_cannot_be_kept_on_disk_does_not_begin(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.until(fleet.serving, "serving")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "trial.json")

    monkeypatch.setattr(trials, "begin", full)
    fleet.declare_binary(archive() + b"\n", "2.0")
    for _ in range(10):
        fleet.round()
    assert fleet.unit.starts == 1
    assert fleet.unit.wanted
    assert "trial.json" in str(fleet.status()["last_error"])
