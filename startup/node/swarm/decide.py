"""Decides which agents of a VM are stopped and started. Pure: what was seen in, steps out.

An agent is known by its port. It runs when its cgroup is there, and is ready when its socket is
there too. Its variant is what it was last started with: another release, environment, unit or
ordered restart is another variant. An agent that runs the wrong variant is stopped and started
again. At most a window's worth of wanted agents are down for that at any time, and the others
follow only when the first ones have stayed up. So a bad change takes down no more than these.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from . import start_window as windows
from .start_window import Window

# Seconds until a start without a socket is given up. The daemon dials for 47.5 s (0, 0.5, 1.5, 3.5,
# 7.5 and then every 8 s) before it exits by itself, so after a minute it is stuck.
START_DEADLINE = 60.0
# Seconds after which a start is stuck where later ones came up promptly. Doubled with each failure
# of the agent, so that a slow one comes up in the end.
OVERTAKEN = 10.0
# And at least so many times the mean: on a busy guest without KVM starts took two seconds and more,
# and nine of sixty were given up that would have come up.
OVERTAKEN_TIMES = 5.0
# Seconds without any success after which the youngest start in flight is given up for a fresh one:
# a fresh daemon dials at once, a refused one waits. At least twice what starts take; doubled each
# time, up to PROBE_MAX. Starts that the window has no room for go with it. The oldest go on
# waiting, so a registry that is only slow loses one place.
PROBE = 10.0
PROBE_MAX = 30.0
# Seconds that an agent must stay up until its earlier failures are forgotten, and that it may be
# without its socket.
STEADY = 60.0
# Seconds that the first agents of a change (as many as the window holds) must stay up before the
# others follow. Otherwise a bad change would reach all agents before the first one dies.
PROBATION = STEADY
# Seconds before an agent that failed is started again: 1, 2, 4 ... at most 300.
BACK_OFF = 1.0
BACK_OFF_MAX = 300.0
# Seconds after which a stop that had no effect is asked for again: systemd kills after 30.
STOP_DEADLINE = 90.0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The agents that this VM should run now."""

    variants: Mapping[int, str]
    """Port -> variant ID. Exactly these ports run; empty: drained."""
    window: int
    """Most starts in flight, and most stops."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The agents that were seen."""

    now: float
    """Seconds of a monotonic clock, as all times here."""
    running: frozenset[int] = frozenset()
    sockets: frozenset[int] = frozenset()
    ended: Mapping[int, str] = field(default_factory=dict)
    """Why agents ended, of those that systemd was asked about."""

    @property
    def ready(self) -> frozenset[int]:
        # A socket alone is what SIGKILL leaves behind.
        return self.running & self.sockets


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """An agent that failed."""

    failures: int
    """In a row."""
    until: float
    """It is not started before."""
    why: str = ""
    """Of the last failure."""
    began: str = ""
    """The variant that failed first."""
    variant: str = ""
    """The variant that failed last."""


@dataclass(frozen=True, kw_only=True)
class SwarmState:
    """The state between two decisions, by port."""

    window: Window = field(default_factory=lambda: windows.opened(1))
    starting: Mapping[int, float] = field(default_factory=dict)
    """When its start began."""
    stopping: Mapping[int, float] = field(default_factory=dict)
    """When it was told to stop."""
    up_since: Mapping[int, float] = field(default_factory=dict)
    socket_missing_since: Mapping[int, float] = field(default_factory=dict)
    trouble: Mapping[int, Trouble] = field(default_factory=dict)
    variant: Mapping[int, str] = field(default_factory=dict)
    """The variant that it was last started with, "" where that is not known."""
    last_success_at: float = float("-inf")
    """When a start last came up, or was last given up for a fresh one (PROBE)."""
    patience: float = PROBE
    """Seconds to wait for the next success."""
    mean_start_seconds: float = 0.0
    """Smoothed; 0 before the first start came up."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The steps: first the stops, then the starts."""

    stop: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    said: tuple[str, ...] = ()
    """Lines for the log."""
    failures: int = 0
    """Agents that failed."""
    memory: SwarmState


def decide(goal: Goal, memory: SwarmState, seen: Observed) -> Decision:
    """What to do now so that exactly the agents of `goal` run, each as its variant.

    At most the window's size of starts are in flight, and at most `goal.window` stops. Agents that
    run as they should are left alone. One that fails waits longer each time, and is started after
    those that never failed, so that it never holds up the others.
    """
    work = _Work(goal=goal, seen=seen, memory=memory)
    work.settle_ready()
    work.settle_starts()
    work.adopt()
    work.judge()
    surplus = work.surplus()
    # Agents that are down come before those that run as another variant.
    start = work.starts()
    stop = (*work.hung, *surplus, *work.replaced())
    return Decision(
        stop=stop,
        start=start,
        said=tuple(work.said),
        failures=work.failures,
        memory=SwarmState(
            window=work.window,
            starting=work.starting,
            stopping=work.stopping,
            up_since=work.up_since,
            socket_missing_since=work.socket_missing_since,
            trouble=work.trouble,
            variant=work.variant,
            last_success_at=work.last_success_at,
            patience=work.patience,
            mean_start_seconds=work.mean_start_seconds,
        ),
    )


