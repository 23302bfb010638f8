"""`ops restart`: the plan, its interruptions, and its command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ops import plan as plans
from ops import run
from ops.errors import (
    ClashError,
    OpsError,
    StuckError,
    UnfinishedError,
    UnreachableError,
    UsageError,
)
from ops.plan import Await, Go, Totals, VmInPlan, decide
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.runners import SWARM, Interrupted, begin, carry_out, runner
from tests.ops.simulated import (
    FLEET,
    RENDEZVOUS,
    Simulated,
    rolling,
)
from tests.startup import facts


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


def test_clean_is_ordered_once_and_removed(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    carry_out(driver, *begin(driver, plans.RESTART, rendezvous=RENDEZVOUS, clean=True))
    assert simulated.nodes[RENDEZVOUS].cleaned == 1
    assert "clean" not in simulated.order(RENDEZVOUS)


def test_a_copy_is_ordered_back_once(ops: Ops, simulated: Simulated) -> None:
    copy = "20261130T110000Z-95.json"
    assert ops("restart", "--yes", "--restore", copy).code == 2
    with simulated.running():
        done = ops("restart", "--yes", "--rendezvous", "--restore", copy)
    assert done.code == 0, done
    assert simulated.nodes[RENDEZVOUS].put_back == copy
    assert simulated.nodes[RENDEZVOUS].cleaned == 0
    assert "restore" not in simulated.order(RENDEZVOUS)


@pytest.mark.parametrize("moment", [0, 3, 6, 9, 12, 14, 18])
def test_an_interrupted_restart_continues_from_any_step_and_machine(
    simulated: Simulated, moment: int
) -> None:
    """The second runner knows only the fleet and its bucket."""
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


def test_only_one_of_two_runners_continues_a_plan(simulated: Simulated) -> None:
    said: list[str] = []
    driver = runner(simulated, said)
    plan, generation = begin(driver, plans.RESTART)
    driver.keep(replace(plan, step=plans.START), generation)
    with pytest.raises(ClashError, match="somebody else works on this restart"):
        carry_out(driver, plan, generation)


def test_a_vm_that_does_not_drain_ends_the_restart_with_a_sentence(simulated: Simulated) -> None:
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
def test_obstacles_are_named_before_anything_is_done(
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


def test_a_registry_that_is_down_is_restarted_if_asked(simulated: Simulated) -> None:
    simulated.nodes[RENDEZVOUS].away = 2
    simulated.tick()
    begin(runner(simulated, []), plans.RESTART, rendezvous=RENDEZVOUS)


def test_a_missing_rendezvous_is_reported(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.RESTART, rendezvous=RENDEZVOUS)
    simulated.client.do("DELETE", f"{ZONE}/instances/{RENDEZVOUS}")
    with pytest.raises(OpsError, match=f"{RENDEZVOUS}: not there any more; end this with --aband"):
        carry_out(driver, plan, generation)


def test_abandon_ends_only_the_plans_own_holds(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.RESTART)
    driver.keep(replace(plan, held=("swarm-3",)), generation)
    driver.orders.give("swarm-3", {"hold": True})
    driver.orders.give("swarm-2", {"hold": True})
    driver.abandon()
    assert "hold" not in simulated.order("swarm-3")
    assert simulated.order("swarm-2")["hold"]


def test_a_drain_by_somebody_else_outlives_a_restart(simulated: Simulated) -> None:
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


def test_an_abandoned_clean_restart_cleans_nothing(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, generation = begin(driver, plans.RESTART, rendezvous=RENDEZVOUS, clean=True)
    driver.keep(replace(plan, step=plans.RENDEZVOUS), generation)
    driver.orders.give(RENDEZVOUS, {"restart": plan.id, "clean": True})
    driver.abandon()
    simulated.tick()
    assert simulated.nodes[RENDEZVOUS].cleaned == 0
    assert simulated.nodes[RENDEZVOUS].restart == ""


@pytest.mark.parametrize("kind", [plans.RESTART, plans.REBOOT])
def test_lost_answers_end_nothing(simulated: Simulated, kind: str) -> None:
    """Each fifth answer is lost, after its request was carried out."""
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


def test_an_api_that_does_not_answer_ends_it_after_the_limit(simulated: Simulated) -> None:
    driver = runner(simulated, [], limit=5.0)
    plan, generation = begin(driver, plans.RESTART)

    def gone() -> Any:
        raise UnreachableError("nobody answers")

    driver.cloud.instances = gone  # type: ignore[method-assign]
    before = simulated.ticks
    with pytest.raises(UnreachableError):
        carry_out(driver, plan, generation)
    assert simulated.ticks > before + 5


def test_starting_agents_are_progress(simulated: Simulated) -> None:
    """Also after a look at which nobody knew how many there are."""
    driver = runner(simulated, [], limit=3.0)
    plan, generation = begin(driver, plans.RESTART, ["swarm-2"])
    simulated.nodes["swarm-2"].running = 0
    simulated.publish("swarm-2", "{}")
    plan = replace(plan, step=plans.START)
    assert carry_out(driver, plan, driver.keep(plan, generation)).is_over


def test_the_logs_to_look_at_are_a_vms(simulated: Simulated) -> None:
    driver = runner(simulated, [], limit=3.0)
    plan, generation = begin(driver, plans.RESTART)
    plan = replace(plan, step=plans.VERIFY)
    simulated.dead = -1
    generation = driver.keep(plan, generation)
    simulated.tick()
    expected = f"`ops logs {RENDEZVOUS}` say why.*--resume` continues.*`ops restart --abandon`"
    with pytest.raises(UnfinishedError, match=expected):
        carry_out(driver, plan, generation)


def test_a_status_from_before_the_order_does_not_count(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    plan, _ = begin(driver, plans.RESTART, ["swarm-3"])
    driver.orders.give("swarm-3", {"hold": True})
    seen = driver.see(driver.look(), ["swarm-3"])
    assert isinstance(decide(plan, seen, Totals(online=0, running=0)), Await)
    assert not seen["swarm-3"].heeds


def test_an_unknown_total_is_waited_for(simulated: Simulated) -> None:
    plan = replace(run.new_plan(plans.RESTART, ["swarm-3"], by="t"), step=plans.VERIFY)
    seen: dict[str, VmInPlan] = runner(simulated, []).see(runner(simulated, []).look(), ["swarm-3"])
    for online, kind in ((None, Await), (379, Await), (380, Go), (500, Go)):
        assert isinstance(decide(plan, seen, Totals(online=online, running=380)), kind)


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"schema": 2}', b'{"schema": 1}', b"null"])
def test_an_invalid_plan_is_reported(data: bytes) -> None:
    with pytest.raises(OpsError, match=r"_plan\.json.*`ops undrain` each held VM"):
        plans.decode(data)
    assert plans.decode(b"") is None
    plan = run.new_plan(plans.RESTART, SWARM, by="t", rendezvous="r", clean=True)
    assert plans.decode(plan.encode()) == plan


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


def test_options_that_a_plan_settles_are_refused_later(ops: Ops, simulated: Simulated) -> None:
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
def test_resume_can_leave_out_a_silent_vm(ops: Ops, simulated: Simulated) -> None:
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
