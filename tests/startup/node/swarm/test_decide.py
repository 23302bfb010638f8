"""Which agents are started and stopped: in tables, and as properties of anything seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from startup.node.swarm import start_window as windows
from startup.node.swarm.decide import (
    BACK_OFF_MAX,
    OVERTAKEN,
    PROBATION,
    PROBE,
    PROBE_MAX,
    START_DEADLINE,
    STEADY,
    STOP_DEADLINE,
    Decision,
    Goal,
    Observed,
    SwarmState,
    Trouble,
    decide,
    without,
)

PORTS = range(10001, 10006)
NOW = 1000.0


def seen(
    running: Sequence[int] = (), sockets: Sequence[int] | None = None, **more: object
) -> Observed:
    """Running agents. Each has its socket unless `sockets` says otherwise."""
    return Observed(
        now=NOW,
        running=frozenset(running),
        sockets=frozenset(running if sockets is None else sockets),
        **more,  # type: ignore[arg-type]
    )


def on(
    memory: SwarmState,
    observed: Observed,
    *,
    window: int = 2,
    wanted: Sequence[int] = PORTS,
    new: Sequence[int] = (),
) -> Decision:
    """Everything that was started is the variant "old" where `memory` does not know it; `new` are
    the ports that should be "new"."""
    known = dict.fromkeys(PORTS, "old") | dict(memory.variant)
    goal = {port: "new" if port in new else "old" for port in wanted}
    return decide(
        Goal(variants=goal, window=window),
        replace(memory, variant=known),
        observed,
    )


def troubled(failures: int, **more: str) -> dict[int, Trouble]:
    """10001 has failed and may be tried again."""
    about = {"began": "old", "variant": "old", **more}
    return {10001: Trouble(failures=failures, until=0, **about)}


def after(decision: Decision, observed: Observed, seconds: float) -> tuple[SwarmState, Observed]:
    """The state, and what is seen, `seconds` later."""
    return decision.memory, replace(observed, now=NOW + seconds)


def test_the_first_starts_are_the_window() -> None:
    decision = on(SwarmState(), seen())
    assert (decision.start, decision.stop, decision.said) == ((10001, 10002), (), ())
    assert decision.memory.starting == {10001: NOW, 10002: NOW}


def test_the_next_when_ones_socket_is_there() -> None:
    memory = SwarmState(starting={10001: NOW - 1, 10002: NOW - 1})
    decision = on(memory, seen([10001, 10002], sockets=[10002]))
    assert decision.start == (10003,)
    assert decision.memory.starting == {10001: NOW - 1, 10003: NOW}
    assert decision.memory.up_since == {10002: NOW}


def test_a_window_that_is_full_starts_nothing() -> None:
    memory = SwarmState(starting={10001: NOW - 1, 10002: NOW - 1})
    assert on(memory, seen([10001, 10002], sockets=[])).start == ()


def test_those_that_run_are_left_alone() -> None:
    decision = on(SwarmState(), seen(list(PORTS)))
    assert (decision.start, decision.stop, decision.said) == ((), (), ())
    assert set(decision.memory.up_since) == set(PORTS)


def test_a_start_of_an_earlier_process_is_adopted_and_counts() -> None:
    decision = on(SwarmState(), seen([10001, 10002], sockets=[]))
    assert decision.start == ()
    assert decision.memory.starting == {10001: NOW, 10002: NOW}


def test_a_stale_socket_is_not_ready() -> None:
    decision = on(SwarmState(), seen([], sockets=list(PORTS)))
    assert decision.start == (10001, 10002)
    memory = SwarmState(starting={10001: NOW - 1})
    assert 10001 in on(memory, seen([], sockets=[10001])).memory.starting


@pytest.mark.parametrize(
    ("up", "failures", "started_at_once"),
    [(STEADY, 0, True), (STEADY - 1, 1, False)],
)
def test_one_that_died(up: float, failures: int, started_at_once: bool) -> None:
    memory = SwarmState(up_since=dict.fromkeys(PORTS, NOW - up))
    decision = on(memory, seen(PORTS[1:]))
    assert (10001 in decision.start) == started_at_once
    assert len(decision.said) == 1
    trouble = decision.memory.trouble.get(10001)
    assert (trouble.failures if trouble else 0) == failures
    assert decision.failures == 1


def test_a_failed_start_rests_and_does_not_hold_up_the_rest() -> None:
    memory = SwarmState(starting={10001: NOW - 1, 10002: NOW - 1})
    decision = on(memory, seen([10002], sockets=[], ended={10001: "ended (exit-code, status 1)"}))
    # The window is one now, and the other start has it.
    assert decision.start == ()
    assert decision.memory.window.size == 1
    why = "ended (exit-code, status 1)"
    failed = Trouble(failures=1, until=NOW + 1, why=why, began="old", variant="old")
    assert decision.memory.trouble == {10001: failed}
    assert on(memory, seen(ended={10001: why, 10002: why}), window=8).start == (10003, 10004, 10005)
    assert decision.said == ("agent 10001: ended (exit-code, status 1) (failure 1); again in 1 s",)


@pytest.mark.parametrize(
    ("failures", "pause"), [(0, 1), (1, 2), (2, 4), (7, 128), (8, 256), (9, BACK_OFF_MAX)]
)
def test_it_rests_longer_each_time(failures: int, pause: float) -> None:
    memory = SwarmState(starting={10001: NOW - 1}, trouble=troubled(failures))
    decision = on(memory, seen(ended={10001: "ended"}))
    trouble = decision.memory.trouble[10001]
    assert (trouble.failures, trouble.until) == (failures + 1, NOW + pause)


def test_it_rests_for_ever_longer_without_overflow() -> None:
    memory = SwarmState(starting={10001: 0}, trouble=troubled(10**6))
    decision = on(memory, seen(ended={10001: "ended"}))
    assert decision.memory.trouble[10001].until == NOW + BACK_OFF_MAX


def test_those_that_never_failed_go_first() -> None:
    memory = SwarmState(
        trouble={
            10001: Trouble(failures=3, until=NOW - 9, variant="old"),
            10002: Trouble(failures=1, until=NOW, variant="old"),
            10003: Trouble(failures=1, until=NOW + 0.1, variant="old"),
        }
    )
    assert on(memory, seen(), window=9).start == (10004, 10005, 10002, 10001)


def test_failures_are_forgotten_once_it_is_steady() -> None:
    trouble = troubled(3)
    for up, left in ((STEADY - 1, trouble), (STEADY, {})):
        memory = SwarmState(up_since={10001: NOW - up}, trouble=trouble)
        assert on(memory, seen([10001])).memory.trouble == left


def test_a_start_that_hangs_is_stopped_and_started_again_later() -> None:
    since = NOW - START_DEADLINE
    # Something came up lately, so no probe is due.
    memory = SwarmState(starting={10001: since - 1, 10002: since}, last_success_at=NOW - 1)
    hanging = seen([10001, 10002], sockets=[])
    decision = on(memory, hanging)
    assert decision.stop == (10001,)
    # It keeps its place in the window until it is gone.
    assert decision.start == ()
    assert decision.said == ("agent 10001: no socket after 60 s (failure 1); again in 1 s",)
    # While it is being stopped it is not started, however long that takes.
    memory = replace(decision.memory, window=windows.opened(9))
    later = on(memory, replace(hanging, now=NOW + 5), window=9)
    assert 10001 not in (*later.start, *later.stop)
    # Gone: now it is.
    gone = replace(seen([10002], sockets=[]), now=NOW + 6)
    assert 10001 in on(replace(later.memory, window=windows.opened(9)), gone, window=9).start


def test_a_stop_that_came_to_nothing_is_asked_for_again() -> None:
    memory = SwarmState(stopping={10005: NOW - STOP_DEADLINE + 1})
    assert on(memory, seen([10005]), wanted=()).stop == ()
    memory = SwarmState(stopping={10005: NOW - STOP_DEADLINE})
    assert on(memory, seen([10005]), wanted=()).stop == (10005,)


def test_one_that_others_overtake_is_stuck() -> None:
    """The registry was away while it began; those that began later come up promptly."""
    began = NOW - OVERTAKEN - 1
    memory = SwarmState(starting={10001: began, 10002: NOW - 0.1})
    decision = on(memory, seen([10001, 10002], sockets=[10002]))
    assert decision.stop == (10001,)
    assert decision.said == (
        "agent 10001: no socket after 11 s, while others come up (failure 1); again in 1 s",
    )
    # It says nothing about the window, and next time it is given longer.
    assert decision.memory.window.size == 2
    again = replace(memory, trouble=troubled(1))
    assert on(again, seen([10001, 10002], sockets=[10002])).stop == ()
    # Nor is it stuck where the others take that long, too; in the end it is.
    slow = replace(memory, mean_start_seconds=4.0)
    decision = on(slow, seen([10001, 10002], sockets=[10002]))
    assert decision.stop == ()
    assert 0.1 < decision.memory.mean_start_seconds < 4.0
    slow = replace(
        memory, starting={10001: NOW - 5 * 4 - 1, 10002: NOW - 2}, mean_start_seconds=4.0
    )
    assert on(slow, seen([10001, 10002], sockets=[10002])).stop == (10001,)
    # Who began after the one that came up, or has not waited long, is not overtaken.
    memory = SwarmState(starting={10001: NOW - 9, 10002: NOW - 0.1})
    assert on(memory, seen([10001, 10002], sockets=[10002])).stop == ()


def test_where_nothing_comes_up_room_is_made_for_a_fresh_start() -> None:
    began = NOW - PROBE
    starting = {10001: began - 1, 10002: began, 10003: began}
    hanging = seen(list(starting), sockets=[])
    # They are slow, so the window is two by now: one that waits on, and one that is fresh.
    window = windows.slow(windows.opened(4), NOW - 8, NOW - 5)
    memory = SwarmState(starting=starting, window=window)
    decision = on(memory, hanging, window=4)
    assert set(decision.stop) == {10002, 10003}
    # A failure is more than being slow.
    assert (window.size, decision.memory.window.size) == (2, 1)
    assert decision.memory.starting == {10001: began - 1}
    assert "agent 10002: no socket after 10 s (failure 1); again in 1 s" in decision.said
    # It takes longer until the next, up to a maximum, and not at all once something comes up.
    assert decision.memory.patience == 2 * PROBE
    assert on(*after(decision, hanging, 2 * PROBE - 1), window=4).stop == ()
    memory = replace(memory, patience=PROBE_MAX, last_success_at=NOW - PROBE_MAX)
    assert on(memory, hanging, window=4).stop == ()
    decision = on(*after(on(memory, hanging, window=4), hanging, PROBE_MAX), window=4)
    assert decision.memory.patience == PROBE_MAX
    up = seen(list(starting), sockets=[10001])
    assert on(memory, up, window=4).memory.patience == 2 * (PROBE + 1)


def test_fewer_agents_are_wanted() -> None:
    memory = SwarmState(up_since=dict.fromkeys(PORTS, NOW - 1))
    few = PORTS[:2]
    decision = on(memory, seen(list(PORTS)), wanted=few)
    assert (decision.stop, decision.start) == ((10005, 10004), ())
    # No more than the window are being stopped, and one that is gone makes room.
    next_one = on(decision.memory, seen(PORTS[:4]), wanted=few)
    assert next_one.stop == (10003,)
    assert next_one.said == ()
    assert on(next_one.memory, seen(PORTS[:2]), wanted=few).said == ()


def test_others_are_wanted_and_never_more_run_in_all() -> None:
    others = range(10011, 10014)
    decision = on(SwarmState(), seen(PORTS[:3]), wanted=others)
    assert (decision.stop, decision.start) == ((10003, 10002), ())
    decision = on(*after(decision, seen([10001, 10002]), 0.1), wanted=others)
    assert (decision.stop, decision.start) == ((10001,), (10011,))
    decision = on(*after(decision, seen([10011]), 0.2), wanted=others)
    assert (decision.stop, decision.start) == ((), (10012, 10013))


def test_a_start_that_is_no_longer_wanted_is_stopped() -> None:
    memory = SwarmState(starting={10005: NOW - 1})
    decision = on(memory, seen([10005], sockets=[]), wanted=PORTS[:2])
    assert decision.stop == (10005,)
    assert 10005 not in decision.memory.starting


# Variants.

UP = SwarmState(up_since=dict.fromkeys(PORTS, NOW - 1))


def test_agents_of_another_variant_are_replaced_by_and_by() -> None:
    decision = on(UP, seen(list(PORTS)), new=PORTS)
    assert (decision.stop, decision.start) == ((10001, 10002), ())
    # While they are down, nobody else is.
    decision = on(*after(decision, seen(list(PORTS)), 0.1), new=PORTS)
    assert (decision.stop, decision.start) == ((), ())
    decision = on(*after(decision, seen(PORTS[2:]), 0.2), new=PORTS)
    assert (decision.stop, decision.start) == ((), (10001, 10002))
    assert decision.memory.variant[10001] == "new"
    # They are up again: nobody follows before they have stayed up.
    decision = on(*after(decision, seen(list(PORTS)), 0.3), new=PORTS)
    decision = on(*after(decision, seen(list(PORTS)), PROBATION), new=PORTS)
    assert (decision.stop, decision.start) == ((), ())
    decision = on(*after(decision, seen(list(PORTS)), PROBATION + 0.4), new=PORTS)
    assert (decision.stop, decision.start) == ((10003, 10004), ())
    # From there on, as soon as one is up the next may go.
    decision = on(*after(decision, seen([10001, 10002, 10005]), PROBATION + 0.5), new=PORTS)
    up = seen(list(PORTS), sockets=[10001, 10002, 10003, 10005])
    decision = on(*after(decision, up, PROBATION + 0.6), new=PORTS)
    assert (decision.stop, decision.start) == ((10005,), ())
    assert decision.said == ()


def test_only_those_that_should_be_something_else_are_replaced() -> None:
    decision = on(UP, seen(list(PORTS)), new=[10004])
    assert (decision.stop, decision.said) == ((10004,), ())


def test_an_unknown_variant_is_replaced() -> None:
    memory = SwarmState(up_since=dict.fromkeys(PORTS, NOW - STEADY), variant={10001: ""})
    assert on(memory, seen(list(PORTS))).stop == (10001,)


def test_a_bad_change_takes_down_no_more_than_the_window() -> None:
    """The new one dies at once, however often it is tried."""
    memory, running, down = UP, set(PORTS), set[int]()
    ended: Mapping[int, str] = {}
    for tick in range(3000):
        observed = replace(seen(sorted(running), ended=ended), now=NOW + tick)
        decision = on(memory, observed, new=PORTS)
        memory = decision.memory
        running -= set(decision.stop)
        down |= set(decision.stop)
        ended = dict.fromkeys(decision.start, "ended (exit-code, status 1)")
    assert down == {10001, 10002}
    # Back to the old one: at once, whatever they rest for.
    observed = replace(seen(sorted(running), ended=ended), now=NOW + 3000)
    decision = on(memory, observed)
    starting = decision.start
    assert starting
    observed = replace(seen(sorted(running | set(starting))), now=NOW + 3000.1)
    rest = on(decision.memory, observed)
    assert set(starting) | set(rest.start) == {10001, 10002}


@pytest.mark.parametrize("life", [10, 50])
def test_a_change_that_lets_agents_live_for_a_while_goes_no_further_either(life: int) -> None:
    """Each comes up, and dies `life` seconds later."""
    memory, running, down = UP, set(PORTS), set[int]()
    born: dict[int, int] = {}
    for tick in range(3000):
        died = {port for port, since in born.items() if tick - since >= life}
        running -= died
        observed = replace(
            seen(sorted(running), ended=dict.fromkeys(died, "ended")), now=NOW + tick
        )
        decision = on(memory, observed, new=PORTS)
        memory = decision.memory
        running -= set(decision.stop)
        down |= set(decision.stop)
        born = {port: since for port, since in born.items() if port in running}
        born |= dict.fromkeys(decision.start, tick)
        running |= set(decision.start)
    assert down == {10001, 10002}


def test_a_bad_change_goes_no_further_after_a_restart_of_pilot_node() -> None:
    """Variants are on the file system; failures are forgotten."""
    variant = {10001: "new", 10002: "new"}
    decision = on(SwarmState(variant=variant), seen(PORTS[2:]), new=PORTS)
    assert decision.stop == ()
    assert decision.start == (10001, 10002)


def test_agents_that_failed_before_do_not_delay_a_change() -> None:
    broken = {
        port: Trouble(failures=9, until=NOW + 99, began="old", variant="old")
        for port in (10001, 10002)
    }
    memory = SwarmState(up_since=dict.fromkeys(PORTS[2:], NOW - 1), trouble=broken)
    decision = on(memory, seen(PORTS[2:]), new=PORTS)
    # They are tried as the new one at once, and nobody else is taken down meanwhile.
    assert (decision.start, decision.stop) == ((10001, 10002), ())
    # Where the new one does not cure them either, the rest is not kept from it.
    ended = dict.fromkeys(decision.start, "ended")
    memory = replace(decision.memory, window=windows.opened(2))
    observed = replace(seen(PORTS[2:], ended=ended), now=NOW + 1)
    decision = on(memory, observed, new=PORTS)
    assert decision.stop == (10003, 10004)


def test_a_start_as_something_else_is_ended_at_once() -> None:
    memory = SwarmState(starting={10001: NOW - 1, 10002: NOW - 1})
    decision = on(memory, seen([10001, 10002], sockets=[]), new=[10001])
    assert decision.stop == (10001,)
    assert decision.said == ()
    assert 10001 not in decision.memory.trouble


def test_while_nothing_comes_up_nothing_is_replaced() -> None:
    resting = replace(windows.opened(2), rest_until=NOW + 1)
    assert on(replace(UP, window=resting), seen(list(PORTS)), new=PORTS).stop == ()


def test_one_without_its_socket_is_replaced_in_the_end() -> None:
    observed = seen(list(PORTS), sockets=PORTS[1:])
    decision = on(UP, observed)
    assert (decision.stop, decision.memory.socket_missing_since) == ((), {10001: NOW})
    assert on(*after(decision, observed, STEADY - 1)).stop == ()
    assert on(*after(decision, observed, STEADY)).stop == (10001,)
    # Where all have lost theirs, they go by and by too.
    decision = on(UP, seen(list(PORTS), sockets=[]))
    assert len(on(*after(decision, seen(list(PORTS), sockets=[]), STEADY)).stop) == 2


# Whose fault it is.


def test_where_several_fail_and_none_comes_up_nobody_is_held_to_account() -> None:
    memory = SwarmState(starting=dict.fromkeys(PORTS[:3], NOW - 0.5), trouble=troubled(4))
    decision = on(memory, seen(ended=dict.fromkeys(PORTS[:3], "refused")), window=4)
    assert decision.memory.window.allows(NOW) == 0
    trouble = decision.memory.trouble
    assert [trouble[port].failures for port in PORTS[:3]] == [4, 1, 1]
    assert {trouble[port].until for port in PORTS[:3]} == {NOW + 1}
    assert decision.said[0] == "agent 10001: refused (failure 4); again when the registry answers"
    assert decision.failures == 3


def test_back_from_a_bad_change_nothing_rests() -> None:
    """All three failed as the new one, so the window rests; as the old one they have not failed."""
    three = PORTS[:3]
    memory = SwarmState(
        starting=dict.fromkeys(three, NOW - 0.1), variant=dict.fromkeys(three, "new")
    )
    observed = seen(ended=dict.fromkeys(three, "ended"))
    decision = on(memory, observed, wanted=three, new=three, window=4)
    assert decision.start == ()
    later = after(decision, seen(), 0.1)
    assert on(*later, wanted=three, new=three, window=4).start == ()
    assert on(*later, wanted=three, window=4).start == (10001, 10002)


def test_a_start_that_cannot_be_made_is_trouble_of_its_own() -> None:
    decision = without(on(SwarmState(), seen()), {10001: "Is a directory"}, NOW)
    assert decision.start == (10002,)
    assert decision.memory.starting == {10002: NOW}
    assert decision.said == ("agent 10001: Is a directory (failure 1); again in 1 s",)
    assert decision.failures == 1


ports = st.sets(st.sampled_from(list(range(10001, 10009))))
times = st.floats(0, 2000)


@settings(max_examples=300)
@given(
    st.integers(0, 8),
    st.integers(1, 4),
    st.dictionaries(st.integers(10001, 10008), times),
    st.dictionaries(st.integers(10001, 10008), times),
    st.dictionaries(st.integers(10001, 10008), times),
    ports,
    ports,
    ports,
    ports,
)
# One that failed as something that is not known, and is on its way down, is down as well.
@example(3, 4, {10001: 0.0, 10003: 0.0}, {}, {}, {10002}, {10001, 10002}, {10001}, {10001, 10002})
def test_invariants_for_anything_seen(
    count: int,
    window: int,
    starting: dict[int, float],
    stopping: dict[int, float],
    up_since: dict[int, float],
    running: set[int],
    sockets: set[int],
    ended: set[int],
    others: set[int],
) -> None:
    """Never past the window, never a start of what runs, never a stop of a healthy agent."""
    wanted = range(10001, 10001 + count)
    starting = {port: since for port, since in starting.items() if port not in up_since}
    memory = SwarmState(
        starting=starting,
        stopping=stopping,
        up_since=up_since,
        variant=dict.fromkeys(running - others, "a"),
    )
    decision = decide(
        Goal(variants=dict.fromkeys(wanted, "a"), window=window),
        memory,
        Observed(
            now=NOW,
            running=frozenset(running),
            sockets=frozenset(sockets),
            ended=dict.fromkeys(ended - running, "ended"),
        ),
    )
    after = decision.memory
    assert not set(decision.start) & running
    assert set(decision.start) <= set(wanted)
    if decision.start:
        assert len(after.starting) + len(after.stopping.keys() & set(wanted)) <= after.window.size
        assert len(running | after.starting.keys() | after.stopping.keys()) <= count
    assert after.window.size <= window
    assert set(decision.stop) <= running | set(starting)
    assert len(set(decision.stop)) == len(decision.stop)
    for port in set(decision.stop) & set(wanted):
        hung = port in starting or port not in up_since
        assert hung or port in others, "a stop of a healthy agent"
    voluntary = set(decision.stop) & set(wanted) - set(starting)
    assert len(voluntary) <= window
    assert set(after.starting) | set(after.up_since) <= set(wanted)
    assert not set(after.starting) & set(after.up_since)
    assert len(set(decision.start)) == len(decision.start)
