"""Kernel limits: which are near, and which of them a failure has hit.

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

from ..machine.paths import Paths
from ..machine.proc import meminfo, slice_stat, sockstat, udp

# From this share on a limit is said, and from this one on it counts as hit: what failed has ended
# since, and given back what it held.
NEAR: Final = 0.8
HIT: Final = 0.95
# The slices that are looked at, by their cgroup; below them no agents, which have no limits of
# their own.
_SLICES: Final = ("", "pilot.slice", "pilotbench.slice", "system.slice", "user.slice")
# cgroups that are looked at in all: a VM has a hundred or so services and logins.
_CGROUPS: Final = 400


@dataclass(frozen=True, kw_only=True)
class LimitUse:
    """How much of a limit is used, both in the limit's own unit (tasks, files, bytes, pages)."""

    name: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        return self.used / self.limit

    def __str__(self) -> str:
        return f"{self.name}: {self.used} of {self.limit}"


def used(paths: Paths, share: float = NEAR) -> tuple[LimitUse, ...]:
    """The limits that are used by more than `share`, the nearest first. Of `pids.max`, which every
    slice and unit may have, the nearest one only."""
    found = {kind: max(uses, key=lambda w: w.share) for kind, uses in _all(paths).items() if uses}
    near = [use for use in found.values() if use.share > share]
    return tuple(sorted(near, key=lambda use: -use.share))


def explain(failure: str, paths: Paths) -> str:
    """`failure` with the limit that it hit, where it sounds like one.

    Unchanged where it does not. Where it does and none is full now, the nearest of those that can
    have been it are said with what is used of them, so that nobody has to look.
    """
    sign = next((sign for sign in _SIGNS if sign.pattern.search(failure)), None)
    if sign is None:
        return failure
    uses = _all(paths)
    candidates = [use for kind in sign.kinds for use in uses[kind]]
    candidates.sort(key=lambda use: -use.share)
    hit = [str(use) for use in candidates if use.share >= HIT]
    if hit:
        return f"{failure} [hit {'; '.join(hit[:3])}]"
    if sign.quiet:
        return failure
    said = [f"{use} ({use.share:.0%})" for use in candidates[:2]] + [sign.hint] * bool(sign.hint)
    return f"{failure} [no limit is full now: {'; '.join(said)}]"


@dataclass(frozen=True, kw_only=True)
class _Sign:
    """What a program says when it hits a limit of `kinds`; `hint` names another cause.

    `quiet`: it mostly has other causes, so it is only reported where a limit is full.
    """

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


def _all(paths: Paths) -> dict[str, tuple[LimitUse, ...]]:
    """Every limit that can be read, by its kind; a kernel that lacks one has one less."""
    readers: dict[str, Callable[[Paths], Iterator[LimitUse]]] = {
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
            found[kind] = tuple(use for use in read(paths) if use.limit > 0)
        except (OSError, ValueError, LookupError):
            # /proc of a container may lack it, or hide it.
            found[kind] = ()
    return found


def _pids(paths: Paths) -> Iterator[LimitUse]:
    # cgroup v2, and v1 where a container has its host's.
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/pids"):
        base = paths.at(root)
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
                    yield LimitUse(name=f"pids.max of {where}", used=current, limit=limit)


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


def _tasks(paths: Paths) -> int:
    # The fourth field: runnable/all, in tasks (threads), of the whole kernel.
    fields = paths.at("/proc/loadavg").read_text(encoding="ascii").split()
    return int(fields[3].partition("/")[2])


def _threads(paths: Paths) -> Iterator[LimitUse]:
    limit = int(paths.at("/proc/sys/kernel/threads-max").read_text(encoding="ascii"))
    yield LimitUse(name="threads-max", used=_tasks(paths), limit=limit)


def _pid_max(paths: Paths) -> Iterator[LimitUse]:
    # Every thread has a PID.
    limit = int(paths.at("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    yield LimitUse(name="pid_max", used=_tasks(paths), limit=limit)


def _files(paths: Paths) -> Iterator[LimitUse]:
    taken, _, limit = paths.at("/proc/sys/fs/file-nr").read_text(encoding="ascii").split()
    yield LimitUse(name="file-max", used=int(taken), limit=int(limit))


def _memory(paths: Paths) -> Iterator[LimitUse]:
    memory = meminfo(paths)
    total = memory["MemTotal"]
    yield LimitUse(name="memory", used=total - memory["MemAvailable"], limit=total)
    for name in ("pilot.slice", "pilotbench.slice"):
        folder = paths.at(f"/sys/fs/cgroup/{name}")
        limit, current = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and current is not None:
            # What the kernel would drop before it refuses anything. `file` has shared memory in it,
            # which it keeps.
            held = slice_stat(paths, name)
            current -= min(current, max(0, held.get("file", 0) - held.get("shmem", 0)))
            yield LimitUse(name=f"memory of {name}", used=current, limit=limit)


def _udp(paths: Paths) -> Iterator[LimitUse]:
    # The first of the three: from there on a socket that holds anything gets no more (limits.py).
    # On a guest whose sockets were filled, packets were refused at 15,595 pages of 15,551.
    limits = paths.at("/proc/sys/net/ipv4/udp_mem").read_text(encoding="ascii").split()
    yield LimitUse(name="udp_mem", used=udp(paths)[1], limit=int(limits[0]))


def _ports(paths: Paths) -> Iterator[LimitUse]:
    low, high = paths.at("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
    tcp = sockstat(paths, "sockstat")["TCP"]
    taken = tcp["inuse"] + tcp["tw"]
    yield LimitUse(name="local ports", used=taken, limit=int(high) - int(low) + 1)


def _number(path: Path) -> int | None:
    """The number in `path`, None where there is none ("max", no such file)."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
