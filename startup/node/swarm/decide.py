"""What to do so that a VM's agents are what they should be: pure, what was seen in, steps out.

An agent is its port. It runs when its cgroup is there and is ready when its socket is there too. It
is what it was last started with, its variant: a change of release, environment, unit or an ordered
restart is nothing but another variant, and an agent that runs another one than it should is stopped
and started again. That is voluntary, so it is bounded: of the agents that should run, no more than
the window are down for it at any time, and none follow the first of them before these have stayed
up. So a change that is bad takes down no more than these.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from . import start_window as windows
from .start_window import Window

# Seconds until a start without a socket is given up. The daemon dials for 47.5 s (0, 0.5, 1.5, 3.5,
# 7.5 and then every 8 s) before it exits by itself; a minute is not slow but stuck.
START_DEADLINE = 60.0
# Seconds after which a start that others overtake is stuck: these began later and came up promptly.
# Doubled with each failure of the agent: one that really is so slow comes up in the end. No less
# than five times what the others take: on a busy guest without KVM they took two seconds and more,
# and nine of sixty were given up that would have come up.
OVERTAKEN = 10.0
OVERTAKEN_TIMES = 5.0
# Seconds without any success after which the youngest start in flight is given up, for a fresh one:
# a fresh daemon dials at once and then within seconds, where one that was refused waits. Doubled
# each time, up to the maximum, and twice what starts take. With it go those that the window no
# longer has room for; the oldest go on waiting, so a registry that is only slow loses one place.
PROBE = 10.0
PROBE_MAX = 30.0
# Seconds that an agent has to stay up for its earlier failures to be forgotten, and that it may be
# without its socket.
STEADY = 60.0
# Seconds that the first agents of a change have to stay up before the others follow: as many as the
# window holds. A change that kills sooner would else have gone through all of them before the first
# one dies; whoever lives longer is steady, and started again at once.
PROBATION = STEADY
# Seconds before an agent that failed is started again: 1, 2, 4 ... at most 300.
BACK_OFF = 1.0
BACK_OFF_MAX = 300.0
# Seconds after which a stop that came to nothing is asked for again: systemd kills after 30.
STOP_DEADLINE = 90.0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the agents of this VM should be, now.

    `variants`: port -> variant ID; exactly these ports run. Empty: drained. `window`: most starts,
    and most stops, in flight.
    """

    variants: Mapping[int, str]
    window: int


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What is there. `now` in seconds of a monotonic clock; `ended` says why, for agents that
    systemd knows to have come to an end."""

    now: float
    running: frozenset[int] = frozenset()
    sockets: frozenset[int] = frozenset()
    ended: Mapping[int, str] = field(default_factory=dict)

    @property
    def ready(self) -> frozenset[int]:
        # A socket alone is what SIGKILL leaves behind.
        return self.running & self.sockets


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """An agent that failed `failures` times in a row and rests until `until`; `why` it failed last.

    `began` and `variant` are what it was started with at the first and at the last failure.
    """

    failures: int
    until: float
    why: str = ""
    began: str = ""
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is remembered between two decisions: port -> seconds of the clock, its trouble, or what
    it was last started with ("": not known)."""

    window: Window = field(default_factory=lambda: windows.opened(1))
    starting: Mapping[int, float] = field(default_factory=dict)
    stopping: Mapping[int, float] = field(default_factory=dict)
    up_since: Mapping[int, float] = field(default_factory=dict)
    lost: Mapping[int, float] = field(default_factory=dict)
    trouble: Mapping[int, Trouble] = field(default_factory=dict)
    variant: Mapping[int, str] = field(default_factory=dict)
    # When a start last came up, or one was last made anew for want of that; seconds to wait for it.
    came_up: float = float("-inf")
    patience: float = PROBE
    # Seconds that a start takes, of those that came up lately.
    takes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The steps, in this order: stop, then start (its stale socket goes first). `said` is why,
    `failures` how many agents failed."""

    stop: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    said: tuple[str, ...] = ()
    failures: int = 0
    memory: Memory


def decide(goal: Goal, memory: Memory, seen: Observed) -> Decision:
    """What to do now so that exactly the agents of `goal` run, each as its variant.

    At most the window's size of starts are in flight, and at most `goal.window` stops. What runs as
    it should is left alone. An agent that fails rests, longer each time, and those that never
    failed go before it, so that one bad agent never holds up the rest.
    """
    work = _Work(goal=goal, seen=seen, memory=memory)
    work.settle_ready()
    work.settle_starts()
    work.adopt()
    work.judge()
    surplus = work.surplus()
    # Who is down comes before who runs, if as something else.
    start = work.starts()
    stop = (*work.hung, *surplus, *work.replaced())
    return Decision(
        stop=stop,
        start=start,
        said=tuple(work.said),
        failures=work.failures,
        memory=Memory(
            window=work.window,
            starting=work.starting,
            stopping=work.stopping,
            up_since=work.up_since,
            lost=work.lost,
            trouble=work.trouble,
            variant=work.variant,
            came_up=work.came_up,
            patience=work.patience,
            takes=work.takes,
        ),
    )


class _Work:
    """What `decide` works on: the next memory, while it is made out of the last one."""

    def __init__(self, *, goal: Goal, seen: Observed, memory: Memory) -> None:
        self.goal = goal
        self.seen = seen
        self.before = memory
        self.now = seen.now
        self.wanted = goal.variants.keys()
        self.said: list[str] = []
        self.hung: list[int] = []
        # Ports that failed: when the start was begun (or -inf), whether it had failed before.
        self.failed: dict[int, tuple[float, bool]] = {}
        self.failures = 0
        self.came: list[float] = []
        self.last_why = ""
        self.starting: dict[int, float] = {}
        self.stopping = {
            port: since
            for port, since in memory.stopping.items()
            if port in seen.running and seen.now - since < STOP_DEADLINE
        }
        self.up_since = dict(memory.up_since)
        self.gone = self.up_since.keys() - (seen.running & self.wanted)
        for port in self.gone:
            del self.up_since[port]
        self.lost: dict[int, float] = {}
        self.trouble = {port: t for port, t in memory.trouble.items() if port in self.wanted}
        self.variant = dict(memory.variant)
        self.came_up = memory.came_up
        self.patience = memory.patience
        self.takes = memory.takes
        window = windows.at(memory.window, limit=goal.window, now=self.now)
        others = [
            port
            for port in window.fruitless
            if goal.variants.get(port) != (self.variant.get(port, ""))
        ]
        self.window = windows.changed(window, others, len(self.wanted))

    def settle_ready(self) -> None:
        """Those that were ready: who died is noted, who is steady is forgiven, who has lost its
        socket is watched."""
        before, seen = self.before, self.seen
        for port in sorted(self.gone):
            # Those that were told to stop may; those that are no longer wanted will be told.
            if port in self.wanted and port not in before.stopping:
                steady = self.now - before.up_since[port] >= STEADY
                self._died(port, seen.ended.get(port, "died"), steady=steady)
        for port in list(self.trouble):
            if self.now - self.up_since.get(port, self.now) >= STEADY:
                del self.trouble[port]
        for port in self.up_since.keys() - seen.sockets - self.stopping.keys():
            self.lost[port] = before.lost.get(port, self.now)

    def settle_starts(self) -> None:
        """The starts in flight: up, failed, hung, or still in flight."""
        before, prompt = self.before.starting, float("-inf")
        for port in before.keys() & self.wanted & self.seen.ready:
            took = self.now - before[port]
            self.up_since[port] = self.now
            self.came.append(took)
            if took <= windows.PROMPT:
                prompt = max(prompt, before[port])
        if self.came:
            # As TCP smooths its round trips: one start says little.
            mean = sum(self.came) / len(self.came)
            self.takes = (7 * self.takes + mean) / 8 if self.takes else mean
        for port in sorted((before.keys() & self.wanted) - self.seen.ready):
            self._settle(port, before[port], prompt)
        if self.came:
            self.came_up = self.now
            self.patience = min(max(PROBE, 2 * max(self.came)), PROBE_MAX)
        self._probe()
        self.stopping |= dict.fromkeys(self.hung, self.now)

    def _settle(self, port: int, since: float, prompt: float) -> None:
        """A start without a socket. `prompt`: when the last that just came up promptly began."""
        age = self.now - since
        patience = max(OVERTAKEN, OVERTAKEN_TIMES * self.takes)
        patience = min(patience * 2.0 ** min(self._failures(port), 8), START_DEADLINE)
        if port in self.seen.ended:
            self._failed(port, self.seen.ended[port], since)
        elif age > START_DEADLINE:
            self._failed(port, f"no socket after {START_DEADLINE:.0f} s", since)
            self.hung.append(port)
        elif since < prompt and age > patience:
            # Not the registry's fault, as others show, so it says nothing about the window.
            self._rests(port, f"no socket after {age:.0f} s, while others come up")
            self.hung.append(port)
        elif self.before.variant.get(port, "") != self.goal.variants[port]:
            # What it is coming up as is not wanted any more. It is nobody's fault.
            self.hung.append(port)
        else:
            self.starting[port] = since

    def _probe(self) -> None:
        """Where nothing comes up, room is made for a fresh start."""
        youngest = max(self.starting.values(), default=self.now)
        if not self.starting or self.now - max(youngest, self.came_up) < self.patience:
            return
        over = max(1, len(self.starting) - self.window.size + 1)
        found = heapq.nlargest(over, self.starting, key=lambda port: (self.starting[port], port))
        for port in found:
            since = self.starting.pop(port)
            self._failed(port, f"no socket after {self.now - since:.0f} s", since)
        self.hung += found
        self.came_up, self.patience = self.now, min(self.patience * 2, PROBE_MAX)

    def adopt(self) -> None:
        """Those that run and were not known: ready, or a start in flight of an earlier process."""
        unknown = self.seen.running - self.starting.keys() - self.stopping.keys()
        for port in unknown - self.up_since.keys():
            if port in self.wanted:
                adopted = self.up_since if port in self.seen.sockets else self.starting
                adopted[port] = self.now

    def judge(self) -> None:
        """What the starts that ended, and those that do not end, say about the registry."""
        if self.came:
            self.window = windows.succeeded(self.window, self.came)
        slow = [self.now - each for each in self.came if each >= windows.SLOW]
        slow += [since for since in self.starting.values() if self.now - since >= windows.SLOW]
        if slow:
            # The latest: what began before a cut says nothing about what was after it.
            self.window = windows.slow(self.window, max(slow), self.now)
        failures = [(port, began, before) for port, (began, before) in self.failed.items()]
        self.window = windows.failed(
            self.window, failures, now=self.now, wanted=len(self.wanted), why=self.last_why
        )
        suspect = self.window.suspects(len(self.wanted))
        for port in self.failed:
            # Where several fail and none comes up, it is not the agent's fault: it is counted as it
            # was, and only rests as long as everybody.
            had = self.before.trouble.get(port)
            if suspect:
                trouble = self.trouble[port]
                kept = max(1, had.failures if had else 0)
                self.trouble[port] = replace(trouble, failures=kept, until=self.now + BACK_OFF)
            again = self.trouble[port].until - self.now
            self.said.append(
                f"agent {port}: {self.trouble[port].why} (failure {self.trouble[port].failures}); "
                + ("again when the registry answers" if suspect else f"again in {again:g} s")
            )

    def surplus(self) -> Sequence[int]:
        """Those that run and are not wanted, as many as may be stopped now, the last first."""
        room = self._room_to_stop()
        over = self.seen.running - self.wanted - self.stopping.keys()
        found = heapq.nlargest(room, over) if over else []
        self.stopping |= dict.fromkeys(found, self.now)
        return found

    def replaced(self) -> Sequence[int]:
        """Those that run as something else than they should, or without their socket for too long,
        as many as may be down for it now."""
        if self.now < self.window.rest_until:
            return ()
        # They count as down, so there is nothing to look for: thousands, dozens of times a second.
        if len(self.starting) >= self.window.size:
            return ()
        goal, variant = self.goal.variants, self.variant
        over = [
            port
            for port in self.up_since
            if port not in self.stopping
            and (
                variant.get(port, "") != goal[port]
                or (port in self.lost and self.now - self.lost[port] >= STEADY)
            )
        ]
        if not over:
            return ()
        room = min(
            self._room_to_stop(), self.window.size - self._down({goal[port] for port in over})
        )
        found = heapq.nsmallest(max(0, room), over)
        self.stopping |= dict.fromkeys(found, self.now)
        for port in found:
            self.up_since.pop(port)
            self.lost.pop(port, None)
        return found

    def _down(self, changing: Collection[str]) -> int:
        """Wanted agents that are down for a change: they are coming up, or were started as what
        they should be and fail. One that failed so and is up again counts until it is steady; and
        as what others are `changing` to, all that are up count until as many as the window holds
        have stayed up. So a change that lets agents live for seconds gets no further than one that
        does not. Those that failed as what they were before do not count: they would hold up what
        may be their cure."""
        up = self.up_since.keys() - self.stopping.keys()
        goal, young, old = self.goal.variants, Counter[str](), Counter[str]()
        count = 0
        for port in up:
            variant = goal[port]
            if self.variant.get(port, "") != variant:
                continue
            trouble = self.trouble.get(port)
            if trouble and trouble.variant == variant:
                count += 1
            elif variant not in changing:
                continue
            elif self.now - self.up_since[port] < PROBATION:
                young[variant] += 1
            else:
                old[variant] += 1
        count += sum(n for variant, n in young.items() if old[variant] < self.window.size)
        for port in self.wanted - up:
            trouble = self.trouble.get(port)
            if port in self.stopping or port in self.starting:
                count += 1
            elif not trouble or trouble.began == self.goal.variants[port]:
                count += port in self.variant
        return count

    def starts(self) -> tuple[int, ...]:
        """Those that are started now, those that never failed first."""
        # What is stopped to be started again keeps its place until it is gone.
        held = len(self.starting) + sum(port in self.wanted for port in self.stopping)
        busy = self.seen.running | self.starting.keys() | self.stopping.keys()
        # Nor more in all than are wanted, while those that are not wanted still end: memory is
        # planned for so many.
        room = min(self.window.allows(self.now) - held, len(self.wanted) - len(busy))
        if room <= 0:
            return ()
        free = self.wanted - busy
        if self.trouble:
            free = {port for port in free if self._may_start(port)}
        found = heapq.nsmallest(room, free, key=self._order if self.trouble else None)
        self.starting |= dict.fromkeys(found, self.now)
        self.variant |= {port: self.goal.variants[port] for port in found}
        return tuple(found)

    def _may_start(self, port: int) -> bool:
        trouble = self.trouble.get(port)
        # As something else than what failed it is tried at once.
        return (
            trouble is None
            or trouble.until <= self.now
            or trouble.variant != self.goal.variants[port]
        )

    def _order(self, port: int) -> tuple[int, float, int]:
        trouble = self.trouble.get(port)
        return (trouble.failures, trouble.until, port) if trouble else (0, 0.0, port)

    def _room_to_stop(self) -> int:
        return max(0, self.window.limit - len(self.stopping))

    def _failures(self, port: int) -> int:
        return self.trouble[port].failures if port in self.trouble else 0

    def _died(self, port: int, why: str, *, steady: bool) -> None:
        """An agent that was up. One that was steady starts again at once."""
        if steady:
            self.failures += 1
            self.trouble.pop(port, None)
            self.said.append(f"agent {port}: {why}; starting it again")
        else:
            self._rests(port, why)

    def _failed(self, port: int, why: str, began: float) -> None:
        """A start that came to nothing. It is said once it is known whose fault it is."""
        self.failures += 1
        self.failed[port] = (began, port in self.trouble)
        self.last_why = why
        self.trouble[port] = _worse(
            self.trouble.get(port), why, self.now, self.variant.get(port, "")
        )

    def _rests(self, port: int, why: str) -> None:
        self.failures += 1
        trouble = _worse(self.trouble.get(port), why, self.now, self.variant.get(port, ""))
        self.trouble[port] = trouble
        self.said.append(_line(port, trouble, self.now))


def without(decision: Decision, unfit: Mapping[int, str], now: float) -> Decision:
    """`decision`, where the starts `unfit` (port -> why) cannot be made: each is trouble of its
    own and keeps none of the others from starting."""
    if not unfit:
        return decision
    before = decision.memory
    trouble, said = dict(before.trouble), list(decision.said)
    for port, why in unfit.items():
        trouble[port] = _worse(trouble.get(port), why, now, before.variant.get(port, ""))
        said.append(_line(port, trouble[port], now))
    return replace(
        decision,
        start=tuple(port for port in decision.start if port not in unfit),
        said=tuple(said),
        failures=decision.failures + len(unfit),
        memory=replace(
            before,
            starting={port: t for port, t in before.starting.items() if port not in unfit},
            trouble=trouble,
        ),
    )


def _worse(before: Trouble | None, why: str, now: float, variant: str) -> Trouble:
    failures = before.failures + 1 if before else 1
    # The exponent is bounded: an agent that fails for days must not overflow a float.
    pause = min(BACK_OFF * 2.0 ** min(failures - 1, 16), BACK_OFF_MAX)
    began = before.began if before else variant
    return Trouble(failures=failures, until=now + pause, why=why, began=began, variant=variant)


def _line(port: int, trouble: Trouble, now: float) -> str:
    return (
        f"agent {port}: {trouble.why} (failure {trouble.failures}); "
        f"again in {trouble.until - now:g} s"
    )
