"""`ops roll`: a roll that waits, halted, or is not heard of."""

from __future__ import annotations

import json

import pytest

from startup.node.rollout.roll_state import Rejected
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.runners import SWARM
from tests.ops.simulated import (
    NEW,
    OLD,
    RENDEZVOUS,
    Simulated,
    rendezvous_spec,
    rolling,
    swarm_spec,
)


def declare_another_release(simulated: Simulated) -> None:
    """For all swarm VMs; their rolls wait for a `go`."""
    release = {"version": "1.19.0", "daemon": {"object": "x", "sha256": NEW}}
    for name in SWARM:
        simulated.nodes[name].roll = rolling(state="waiting", of=3)
        declared = swarm_spec(name, simulated.nodes[name].agents, release=release)
        simulated.set_metadata(name, {"pilot-spec": json.dumps(declared)})
    simulated.tick()


def test_go_continues_a_roll_that_waits(ops: Ops, simulated: Simulated) -> None:
    declare_another_release(simulated)
    seen = ops("roll", "--json")
    assert seen.code == 1
    assert [(each["vm"], each["state"]) for each in seen.json["rolls"]] == [
        (RENDEZVOUS, "none"),
        *((name, "waiting") for name in SWARM),
    ]
    with simulated.running():
        assert ops("roll", "go", "--vm", "swarm-3").code == 0
        assert [simulated.nodes[name].release for name in SWARM] == [NEW, OLD, OLD]
        assert ops("roll", "go").code == 0
    assert [simulated.nodes[name].release for name in SWARM] == [NEW, NEW, NEW]


def test_reject_ends_a_halted_roll(ops: Ops, simulated: Simulated) -> None:
    rejected = Rejected(version="1.19.0", sha256=NEW, reason="exited", time=0)
    node = simulated.nodes["swarm-1"]
    node.roll = rolling(state="halted", reason="500 exited", rejected=[rejected])
    simulated.tick()
    looked = ops("roll")
    assert (looked.code, "500 exited" in looked.out) == (1, True)
    with simulated.running():
        done = ops("roll", "reject")
    assert done.code == 0, done
    assert node.release == OLD
    assert ops("roll", "perhaps").code == 2


@pytest.mark.parametrize("verdict", ["go", "reject"])
def test_a_halted_roll_of_the_rendezvous(ops: Ops, simulated: Simulated, verdict: str) -> None:
    release = {"version": "1.19.0", "rendezvous": {"object": "x", "sha256": NEW}}
    declared = {**rendezvous_spec(380), "release": release}
    simulated.set_metadata(RENDEZVOUS, {"pilot-spec": json.dumps(declared)})
    simulated.nodes[RENDEZVOUS].roll = rolling(state="halted", reason="its store is lost")
    simulated.tick()
    looked = ops("roll")
    assert (looked.code, "its store is lost" in looked.out) == (1, True)
    with simulated.running():
        done = ops("roll", verdict, "--vm", RENDEZVOUS)
    assert f"{RENDEZVOUS}: {'go on to' if verdict == 'go' else 'reject'} 1.19.0" in done.out
    assert simulated.order(RENDEZVOUS)["roll"]["verdict"] == verdict
    assert simulated.nodes[RENDEZVOUS].release == (NEW if verdict == "go" else OLD)
    assert [simulated.order(name) for name in SWARM] == [{}, {}, {}]


@pytest.mark.parametrize("command", [("go",), ("reject",), ("--follow",)])
def test_no_roll_waits_for_a_silent_vm(
    ops: Ops, simulated: Simulated, command: tuple[str, ...]
) -> None:
    declare_another_release(simulated)
    simulated.client.do("POST", f"{ZONE}/instances/swarm-3/stop")
    if command == ("--follow",):
        for name in SWARM[1:]:
            simulated.nodes[name].roll = rolling(state="halted")
    with simulated.running():
        done = ops("roll", *command, "--limit", "20")
    assert done.code == 1, "it is not rolled"
    assert "swarm-3 is left out: it is TERMINATED" in done.err
    assert simulated.order("swarm-3") == {}
    if command == ("go",):
        assert [simulated.nodes[name].release for name in SWARM] == [OLD, NEW, NEW]
