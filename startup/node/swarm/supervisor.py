"""Brings the agents to what they should be, and keeps them there.

`decide` (decide.py) says what to do; `Keeper` looks and acts. It reads from the file system which
agents run and which are ready, so thousands of agents are no work for PID 1. systemd is asked only
about the few starts in flight.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ..machine.agent_units import LAYOUTS, OWN, Layout, layout_of
from ..machine.agent_units import running as find_running
from ..machine.errors import NotReadyError
from ..machine.paths import Paths
from ..machine.systemd import Systemd
from ..machine.user import own, own_tree
from . import variants
from .decide import Decision, Goal, Observed, SwarmState, Trouble, decide, without
from .start_window import Window

_T = TypeVar("_T")

# Seconds between two looks at agents in flight, at least and at most. At most, because the looks
# measure how long a start takes, and PROMPT is 2 s (start_window.py).
TICK, TICK_MOST = 0.02, 0.5
# Seconds between two looks at all agents.
LOOK = 2.0
# Most of a processor that rounds may take while agents are in flight (up to TICK_MOST): the agents
# that start need it.
BUSY = 0.25
# Seconds between two questions to systemd about silent starts, at least and at most. BUSY limits
# their share of time as well. ASK_MOST is less than decide.PROBE.
ASK, ASK_MOST = 1.0, 5.0
# Seconds between two looks at the size of the agents' logs.
CUT = 10.0
# In so many looks each agent's socket is looked at once: of 5,000, 34 per look.
TURNS = 150
# Most dead agents per look that systemd is asked about: it takes one call for each.
ASKED = 20
# Bytes at which an agent's standard error is cut: 320 MB for 5,000 agents at worst.
LOG_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class View:
    """A keeper's last look and its counts, for the status and the roll. Times are seconds of the
    keeper's clock."""

    now: float
    ready: frozenset[int]
    starting: Mapping[int, float]
    stopping: Mapping[int, float]
    trouble: Mapping[int, Trouble]
    variant: Mapping[int, str]
    up_since: Mapping[int, float]
    window: Window
    starts: int
    """Since this process began, like `stops` and `failures`."""
    stops: int
    failures: int


