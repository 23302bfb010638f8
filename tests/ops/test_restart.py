"""`restart`, `reboot`, `drain`, `roll`, `pause`: orders, and what they bring about."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from lab.cloud.errors import OperationError
from lab.cloud.web import Request, Response
from lab.machines.driver import Machine
from ops import plan as plans
from ops import run
from ops.errors import (
    ClashError,
    DeniedError,
    MissingError,
    OpsError,
    StuckError,
    UnfinishedError,
    UnreachableError,
    UsageError,
)
from ops.google import Cloud, CloudAddress
from ops.orders import Order, OrdersBucket, changed
from ops.plan import Await, Give, Go, Power, RestartPlan, Totals, VmInPlan, decide
from startup.node.report.status import encode
from startup.node.rollout.roll_state import Rejected
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.simulated import (
    BUCKET,
    FLEET,
    NEW,
    OLD,
    RENDEZVOUS,
    Simulated,
    rendezvous_spec,
    rolling,
    swarm_spec,
)
from tests.startup import facts

SWARM = ("swarm-3", "swarm-1", "swarm-2")


class Interrupted(KeyboardInterrupt):
    """An operator's Ctrl-C."""


def runner(simulated: Simulated, said: list[str], **changes: Any) -> run.Runner:
    """A runner whose waiting is the fleet's working."""
    url = simulated.serving.url
    cloud = Cloud(CloudAddress(project="p1", compute=url, storage=url, monitoring=url))
    given: dict[str, Any] = {
        "orders": OrdersBucket(cloud=cloud, bucket=BUCKET, by="tester"),
        "fleet": FLEET,
        "dashboard": "",
        "say": said.append,
        "pause": lambda _: simulated.tick(),
        "clock": lambda: float(simulated.ticks),
        "limit": 60.0,
    }
    return run.Runner(cloud=cloud, **{**given, **changes})


def begin(driver: run.Runner, kind: str, vms: Iterable[str] = SWARM, **more: Any) -> Any:
    plan = run.new_plan(kind, vms, by="tester", **more)
    return plan, driver.begin(plan, driver.look())


def carry_out(driver: run.Runner, plan: RestartPlan, generation: int) -> RestartPlan:
    return driver.carry_out(plan, generation, banner="planned", silence=True)


# The whole thing


def test_a_restart_drains_one_by_one_and_starts_the_smallest_first(simulated: Simulated) -> None:
    said: list[str] = []
    trace: list[tuple[int, ...]] = []
    nodes = [simulated.nodes[name] for name in SWARM]
    simulated.after_tick = lambda: trace.append(tuple(node.running for node in nodes))
    driver = runner(simulated, said)
    plan = carry_out(driver, *begin(driver, plans.RESTART, rendezvous=RENDEZVOUS))
    assert plan.is_over
    assert (0, 0, 0) in trace
    low = trace.index((0, 0, 0))
    # Never two at a time on the way.
    for row in trace:
        assert sum(0 < count < node.agents for count, node in zip(row, nodes, strict=True)) <= 1
    assert [node.running for node in nodes] == [60, 120, 200]
    # Smallest first, on the way down and on the way up.
    for way, counts in ((trace, [0, 0, 0]), (trace[low:], [60, 120, 200])):
        there = [next(i for i, row in enumerate(way) if row[n] == counts[n]) for n in range(3)]
        assert there == sorted(there)
    assert simulated.nodes[RENDEZVOUS].restart == plan.id
    assert simulated.nodes[RENDEZVOUS].cleaned == 0
    assert simulated.order(RENDEZVOUS).get("banner") is None
    assert all("hold" not in simulated.order(name) for name in SWARM)
    assert said[-1] != "alerts sound again"  # there were none to silence


