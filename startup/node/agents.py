"""Bringing the agents to their number, and keeping them there.

`decide` is pure: what was seen and what is remembered in, steps and what to remember out. `Keeper`
sees and acts. An agent is its port. It runs when its cgroup is there and is ready when its socket
is there too; both are read from the file system, so that looking at thousands asks nothing of
PID 1. A start that comes to nothing is told by systemd, asked about the few in flight only.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .place import Place
from .retry import FinalError
from .spec import SpecError, SwarmSpec
from .systemd import Systemd, SystemdError

UNIT = "pilot-agent@{}.service"
# The user pilot, by number: the state disk outlives the boot disk and its /etc/passwd.
UID = 610

# Seconds until a start without a socket is given up. 14 ms alone, 0.65 s at a slow registry, and
# stalls of 10 s were seen (FACTS); a minute is not slow but stuck.
START_DEADLINE = 60.0
# Seconds that an agent has to stay up for its earlier failures to be forgotten.
STEADY = 60.0
# Seconds before an agent that failed is started again: 1, 2, 4 ... at most 300.
BACK_OFF = 1.0
BACK_OFF_MAX = 300.0
# Seconds between two looks: at the starts in flight, and at everything.
TICK = 0.05
LOOK = 2.0
# Bytes after which an agent's standard error is cut: 5,000 of these are 320 MB at worst.
LOG_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What is there. `now` in seconds of a monotonic clock; `ended` says why, for starts in
    flight that systemd knows to have come to nothing."""

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
    """An agent that failed `failures` times in a row and rests until `until`."""

    failures: int
    until: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is remembered between two decisions: port -> seconds of the clock, or its trouble."""

    starting: Mapping[int, float] = field(default_factory=dict)
    stopping: Mapping[int, float] = field(default_factory=dict)
    up_since: Mapping[int, float] = field(default_factory=dict)
    trouble: Mapping[int, Trouble] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The steps, in this order: stop, then start (its stale socket goes first). `said` is why."""

    stop: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    said: tuple[str, ...] = ()
    memory: Memory


def decide(wanted: Collection[int], window: int, memory: Memory, seen: Observed) -> Decision:
    """What to do now so that exactly the agents `wanted` run.

    At most `window` starts are in flight, and at most `window` stops. What runs is left alone. An
    agent that fails rests, longer each time, and those that never failed go before it, so that
    one bad agent never holds up the rest.
    """
    work = _Work(wanted=wanted, seen=seen, memory=memory)
    work.settle_ready(memory)
    hung = work.settle_starts(memory)
    work.adopt(hung)

    # A start that hung goes whatever the window: it takes up a place at the registry.
    surplus = sorted(seen.running - set(wanted) - work.stopping.keys(), reverse=True)
    stop = (*hung, *surplus[: max(0, window - len(work.stopping))])
    work.stopping |= dict.fromkeys(stop, seen.now)
    # It keeps its place until it is gone.
    held = len(work.starting) + sum(port in wanted for port in work.stopping)
    start = work.candidates()[: max(0, window - held)]
    work.starting |= dict.fromkeys(start, seen.now)
    return Decision(
        stop=stop,
        start=start,
        said=tuple(work.said),
        memory=Memory(
            starting=work.starting,
            stopping=work.stopping,
            up_since=work.up_since,
            trouble=work.trouble,
        ),
    )


