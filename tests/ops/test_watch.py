"""`watch`: alerts, events, and silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lab.cloud.web import Request, Response
from ops import plan as plans
from ops import run, watch
from ops.fleet import Fleet, Instance, listen
from ops.registry_counts import RegistryCounts
from startup.node.machine.state_disk import Usage
from startup.node.pressure.sampler import Sample
from startup.node.report.status import RollStatus, ScriptStatus, document, encode
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.simulated import BUCKET, RENDEZVOUS, Simulated, rendezvous_spec, swarm_spec
from tests.startup import facts

NOW = 1_780_000_000.0
LIMITS = watch.Limits()
PORTS = frozenset(range(10_001, 10_101))


def fleet(*, registry: int | None = 200, **changes: Any) -> Fleet:
    """Two VMs of 100 agents; `changes` are of the first one's facts."""
    vms = []
    for name, more in (("swarm-1", changes), ("swarm-2", {})):
        instance = Instance(
            name=name,
            zone="z",
            state="RUNNING",
            machine="m",
            metadata={"pilot-role": "swarm", "pilot-spec": '{"agents": 100}'},
        )
        given = {
            "vm": name,
            "now": NOW,
            "goal": dict.fromkeys(PORTS, "v-old"),
            "view": facts.View(ready=PORTS, variant=dict.fromkeys(PORTS, "v-old")),
        }
        vms.append(listen(instance, encode(document(facts.swarm(**given | more))), NOW))
    counted = RegistryCounts(online=registry, problem="" if registry is not None else "down")
    return Fleet(name="f", project="p", time=NOW, vms=tuple(vms), registry=counted)


def running(count: int) -> dict[str, Any]:
    ready = frozenset(sorted(PORTS)[:count])
    return {"view": facts.View(ready=ready, variant=dict.fromkeys(ready, "v-old"))}


def memory(**changes: Any) -> dict[str, Any]:
    return {
        "sample": replace(Sample(total=100 << 30, available=50 << 30, agent_limit=1), **changes)
    }


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, []),
        ({"registry": 190}, []),
        ({"registry": 189}, ["fleet/online"]),
        ({"registry": None}, ["registry/down"]),
        (running(88), ["fleet/running"]),
        (memory(available=19 << 30), ["swarm-1/memory"]),
        (memory(available=20 << 30), []),
        (memory(growth=100 << 20), []),
        (memory(growth=101 << 20), ["swarm-1/leak"]),
        (memory(leak="leaks"), ["swarm-1/leak"]),
        ({"ghosts": ("startup-script",)}, ["swarm-1/ghost"]),
        ({"roll": RollStatus(state="halted")}, ["swarm-1/roll"]),
        ({"project_script": ScriptStatus(expected="x", state="foreign")}, ["swarm-1/script"]),
        ({"project_script": ScriptStatus(expected="x", state="failed")}, ["swarm-1/script"]),
        ({"project_script": ScriptStatus(expected="x", state="waiting", turn=9.0)}, []),
        ({"now": NOW - 200}, ["swarm-1/silent"]),
    ],
)
def test_alerts_of_a_look(changes: dict[str, Any], keys: list[str]) -> None:
    assert list(watch.alerts(fleet(**changes), LIMITS)) == keys


def test_failing_agents_are_an_alert() -> None:
    view = facts.View(
        ready=PORTS - {10_001},
        variant=dict.fromkeys(PORTS, "v-old"),
        trouble={10_001: facts.Trouble(failures=4, until=500.0)},
    )
    assert watch.alerts(fleet(view=view), LIMITS) == {"swarm-1/failed": "1 agents fail"}