def test_clean_is_ordered_once_and_taken_back(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    carry_out(driver, *begin(driver, plans.RESTART, rendezvous=RENDEZVOUS, clean=True))
    assert simulated.nodes[RENDEZVOUS].cleaned == 1
    assert "clean" not in simulated.order(RENDEZVOUS)


@pytest.mark.parametrize("moment", [0, 3, 6, 9, 12, 14, 18])
def test_one_that_is_interrupted_anywhere_is_gone_on_with_from_anywhere(
    simulated: Simulated, moment: int
) -> None:
    """Whoever resumes knows nothing but the fleet and its bucket."""
    left = moment

    def interrupt(_: float) -> None:
        nonlocal left
        simulated.tick()
        if left == 0:
            raise Interrupted
        left -= 1

    said: list[str] = []
    driver = runner(simulated, said, pause=interrupt)
    with pytest.raises(Interrupted):
        carry_out(driver, *begin(driver, plans.RESTART, rendezvous=RENDEZVOUS))
    assert "banner" not in simulated.order(RENDEZVOUS), "the silence has ended"
    other = runner(simulated, said)
    plan, generation = other.plan()
    assert plan is not None
    assert not plan.is_over
    with pytest.raises(UsageError, match="unfinished"):
        begin(other, plans.RESTART)
    assert carry_out(other, plan, generation).is_over
    assert [simulated.nodes[name].running for name in SWARM] == [60, 120, 200]
    assert simulated.nodes[RENDEZVOUS].restart == plan.id
    begin(other, plans.RESTART)


def test_two_that_go_on_at_once_are_one(simulated: Simulated) -> None:
    said: list[str] = []
    driver = runner(simulated, said)
    plan, generation = begin(driver, plans.RESTART)
    driver.keep(replace(plan, step=plans.START), generation)
    with pytest.raises(ClashError, match="somebody else works on this restart"):
        carry_out(driver, plan, generation)


def test_a_vm_that_does_not_drain_ends_it_with_a_sentence(simulated: Simulated) -> None:
    driver = runner(simulated, [], limit=20.0)
    plan, generation = begin(driver, plans.RESTART)
    simulated.nodes["swarm-1"].quiet = True
    with pytest.raises(UnfinishedError, match=r"swarm-1: drains.*ops restart --resume` continues"):
        carry_out(driver, plan, generation)
    assert simulated.order("swarm-2") == {}
    driver.abandon()
    assert simulated.order("swarm-3").get("hold") is None
    assert simulated.order("swarm-1").get("hold") is None
    begin(runner(simulated, []), plans.RESTART, ["swarm-3"])


FAILING = facts.View(
    ready=frozenset(range(10_002, 10_121)), trouble={10_001: facts.Trouble(failures=9, until=1e9)}
)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("silent", r"swarm-1: its status has no time.*--without"),
        ("held", r"swarm-1 is held by an order of tester.*`ops undrain swarm-1` first"),
        ("held here", r"swarm-1 is held on the VM itself.*`sudo pilot-node undrain` on it"),
        ("maintenance", r"swarm-1 is drained for its host's maintenance"),
        ("rolling", r"swarm-1 rolls a release"),
        ("failing", r"swarm-1: 1 agents fail.*--insist"),
        ("no registry", r"the registry does not serve.*\(--rendezvous\).*--insist"),
        ("rendezvous held", r"pilot-rendezvous is held.*do without --rendezvous"),
    ],
)
def test_what_stands_in_the_way_is_said_before_anything_is_done(
    simulated: Simulated, trouble: str, said: str
) -> None:
    driver = runner(simulated, [])
    node, rendezvous = simulated.nodes["swarm-1"], simulated.nodes[RENDEZVOUS]
    if trouble == "held":
        driver.orders.give("swarm-1", {"hold": True})
    elif trouble == "rendezvous held":
        driver.orders.give(RENDEZVOUS, {"hold": True})
    node.held_here = trouble == "held here"
    rendezvous.away = 2 if trouble == "no registry" else 0
    changes: dict[str, dict[str, Any]] = {
        "maintenance": {"drained": True},
        "failing": {"view": FAILING},
    }
    node.changes = changes.get(trouble, {})
    if trouble == "rolling":
        node.roll = rolling(state="watching")
    simulated.tick()
    if trouble == "silent":
        simulated.publish("swarm-1", '{"schema": 1}')
    more = {"rendezvous": RENDEZVOUS} if trouble == "rendezvous held" else {}
    with pytest.raises(StuckError, match=rf"no restart now:\n  {said}"):
        begin(driver, plans.RESTART, **more)
    assert driver.plan() == (None, 0)
    plan = run.new_plan(plans.RESTART, SWARM, by="t", **more)
    if "--insist" in said:
        driver.begin(plan, driver.look(), insist=True)
    else:
        with pytest.raises(StuckError):
            driver.begin(plan, driver.look(), insist=True)


