"""The window of starts in flight: its rules one by one, then against a model of a registry."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from startup.node.swarm.decide import Goal, Observed, SwarmState, decide
from startup.node.swarm.start_window import (
    FORGET,
    REST_MAX,
    SLOW,
    SLOW_SHARE,
    SUSPECT,
    Window,
    at,
    changed,
    failed,
    opened,
    slow,
    succeeded,
)

NOW = 1000.0
MANY = 3000


def fail(window: Window, ports: Iterable[int], *, began: float, now: float = NOW) -> Window:
    failures = [(port, began, False) for port in ports]
    return failed(window, failures, now=now, wanted=MANY, why="refused")


def test_it_opens_at_its_limit() -> None:
    assert (opened(15).size, opened(15).why, opened(15).allows(NOW)) == (15, "", 15)


def test_a_failure_halves_it_and_says_why() -> None:
    window = fail(opened(15), [1], began=NOW - 1)
    assert (window.size, window.why, window.allows(NOW)) == (7, "refused", 7)


def test_a_burst_is_one_cut() -> None:
    window = fail(opened(15), [1], began=NOW - 1)
    # Begun before the cut: what it says was known when the cut was made.
    window = fail(window, [2], began=NOW - 0.5, now=NOW + 1)
    assert window.size == 7
    # Begun after it, in the same round even: news.
    assert fail(window, [1], began=NOW, now=NOW + 2).size == 3


def test_one_that_failed_before_says_nothing_new() -> None:
    window = failed(opened(15), [(1, NOW - 1, True)], now=NOW, wanted=MANY, why="refused")
    assert (window.size, window.why) == (15, "")


def test_it_rests_longer_and_longer_while_nothing_comes_up() -> None:
    window, now, rests, sizes = opened(15), NOW, [], []
    for port in range(9):
        window = fail(window, range(port, port + SUSPECT), began=now, now=now)
        rests.append(window.rest_until - now)
        sizes.append(window.size)
        assert window.allows(now) == 0
        # One that took as long to fail has been the rest.
        assert fail(window, [port], began=now, now=now + 99).rest_until == now + 99
        now = window.rest_until
        assert window.allows(now) == window.size
    assert rests == [1, 2, 4, 8, 16, REST_MAX, REST_MAX, REST_MAX, REST_MAX]
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert "none came up since; the last: refused" in window.why


def test_one_bad_agent_gives_it_no_rest() -> None:
    window = opened(15)
    for again in range(20):
        window = fail(window, [1], began=NOW + again, now=NOW + again)
    assert window.allows(NOW + 20) == 1
    assert not window.registry_is_suspect(MANY)
    # Where there is only one, whose fault it is cannot be known: the shorter rest.
    assert window.registry_is_suspect(1)


def test_a_success_ends_the_rest_and_opens_it_again() -> None:
    window = fail(opened(15), range(SUSPECT), began=NOW)
    window = replace(window, width=1.0, threshold=2.0)
    window = succeeded(window, [0.02])
    assert (window.size, window.allows(NOW), window.failed_since_success) == (2, 2, frozenset())
    starts = 0
    while window.size < 15:
        window = succeeded(window, [0.65])
        starts += 1
    # One a trip from its threshold on: 2 + 3 + ... + 14, and a little for the fractions.
    assert 90 <= starts <= 125
    assert window.why == ""
    assert succeeded(window, [0.02] * 100).size == 15


def test_slow_starts_halve_it_but_not_to_nothing() -> None:
    window, now = opened(15), NOW
    sizes = []
    for _ in range(5):
        window = slow(window, now - SLOW, now)
        sizes.append(window.size)
        now += SLOW + 0.1
    assert sizes == [7, 3, 3, 3, 3]
    assert window.width >= 15 / SLOW_SHARE
    # Those of the same trip say it only once.
    again = slow(opened(15), NOW - 4, NOW)
    assert slow(again, NOW - 3.5, NOW + 1).size == again.size == 7
    assert again.why == "a start takes 4.0 s"


def test_a_start_neither_prompt_nor_slow_changes_nothing() -> None:
    window = replace(opened(15), width=5.0, why="slow")
    assert succeeded(window, [2.5]).size == 5


def test_the_window_opens_again_with_time() -> None:
    window = fail(opened(15), [1], began=NOW - 1)
    assert at(window, limit=15, now=NOW + FORGET - 1).size == 7
    assert (at(window, limit=15, now=NOW + FORGET).size, window.why) == (15, "refused")
    assert at(window, limit=15, now=NOW + FORGET).why == ""


def test_another_limit() -> None:
    assert at(opened(15), limit=30, now=NOW).size == 30
    assert at(opened(15), limit=4, now=NOW).size == 4
    cut = fail(opened(15), [1], began=NOW - 1)
    assert at(cut, limit=30, now=NOW).size == 7
    assert at(cut, limit=0, now=NOW).size == 1


def test_another_variant_waits_for_nothing() -> None:
    window = fail(opened(15), range(SUSPECT), began=NOW)
    assert window.allows(NOW) == 0
    assert changed(window, [99], MANY).allows(NOW) == 0
    assert changed(window, range(SUSPECT), MANY).allows(NOW) == window.size


# Against a registry.

# Seconds between the ten dials of daemon 1.18 at a closed port; then it exits (measured).
DIALS = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0)


@dataclass
class Registry:
    """Answers a registration after `delay`, plus `work` for each that is open; `down` refuses at
    once, `closed` is a closed port, at which the daemon dials again and again before it exits;
    `keys` new keys a minute and VM (the rest is refused). Seconds."""

    delay: float = 0.0
    work: float = 0.0
    down: bool = False
    closed: bool = False
    keys: int | None = None
    most: int = 0
    open: list[tuple[float, int, int, int]] = field(default_factory=list)
    minute: dict[int, list[float]] = field(default_factory=dict)

    def well(self) -> None:
        self.delay, self.work, self.keys = 0.02, 0.0, None
        self.down = self.closed = False

    def ask(self, now: float, vm: int, port: int) -> None:
        took = self.delay + self.work * (len(self.open) + 1)
        heapq.heappush(self.open, (now + took, vm, port, 0))
        self.most = max(self.most, len(self.open))

    def answers(self, now: float) -> list[tuple[int, int, bool]]:
        """(VM, port, taken) of those that are due."""
        found = []
        while self.open and self.open[0][0] <= now:
            moment, vm, port, dialled = heapq.heappop(self.open)
            if self.closed and dialled < len(DIALS):
                heapq.heappush(self.open, (moment + DIALS[dialled], vm, port, dialled + 1))
            else:
                found.append((vm, port, not self.closed and self._takes(moment, vm)))
        return found

    def _takes(self, now: float, vm: int) -> bool:
        if self.keys is None:
            return not self.down
        recent = self.minute.setdefault(vm, [])
        recent[:] = [moment for moment in recent if now - moment < 60]
        if len(recent) >= self.keys:
            return False
        recent.append(now)
        return True


class Vm:
    """A VM of so many agents, by the real decision. A start ends when the registry answers."""

    def __init__(self, number: int, agents: int, window: int) -> None:
        self.number = number
        self.ports = range(10001, 10001 + agents)
        self.goal = Goal(variants=dict.fromkeys(self.ports, "a"), window=window)
        self.memory = SwarmState()
        self.running: set[int] = set()
        self.sockets: set[int] = set()
        self.ended: dict[int, str] = {}
        self.starts = 0
        self.counts: list[int] = []

    def round(self, now: float, registry: Registry) -> None:
        seen = Observed(
            now=now,
            running=frozenset(self.running),
            sockets=frozenset(self.sockets),
            ended=self.ended,
        )
        decision = decide(self.goal, self.memory, seen)
        self.memory = decision.memory
        self.ended = {}
        for port in decision.stop:
            self.running.discard(port)
            registry.open = [each for each in registry.open if each[1:3] != (self.number, port)]
            heapq.heapify(registry.open)
        for port in decision.start:
            self.running.add(port)
            self.starts += 1
            registry.ask(now, self.number, port)
        assert len(self.memory.starting) <= self.goal.window
        self.counts.append(len(self.memory.starting))

    def told(self, port: int, taken: bool) -> None:
        if taken:
            self.sockets.add(port)
        else:
            self.running.discard(port)
            self.ended[port] = "ended (exit-code, status 1): registry: refused"

    @property
    def whole(self) -> bool:
        return self.sockets == set(self.ports)


def run(
    vms: list[Vm],
    registry: Registry,
    *,
    limit: float,
    begin: float = 0.0,
    until: float | None = None,
    tick: float = 0.05,
) -> float:
    """Rounds until all VMs are whole (or `until`); the seconds of the clock then."""
    now = begin
    while not all(vm.whole for vm in vms) or until:
        if until and now >= until:
            break
        assert now < limit, [len(vm.sockets) for vm in vms]
        for number, port, taken in registry.answers(now):
            vms[number].told(port, taken)
        for vm in vms:
            vm.round(now, registry)
        assert registry.most <= sum(vm.goal.window for vm in vms)
        now += tick
    return now


def test_a_registry_that_takes_600_ms_gets_the_whole_window() -> None:
    vm = Vm(0, 600, 15)
    took = run([vm], Registry(delay=0.6), limit=60)
    # 15 at a time, each 0.65 s (a tick of 0.05): 26 s, and nothing lost.
    assert took < 28
    assert vm.starts == 600


def test_a_registry_that_takes_5_s_gets_less_and_is_done_in_the_end() -> None:
    vm = Vm(0, 60, 15)
    took = run([vm], Registry(delay=5.0), limit=400)
    assert vm.starts == 60, "none was given up"
    assert max(vm.counts[-200:]) <= 4
    assert took < 60 / 3 * 5.2 + 10


def test_a_registry_that_comes_back_is_noticed_soon() -> None:
    vm, registry = Vm(0, 200, 15), Registry(delay=0.02, down=True)
    run([vm], registry, limit=700, until=600)
    assert vm.sockets == set()
    # 15, 7, 3, and then one every half a minute.
    assert vm.starts <= 15 + 7 + 3 + 25
    registry.down = False
    took = run([vm], registry, limit=700, begin=600) - 600
    assert took < REST_MAX + 20
    # Nobody was held to account for it.
    assert not vm.memory.trouble or max(t.failures for t in vm.memory.trouble.values()) <= 1


@pytest.mark.parametrize("away", [20, 60, 150, 600])
@pytest.mark.parametrize("ready", [0, 100, 195])
def test_a_closed_port_that_opens_again_is_noticed_soon(away: float, ready: int) -> None:
    """Those in flight dial every 8 s at last; the others have not to wait for what they learnt."""
    vm, registry = Vm(0, 200, 15), Registry(delay=0.02)
    now = 0.0
    while len(vm.sockets) < ready:
        now = run([vm], registry, limit=99, begin=now, until=now + 0.05)
    registry.closed = True
    now = run([vm], registry, limit=999, begin=now, until=now + away)
    registry.closed = False
    took = run([vm], registry, limit=now + 200, begin=now) - now
    # The last dial of those in flight, a probe's, or a rest; and then 200 starts.
    assert took < 8 + 10
    assert vm.starts <= 200 + 15 + away / 4


def test_ten_new_keys_a_minute_are_enough_in_the_end() -> None:
    vms = [Vm(0, 40, 15), Vm(1, 40, 15)]
    took = run(vms, Registry(delay=0.02, keys=10), limit=1200)
    # Four minutes' worth of keys each; the rests cost less than as much again.
    assert took < 480


def test_a_bad_agent_holds_up_nobody() -> None:
    vm, registry = Vm(0, 300, 15), Registry(delay=0.02)
    bad = 10007
    now = 0.0
    while len(vm.sockets) < 299:
        for _, port, taken in registry.answers(now):
            vm.told(port, taken and port != bad)
        vm.round(now, registry)
        now += 0.05
    assert now < 10
    assert vm.memory.trouble[bad].failures >= 1


@pytest.mark.parametrize("count", [2, 3])
def test_vms_share_a_registry_fairly(count: int) -> None:
    """One that is slow because much is asked of it: nobody gets twice as much as another."""
    vms = [Vm(number, 1000, 15) for number in range(count)]
    registry = Registry(delay=0.05, work=0.15)
    run(vms, registry, limit=500, until=240)
    done = sorted(len(vm.sockets) for vm in vms)
    assert done[0] > 100
    assert done[-1] <= 2 * done[0]
    # It is not asked for more at a time than makes it slow.
    late = [sum(counts) for counts in zip(*(vm.counts[-1000:] for vm in vms), strict=True)]
    assert sum(late) / len(late) * 0.15 <= SLOW + 1


phases = st.lists(
    st.tuples(
        st.sampled_from(
            [
                {"delay": 0.02},
                {"delay": 0.6},
                {"delay": 5.0},
                {"delay": 0.02, "down": True},
                {"delay": 0.02, "closed": True},
                {"delay": 30.0},
                {"delay": 0.02, "work": 0.3},
                {"delay": 0.02, "keys": 10},
            ]
        ),
        st.floats(1, 90),
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(phases, st.integers(1, 3), st.integers(1, 20), st.integers(1, 30))
def test_agents_come_up_after_any_trouble_of_the_registry(
    bad: list[tuple[dict[str, float], float]], count: int, window: int, agents: int
) -> None:
    """Never past the windows (asserted in every round), and whole soon after it is well again."""
    vms = [Vm(number, agents, window) for number in range(count)]
    registry, now = Registry(), 0.0
    for how, seconds in bad:
        registry.well()
        for name, value in how.items():
            setattr(registry, name, value)
        now = run(vms, registry, limit=now + seconds + 1, begin=now, until=now + seconds, tick=0.25)
    registry.well()
    assert run(vms, registry, limit=now + 330, begin=now, tick=0.25) <= now + 330
