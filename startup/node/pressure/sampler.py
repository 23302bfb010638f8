"""Measures memory and connections of a VM and its agents.

Two threads: the quick one looks at the VM every second and freezes benchmarks in time. The slow one
measures and asks agents. Costs are given beside the numbers (real daemons, on the machine of
docs/FACTS.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ..machine import agent_units, proc
from ..machine.paths import Paths
from ..machine.thread_loop import ThreadLoop
from . import agent_ipc, kernel_limits, leak_detection
from .agent_ipc import Info, IpcError
from .agent_memory import held, measure, private_bytes, spread
from .benchmarks import CgroupFreezer, Governor
from .kernel_limits import LimitUse
from .leak_detection import Held, History, Look

# Seconds between two looks at the VM's memory: two small files.
WATCH: Final = 1.0
# At its limits: two files per service.
LIMITS: Final = 10.0
# At a few agents.
SOME: Final = 60.0
# At all agents.
ALL: Final = leak_detection.LOOK
# Seconds until the second look at a few agents, then twice as long each time, up to SOME. At the
# first look of a boot no agent runs yet.
SOON: Final = 5.0

# Agents whose PSS makes the mean. smaps_rollup walks all pages of a process, takes 0.22 ms of CPU
# for an idle agent and holds its mmap lock: 7 ms per minute.
PSS_AGENTS: Final = 32
# Agents asked for their connections, 0.3 ms each. The same ones each time, so that a change is a
# change of connections and not of the choice.
ASKED: Final = 32
# Seconds for all of them. An agent that hangs takes two.
BUDGET: Final = 20.0
# Of agents that may be above the limit: how many are measured exactly, and how many listed.
MEASURED: Final = 64
TOP: Final = 20


@dataclass(frozen=True, kw_only=True)
class Planning:
    """Planning sizes of the spec, in bytes."""

    agent: int
    connection: int
    """One connection of one agent."""


@dataclass(frozen=True, kw_only=True)
class Heavy:
    """An agent above the limit."""

    port: int
    node_id: int | None
    """None where it did not say."""
    bytes: int
    """PSS."""


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """The quick thread's last numbers."""

    total: int | None = None
    """Memory of the VM."""
    available: int | None = None
    """Memory of the VM that is available."""
    slice: int | None = None
    """memory.current of pilot.slice."""
    udp_sockets: int | None = None
    benchmarks: str = "none"
    """none, running, frozen or paused."""
    limits: Sequence[LimitUse] = ()
    """Those of which more than 80 % are used."""


@dataclass(frozen=True, kw_only=True)
class _Walked:
    """The slow thread's last numbers."""

    agent_mean: float | None = None
    """Mean PSS of a sample of agents."""
    over: int | None = None
    """Agents above Sample.agent_limit."""
    top: Sequence[Heavy] = ()
    """The largest of these."""
    growth: float | None = None
    """Bytes per hour, of all agents."""
    grown: float | None = None
    """Bytes that the mean agent has grown by since pilot-node started."""
    leak: str = ""
    """A sentence, "" where memory does not leak."""
    asked: int = 0
    """Agents that answered when they were asked for their connections."""
    connections: float | None = None
    """Mean connections per agent, of those that answered."""


@dataclass(frozen=True, kw_only=True)
class Sample(_Watched, _Walked):
    """The last measurements. Memory in bytes; None where it is not known, or not yet."""

    agent_limit: int = 0
    """Twice the planning size of an agent."""