def test_a_registry_that_is_down_is_restarted_where_that_is_asked(simulated: Simulated) -> None:
    simulated.nodes[RENDEZVOUS].away = 2
    simulated.tick()
    begin(runner(simulated, []), plans.RESTART, rendezvous=RENDEZVOUS)


def test_a_rendezvous_that_is_gone_is_said(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.RESTART, rendezvous=RENDEZVOUS)
    simulated.client.do("DELETE", f"{ZONE}/instances/{RENDEZVOUS}")
    with pytest.raises(OpsError, match=f"{RENDEZVOUS}: not there any more; end this with --aband"):
        carry_out(driver, plan, generation)


# Who else orders


def test_a_plan_given_up_ends_its_own_holds_only(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.RESTART)
    driver.keep(replace(plan, held=("swarm-3",)), generation)
    driver.orders.give("swarm-3", {"hold": True})
    driver.orders.give("swarm-2", {"hold": True})
    driver.abandon()
    assert "hold" not in simulated.order("swarm-3")
    assert simulated.order("swarm-2")["hold"]


def test_a_drain_of_somebody_else_outlives_a_restart(simulated: Simulated) -> None:
    said: list[str] = []
    driver = runner(simulated, said)
    plan, generation = begin(driver, plans.RESTART)
    node = simulated.nodes["swarm-3"]

    def colleague() -> None:
        if "swarm-1: start" in said:
            simulated.after_tick = lambda: None
            driver.orders.give("swarm-3", {"hold": True})

    simulated.after_tick = colleague
    assert carry_out(driver, plan, generation).held == ()
    assert simulated.order("swarm-3")["hold"]
    assert node.holds
    assert "every VM is whole but swarm-3, held by somebody else" in said


def test_a_clean_restart_given_up_cleans_nothing(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.RESTART, rendezvous=RENDEZVOUS, clean=True)
    driver.keep(replace(plan, step=plans.RENDEZVOUS), generation)
    driver.orders.give(RENDEZVOUS, {"restart": plan.id, "clean": True})
    driver.abandon()
    simulated.tick()
    assert simulated.nodes[RENDEZVOUS].cleaned == 0
    assert simulated.nodes[RENDEZVOUS].restart == ""


# Who does not answer


@pytest.mark.parametrize("kind", [plans.RESTART, plans.REBOOT])
def test_answers_that_are_lost_end_nothing(simulated: Simulated, kind: str) -> None:
    """Each fifth is, after what was asked for has been done."""
    said: list[str] = []
    driver = runner(simulated, said)
    plan, generation = begin(driver, kind)
    for name in ("instances", "objects", "read", "write", "stop", "start"):
        setattr(driver.cloud, name, _lossy(simulated, getattr(driver.cloud, name), name))
    assert carry_out(driver, plan, generation).is_over
    assert [simulated.nodes[name].running for name in SWARM] == [60, 120, 200]
    assert [simulated.nodes[name].boot for name in SWARM] == [1 + (kind == plans.REBOOT)] * 3
    lost = [line for line in said if "trying again" in line]
    assert "instances: nobody answers: trying again" in lost
    assert len(lost) == len({*lost})


def _lossy(simulated: Simulated, call: Callable[..., Any], name: str) -> Callable[..., Any]:
    number, states = 0, {"stop": "RUNNING", "start": "TERMINATED"}

    def lossy(*arguments: Any, **named: Any) -> Any:
        nonlocal number
        number += 1
        if name in states:
            state = simulated.instance(arguments[1])["status"]
            assert state == states[name], "what was done is not done again"
        found = call(*arguments, **named)
        # A VM is shut down three times.
        if number % (2 if name in ("stop", "start") else 5) == 0:
            raise UnreachableError(f"{name}: nobody answers")
        return found

    return lossy


def test_nobody_who_answers_ends_it_after_the_limit(simulated: Simulated) -> None:
    driver = runner(simulated, [], limit=5.0)
    plan, generation = begin(driver, plans.RESTART)

    def gone() -> Any:
        raise UnreachableError("nobody answers")

    driver.cloud.instances = gone  # type: ignore[method-assign]
    before = simulated.ticks
    with pytest.raises(UnreachableError):
        carry_out(driver, plan, generation)
    assert simulated.ticks > before + 5