class _Work:
    """What `decide` works on: the next memory, while it is made out of the last one."""

    def __init__(self, *, wanted: Collection[int], seen: Observed, memory: Memory) -> None:
        self.wanted = wanted
        self.seen = seen
        self.said: list[str] = []
        self.starting: dict[int, float] = {}
        self.stopping = {p: t for p, t in memory.stopping.items() if p in seen.running}
        self.up_since = {
            p: t for p, t in memory.up_since.items() if p in seen.running and p in wanted
        }
        self.trouble = {port: t for port, t in memory.trouble.items() if port in wanted}

    def settle_ready(self, memory: Memory) -> None:
        """Those that were ready: who died is noted, who is steady is forgiven."""
        for port in sorted(memory.up_since.keys() - self.up_since.keys()):
            # Those that were told to stop may; those that are no longer wanted will be told.
            if port in self.wanted and port not in memory.stopping:
                steady = self.seen.now - memory.up_since[port] >= STEADY
                self._failed(port, "died", steady=steady)
        for port, since in self.up_since.items():
            if port in self.trouble and self.seen.now - since >= STEADY:
                del self.trouble[port]

    def settle_starts(self, memory: Memory) -> tuple[int, ...]:
        """The starts in flight: done, failed, still in flight. Those that hang, to be stopped."""
        ready, hung = self.seen.ready, []
        for port, since in memory.starting.items():
            if port in ready:
                self.up_since[port] = self.seen.now
            elif port not in self.wanted:
                continue
            elif port in self.seen.ended:
                self._failed(port, self.seen.ended[port])
            elif self.seen.now - since > START_DEADLINE:
                self._failed(port, f"no socket after {START_DEADLINE:.0f} s")
                hung.append(port)
            else:
                self.starting[port] = since
        return tuple(hung)

    def adopt(self, hung: Collection[int]) -> None:
        """Those that run and were not known: ready, or a start in flight of an earlier process."""
        known = self.starting.keys() | self.stopping.keys() | self.up_since.keys() | set(hung)
        for port in self.seen.running - known:
            if port in self.wanted:
                adopted = self.up_since if port in self.seen.sockets else self.starting
                adopted[port] = self.seen.now

    def candidates(self) -> tuple[int, ...]:
        """Those that may be started now, those that never failed first."""
        busy = self.seen.running | self.starting.keys() | self.stopping.keys()
        found = [
            port
            for port in self.wanted
            if port not in busy
            and (port not in self.trouble or self.trouble[port].until <= self.seen.now)
        ]
        return tuple(sorted(found, key=lambda port: (self._failures(port), port)))

    def _failures(self, port: int) -> int:
        return self.trouble[port].failures if port in self.trouble else 0

    def _failed(self, port: int, why: str, *, steady: bool = False) -> None:
        """Remember that `port` failed, and say so. One that was steady starts again at once."""
        if steady:
            self.trouble.pop(port, None)
            self.said.append(f"agent {port}: {why}; starting it again")
            return
        self.trouble[port], line = _rest(port, self._failures(port) + 1, why, self.seen.now)
        self.said.append(line)


def without(decision: Decision, unfit: Mapping[int, str], now: float) -> Decision:
    """`decision`, where the starts `unfit` (port -> why) cannot be made: each is trouble of its
    own and keeps none of the others from starting."""
    before = decision.memory
    trouble, said = dict(before.trouble), list(decision.said)
    for port, why in unfit.items():
        failures = trouble[port].failures if port in trouble else 0
        trouble[port], line = _rest(port, failures + 1, why, now)
        said.append(line)
    return replace(
        decision,
        start=tuple(port for port in decision.start if port not in unfit),
        said=tuple(said),
        memory=replace(
            before,
            starting={port: t for port, t in before.starting.items() if port not in unfit},
            trouble=trouble,
        ),
    )


def _rest(port: int, failures: int, why: str, now: float) -> tuple[Trouble, str]:
    # The exponent is bounded: an agent that fails for days must not overflow a float.
    pause = min(BACK_OFF * 2.0 ** min(failures - 1, 16), BACK_OFF_MAX)
    line = f"agent {port}: {why} (failure {failures}); again in {pause:g} s"
    return Trouble(failures=failures, until=now + pause), line


def own(path: Path) -> None:
    """Give `path` to the user pilot. Who is not root is not on a VM, and owns what it makes."""
    if os.geteuid() == 0:
        os.chown(path, UID, UID)


