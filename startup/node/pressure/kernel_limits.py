"""The kernel's walls: which are near, and which of them a failure has hit.

"Resource temporarily unavailable" is what `fork` says at four different limits. Which one it was is
asked of the kernel, at the time of the failure: a limit that is full then is the one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..machine.paths import Place
from ..machine.proc import meminfo, slice_stat, sockstat, udp

# From this share on a wall is said, and from this one on it counts as hit: what failed has ended
# since, and given back what it held.
NEAR: Final = 0.8
HIT: Final = 0.95
# The slices that are looked at, by their cgroup; below them no agents, which have no limits of
# their own.
_SLICES: Final = ("", "pilot.slice", "pilotbench.slice", "system.slice", "user.slice")
# cgroups that are looked at in all: a VM has a hundred or so services and logins.
_CGROUPS: Final = 400


@dataclass(frozen=True, kw_only=True)
class Wall:
    """How much of a limit is used, both in the limit's own unit (tasks, files, bytes, pages)."""

    wall: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        return self.used / self.limit

    def __str__(self) -> str:
        return f"{self.wall}: {self.used} of {self.limit}"


def used(place: Place, share: float = NEAR) -> tuple[Wall, ...]:
    """The walls that are used by more than `share`, the nearest first. Of `pids.max`, which every
    slice and unit may have, the nearest one only."""
    found = {
        kind: max(walls, key=lambda w: w.share) for kind, walls in _all(place).items() if walls
    }
    near = [wall for wall in found.values() if wall.share > share]
    return tuple(sorted(near, key=lambda wall: -wall.share))


def explain(failure: str, place: Place) -> str:
    """`failure` with the wall that it hit, where it sounds like one.

    Unchanged where it does not. Where it does and none is full now, the nearest of those that can
    have been it are said with what is used of them, so that nobody has to look.
    """
    sign = next((sign for sign in _SIGNS if sign.pattern.search(failure)), None)
    if sign is None:
        return failure
    walls = _all(place)
    candidates = [wall for kind in sign.kinds for wall in walls[kind]]
    candidates.sort(key=lambda wall: -wall.share)
    hit = [str(wall) for wall in candidates if wall.share >= HIT]
    if hit:
        return f"{failure} [hit {'; '.join(hit[:3])}]"
    if sign.quiet:
        return failure
    said = [f"{wall} ({wall.share:.0%})" for wall in candidates[:2]] + [sign.hint] * bool(sign.hint)
    return f"{failure} [no wall is full now: {'; '.join(said)}]"


@dataclass(frozen=True, kw_only=True)
class _Sign:
    """What is said at a wall, the walls that it can be, and what else it can be (`hint`). `quiet`:
    it mostly has other causes, so it is only worth a word where a wall is full."""

    pattern: re.Pattern[str]
    kinds: tuple[str, ...]
    hint: str = ""
    quiet: bool = False


