"""`restart`, `reboot`, `drain`, `roll`, `pause`: orders, and what they bring about."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from lab.web import Request, Response
from ops import plan as plans
from ops import run
from ops.errors import ClashError, MissingError, OpsError, UnfinishedError, UsageError
from ops.google import Cloud, Place
from ops.orders import Order, Orders, changed
from ops.plan import Await, Give, Go, Plan, Power, Seen, Totals, decide
from startup.node.roll import Rejected
from startup.node.status import encode
from tests.lab.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.simulated import BUCKET, FLEET, NEW, OLD, RENDEZVOUS, Simulated, rolling, swarm_spec

SWARM = ("swarm-3", "swarm-1", "swarm-2")


class Interrupted(KeyboardInterrupt):
    """An operator's Ctrl-C."""


def runner(simulated: Simulated, said: list[str], **changes: Any) -> run.Runner:
    """A runner whose waiting is the fleet's working."""
    url = simulated.serving.url
    cloud = Cloud(Place(project="p1", compute=url, storage=url, monitoring=url))
    given: dict[str, Any] = {
        "orders": Orders(cloud=cloud, bucket=BUCKET, by="tester"),
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
    found = driver.look()
    return plan, driver.begin(plan, driver.see(found, [*plan.vms, RENDEZVOUS]))


def carry_out(driver: run.Runner, plan: Plan, generation: int) -> Plan:
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
    with pytest.raises(UnfinishedError, match=r"swarm-1: drains.*ops restart --resume` goes on"):
        carry_out(driver, plan, generation)
    assert simulated.order("swarm-2") == {}
    driver.abandon()
    assert simulated.order("swarm-3").get("hold") is None
    assert simulated.order("swarm-1").get("hold") is None
    begin(runner(simulated, []), plans.RESTART, ["swarm-3"])


@pytest.mark.parametrize("trouble", ["silent", "held", "rolling"])
def test_what_stands_in_the_way_is_said_before_anything_is_done(
    simulated: Simulated, trouble: str
) -> None:
    driver = runner(simulated, [])
    if trouble == "silent":
        simulated.publish("swarm-1", "{}")
    elif trouble == "held":
        driver.orders.give("swarm-1", {"hold": True})
    else:
        simulated.nodes["swarm-1"].roll = rolling(state="watching")
        simulated.tick()
    with pytest.raises(OpsError, match=r"no restart now:\n  swarm-1"):
        begin(driver, plans.RESTART)
    assert driver.plan() == (None, 0)


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
    seen: dict[str, Seen] = runner(simulated, []).see(runner(simulated, []).look(), ["swarm-3"])
    for online, kind in ((None, Await), (379, Await), (380, Go), (500, Go)):
        assert isinstance(decide(plan, seen, Totals(online=online, running=380)), kind)


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"schema": 2}', b'{"schema": 1}', b"null"])
def test_a_plan_that_is_none_is_said(data: bytes) -> None:
    with pytest.raises(OpsError, match=r"_plan\.json"):
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
    with pytest.raises(OpsError, match="is no order of schema 1"):
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


def test_drain_and_undrain(ops: Ops, simulated: Simulated) -> None:
    with simulated.running():
        assert ops("drain", "swarm-1", "swarm-3").code == 0
        assert simulated.nodes["swarm-1"].running == simulated.nodes["swarm-3"].running == 0
        text = ops("status").out
        assert "held by an order" in text
        assert ops("undrain", "swarm-1", "swarm-3").code == 0
        assert ops("drain", "swarm-7").code == 3
    assert simulated.nodes["swarm-1"].running == 120


def test_pause_and_resume(ops: Ops, simulated: Simulated) -> None:
    with simulated.running():
        assert ops("pause").code == 0
        assert all(simulated.nodes[name].pausing for name in SWARM)
        assert ops("resume").code == 0
    assert not any(simulated.nodes[name].pausing for name in SWARM)
    late = ops("pause", "--limit", "1")
    assert (late.code, "The order stands" in late.err) == (4, True)


def test_a_roll_that_waits_is_gone_on_with(ops: Ops, simulated: Simulated) -> None:
    release = {"version": "1.19.0", "daemon": {"object": "x", "sha256": NEW}}
    for name in SWARM:
        simulated.nodes[name].roll = rolling(state="waiting", of=3)
        declared = swarm_spec(name, simulated.nodes[name].agents, release=release)
        simulated.set_metadata(name, {"pilot-spec": json.dumps(declared)})
    simulated.tick()
    seen = ops("roll", "--json")
    assert seen.code == 1
    assert [each["vm"] for each in seen.json["rolls"]] == [*SWARM]
    assert {each["state"] for each in seen.json["rolls"]} == {"waiting"}
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
