"""Orders: what is read, every problem at once, and which are in force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from startup.node.desired import orders
from startup.node.desired.ghost_scripts import ghosts, replaced
from startup.node.desired.json_reader import SpecError
from startup.node.desired.orders import Orders, ReleaseVerdict, Standing, follow, follow_here, parse
from startup.node.desired.sources import OrdersObject
from startup.node.machine import polling
from startup.node.machine.kernel_log import kernel_text
from startup.node.machine.paths import Paths
from startup.node.machine.polling import Reading

SHA = "ab" * 32


def problems(order: Any, role: str = "swarm") -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(json.dumps(order), role)
    return list(caught.value.problems)


def test_every_field() -> None:
    order = {
        "schema": 1,
        "hold": True,
        "restart": "2026-11-24T10:00:00Z",
        "clean": True,
        "roll": {"sha256": SHA, "verdict": "go", "id": "2"},
        "banner": "Back at noon.",
        "by": "anna@example.com",
        "at": "2026-11-24T10:00:00Z",
    }
    assert parse(json.dumps(order), "rendezvous") == Orders(
        hold=True,
        restart="2026-11-24T10:00:00Z",
        clean=True,
        roll=ReleaseVerdict(sha256=SHA, verdict="go", id="2"),
        banner="Back at noon.",
    )
    assert parse('{"schema": 1, "benchmarks": "pause"}', "swarm").pause_benchmarks
    assert parse('{"schema": 1, "benchmarks": "run"}', "swarm") == Orders()


def test_all_problems_at_once() -> None:
    order = {"schema": 1, "hold": 1, "restart": "a b", "clean": True, "roll": {}, "later": 0}
    assert sorted(problems(order)) == [
        "clean: is for the rendezvous only",
        "hold: must be true or false, is 1",
        'restart: must be [-0-9A-Za-z_.:]{1,64}, is "a b"',
        "roll.sha256: is missing",
        "roll.verdict: is missing",
    ]
    assert problems({"schema": 1, "clean": True}, "rendezvous") == [
        "clean: goes with a restart only: give it one"
    ]
    copy = "20261130T110000Z-95.json"
    found = parse(json.dumps({"schema": 1, "restart": "r", "restore": copy}), "rendezvous")
    assert found.restore == copy
    with_a_restart = ["restore: goes with a restart, and not with clean"]
    assert problems({"schema": 1, "restore": copy}, "rendezvous") == with_a_restart
    both = {"schema": 1, "restart": "r", "clean": True, "restore": copy}
    assert problems(both, "rendezvous") == with_a_restart
    elsewhere = {"schema": 1, "restart": "r", "restore": "../registry.json"}
    assert problems(elsewhere, "rendezvous")[0].startswith("restore: must be a copy's name")
    assert problems({"schema": 1, "banner": "a\nb"}, "rendezvous")[0].startswith("banner: ")
    assert problems({"schema": 2, "hold": True})[0].startswith("schema: is 2")


def test_unknown_fields_of_a_newer_ops_are_ignored() -> None:
    roll = {"sha256": SHA, "verdict": "go", "quietly": True}
    newer = {"schema": 1, "hold": True, "roll": roll, "later": {"x": 1}}
    found = parse(json.dumps(newer), "swarm")
    assert (found.hold, found.roll) == (True, ReleaseVerdict(sha256=SHA, verdict="go"))
    assert found.ignored == ("roll.quietly", "later")
    # What its writer says must not be passed over is refused by its name, and nothing else of it.
    for required in ("later", "roll.quietly"):
        assert problems({**newer, "requires": [required, "hold", "nowhere"]}) == [
            f"{required}: is not known to this version, and must not be ignored"
        ]
    assert problems({**newer, "requires": "later"})[0].startswith("requires: must be a list")
    assert parse(json.dumps({**newer, "requires": ["hold"]}), "swarm").hold


@given(st.text() | st.binary())
def test_any_text_is_orders_or_a_spec_error(text: str | bytes) -> None:
    with pytest.raises(SpecError):
        parse(text, "swarm")


def read(order: dict[str, Any], generation: str = "7") -> Reading[OrdersObject]:
    text = json.dumps({"schema": 1, **order})
    return Reading(state=polling.READ, value=OrdersObject(generation=generation, text=text))


def test_absent_unreachable_and_malformed_are_three_things() -> None:
    held = follow(Standing(), read({"hold": True, "restart": "r1"}), "swarm")
    assert (held.state, held.hold, held.restart, held.generation) == ("read", True, "r1", "7")
    # Another order without it is no other restart.
    assert follow(held, read({"hold": True}, "8"), "swarm").restart == "r1"
    away = follow(held, Reading(state=polling.UNREACHABLE, error="no route"), "swarm")
    assert (away.state, away.hold, away.error) == ("unreachable", True, "no route")
    broken = follow(held, read({"hold": 7}, "8"), "swarm")
    assert (broken.state, broken.hold, broken.generation) == ("malformed", True, "8")
    gone = follow(broken, Reading(state=polling.ABSENT), "swarm")
    assert (gone.state, gone.hold, gone.error, gone.restart) == ("absent", False, "", "r1")


def test_held_by_either_and_a_restart_is_one_of_either() -> None:
    standing = follow(Standing(), read({"restart": "r1"}), "swarm")
    here = follow_here(standing, '{"schema": 1, "hold": true, "restart": "h1"}', "swarm")
    assert here.hold
    assert here.restart != standing.restart
    after = follow_here(here, None, "swarm")
    assert not after.hold
    assert after.restart == here.restart
    bad = follow_here(here, "{", "swarm")
    assert bad.hold
    assert "not JSON" in bad.here_error


def test_remember_and_recall(tmp_path: Path) -> None:
    paths = Paths(root=tmp_path)
    paths.node_state.mkdir(parents=True)
    said: list[str] = []
    assert orders.recall(paths, "swarm", said.append) == Standing()
    standing = follow(Standing(), read({"hold": True, "restart": "r1"}), "swarm")
    standing = follow_here(standing, '{"schema": 1, "restart": "h1"}', "swarm")
    orders.remember(paths, standing)
    assert (paths.node_state / "orders.json").stat().st_mode & 0o777 == 0o600
    found = orders.recall(paths, "swarm", said.append)
    assert (found.hold, found.restart, found.state) == (True, "r1/h1", "unreachable")
    assert not said
    (paths.node_state / "orders.json").write_text("[]", encoding="utf-8")
    assert orders.recall(paths, "swarm", said.append) == Standing()
    assert "not known until the bucket answers" in said[0]


@pytest.mark.parametrize(("hold", "held"), [(True, True), (False, False), ("yes", False)])
def test_remembered_orders_that_are_not_understood_still_hold(
    tmp_path: Path, *, hold: object, held: bool
) -> None:
    paths = Paths(root=tmp_path)
    paths.node_state.mkdir(parents=True)
    said: list[str] = []
    text = json.dumps({"schema": 1, "hold": hold, "later": 1, "requires": ["later"]})
    orders.remember(paths, Standing(text=text, restarted="r1", restarted_here="h1"))
    found = orders.recall(paths, "swarm", said.append)
    assert (found.hold, found.restart) == (held, "r1/h1")
    assert "later: is not known to this version, and must not be ignored" in said[0]
    assert ("not held" in said[0]) == (not held)
    nested = Standing(text="[" * 100_000, restarted="r1")
    orders.remember(paths, nested)
    assert orders.recall(paths, "swarm", said.append).restart == "r1"
    (paths.node_state / "orders.json").write_text("[" * 100_000, encoding="ascii")
    assert orders.recall(paths, "swarm", said.append) == Standing()


def test_ghosts() -> None:
    ours = {"pilot-role": "", "pilot-spec": "", "enable-oslogin": "", "ssh-keys": ""}
    assert ghosts(ours, {"startup-script": "ours", "ssh-keys": ""}) == ()
    shared = {"startup-script": "ours", "shutdown-script": "x", "osconfig-endpoint": "x"}
    assert ghosts({**ours, "user-data": "x", "startup-script": "x"}, shared) == (
        *("startup-script", "user-data"),
        *("project/osconfig-endpoint", "project/shutdown-script"),
    )
    assert replaced({"startup-script-url": ""})
    assert not replaced({"shutdown-script": "", "user-data": ""})


def test_lines_of_the_kernel_log() -> None:
    record = b"6,1234,98765,-;oom-kill: task=pilot-daemon,pid=7\n SUBSYSTEM=memory\n"
    assert kernel_text(record) == "oom-kill: task=pilot-daemon,pid=7"
    assert kernel_text(b"nothing of the kind") == ""