@dataclass(kw_only=True)
class Keeper:
    """Looks, decides and acts, for one VM. `goal` may be replaced between two rounds."""

    paths: Paths
    goal: Goal
    systemd: Systemd
    say: Callable[[str], None]
    mounted: Callable[[Path], bool] = os.path.ismount
    shut: Callable[[], None] = lambda: None
    """Closes what agents must not reach, or raises NotReadyError (isolation.py)."""
    clock: Callable[[], float] = time.monotonic
    processor: Callable[[], float] = time.thread_time
    """Seconds of CPU that this thread has used."""
    explain: Callable[[str], str] = str
    """Adds to a failure's text which kernel limit was hit, if one was."""
    memory: SwarmState = field(default_factory=SwarmState)
    _seen: Observed | None = None
    _must_look_at_all: bool = True
    """The next look is at all agents, and at the variant of each."""
    _looked_at_all: float = 0.0
    """When all agents were looked at last."""
    _logs_cut_at: float = float("-inf")
    """When the logs' sizes were looked at last."""
    _logs_used: int = -LOG_BYTES
    """Bytes on the logs' file system after each of them was looked at last."""
    _layouts: dict[int, Layout] = field(default_factory=dict)
    """How the agent of each port runs, as last seen, or is being started."""
    _turn: int = 0
    """The sockets of ports with this remainder by TURNS are looked at next."""
    _ask_again: float = 0.0
    """When systemd may be asked about silent starts again."""
    _undecided: dict[int, str] = field(default_factory=dict)
    """Why agents ended, until a round decides on it: not each look is in a round."""
    _reported: tuple[int, int] = (-1, -1)
    _starts: int = 0
    _stops: int = 0
    _failures: int = 0

    def round(self) -> float:
        """One round; the seconds until the next. Raises NotReadyError, SystemdError, OSError."""
        # The look comes first, so that `view` is right also after a round that fails.
        begun = self.processor()
        seen = self.look()
        if self.goal.variants and not self.mounted(self.paths.state):
            raise NotReadyError(
                self.paths.unmounted(
                    "no agent is started, its identity would be lost with the boot disk"
                )
            )
        if self.goal.variants:
            self.shut()
        if seen.now == self._looked_at_all:
            # All agents were looked at. Not in `look`: the goal may not be set yet.
            self._forget(seen)
        decision = decide(self.goal, self.memory, seen)
        decision = without(decision, self._prepare(decision), seen.now)
        for line in decision.said:
            self.say(line)
        try:
            self._act(decision)
        except Exception:
            self._doubt({*decision.stop, *decision.start})
            raise
        # Only after acting: where systemd failed, the same is decided again.
        self.memory = decision.memory
        self._undecided = {}
        self._failures += decision.failures
        self._report(seen)
        return self._pause(seen.now, self.processor() - begun)

    def _doubt(self, ports: Collection[int]) -> None:
        """It is not known whether `ports` were stopped or started: after a systemctl that timed
        out, systemd may do it all the same. They are treated as agents of an earlier pilot-node:
        their end is no failure, and the variant of those that run is read from their links."""

        def others(known: Mapping[int, _T]) -> dict[int, _T]:
            return {port: each for port, each in known.items() if port not in ports}

        memory = self.memory
        self.memory = replace(
            memory, up_since=others(memory.up_since), starting=others(memory.starting)
        )
        self._undecided = others(self._undecided)
        self._must_look_at_all = True

    def look(self) -> Observed:
        """Look at the agents, for `view`, and do nothing. Raises SystemdError, OSError."""
        if self._must_look_at_all:
            self.memory = replace(self.memory, variant=variants.read(self.paths))
        self._seen = seen = self._look()
        self._must_look_at_all = False
        return seen

    def view(self) -> View:
        """The view of the last look."""
        seen, memory = self._seen or Observed(now=self.clock()), self.memory
        return View(
            now=seen.now,
            ready=seen.ready,
            starting=memory.starting,
            stopping=memory.stopping,
            trouble=memory.trouble,
            variant=memory.variant
            if memory.variant.keys() == seen.running
            else {port: memory.variant.get(port, "") for port in seen.running},
            up_since=memory.up_since,
            window=memory.window,
            starts=self._starts,
            stops=self._stops,
            failures=self._failures,
        )

    def _pause(self, now: float, took: float) -> float:
        """Seconds until the next round. `took`: seconds of CPU that this round took."""
        memory = self.memory
        if memory.starting or memory.stopping:
            return min(max(TICK, _rest(took)), TICK_MOST)
        due = [each.until for each in memory.trouble.values()] + [memory.window.rest_until]
        soon = min((moment - now for moment in due if moment > now), default=LOOK)
        return min(max(soon, TICK), LOOK)

    def _look(self) -> Observed:
        now, memory = self.clock(), self.memory
        if self._seen is None or self._must_look_at_all or now - self._looked_at_all >= LOOK:
            self._looked_at_all = now
            if now - self._logs_cut_at >= CUT:
                self._logs_cut_at = now
                self._cut_logs()
            running = self._running()
            seen = Observed(now=now, running=running, sockets=self._sockets(running))
        else:
            seen = self._look_at({*memory.starting, *memory.stopping}, self._seen, now)
        dead = sorted(memory.up_since.keys() & self.goal.variants.keys() - seen.running)[:ASKED]
        silent = []
        if now >= self._ask_again:
            silent = [port for port, since in memory.starting.items() if now - since >= 0.5]
        if dead or silent:
            asked = self.clock()
            self._undecided |= self._ended(dead + silent)
            answered = self.clock()
            if silent:
                self._ask_again = answered + min(max(ASK, _rest(answered - asked)), ASK_MOST)
        return replace(seen, ended=dict(self._undecided)) if self._undecided else seen

    def _look_at(self, ports: Iterable[int], before: Observed, now: float) -> Observed:
        """`before`, with a fresh look at `ports` only."""
        running, sockets = set(before.running), set(before.sockets)
        for port in ports:
            layout = layout_of(self.paths, port)
            if layout is None:
                running.discard(port)
                sockets.discard(port)
                continue
            running.add(port)
            self._layouts[port] = layout
            there = _is_socket(layout.socket(self.paths, port))
            (sockets.add if there else sockets.discard)(port)
        return Observed(now=now, running=frozenset(running), sockets=frozenset(sockets))

    def _running(self) -> frozenset[int]:
        found = find_running(self.paths)
        self._layouts |= found
        return frozenset(found)

    def _sockets(self, running: frozenset[int]) -> frozenset[int]:
        """The ports of `running` that have their socket. Most are known from the look before: an
        agent alone can remove its own, and all are seen again within TURNS looks."""
        self._turn = (self._turn + 1) % TURNS
        known = self._seen.sockets & running if self._seen else frozenset()
        known -= {port for port in known if port % TURNS == self._turn}
        return known | {
            port
            for port in running - known
            if _is_socket(self._layouts[port].socket(self.paths, port))
        }

    def _forget(self, seen: Observed) -> None:
        """Forget the variant of agents that are gone and not wanted, so that it can be removed."""
        variant = dict(self.memory.variant)
        for port in variant.keys() - self.goal.variants.keys() - seen.running:
            variants.forget(self.paths, port)
            del variant[port]
            self._layouts.pop(port, None)
        self.memory = replace(self.memory, variant=variant)

    def _unit(self, port: int) -> str:
        """The unit in which the agent runs, or ran last."""
        return self._layouts.get(port, OWN).unit(port)

    def _ended(self, ports: Sequence[int]) -> dict[int, str]:
        states = self.systemd.states([self._unit(port) for port in ports])
        ended = {}
        for port in ports:
            state = states.get(self._unit(port))
            if state and state.ended:
                said = f"ended ({state.result}, status {state.exit_status})"
                if last := _last_line(self.paths.logs / str(port)):
                    said += f": {last}"
                ended[port] = self.explain(said)
        return ended

    def _act(self, decision: Decision) -> None:
        if decision.stop:
            self.systemd.stop([self._unit(port) for port in decision.stop])
            self._stops += len(decision.stop)
        if decision.start:
            # The layout is known before: where the call fails, it may be started all the same.
            self._layouts |= dict.fromkeys(decision.start, OWN)
            self.systemd.start([OWN.unit(port) for port in decision.start])
            self._starts += len(decision.start)

    def _prepare(self, decision: Decision) -> dict[int, str]:
        """Prepare each start: no stale socket, a home, its variant. Returns why, for those that
        cannot be started."""
        unfit = {}
        for port in decision.start:
            if not self.goal.variants[port]:
                # The variant that it ran as is not known, and no release is here to start it with.
                unfit[port] = "its variant is not known, and no release is downloaded yet"
                continue
            try:
                self._clear(port)
                self._home(port)
                variants.choose(self.paths, port, self.goal.variants[port])
                # The last line of an earlier process must not explain the end of this one.
                with suppress(FileNotFoundError):
                    os.truncate(self.paths.logs / str(port), 0)
            except OSError as error:
                # An agent can put anything into its home.
                unfit[port] = self.explain(str(error))
        return unfit

    def _clear(self, port: int) -> None:
        """Remove a stale socket, which SIGKILL leaves: it would look like a ready agent."""
        for layout in LAYOUTS:
            path = layout.socket(self.paths, port)
            try:
                path.unlink(missing_ok=True)
            except IsADirectoryError:
                # The agent made it, and it can be deep: one rename moves it away.
                path.rename(path.with_name(f"{path.name}.{secrets.token_hex(8)}"))

    def _home(self, port: int) -> None:
        # No fsync: the daemon syncs its identity and then the home before it dials the registry,
        # and ext4 commits the making of the home before that.
        home, owner = self.paths.home(port), OWN.user(port)
        if home.is_dir():
            own_tree(home, owner)
        else:
            # Renamed when it is complete: a crash in between leaves no home that root owns.
            new = home.with_name(f".{port}.new")
            new.mkdir(mode=0o700, parents=True, exist_ok=True)
            own(new, owner)
            new.rename(home)

    def _cut_logs(self) -> None:
        if not self.paths.logs.is_dir():
            return
        # None can have outgrown its size before all together have grown by as much: thousands of
        # stat() took a fifth of an idle pilot-node's time.
        if (used := _used(self.paths.logs)) - self._logs_used < LOG_BYTES:
            self._logs_used = min(used, self._logs_used)
            return
        for entry in os.scandir(self.paths.logs):
            if not entry.is_file(follow_symlinks=False):
                continue
            # Logs are opened for appending and go on after a cut. Blocks count as well:
            # fallocate() can take them beyond the end of an empty file.
            found = entry.stat(follow_symlinks=False)
            if max(found.st_size, found.st_blocks * 512) > LOG_BYTES:
                os.truncate(entry.path, 0)
        self._logs_used = _used(self.paths.logs)

    def _report(self, seen: Observed) -> None:
        wanted = len(self.goal.variants)
        ready = len(seen.ready & self.goal.variants.keys())
        busy = self.memory.starting or self.memory.stopping
        if (ready, wanted) != self._reported and (not busy or ready % 100 == 0):
            self._reported = (ready, wanted)
            self.say(f"{ready} of {wanted} agents ready")


def _rest(took: float) -> float:
    """Seconds of pause after work that took `took` seconds, so that it takes BUSY of the time."""
    return took * (1 - BUSY) / BUSY


def _used(folder: Path) -> int:
    """Bytes that are taken on the file system of `folder`, a tmpfs of its own."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _is_socket(path: Path) -> bool:
    """Whether `path` is a socket, and not a link to one."""
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False


def _last_line(path: Path) -> str:
    """The last line of an agent's standard error, at most 200 printable characters."""
    try:
        with path.open("rb") as stream:
            stream.seek(-min(4096, stream.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = stream.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(c for c in last if c.isprintable())[-200:]
