"""Bringing the agents to what they should be, and keeping them there.

`decide` (decide.py) says what to do; `Keeper` sees and acts. What runs and what is ready is read
from the file system, so that looking at thousands asks nothing of PID 1. A start that comes to
nothing is told by systemd, asked about the few in flight only.
"""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ..machine.cgroup import UNIT, cgroup, is_stopped, numbered, numbers
from ..machine.errors import NotReadyError
from ..machine.paths import Paths
from ..machine.systemd import Systemd
from ..machine.user import own
from . import variants
from .decide import Decision, Goal, Memory, Observed, Trouble, decide, without
from .start_window import Window

_T = TypeVar("_T")

# Seconds between two looks at what is in flight, at least and at most, and at everything. At most,
# because what a start took is known by the looks: after two it is not prompt any more
# (start_window.py).
TICK, TICK_MOST = 0.02, 0.5
LOOK = 2.0
# Share of a processor that rounds may take while something is in flight, up to TICK_MOST: where a
# round takes long, the time is that of the agents that start.
BUSY = 0.25
# Seconds between two questions to systemd about starts that are silent, at least and at most: by
# BUSY as well, of the time that an answer takes, and before they are given up (decide.py, PROBE).
ASK, ASK_MOST = 1.0, 5.0
# Seconds between two looks at the sizes of their logs: with one every LOOK, thousands of stat()
# took more of the processor than all else of an idle pilot-node.
CUT = 10.0
# Share of the inodes beside the agents' sockets that is free until they are swept, and the seconds
# that it may take: 36,864 entries take less than one.
_FREE = 0.1
_SWEEP_S = 20.0
# Looks in which each agent's process is looked at once: of 5,000, 34 in one look, two files each.
TURNS = 150
# Agents that have died of which systemd is asked why in one look: it is one call for each.
ASKED = 20
# Bytes after which an agent's standard error is cut: 5,000 of these are 320 MB at worst.
LOG_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class View:
    """What a keeper saw and did last: for the status, the roll and who else wants to know.

    Times are seconds of the keeper's clock. `starts`, `stops` and `failures` count since this
    process began.
    """

    now: float
    ready: frozenset[int]
    starting: Mapping[int, float]
    stopping: Mapping[int, float]
    trouble: Mapping[int, Trouble]
    variant: Mapping[int, str]
    up_since: Mapping[int, float]
    window: Window
    starts: int
    stops: int
    failures: int


