"""Kernel limits: which are nearly used up, and which of them a failure has hit.

`fork` says "Resource temporarily unavailable" at four different limits. The one that is full at the
time of the failure is named.
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

# A limit is in the status when more than this part of it is used.
NEAR: Final = 0.8
# It counts as hit from this part on: the failed process has already given back what it held.
HIT: Final = 0.95
# The slices that are looked at. Agents below them are not: they have no limits of their own.
_SLICES: Final = ("", "pilot.slice", "pilotbench.slice", "system.slice", "user.slice")
# Most cgroups that are looked at: a VM has about a hundred services and logins.
_CGROUPS: Final = 400


@dataclass(frozen=True, kw_only=True)
class LimitUse:
    """A limit, and how much of it is used."""

    name: str
    used: int
    """In the limit's own unit: tasks, files, bytes or pages."""
    limit: int

    @property
    def share(self) -> float:
        return self.used / self.limit

    def __str__(self) -> str:
        return f"{self.name}: {self.used} of {self.limit}"


def used(paths: Paths, share: float = NEAR) -> tuple[LimitUse, ...]:
    """The limits of which more than `share` is used, the fullest first. Every slice and unit may
    have a `pids.max`: of these the fullest only."""
    found = {kind: max(uses, key=lambda w: w.share) for kind, uses in _all(paths).items() if uses}
    near = [use for use in found.values() if use.share > share]
    return tuple(sorted(near, key=lambda use: -use.share))


def explain(failure: str, paths: Paths) -> str:
    """`failure` with the limit that it hit, where its text sounds like a limit.

    Where none is full now, the fullest candidates are named with their use.
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
    """A program's message when it hits a limit."""

    pattern: re.Pattern[str]
    kinds: tuple[str, ...]
    """The limits that it can be."""
    hint: str = ""
    """Another possible cause."""
    quiet: bool = False
    """It mostly has other causes: reported only where a limit is full."""


def _words(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


_TASKS: Final = ("pids.max", "threads-max", "pid_max")
# The first match counts: "too many open files in system" is not a process' own limit.
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
    # systemd's word where it could not set up the process.
    _Sign(pattern=_words(r"\(resources\b"), kinds=(*_TASKS, "memory", "file-max")),
    # The kernel's OOM killer, among other reasons for SIGKILL.
    _Sign(pattern=_words(r"oom-kill|\(signal, status 9\)"), kinds=("memory",), quiet=True),
)


def _all(paths: Paths) -> dict[str, tuple[LimitUse, ...]]:
    """Every limit that can be read, by its kind."""
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
            # A container's /proc may lack it.
            found[kind] = ()
    return found


def _pids(paths: Paths) -> Iterator[LimitUse]:
    base = paths.at("/sys/fs/cgroup")
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
            # Agents' tasks count in the slice: an agent has no limit of its own.
            if not entry.name.startswith("pilot-agent") and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _tasks(paths: Paths) -> int:
    # The fourth field: runnable/all tasks (threads) of the whole kernel.
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
            # Less the files that the kernel would drop first. `file` includes shared memory, which
            # it keeps.
            held = slice_stat(paths, name)
            current -= min(current, max(0, held.get("file", 0) - held.get("shmem", 0)))
            yield LimitUse(name=f"memory of {name}", used=current, limit=limit)


def _udp(paths: Paths) -> Iterator[LimitUse]:
    # By the first of the three: above it a socket that holds packets gets no more. On a
    # guest with filled sockets, packets were refused at 15,595 pages of 15,551.
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