def test_a_state_disk_that_is_nearly_full_is_an_alert() -> None:
    size = 10 << 30
    for free, expected in ((size, set()), (size // 10, set()), (size // 10 - 1, {"swarm-1/disk"})):
        usage = Usage(device=size, size=size, free=free)
        assert set(watch.alerts(fleet(disk=usage), LIMITS)) == expected
    found = watch.alerts(fleet(disk=Usage(device=size, size=size, free=0)), LIMITS)
    assert "100% of its state disk's 10.0 GiB is used: raise `diskGb`" in found["swarm-1/disk"]
    # A VM with the last commit's program says nothing of it.
    assert watch.alerts(fleet(disk=Usage()), LIMITS) == {}


def falls(before: Fleet, now: Fleet, standing: dict[str, str]) -> dict[str, str]:
    return watch.falls(before, now, LIMITS, standing)


def test_agents_that_vanish_from_one_vm_are_an_alert_until_they_are_back() -> None:
    whole, less, some = fleet(), fleet(**running(90)), fleet(**running(94))
    found = falls(whole, less, {})
    assert found == {"swarm-1/agents": "100 agents ran, now 90 of 100"}
    assert falls(less, less, found) == found, "it goes on while they are gone"
    assert falls(less, some, found) == found, "nearly back is not back"
    assert falls(some, whole, found) == {}
    assert falls(less, less, {}) == {}, "a fleet that starts is no alert"
    assert falls(whole, fleet(**running(95)), {}) == {}


def test_planned_changes_are_no_alert() -> None:
    drained = fleet(**running(10), drained=True, goal={})
    assert falls(fleet(), drained, {}) == {}


def test_a_vm_that_is_gone_is_an_alert_until_it_is_back() -> None:
    whole = fleet()
    one = replace(whole, vms=whole.vms[1:])
    found = falls(whole, one, {})
    assert list(found) == ["swarm-1/gone"]
    assert falls(one, one, found) == found
    assert falls(one, whole, found) == {}


def test_events_are_changes() -> None:
    began = list(watch.events({}, {"a/b": "bad"}, NOW))
    assert [event.line() for event in began] == ["2026-05-28T20:26:40Z ALERT a/b: bad"]
    assert list(watch.events({"a/b": "bad"}, {"a/b": "worse"}, NOW)) == []
    over = list(watch.events({"a/b": "bad"}, {}, NOW))
    assert [event.line() for event in over] == ["2026-05-28T20:26:40Z over  a/b: bad"]


def test_once_for_cron(ops: Ops, simulated: Simulated) -> None:
    quiet = ops("watch", "--once")
    assert (quiet.code, quiet.out) == (0, "")
    simulated.client.do("POST", f"{ZONE}/instances/swarm-2/stop")
    simulated.tick()
    found = ops("watch", "--once", "--json")
    assert found.code == 1
    keys = [json.loads(line)["key"] for line in found.out.splitlines()]
    assert keys == ["fleet/online", "fleet/running", "swarm-2/off"]
    assert ops("watch", "--once", "--threshold", "0.4").out.count("ALERT") == 1


def test_a_deleted_vm_is_an_alert_in_a_single_look(ops: Ops, simulated: Simulated) -> None:
    simulated.client.do("DELETE", f"{ZONE}/instances/swarm-2")
    del simulated.nodes["swarm-2"]
    simulated.dead = 200
    simulated.tick()
    found = ops("watch", "--once")
    assert found.code == 1
    assert "ALERT fleet/missing: 200 of 380 agents that the rendezvous was told of" in found.out
    assert "ALERT fleet/running: 180 of 380 agents run" in found.out


def test_a_hold_without_an_open_plan_is_an_alert(ops: Ops, simulated: Simulated) -> None:
    """However small the VM is; that of a restart which goes on is none."""
    node = simulated.nodes["swarm-3"]
    node.agents = node.running = 10
    for name, agents in (("swarm-3", 10), (RENDEZVOUS, 330)):
        given = swarm_spec(name, agents) if name != RENDEZVOUS else rendezvous_spec(agents)
        simulated.set_metadata(name, {"pilot-spec": json.dumps(given)})
    hold = {"schema": 1, "hold": True, "by": "someone@there", "at": "2026-06-01T10:00:00Z"}
    simulated.client.upload(BUCKET, "orders/swarm-3.json", json.dumps(hold).encode())
    simulated.tick()
    assert node.running == 0
    found = ops("watch", "--once")
    (line,) = found.out.splitlines()
    assert found.code == 1
    assert "ALERT swarm-3/held: it is held by an order of someone@there (2026-06-01T10:00" in line
    assert "`ops undrain swarm-3` ends that" in line
    for held, code in (((), 1), (("swarm-3",), 0)):
        plan = run.new_plan(plans.RESTART, ["swarm-3"], by="t", held=held)
        simulated.client.upload(BUCKET, plans.OBJECT, plan.encode())
        assert ops("watch", "--once").code == code
    over = replace(plan, step=plans.DONE)
    simulated.client.upload(BUCKET, plans.OBJECT, over.encode())
    assert ops("watch", "--once").code == 1
    simulated.client.upload(BUCKET, plans.OBJECT, b"{")
    assert "nobody can tell by whom: orders/_plan.json" in ops("watch", "--once").out
    node.held_here = True
    del hold["hold"]
    simulated.client.upload(BUCKET, "orders/swarm-3.json", json.dumps(hold).encode())
    assert ops("watch", "--once").out == "", "it has not read yet that nobody holds it"
    simulated.tick()
    assert "swarm-3/held: it is held on the VM itself" in ops("watch", "--once").out


def test_the_loop(ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM dies, agents are lost, the API is away: a line at the beginning and one at the end."""
    answer = simulated.serving.lab.answer

    def away(_: Request) -> Response:
        return Response(body={"error": {"code": 400, "message": "away"}}, status=400)

    def api(reply: Callable[[Request], Response]) -> None:
        simulated.serving.lab.answer = reply  # type: ignore[method-assign,assignment]

    node = simulated.nodes["swarm-2"]

    def lose() -> None:
        node.agents = node.running = 100
        simulated.tick()

    def mend() -> None:
        node.agents = node.running = 200
        simulated.tick()

    def stop() -> None:
        simulated.client.do("POST", f"{ZONE}/instances/swarm-3/stop")
        simulated.tick()

    def end() -> None:
        raise KeyboardInterrupt

    steps = iter([lambda: None, lose, mend, stop, lambda: api(away), lambda: api(answer), end])
    monkeypatch.setattr("time.sleep", lambda _: next(steps)())
    found = ops("watch", "--threshold", "0.7")
    assert found.code == 130
    lines = [line.split(" ", 1)[1] for line in found.out.splitlines()]
    assert lines == [
        "ALERT swarm-2/agents: 200 agents ran, now 100 of 200",
        "over  swarm-2/agents: 200 agents ran, now 100 of 200",
        "ALERT swarm-3/off: it is TERMINATED",
        "ALERT ops/blind: the VMs of project p1: 400 (away)",
        "over  ops/blind: the VMs of project p1: 400 (away)",
    ]


def test_a_registry_that_is_down(ops: Ops, simulated: Simulated) -> None:
    simulated.nodes[RENDEZVOUS].away = 10**6
    simulated.tick()
    found = ops("watch", "--once")
    assert found.code == 1
    assert "registry/down" in found.out