def _words(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


_TASKS: Final = ("pids.max", "threads-max", "pid_max")
# The first that fits: "too many open files in system" is not a process's own limit.
_SIGNS: Final = (
    _Sign(
        pattern=_words(
            "resource temporarily unavailable|EAGAIN|can't start new thread|"
            r"errno[ =]11\b|max user processes|pthread_create failed"
        ),
        kinds=_TASKS,
        hint="or LimitNPROC of its user",
    ),
    _Sign(pattern=_words("open files in system|ENFILE"), kinds=("file-max",)),
    _Sign(
        pattern=_words("too many open files|EMFILE"),
        kinds=("file-max",),
        hint="more likely LimitNOFILE of its unit",
    ),
    _Sign(pattern=_words("cannot allocate memory|out of memory|ENOMEM"), kinds=("memory",)),
    _Sign(
        pattern=_words("no buffer space available|ENOBUFS"),
        kinds=("udp_mem", "memory"),
        hint="or net.core.wmem_max of one socket",
    ),
    _Sign(pattern=_words("cannot assign requested address|EADDRNOTAVAIL"), kinds=("local ports",)),
    # systemd's own word where it could not even set up the process.
    _Sign(pattern=_words(r"\(resources\b"), kinds=(*_TASKS, "memory", "file-max")),
    # The kernel's end of who takes too much, among others' reasons to use SIGKILL.
    _Sign(pattern=_words(r"oom-kill|\(signal, status 9\)"), kinds=("memory",), quiet=True),
)


def _all(place: Place) -> dict[str, tuple[Wall, ...]]:
    """Every wall that can be read, by its kind; a kernel that lacks one has one less."""
    readers: dict[str, Callable[[Place], Iterator[Wall]]] = {
        "pids.max": _pids,
        "threads-max": _threads,
        "pid_max": _pid_max,
        "file-max": _files,
        "memory": _memory,
        "udp_mem": _udp,
        "local ports": _ports,
    }
    found = {}
    for kind, read in readers.items():
        try:
            found[kind] = tuple(wall for wall in read(place) if wall.limit > 0)
        except (OSError, ValueError, LookupError):
            # /proc of a container may lack it, or hide it.
            found[kind] = ()
    return found


def _pids(place: Place) -> Iterator[Wall]:
    # cgroup v2, and v1 where a container has its host's.
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/pids"):
        base = place.at(root)
        seen = 0
        for name in _SLICES:
            for folder in _with_children(base / name if name else base, deep=bool(name)):
                seen += 1
                if seen > _CGROUPS:
                    return
                limit = _number(folder / "pids.max")
                current = _number(folder / "pids.current")
                if limit is not None and current is not None:
                    where = str(folder.relative_to(base)) if folder != base else "this machine"
                    yield Wall(wall=f"pids.max of {where}", used=current, limit=limit)


def _with_children(folder: Path, *, deep: bool) -> Iterator[Path]:
    if not folder.is_dir():
        return
    yield folder
    if not deep:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            # Their tasks count in the slice: an agent has no limit of its own.
            if not entry.name.startswith("pilot-agent@") and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _tasks(place: Place) -> int:
    # The fourth field: runnable/all, in tasks (threads), of the whole kernel.
    fields = place.at("/proc/loadavg").read_text(encoding="ascii").split()
    return int(fields[3].partition("/")[2])


def _threads(place: Place) -> Iterator[Wall]:
    limit = int(place.at("/proc/sys/kernel/threads-max").read_text(encoding="ascii"))
    yield Wall(wall="threads-max", used=_tasks(place), limit=limit)


def _pid_max(place: Place) -> Iterator[Wall]:
    # Every thread has a PID.
    limit = int(place.at("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    yield Wall(wall="pid_max", used=_tasks(place), limit=limit)


def _files(place: Place) -> Iterator[Wall]:
    taken, _, limit = place.at("/proc/sys/fs/file-nr").read_text(encoding="ascii").split()
    yield Wall(wall="file-max", used=int(taken), limit=int(limit))


def _memory(place: Place) -> Iterator[Wall]:
    memory = meminfo(place)
    total = memory["MemTotal"]
    yield Wall(wall="memory", used=total - memory["MemAvailable"], limit=total)
    for name in ("pilot.slice", "pilotbench.slice"):
        folder = place.at(f"/sys/fs/cgroup/{name}")
        limit, current = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and current is not None:
            # What the kernel would drop before it refuses anything. `file` has shared memory in it,
            # which it keeps.
            held = slice_stat(place, name)
            current -= min(current, max(0, held.get("file", 0) - held.get("shmem", 0)))
            yield Wall(wall=f"memory of {name}", used=current, limit=limit)


def _udp(place: Place) -> Iterator[Wall]:
    # The first of the three: from there on a socket that holds anything gets no more (limits.py).
    # On a guest whose sockets were filled, packets were refused at 15,595 pages of 15,551.
    limits = place.at("/proc/sys/net/ipv4/udp_mem").read_text(encoding="ascii").split()
    yield Wall(wall="udp_mem", used=udp(place)[1], limit=int(limits[0]))


def _ports(place: Place) -> Iterator[Wall]:
    low, high = place.at("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
    tcp = sockstat(place, "sockstat")["TCP"]
    taken = tcp["inuse"] + tcp["tw"]
    yield Wall(wall="local ports", used=taken, limit=int(high) - int(low) + 1)


def _number(path: Path) -> int | None:
    """The number in `path`, None where there is none ("max", no such file)."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
