"""`ops reboot`: VM by VM, starts that Google refuses, and giving up."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lab.cloud.errors import OperationError
from lab.machines.driver import Machine
from ops import plan as plans
from ops import run
from ops.errors import (
    DeniedError,
    UnfinishedError,
)
from ops.plan import Await, Give, Go, Power, Totals, decide
from startup.node.report.status import encode
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.runners import SWARM, Interrupted, begin, carry_out, runner
from tests.ops.simulated import (
    Simulated,
)


def test_a_reboot_is_vm_by_vm(simulated: Simulated) -> None:
    said: list[str] = []
    off: list[list[str]] = []
    nodes = [simulated.nodes[name] for name in SWARM]
    simulated.after_tick = lambda: off.append([node.name for node in nodes if node.running == 0])
    driver = runner(simulated, said)
    carry_out(driver, *begin(driver, plans.REBOOT))
    assert all(len(names) <= 1 for names in off)
    assert [node.boot for node in nodes] == [2, 2, 2]
    assert [node.running for node in nodes] == [60, 120, 200]
    assert said.index("swarm-3: shut down") < said.index("swarm-1: drain")


def test_a_reboot_interrupted_while_a_vm_is_off(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.REBOOT)
    stop = driver.cloud.stop

    def cut(zone: str, vm: str) -> None:
        stop(zone, vm)
        raise Interrupted

    driver.cloud.stop = cut  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        carry_out(driver, plan, generation)
    assert simulated.instance("swarm-3")["status"] == "TERMINATED"
    other = runner(simulated, [])
    found = other.plan()
    assert found[0] is not None
    carry_out(other, found[0], found[1])
    assert [simulated.nodes[name].boot for name in SWARM] == [2, 2, 2]


def refuse_starts(simulated: Simulated, code: str, times: int, status: int = 503) -> list[str]:
    """Refuse so many starts of VMs in the operation, as Google does; the VMs refused so far."""
    machines, refused = simulated.serving.lab.driver, list[str]()
    start = machines.start

    def full(machine: Machine) -> None:
        if len(refused) < times:
            refused.append(machine.path.rsplit("/", 1)[-1])
            raise OperationError(code, "The zone does not have enough resources available.", status)
        start(machine)

    machines.start = full  # type: ignore[method-assign]
    return refused


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", "start swarm-3: the zone has no such machine free now"),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "has no such machine free now"),
        ("STOCKOUT", "has no such machine free now"),
        ("QUOTA_EXCEEDED", "the project's quota is used up"),
        ("RATE_LIMIT_EXCEEDED", "quota of requests is used up"),
        ("RESOURCE_NOT_READY", "busy with something else"),
        ("INTERNAL_ERROR", "503 (INTERNAL_ERROR: The zone"),
    ],
)
def test_a_start_refused_for_now_is_retried(simulated: Simulated, code: str, words: str) -> None:
    said: list[str] = []
    driver = runner(simulated, said)
    plan = begin(driver, plans.REBOOT, ["swarm-3", "swarm-1"])
    refused = refuse_starts(simulated, code, 5)
    assert carry_out(driver, *plan).is_over
    assert len(refused) == 5
    lines = [line for line in said if words in line]
    assert len(lines) == 1
    assert lines[0].endswith("trying again")
    assert [simulated.nodes[name].boot for name in ("swarm-3", "swarm-1")] == [2, 2]


def test_a_lasting_stock_out_ends_it_at_the_limit_and_it_resumes(
    simulated: Simulated,
) -> None:
    driver = runner(simulated, [], limit=5.0)
    plan, generation = begin(driver, plans.REBOOT, ["swarm-3", "swarm-1"])
    refused = refuse_starts(simulated, "ZONE_RESOURCE_POOL_EXHAUSTED", 1_000)
    with pytest.raises(
        UnfinishedError, match=r"no such machine free .*ops reboot --resume` continues"
    ):
        carry_out(driver, plan, generation)
    assert set(refused) == {"swarm-3"}
    assert simulated.instance("swarm-3")["status"] == "TERMINATED"
    assert simulated.nodes["swarm-1"].boot == 1, "no second one is shut down"
    with pytest.raises(UnfinishedError, match="no such machine free"):
        driver.abandon()
    refused += ["room is made"] * 1_000
    found = driver.plan()
    assert found[0] is not None
    assert carry_out(driver, found[0], found[1]).is_over
    assert [simulated.nodes[name].boot for name in ("swarm-3", "swarm-1")] == [2, 2]


def test_a_start_refused_for_good_ends_it_at_once(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.REBOOT, ["swarm-3"])
    refused = refuse_starts(simulated, "CONDITION_NOT_MET: constraints/compute.x", 1_000, 412)
    with pytest.raises(DeniedError, match=r"policy constraints/compute[.]x forbids it"):
        carry_out(driver, plan, generation)
    assert len(refused) == 1


def test_the_command_reports_a_stock_out(ops: Ops, simulated: Simulated) -> None:
    refuse_starts(simulated, "ZONE_RESOURCE_POOL_EXHAUSTED", 1_000)
    with simulated.running():
        found = ops("reboot", "swarm-3", "--yes", "--limit", "1")
    assert (found.code, found.err.count("\n")) == (4, 1)
    assert "the zone has no such machine free now" in found.err
    assert "`ops reboot --resume` continues later" in found.err


def test_an_abandoned_reboot_leaves_no_vm_off(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.REBOOT, ["swarm-3", "swarm-1"])
    simulated.client.do("POST", f"{ZONE}/instances/swarm-2/stop")
    stop = driver.cloud.stop

    def cut(zone: str, vm: str) -> None:
        stop(zone, vm)
        raise Interrupted

    driver.cloud.stop = cut  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        carry_out(driver, plan, generation)
    driver.abandon()
    assert [simulated.instance(name)["status"] for name in SWARM] == [
        "RUNNING",
        "RUNNING",
        "TERMINATED",  # not by the plan
    ]
    assert "hold" not in simulated.order("swarm-3")


def test_a_reboot_abandoned_while_a_vm_shuts_down(simulated: Simulated) -> None:
    off = threading.Event()
    machines = simulated.serving.lab.driver
    stop = machines.stop

    def slow(machine: Machine) -> None:
        off.wait(30)
        stop(machine)

    machines.stop = slow  # type: ignore[method-assign]

    def cut(zone: str, vm: str) -> None:
        assert simulated.client.call("POST", f"{ZONE}/instances/{vm}/stop").status == 200
        raise Interrupted

    def pause(_: float) -> None:
        assert simulated.instance("swarm-3")["status"] == "STOPPING"
        off.set()
        while simulated.instance("swarm-3")["status"] == "STOPPING":
            simulated.tick()

    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.REBOOT, ["swarm-3"])
    driver.cloud.stop = cut  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        carry_out(driver, plan, generation)
    runner(simulated, [], pause=pause).abandon()
    assert off.is_set()
    assert simulated.instance("swarm-3")["status"] == "RUNNING"
    assert "hold" not in simulated.order("swarm-3")


def test_the_moves_of_a_reboot(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan = run.new_plan(plans.REBOOT, ["swarm-3"], by="t")
    totals = Totals(online=380, running=380)

    def move() -> Any:
        return decide(plan, driver.see(driver.look(), ["swarm-3"]), totals)

    first = move()
    assert isinstance(first, Go)
    plan = first.plan
    assert plan.boots == {"swarm-3": "boot-1"}
    assert plan.held == ("swarm-3",)
    assert move() == Give(vm="swarm-3", changes={"hold": True}, why="drain")
    driver.orders.give("swarm-3", {"hold": True})
    assert isinstance(move(), Await)
    simulated.tick()
    simulated.tick()
    assert move() == Power(vm="swarm-3", verb="stop")
    driver.cloud.stop("us-central1-a", "swarm-3")
    assert move() == Power(vm="swarm-3", verb="start")
    # On a real machine a while passes between its last word and its next start.
    node = simulated.nodes["swarm-3"]
    simulated.publish("swarm-3", encode(node.document(380) | {"time": "2026-01-01T00:00:00Z"}))
    driver.cloud.start("us-central1-a", "swarm-3")
    assert isinstance(move(), Await), "what the boot before left is no news"
    simulated.tick()
    assert move() == Give(vm="swarm-3", changes={"hold": None}, why="start")