def test_agents_that_come_up_are_progress(simulated: Simulated) -> None:
    """Also after a look at which nobody knew how many there are."""
    driver = runner(simulated, [], limit=3.0)
    plan, generation = begin(driver, plans.RESTART, ["swarm-2"])
    simulated.nodes["swarm-2"].running = 0
    simulated.publish("swarm-2", "{}")
    plan = replace(plan, step=plans.START)
    assert carry_out(driver, plan, driver.keep(plan, generation)).is_over


def test_where_to_look_is_a_vm(simulated: Simulated) -> None:
    driver = runner(simulated, [], limit=3.0)
    plan, generation = begin(driver, plans.RESTART)
    plan = replace(plan, step=plans.VERIFY)
    simulated.dead = -1
    generation = driver.keep(plan, generation)
    simulated.tick()
    expected = f"`ops logs {RENDEZVOUS}` say why.*--resume` continues.*`ops restart --abandon`"
    with pytest.raises(UnfinishedError, match=expected):
        carry_out(driver, plan, generation)


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
    """So many starts of a VM are refused, as Google does it: in the operation. Those refused."""
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
def test_a_start_that_is_refused_for_now_is_tried_again(
    simulated: Simulated, code: str, words: str
) -> None:
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


def test_a_stock_out_that_lasts_ends_it_within_its_limit_and_it_resumes(
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


def test_a_start_that_is_refused_for_good_ends_it_at_once(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.REBOOT, ["swarm-3"])
    refused = refuse_starts(simulated, "CONDITION_NOT_MET: constraints/compute.x", 1_000, 412)
    with pytest.raises(DeniedError, match=r"policy constraints/compute[.]x forbids it"):
        carry_out(driver, plan, generation)
    assert len(refused) == 1


def test_the_command_says_what_a_stock_out_is(ops: Ops, simulated: Simulated) -> None:
    refuse_starts(simulated, "ZONE_RESOURCE_POOL_EXHAUSTED", 1_000)
    with simulated.running():
        found = ops("reboot", "swarm-3", "--yes", "--limit", "1")
    assert (found.code, found.err.count("\n")) == (4, 1)
    assert "the zone has no such machine free now" in found.err
    assert "`ops reboot --resume` continues later" in found.err


def test_a_reboot_given_up_leaves_no_vm_off(simulated: Simulated) -> None:
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


def test_a_reboot_given_up_while_a_vm_shuts_down(simulated: Simulated) -> None:
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


def test_a_vm_that_is_gone_is_not_done(simulated: Simulated) -> None:
    def lose(_: float) -> None:
        simulated.client.do("DELETE", f"{ZONE}/instances/swarm-1")

    driver = runner(simulated, [], pause=lose)
    with pytest.raises(MissingError, match="swarm-1 is no VM of fleet"):
        driver.give_and_wait(["swarm-1"], {"hold": True}, lambda seen: seen.is_empty, "drain")


# The decisions alone


def test_a_status_of_older_orders_is_not_believed(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, _ = begin(driver, plans.RESTART, ["swarm-3"])
    driver.orders.give("swarm-3", {"hold": True})
    seen = driver.see(driver.look(), ["swarm-3"])
    assert isinstance(decide(plan, seen, Totals(online=0, running=0)), Await)
    assert not seen["swarm-3"].heeds


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


def test_a_total_that_nobody_tells_is_waited_for(simulated: Simulated) -> None:
    plan = replace(run.new_plan(plans.RESTART, ["swarm-3"], by="t"), step=plans.VERIFY)
    seen: dict[str, VmInPlan] = runner(simulated, []).see(runner(simulated, []).look(), ["swarm-3"])
    for online, kind in ((None, Await), (379, Await), (380, Go), (500, Go)):
        assert isinstance(decide(plan, seen, Totals(online=online, running=380)), kind)


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"schema": 2}', b'{"schema": 1}', b"null"])
def test_a_plan_that_is_none_is_said(data: bytes) -> None:
    with pytest.raises(OpsError, match=r"_plan\.json.*`ops undrain` each held VM"):
        plans.decode(data)
    assert plans.decode(b"") is None
    plan = run.new_plan(plans.RESTART, SWARM, by="t", rendezvous="r", clean=True)
    assert plans.decode(plan.encode()) == plan


# Orders


def test_orders_of_two_operators_both_count(simulated: Simulated) -> None:
    orders = runner(simulated, []).orders
    read = orders.read

    def meanwhile(vm: str) -> Order:
        found = read(vm)
        if not found.generation:
            other.give(vm, {"hold": True})
        return found

    other = runner(simulated, []).orders
    object.__setattr__(orders, "read", meanwhile)
    orders.give("swarm-1", {"benchmarks": "pause"})
    order = simulated.order("swarm-1")
    assert (order["hold"], order["benchmarks"], order["by"]) == (True, "pause", "tester")
    simulated.tick()
    assert simulated.nodes["swarm-1"].holds, "pilot-node reads what ops writes"


def test_an_order_that_says_the_same_is_not_written() -> None:
    before = Order(content={"schema": 1, "hold": True, "by": "a", "at": "b"}, generation=3)
    assert changed(before, {"hold": True}, by="c") is None
    assert changed(before, {"banner": None}, by="c") is None
    after = json.loads(changed(before, {"hold": None, "banner": "x"}, by="c") or b"")
    assert (after.get("hold"), after["banner"], after["by"], after["schema"]) == (None, "x", "c", 1)


def test_an_object_that_is_no_order_is_left_alone(simulated: Simulated) -> None:
    orders = runner(simulated, []).orders
    simulated.client.upload(BUCKET, "orders/swarm-1.json", b"hold!")
    with pytest.raises(OpsError, match=r"no order of schema 1.*deleted order also ends a hold"):
        orders.give("swarm-1", {"hold": True})


# The command line


def test_restart_from_the_command_line(ops: Ops, simulated: Simulated) -> None:
    refused = ops("restart")
    assert (refused.code, "say --yes" in refused.err) == (2, True)
    assert ops("restart", "--clean").code == 2
    unsure = ops("restart", "--rendezvous", "--clean", "--yes")
    assert (unsure.code, f"--confirm {FLEET}" in unsure.err) == (2, True)
    assert ops("restart", "--resume").code == 2
    assert ops("restart", "--yes", "--without", "swarm-9").code == 3
    assert simulated.order("swarm-3") == {}
    with simulated.running():
        done = ops("restart", "--yes", "--rendezvous", "--clean", "--confirm", FLEET)
    assert done.code == 0, done
    assert "380 agents run, 380 are online" in done.out
    assert simulated.nodes[RENDEZVOUS].cleaned == 1


@pytest.fixture
def ticking(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiting of a command line is the fleet's working, and its clock."""
    given: dict[str, Any] = {
        "clock": lambda: float(simulated.ticks),
        "pause": lambda _: simulated.tick(),
    }
    monkeypatch.setattr(run, "Runner", partial(run.Runner, **given))


def test_what_is_settled_is_not_given_again(ops: Ops, simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.RESTART)
    driver.keep(replace(plan, held=("swarm-3",)), generation)
    driver.orders.give("swarm-3", {"hold": True})
    for arguments, said in (
        (["restart", "--resume", "--rendezvous"], "--resume is about one that has begun"),
        (["restart", "--resume", "--insist"], "it goes without --insist"),
        (["restart", "--resume", "--without", "swarm-9"], "swarm-9: not in this restart"),
        (["restart", "--resume", *(f"--without={name}" for name in SWARM)], "--abandon"),
        (["restart", "--resume", "--abandon"], "--abandon is about one that has begun"),
        (["restart", "--abandon", "--without", "swarm-3"], "it goes without --without"),
        (["reboot", "--resume", "swarm-3"], "it goes without a VM's name"),
    ):
        found = ops(*arguments)
        assert (found.code, said in found.err) == (2, True), found
    assert driver.plan()[0] == replace(plan, held=("swarm-3",))


@pytest.mark.usefixtures("ticking")
def test_one_that_went_silent_is_left_out_of_what_goes_on(ops: Ops, simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.RESTART)
    driver.keep(replace(plan, held=("swarm-3",)), generation)
    driver.orders.give("swarm-3", {"hold": True})
    simulated.nodes["swarm-3"].quiet = True
    simulated.publish("swarm-3", '{"schema": 1}')
    note = ops("drain", "swarm-2")
    assert (note.code, "note: a restart that tester began" in note.err) == (0, True)
    assert ops("undrain", "swarm-2").code == 0
    done = ops("restart", "--resume", "--without", "swarm-3")
    assert done.code == 0, done
    assert "hold" not in simulated.order("swarm-3")
    assert "swarm-3: drain" not in done.out
    assert "swarm-2: start" in done.out


@pytest.mark.usefixtures("ticking")
def test_a_drain_makes_progress_agent_by_agent(ops: Ops, simulated: Simulated) -> None:
    for command in ("drain", "undrain"):
        done = ops(command, "swarm-2", "--limit", "2")
        assert done.code == 0, done


@pytest.mark.usefixtures("ticking")
def test_what_a_vm_holds_itself_no_order_ends(ops: Ops, simulated: Simulated) -> None:
    simulated.nodes["swarm-1"].held_here = True
    simulated.tick()
    found = ops("undrain", "swarm-1")
    assert (found.code, "`sudo pilot-node undrain` on it" in found.err) == (1, True)
    assert ops("drain", "swarm-3").code == 0
    unpaused = ops("unpause")
    assert unpaused.code == 0
    assert "swarm-1 is still held, on the VM itself" in unpaused.out
    assert "swarm-3 is still drained: `ops undrain swarm-3` ends that" in unpaused.out
    assert "swarm-2 is still" not in unpaused.out


def test_what_is_interrupted_says_what_stands(
    ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "Runner", partial(run.Runner, pause=pause))
    found = ops("drain", "swarm-1")
    assert (found.code, "`ops undrain swarm-1` ends it" in found.err) == (130, True)
    assert simulated.order("swarm-1")["hold"]
    found = ops("reboot", "--yes", "swarm-3")
    assert (found.code, "a VM that was shut down stays off" in found.err) == (130, True)


def test_a_signal_that_is_ignored_stays_ignored(
    ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under nohup."""

    def pause(_: float) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        simulated.tick()

    monkeypatch.setattr(run, "Runner", partial(run.Runner, pause=pause))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert ops("pause").code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_drain_and_undrain(ops: Ops, simulated: Simulated) -> None:
    with simulated.running():
        assert ops("drain", "swarm-1", "swarm-3").code == 0
        assert simulated.nodes["swarm-1"].running == simulated.nodes["swarm-3"].running == 0
        text = ops("status").out
        assert "held by an order" in text
        assert ops("undrain", "swarm-1", "swarm-3").code == 0
        assert ops("drain", "swarm-7").code == 3
    assert simulated.nodes["swarm-1"].running == 120


@pytest.mark.parametrize("word", ["unpause", "resume"])
def test_unpause_and_its_old_word_end_a_pause(ops: Ops, simulated: Simulated, word: str) -> None:
    with simulated.running():
        assert ops("pause").code == 0
        assert all(simulated.nodes[name].pausing for name in SWARM)
        assert ops(word).code == 0
    assert not any(simulated.nodes[name].pausing for name in SWARM)
    late = ops("pause", "--limit", "1")
    assert (late.code, "The order stands" in late.err) == (4, True)


def declare_another_release(simulated: Simulated) -> None:
    """For all swarm VMs, which wait with it for somebody who says go."""
    release = {"version": "1.19.0", "daemon": {"object": "x", "sha256": NEW}}
    for name in SWARM:
        simulated.nodes[name].roll = rolling(state="waiting", of=3)
        declared = swarm_spec(name, simulated.nodes[name].agents, release=release)
        simulated.set_metadata(name, {"pilot-spec": json.dumps(declared)})
    simulated.tick()


def test_a_roll_that_waits_is_gone_on_with(ops: Ops, simulated: Simulated) -> None:
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


def test_a_roll_that_halted_is_rejected(ops: Ops, simulated: Simulated) -> None:
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
def test_the_rendezvous_roll_that_halted(ops: Ops, simulated: Simulated, verdict: str) -> None:
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
def test_no_roll_waits_for_a_vm_that_nobody_hears(
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


def test_one_who_may_only_look_is_told_which_right_is_missing(
    ops: Ops, simulated: Simulated
) -> None:
    answer = simulated.serving.lab.answer
    message = "x@y does not have storage.objects.create access to the Google Cloud Storage object."

    def refuse(request: Request) -> Response:
        if request.path.startswith("/upload/"):
            return Response(body={"error": {"code": 403, "message": message}}, status=403)
        return answer(request)

    simulated.serving.lab.answer = refuse  # type: ignore[method-assign]
    for command in (["restart", "--yes"], ["reboot", "--yes"], ["pause"], ["drain", "swarm-1"]):
        found = ops(*command)
        assert found.code == 3, command
        assert "storage.objects.create is missing; it is in roles/storage.objectUser" in found.err
    assert ops("status").code == 0