class PressureWatch:
    """The quick thread's work: the VM's memory, its limits, and benchmarks."""

    def __init__(
        self, paths: Paths, governor: Governor, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.paths = paths
        self.governor = governor
        self.paused = False
        self.latest = _Watched()
        self._clock = clock
        self._limits_at = float("-inf")

    def step(self) -> None:
        """One look. Raises OSError where benchmarks could not be frozen."""
        total = available = None
        try:
            memory = proc.meminfo(self.paths)
            total, available = memory.get("MemTotal"), memory.get("MemAvailable")
        except OSError:
            # Benchmarks stay as they are.
            pass
        benchmarks = self.governor.step(paused=self.paused, available=available, total=total)
        near, sockets = self.latest.limits, self.latest.udp_sockets
        if self._clock() - self._limits_at >= LIMITS:
            self._limits_at = self._clock()
            near, sockets = kernel_limits.used(self.paths), self._sockets()
        self.latest = _Watched(
            total=total,
            available=available,
            slice=_memory_current(self.paths),
            udp_sockets=sockets,
            benchmarks=benchmarks,
            limits=near,
        )

    def _sockets(self) -> int | None:
        try:
            return proc.udp(self.paths)[0]
        except (OSError, ValueError, LookupError):
            return None


@dataclass(kw_only=True)
class Walk:
    """The slow thread's work: agents."""

    paths: Paths
    planning: Planning
    ask: Callable[[Path], Info] = agent_ipc.info
    clock: Callable[[], float] = time.monotonic
    latest: _Walked = field(default_factory=_Walked)
    _history: History = field(default_factory=History)
    _all_at: float = float("-inf")
    _panel: Sequence[int] = ()
    _ids: dict[tuple[int, int], int] = field(default_factory=dict)

    def step(self) -> None:
        """One look at some agents and, where it is time, at all of them. Raises OSError."""
        ports = list(agent_units.running(self.paths))
        connections, asked = self._connections(ports)
        measured = [
            found.pss
            for port in spread(ports, PSS_AGENTS)
            if (processes := agent_units.processes_of(self.paths, port))
            and (found := measure(self.paths, processes)) is not None
        ]
        self.latest = replace(
            self.latest,
            agent_mean=sum(measured) / len(measured) if measured else None,
            asked=asked,
            connections=connections,
        )
        now = self.clock()
        if now - self._all_at >= ALL:
            self._all_at = now
            # One file for each of thousands: only where all are looked at.
            self._look_at_all(agent_units.processes(self.paths), now)

    def _look_at_all(self, running: Mapping[int, Sequence[int]], now: float) -> None:
        uptime = proc.uptime(self.paths)
        seen = {
            port: found
            for port, processes in running.items()
            if (found := held(self.paths, processes, uptime)) is not None
        }
        look = Look(
            at=now,
            agents=seen,
            overhead=_overhead(self.paths, len(seen)),
            connections=self.latest.connections,
        )
        self._history = leak_detection.seen(self._history, look)
        verdict = leak_detection.judge(self._history, self.planning.connection)
        over, top = self._heavy(running, seen)
        self.latest = replace(
            self.latest,
            over=over,
            top=top,
            growth=verdict.growth,
            grown=self._history.grown,
            leak=verdict.leak,
        )

    def _heavy(
        self, running: Mapping[int, Sequence[int]], seen: Mapping[int, Held]
    ) -> tuple[int, list[Heavy]]:
        """How many are above the limit, and the largest of these. PSS is what an agent alone
        holds, plus its share of the program's text. Only the largest agents' PSS is measured."""
        limit = 2 * self.planning.agent
        certain = {port for port, one in seen.items() if one.bytes > limit}
        largest = sorted(seen, key=lambda port: -seen[port].bytes)[:MEASURED]
        # The text is 11 MB (docs/FACTS.md): an agent above half of the limit may be above it.
        exact = {
            port: found.pss
            for port in largest
            if seen[port].bytes > limit // 2
            and (found := measure(self.paths, running[port])) is not None
            and found.pss > limit
        }
        ports = sorted(exact, key=lambda port: -exact[port])[:TOP]
        self._ids = {
            key: ID
            for key, ID in self._ids.items()
            if key[0] in ports and key[1] == running[key[0]][0]
        }
        deadline = self.clock() + BUDGET
        top = [
            Heavy(port=port, node_id=self._id(port, running[port][0], deadline), bytes=exact[port])
            for port in ports
        ]
        return len(certain | exact.keys()), top

    def _id(self, port: int, process: int, deadline: float) -> int | None:
        key = (port, process)
        if key not in self._ids and self.clock() < deadline:
            try:
                self._ids[key] = self.ask(agent_units.socket_of(self.paths, port)).node_id
            except IpcError:
                return None
        return self._ids.get(key)

    def _connections(self, running: Collection[int]) -> tuple[float | None, int]:
        """`_mean` of the agents that answered, and how many did."""
        # Keep the same agents while nine tenths of them run. While few run, ask all.
        kept = [port for port in self._panel if port in running]
        few = len(self._panel) < min(ASKED, len(running))
        if few or 10 * len(kept) < 9 * len(self._panel):
            self._panel = kept = spread(list(running), ASKED)
        found = []
        deadline = self.clock() + BUDGET
        for port in kept:
            if self.clock() >= deadline:
                break
            try:
                found.append(self.ask(agent_units.socket_of(self.paths, port)).connections)
            except IpcError:
                # It starts, stops, or hangs.
                continue
        return _mean(found), len(found)


def _mean(found: Sequence[int]) -> float | None:
    """Mean of the agents' answers. The highest sixteenth counts as much as the next one below: an
    agent can say anything, and one that claims a million would explain any leak."""
    if not found:
        return None
    cut = max(1, len(found) // 16) if len(found) > 2 else 0
    most = sorted(found)[-1 - cut]
    return sum(min(number, most) for number in found) / len(found)


class Sampler:
    """Runs both threads. `planning` and `pause` may be set at any time."""

    def __init__(self, *, paths: Paths, planning: Planning, say: Callable[[str], None]) -> None:
        """The threads call `say` when benchmarks are frozen or thawed, when a leak begins or ends,
        and when something cannot be read."""
        self.paths = paths
        self._say = say
        self._governor = Governor(freezer=CgroupFreezer(paths=paths), say=say)
        self._watch = PressureWatch(paths, self._governor)
        self._walk = Walk(paths=paths, planning=planning)
        self._leak = ""
        self._loops = (
            ThreadLoop("pressure", _Paced(self._watch.step, say, WATCH, WATCH)),
            ThreadLoop("agents", _Paced(self._walked, say, SOON, SOME)),
        )

    def start(self) -> None:
        for loop in self._loops:
            loop.start()

    def close(self, seconds: float = 3.0) -> None:
        """End the threads and thaw benchmarks: after this nothing would thaw them."""
        deadline = time.monotonic() + seconds
        for loop in self._loops:
            loop.end()
        for loop in self._loops:
            loop.join(max(0.0, deadline - time.monotonic()))
        try:
            self._governor.close()
        except OSError as error:
            self._say(f"benchmarks could not be thawed: {error}")

    @property
    def planning(self) -> Planning:
        return self._walk.planning

    @planning.setter
    def planning(self, planning: Planning) -> None:
        self._walk.planning = planning

    def pause(self, paused: bool) -> None:
        """Pause benchmarks, or let them go on, from the next second on."""
        self._watch.paused = paused

    def latest(self) -> Sample:
        """The last measurements, without waiting."""
        numbers = vars(self._watch.latest) | vars(self._walk.latest)
        return Sample(**numbers, agent_limit=2 * self.planning.agent)

    def mean_private_bytes(self, ports: Sequence[int]) -> float | None:
        """`private_bytes` of the agents of `ports`, now. Takes 0.25 ms per agent, of 64 at most."""
        return private_bytes(self.paths, ports)

    def _walked(self) -> None:
        self._walk.step()
        leak = self._walk.latest.leak
        # Logged when a leak begins and ends only: the numbers in it change at each look.
        if bool(leak) != bool(self._leak):
            self._say(f"memory leaks: {leak}" if leak else "memory leaks no more")
        self._leak = leak


class _Paced:
    """`step` for a ThreadLoop: what it cannot read is logged, once, and its pause doubles from
    `first` up to `every`, in seconds."""

    def __init__(
        self, step: Callable[[], None], say: Callable[[str], None], first: float, every: float
    ) -> None:
        self._step = step
        self._say = say
        self._pause = min(first, every)
        self._every = every
        self._said = ""

    def __call__(self) -> float:
        try:
            self._step()
            self._said = ""
        except OSError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._say(f"pressure: {self._said}")
        pause = self._pause
        self._pause = min(2 * pause, self._every)
        return pause


def _memory_current(paths: Paths) -> int | None:
    """Bytes of pilot.slice, with page tables, sockets and files; None without a memory
    controller."""
    try:
        path = paths.at("/sys/fs/cgroup/pilot.slice/memory.current")
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _overhead(paths: Paths, count: int) -> float | None:
    """Bytes that the kernel holds per agent: the slice, less agents' memory and files."""
    current, stat = _memory_current(paths), proc.slice_stat(paths, "pilot.slice")
    if current is None or not count or "anon" not in stat or "file" not in stat:
        return None
    return max(0, current - stat["anon"] - stat["file"]) / count