@dataclass(kw_only=True)
class Keeper:
    """Sees, decides and acts, for one VM. `goal` may be replaced between two rounds.

    `explain` makes more of why an agent failed: which wall of the kernel was hit, where one was.
    `shut` closes what agents must not reach, or raises NotReadyError (isolation.py).
    """

    paths: Paths
    goal: Goal
    systemd: Systemd
    say: Callable[[str], None]
    mounted: Callable[[Path], bool] = os.path.ismount
    shut: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    processor: Callable[[], float] = time.thread_time
    explain: Callable[[str], str] = str
    memory: Memory = field(default_factory=Memory)
    _seen: Observed | None = None
    # The next look is at everything, also at what each was started as.
    _anew: bool = True
    _looked: float = 0.0
    _cut: float = float("-inf")
    # Inode of each port's socket, as last seen.
    _inodes: Mapping[int, int] = field(default_factory=dict)
    # Those whose process is stopped, and whose turn it is to be looked at.
    _stopped: frozenset[int] = frozenset()
    _turn: int = 0
    _ask_again: float = 0.0
    # Why those ended that systemd was asked about, until it is decided on: a look may be no round.
    _undecided: dict[int, str] = field(default_factory=dict)
    _reported: tuple[int, int] = (-1, -1)
    _starts: int = 0
    _stops: int = 0
    _failures: int = 0

    def round(self) -> float:
        """One round; the seconds until the next. Raises NotReadyError, SystemdError, OSError."""
        # Before anything is done, or refused: who asks after a failed round is told what was seen.
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
        if seen.now == self._looked:
            # All were looked at. Not in `look`: the goal may not be one yet.
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
        # Only after acting: where systemd could not be asked, the same is decided again.
        self.memory = decision.memory
        self._undecided = {}
        self._failures += decision.failures
        self._report(seen)
        return self._pause(seen.now, self.processor() - begun)

    def _doubt(self, ports: Collection[int]) -> None:
        """Of `ports` it is not known whether they were stopped or started: a systemctl that ran out
        of time has told systemd all the same. They are taken for agents of an earlier process,
        whatever becomes of them: no death is anybody's fault, and who runs is as its link says."""

        def others(known: Mapping[int, _T]) -> dict[int, _T]:
            return {port: each for port, each in known.items() if port not in ports}

        memory = self.memory
        self.memory = replace(
            memory, up_since=others(memory.up_since), starting=others(memory.starting)
        )
        self._undecided = others(self._undecided)
        self._anew = True

    def look(self) -> Observed:
        """See what runs, for `view`, and do nothing. Raises SystemdError, OSError."""
        if self._anew:
            self.memory = replace(self.memory, variant=variants.read(self.paths))
        self._seen = seen = self._look()
        self._anew = False
        return seen

    def view(self) -> View:
        """What was seen last; nothing is looked at."""
        seen, memory = self._seen or Observed(now=self.clock()), self.memory
        return View(
            now=seen.now,
            ready=seen.ready,
            starting=memory.starting,
            stopping=memory.stopping,
            trouble=memory.trouble,
            variant={port: memory.variant.get(port, "") for port in seen.running},
            up_since=memory.up_since,
            window=memory.window,
            starts=self._starts,
            stops=self._stops,
            failures=self._failures,
        )

    def _pause(self, now: float, took: float) -> float:
        """`took`: seconds of the processor that this round took."""
        memory = self.memory
        if memory.starting or memory.stopping:
            return min(max(TICK, _rest(took)), TICK_MOST)
        due = [each.until for each in memory.trouble.values()] + [memory.window.rest_until]
        soon = min((moment - now for moment in due if moment > now), default=LOOK)
        return min(max(soon, TICK), LOOK)

    def _look(self) -> Observed:
        now, memory = self.clock(), self.memory
        if self._seen is None or self._anew or now - self._looked >= LOOK:
            self._looked = now
            if now - self._cut >= CUT:
                self._cut = now
                self._cut_logs()
                self._sweep()
            running = self._running()
            self._stopped = self._find_stopped(running)
            sockets = self._sockets() - self._stopped
            seen = Observed(now=now, running=running, sockets=sockets)
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
        """The picture of before, with a fresh look at `ports` only."""
        running, sockets = set(before.running), set(before.sockets)
        base = cgroup(self.paths)
        for port in ports:
            there = base is not None and (base / UNIT.format(port)).is_dir()
            (running.add if there else running.discard)(port)
            there = _is_socket(self.paths.socket(port))
            (sockets.add if there else sockets.discard)(port)
        return Observed(now=now, running=frozenset(running), sockets=frozenset(sockets))

    def _running(self) -> frozenset[int]:
        base = cgroup(self.paths)
        return numbers(base, "pilot-agent@", ".service") if base else frozenset()

    def _sockets(self) -> frozenset[int]:
        """What has the inode of a socket seen before is that socket: only others are looked at, or
        an idle VM would spend more on this than on all else."""
        known, found = self._inodes, {}
        for port, inode in numbered(self.paths.sockets, "", ".sock"):
            if known.get(port) == inode or _is_socket(self.paths.socket(port)):
                found[port] = inode
        self._inodes = found
        return frozenset(found)

    def _find_stopped(self, running: frozenset[int]) -> frozenset[int]:
        """Those that SIGSTOP holds, which any agent can send to any other, all being one user: they
        keep their socket and answer nobody. Found within TURNS looks, and looked at each time from
        then on."""
        self._turn = (self._turn + 1) % TURNS
        due = {port for port in running if port % TURNS == self._turn or port in self._stopped}
        return frozenset(port for port in due if is_stopped(self.paths, port))

    def _forget(self, seen: Observed) -> None:
        """What those were started with that are gone and not wanted: else it would be kept."""
        variant = dict(self.memory.variant)
        for port in variant.keys() - self.goal.variants.keys() - seen.running:
            variants.forget(self.paths, port)
            del variant[port]
        self.memory = replace(self.memory, variant=variant)

    def _ended(self, ports: Sequence[int]) -> dict[int, str]:
        states = self.systemd.states([UNIT.format(port) for port in ports])
        ended = {}
        for port in ports:
            state = states.get(UNIT.format(port))
            if state and state.ended:
                said = f"ended ({state.result}, status {state.exit_status})"
                if last := _last_line(self.paths.logs / str(port)):
                    said += f": {last}"
                ended[port] = self.explain(said)
        return ended

    def _act(self, decision: Decision) -> None:
        if decision.stop:
            self.systemd.stop([UNIT.format(port) for port in decision.stop])
            self._stops += len(decision.stop)
        if decision.start:
            self.systemd.start([UNIT.format(port) for port in decision.start])
            self._starts += len(decision.start)

    def _prepare(self, decision: Decision) -> dict[int, str]:
        """Make way for what is to start: no stale socket, a home, what it is started with. Those
        that cannot start: why."""
        unfit = {}
        for port in decision.start:
            if not self.goal.variants[port]:
                # It ran as nobody knows what, and was to be left alone.
                unfit[port] = "what it was started with is not known, and nothing else is there yet"
                continue
            try:
                self._clear(port)
                self._home(port)
                variants.choose(self.paths, port, self.goal.variants[port])
                # What an earlier process said is no reason for the end of this one.
                with suppress(FileNotFoundError):
                    os.truncate(self.paths.logs / str(port), 0)
            except OSError as error:
                # The directory of the sockets is the agents' own: there may be anything.
                unfit[port] = self.explain(str(error))
        return unfit

    def _clear(self, port: int) -> None:
        """Make a start see no socket: left by SIGKILL, it would look like readiness."""
        path = self.paths.socket(port)
        try:
            path.unlink(missing_ok=True)
        except IsADirectoryError:
            # Another agent's joke, and it can be deep: out of the way in one step.
            path.rename(path.with_name(f"{path.name}.{secrets.token_hex(8)}"))

    def _sweep(self) -> None:
        """Where the directory of the sockets is nearly full, remove what is none of a port's. An
        agent can fill it, and what it leaves would keep every other from its socket."""
        room = os.statvfs(self.paths.sockets)
        if room.f_favail >= room.f_files * _FREE:
            return
        kept = {f"{port}.sock" for port in {*self.goal.variants, *self._running()}}
        with os.scandir(self.paths.sockets) as entries:
            names = [entry.name for entry in entries if entry.name not in kept]
        if not names:
            return
        said = f"{self.paths.sockets} is full: {len(names)} entries that are no agent's removed"
        # It may be a tree deeper than Python goes.
        try:
            subprocess.run(
                ["xargs", "-0", "rm", "-rf", "--one-file-system", "--"],
                input=b"\0".join(b"./" + os.fsencode(name) for name in names),
                cwd=self.paths.sockets,
                capture_output=True,
                timeout=_SWEEP_S,
                check=True,
            )
        except subprocess.SubprocessError as error:
            said += f", not all ({error})"
        self.say(said)

    def _home(self, port: int) -> None:
        # Durable without our doing: the daemon fsyncs its identity and then the home itself before
        # it dials the registry, and ext4 commits what made the home before that.
        home = self.paths.agents / str(port)
        if not home.is_dir():
            # Complete before it has its name: a crash in between leaves no home of root's.
            new = home.with_name(f".{port}.new")
            new.mkdir(mode=0o700, parents=True, exist_ok=True)
            own(new)
            new.rename(home)

    def _cut_logs(self) -> None:
        if self.paths.logs.is_dir():
            for entry in os.scandir(self.paths.logs):
                if not entry.is_file(follow_symlinks=False):
                    continue
                # They are opened for appending: a cut one goes on at its new end. fallocate() can
                # take blocks beyond the end of a file that stays empty.
                found = entry.stat(follow_symlinks=False)
                if max(found.st_size, found.st_blocks * 512) > LOG_BYTES:
                    os.truncate(entry.path, 0)

    def _report(self, seen: Observed) -> None:
        wanted = len(self.goal.variants)
        ready = len(seen.ready & self.goal.variants.keys())
        busy = self.memory.starting or self.memory.stopping
        if (ready, wanted) != self._reported and (not busy or ready % 100 == 0):
            self._reported = (ready, wanted)
            self.say(f"{ready} of {wanted} agents ready")


def _rest(took: float) -> float:
    """Seconds until something is done again that took so many, for it to take BUSY of the time."""
    return took * (1 - BUSY) / BUSY


def _is_socket(path: Path) -> bool:
    """Itself, not what a link of that name points to."""
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