class _Work:
    """The next state, while `decide` makes it out of the last one."""

    def __init__(self, *, goal: Goal, seen: Observed, memory: SwarmState) -> None:
        self.goal = goal
        self.seen = seen
        self.before = memory
        self.now = seen.now
        self.wanted = goal.variants.keys()
        self.said: list[str] = []
        self.hung: list[int] = []
        # Ports whose start failed: when it began, and whether the agent had failed before.
        self.failed: dict[int, tuple[float, bool]] = {}
        self.failures = 0
        # How long each start took that came up now.
        self.start_seconds: list[float] = []
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
        self.socket_missing_since: dict[int, float] = {}
        self.trouble = {port: t for port, t in memory.trouble.items() if port in self.wanted}
        self.variant = dict(memory.variant)
        self.last_success_at = memory.last_success_at
        self.patience = memory.patience
        self.mean_start_seconds = memory.mean_start_seconds
        window = windows.at(memory.window, limit=goal.window, now=self.now)
        others = [
            port
            for port in window.failed_since_success
            if goal.variants.get(port) != (self.variant.get(port, ""))
        ]
        self.window = windows.changed(window, others, len(self.wanted))

    def settle_ready(self) -> None:
        """Agents that were ready: deaths are noted, failures of steady ones forgotten, and missing
        sockets watched."""
        before, seen = self.before, self.seen
        for port in sorted(self.gone):
            # An agent that was told to stop, or is not wanted any more, may end.
            if port in self.wanted and port not in before.stopping:
                steady = self.now - before.up_since[port] >= STEADY
                self._died(port, seen.ended.get(port, "died"), steady=steady)
        for port in list(self.trouble):
            if self.now - self.up_since.get(port, self.now) >= STEADY:
                del self.trouble[port]
        for port in self.up_since.keys() - seen.sockets - self.stopping.keys():
            self.socket_missing_since[port] = before.socket_missing_since.get(port, self.now)

    def settle_starts(self) -> None:
        """Sort the starts in flight: up, failed, hung, or still in flight."""
        before, prompt = self.before.starting, float("-inf")
        for port in before.keys() & self.wanted & self.seen.ready:
            took = self.now - before[port]
            self.up_since[port] = self.now
            self.start_seconds.append(took)
            if took <= windows.PROMPT:
                prompt = max(prompt, before[port])
        if self.start_seconds:
            # Smoothed as TCP smooths its round trips: one start says little.
            mean, known = sum(self.start_seconds) / len(self.start_seconds), self.mean_start_seconds
            self.mean_start_seconds = (7 * known + mean) / 8 if known else mean
        for port in sorted((before.keys() & self.wanted) - self.seen.ready):
            self._settle(port, before[port], prompt)
        if self.start_seconds:
            self.last_success_at = self.now
            self.patience = min(max(PROBE, 2 * max(self.start_seconds)), PROBE_MAX)
        self._probe()
        self.stopping |= dict.fromkeys(self.hung, self.now)

    def _settle(self, port: int, since: float, prompt: float) -> None:
        """A start without a socket. `prompt`: when the latest start began that just came up
        promptly."""
        age = self.now - since
        patience = max(OVERTAKEN, OVERTAKEN_TIMES * self.mean_start_seconds)
        patience = min(patience * 2.0 ** min(self._failures(port), 8), START_DEADLINE)
        if port in self.seen.ended:
            self._failed(port, self.seen.ended[port], since)
        elif age > START_DEADLINE:
            self._failed(port, f"no socket after {START_DEADLINE:.0f} s", since)
            self.hung.append(port)
        elif since < prompt and age > patience:
            # Others come up, so it is not the registry's fault and changes no window.
            self._rests(port, f"no socket after {age:.0f} s, while others come up")
            self.hung.append(port)
        elif self.before.variant.get(port, "") != self.goal.variants[port]:
            # Its variant is not wanted any more. That is no failure.
            self.hung.append(port)
        else:
            self.starting[port] = since

    def _probe(self) -> None:
        """Make room for a fresh start where nothing comes up."""
        youngest = max(self.starting.values(), default=self.now)
        if not self.starting or self.now - max(youngest, self.last_success_at) < self.patience:
            return
        over = max(1, len(self.starting) - self.window.size + 1)
        found = heapq.nlargest(over, self.starting, key=lambda port: (self.starting[port], port))
        for port in found:
            since = self.starting.pop(port)
            self._failed(port, f"no socket after {self.now - since:.0f} s", since)
        self.hung += found
        self.last_success_at, self.patience = self.now, min(self.patience * 2, PROBE_MAX)

    def adopt(self) -> None:
        """Take over agents of an earlier pilot-node: ready ones, and starts in flight."""
        unknown = self.seen.running - self.starting.keys() - self.stopping.keys()
        for port in unknown - self.up_since.keys():
            if port in self.wanted:
                adopted = self.up_since if port in self.seen.sockets else self.starting
                adopted[port] = self.now

    def judge(self) -> None:
        """Set the window by the starts that ended, and by those that take long."""
        if self.start_seconds:
            self.window = windows.succeeded(self.window, self.start_seconds)
        slow = [self.now - each for each in self.start_seconds if each >= windows.SLOW]
        slow += [since for since in self.starting.values() if self.now - since >= windows.SLOW]
        if slow:
            # The latest counts: a start from before a cut says nothing about the time after it.
            self.window = windows.slow(self.window, max(slow), self.now)
        failures = [(port, began, before) for port, (began, before) in self.failed.items()]
        self.window = windows.failed(
            self.window, failures, now=self.now, wanted=len(self.wanted), why=self.last_why
        )
        suspect = self.window.registry_is_suspect(len(self.wanted))
        for port in self.failed:
            # Where several fail and none comes up, it is not the agent's fault: its count stays,
            # and it waits no longer than the others.
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
        """Unwanted agents that run, as many as may be stopped now, the highest port first."""
        room = self._room_to_stop()
        over = self.seen.running - self.wanted - self.stopping.keys()
        found = heapq.nlargest(room, over) if over else []
        self.stopping |= dict.fromkeys(found, self.now)
        return found

    def replaced(self) -> Sequence[int]:
        """Agents that run as another variant than they should, or that lost their socket for too
        long: as many as may be down for it now."""
        if self.now < self.window.rest_until:
            return ()
        # Starts count as down, so none may be stopped. Saves a look at thousands of agents.
        if len(self.starting) >= self.window.size:
            return ()
        goal, variant = self.goal.variants, self.variant
        if variant == goal and not self.socket_missing_since:
            # As nearly always. Saves the same look.
            return ()
        over = [
            port
            for port in self.up_since
            if port not in self.stopping
            and (
                variant.get(port, "") != goal[port]
                or (
                    port in self.socket_missing_since
                    and self.now - self.socket_missing_since[port] >= STEADY
                )
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
            self.socket_missing_since.pop(port, None)
        return found

    def _down(self, changing: Collection[str]) -> int:
        """Wanted agents that are down for a change, or count as such:

        - those that are coming up, or fail as the variant that they should be;
        - those that failed so and are up again, until they are steady;
        - those that are up as a variant that others are `changing` to, until as many as the window
          holds have stayed up: a change that lets agents live for seconds gets no further than one
          that does not.

        Agents that failed as their old variant do not count: the change may be their cure.
        """
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
        """Agents that are started now, those that never failed first."""
        # An agent that is stopped to be started again keeps its place in the window.
        held = len(self.starting) + sum(port in self.wanted for port in self.stopping)
        busy = self.seen.running | self.starting.keys() | self.stopping.keys()
        # Unwanted agents that still end take room as well: memory is planned for the wanted number.
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
        # Another variant than the one that failed is tried at once.
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
        """An agent that was up died. One that was steady starts again at once."""
        if steady:
            self.failures += 1
            self.trouble.pop(port, None)
            self.said.append(f"agent {port}: {why}; starting it again")
        else:
            self._rests(port, why)

    def _failed(self, port: int, why: str, began: float) -> None:
        """A start failed. `judge` logs it, once it is known whose fault it is."""
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
    """`decision` without the starts `unfit` (port -> why), which could not be prepared. Each fails
    by itself, and the others start."""
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
    # The exponent is bounded: after days of failures a float would overflow.
    pause = min(BACK_OFF * 2.0 ** min(failures - 1, 16), BACK_OFF_MAX)
    began = before.began if before else variant
    return Trouble(failures=failures, until=now + pause, why=why, began=began, variant=variant)


def _line(port: int, trouble: Trouble, now: float) -> str:
    return (
        f"agent {port}: {trouble.why} (failure {trouble.failures}); "
        f"again in {trouble.until - now:g} s"
    )