def share(path: Path) -> None:
    """Let the user pilot make files in the directory `path`, which stays root's and sticky."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.geteuid() == 0:
            os.fchown(handle, 0, UID)
        os.fchmod(handle, 0o1770)
    finally:
        os.close(handle)


class NotReadyError(Exception):
    """This VM is not in a state in which an agent may be started."""


@dataclass(kw_only=True)
class Keeper:
    """Sees, decides and acts, for one VM. `spec` may be replaced between two rounds."""

    place: Place
    spec: SwarmSpec
    systemd: Systemd
    say: Callable[[str], None]
    mounted: Callable[[Path], bool] = os.path.ismount
    clock: Callable[[], float] = time.monotonic
    memory: Memory = field(default_factory=Memory)
    _seen: Observed | None = None
    _looked: float = 0.0
    _asked: float = 0.0
    _ready: int = -1

    def round(self) -> float:
        """One round; the seconds until the next. Raises NotReadyError, SystemdError."""
        if not self.mounted(self.place.state):
            raise NotReadyError(
                f"{self.place.state} is not mounted: no agent is started, its identity would be "
                "lost with the boot disk"
            )
        self._seen = seen = self._look()
        decision = decide(self.spec.ports, self.spec.window, self.memory, seen)
        decision = without(decision, self._prepare(decision.start), seen.now)
        for line in decision.said:
            self.say(line)
        self._act(decision)
        # Only after acting: where systemd could not be asked, the same is decided again.
        self.memory = decision.memory
        self._report(seen)
        return TICK if self.memory.starting else LOOK

    def _look(self) -> Observed:
        now = self.clock()
        if self._seen is None or now - self._looked >= LOOK:
            self._looked = now
            self._cut_logs()
            seen = Observed(now=now, running=self._running(), sockets=self._sockets())
        else:
            seen = self._look_at(self.memory.starting, self._seen, now)
        silent = [port for port, since in self.memory.starting.items() if now - since >= 0.5]
        if silent and now - self._asked >= 1.0:
            self._asked = now
            seen = replace(seen, ended=self._ended(silent))
        return seen

    def _look_at(self, ports: Iterable[int], before: Observed, now: float) -> Observed:
        """The picture of before, with a fresh look at `ports` only."""
        running, sockets = set(before.running), set(before.sockets)
        base = self._cgroup()
        for port in ports:
            there = base is not None and (base / UNIT.format(port)).is_dir()
            (running.add if there else running.discard)(port)
            there = _is_socket(self.place.socket(port))
            (sockets.add if there else sockets.discard)(port)
        return Observed(now=now, running=frozenset(running), sockets=frozenset(sockets))

    def _cgroup(self) -> Path | None:
        """pilot.slice below cgroup v2, or below v1 where a container has its host's."""
        for base in ("/sys/fs/cgroup/pilot.slice", "/sys/fs/cgroup/systemd/pilot.slice"):
            if self.place.at(base).is_dir():
                return self.place.at(base)
        return None

    def _running(self) -> frozenset[int]:
        base = self._cgroup()
        return _numbers(base, "pilot-agent@", ".service") if base else frozenset()

    def _sockets(self) -> frozenset[int]:
        found = _numbers(self.place.sockets, "", ".sock")
        return frozenset(port for port in found if _is_socket(self.place.socket(port)))

    def _ended(self, ports: Sequence[int]) -> dict[int, str]:
        states = self.systemd.states([UNIT.format(port) for port in ports])
        ended = {}
        for port in ports:
            state = states.get(UNIT.format(port))
            if state and state.ended:
                ended[port] = f"ended ({state.result}, status {state.exit_status})"
                if last := _last_line(self.place.logs / str(port)):
                    ended[port] += f": {last}"
        return ended

    def _act(self, decision: Decision) -> None:
        if decision.stop:
            self.systemd.stop([UNIT.format(port) for port in decision.stop])
        if decision.start:
            self.systemd.start([UNIT.format(port) for port in decision.start])

    def _prepare(self, ports: Iterable[int]) -> dict[int, str]:
        """Make way for each of `ports`: no stale socket, a home. Those that cannot start: why."""
        unfit = {}
        for port in ports:
            try:
                # Left by SIGKILL, it would look like readiness.
                self.place.socket(port).unlink(missing_ok=True)
                self._home(port)
            except OSError as error:
                # The directory of the sockets is the agents' own: there may be anything.
                unfit[port] = str(error)
        return unfit

    def _home(self, port: int) -> None:
        home = self.place.agents / str(port)
        if not home.is_dir():
            # Complete before it has its name: a crash in between leaves no home of root's.
            new = home.with_name(f".{port}.new")
            new.mkdir(mode=0o700, parents=True, exist_ok=True)
            own(new)
            new.rename(home)

    def _cut_logs(self) -> None:
        if self.place.logs.is_dir():
            for entry in os.scandir(self.place.logs):
                if not entry.is_file(follow_symlinks=False):
                    continue
                # They are opened for appending: a cut one goes on at its new end.
                if entry.stat(follow_symlinks=False).st_size > LOG_BYTES:
                    os.truncate(entry.path, 0)

    def _report(self, seen: Observed) -> None:
        ready = len(seen.ready & set(self.spec.ports))
        if ready != self._ready and (not self.memory.starting or ready % 100 == 0):
            self._ready = ready
            self.say(f"{ready} of {self.spec.agents} agents ready")


def serve(
    keeper: Keeper, *, refresh: Callable[[], None], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Rounds without end. `refresh` may replace the keeper's spec before each."""
    said = ""
    while True:
        try:
            refresh()
            pause = keeper.round()
            said = ""
        except (NotReadyError, OSError, FinalError, SpecError, SystemdError) as error:
            # Whatever it is, the agents that run go on; said once, not every two seconds.
            if str(error) != said:
                said = str(error)
                keeper.say(said)
            pause = LOOK
        sleep(pause)


def _numbers(folder: Path, before: str, after: str) -> frozenset[int]:
    """The numbers N for which `folder` holds `before`N`after`."""
    found = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(before) and name.endswith(after):
                number = name[len(before) : len(name) - len(after)]
                if number.isascii() and number.isdigit():
                    found.add(int(number))
    return frozenset(found)


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
