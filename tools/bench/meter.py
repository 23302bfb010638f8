"""Reads CPU and memory of this machine and of its processes from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ACCOUNTS = Path("/sys/fs/cgroup/cpuacct")
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass(frozen=True, kw_only=True)
class ProcessorSeconds:
    """CPU and memory of this machine."""

    busy: float
    """CPU seconds since boot that were not idle, over all processors."""
    stolen: float
    """CPU seconds that the hypervisor gave to others."""
    available: int
    """MemAvailable, in bytes."""


class Account:
    """The CPU of this process and of all that it starts from now on, a booted VM included.

    Needs root and version 1 of cgroups; elsewhere `used` is None.
    """

    def __init__(self, accounts: Path = _ACCOUNTS) -> None:
        self._accounts = accounts
        self._group = accounts / f"bench-{os.getpid()}"

    def __enter__(self) -> Account:
        try:
            self._group.mkdir()
            (self._group / "cgroup.procs").write_text("0")
        except OSError:
            self._remove()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            (self._accounts / "cgroup.procs").write_text("0")
        self._remove()

    def used(self) -> float | None:
        """CPU seconds since the account was opened."""
        try:
            return int((self._group / "cpuacct.usage").read_text()) / 1e9
        except OSError:
            return None

    def _remove(self) -> None:
        with suppress(OSError):
            self._group.rmdir()


def machine(stat: str | None = None, meminfo: str | None = None) -> ProcessorSeconds:
    """Read now, or from the given texts of /proc/stat and /proc/meminfo."""
    stat = Path("/proc/stat").read_text() if stat is None else stat
    meminfo = Path("/proc/meminfo").read_text() if meminfo is None else meminfo
    # user nice system idle iowait irq softirq steal
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    fields = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return ProcessorSeconds(
        busy=(user + nice + system + irq + softirq) * _TICK_S,
        stolen=steal * _TICK_S,
        available=int(fields["MemAvailable"].split()[0]) * _KIB,
    )


def cpu(pid: int) -> float:
    """CPU seconds of a process since it began, to a clock tick; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0.0
    # The name is in parentheses and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def exact_cpu(pids: Iterable[int]) -> float:
    """CPU seconds of processes, from the scheduler's nanoseconds of each living thread.

    Ticks are too coarse: an idle agent uses less than one per minute.
    """
    total = 0
    for pid in pids:
        folder = f"/proc/{pid}/task"
        try:
            for thread in os.listdir(folder):  # noqa: PTH208 (tens of thousands)
                with open(f"{folder}/{thread}/schedstat", "rb") as file:  # noqa: PTH123
                    total += int(file.read().split(b" ", 1)[0])
        except OSError:
            continue
    return total / 1e9


def memory(pid: int) -> int:
    """Resident bytes of a process; 0 when it is gone."""
    return _field(pid, "status", "VmRSS") * _KIB


def proportional(pid: int) -> int:
    """PSS of a process in bytes: shared pages are divided among their users; 0 when it is gone."""
    return _field(pid, "smaps_rollup", "Pss") * _KIB


def threads(pid: int) -> int:
    """Threads of a process; 0 when it is gone."""
    return _field(pid, "status", "Threads")


def _field(pid: int, file: str, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/{file}").read_text(errors="replace")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0
