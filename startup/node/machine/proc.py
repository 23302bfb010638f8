"""Numbers of the machine and of processes, as /proc and the cgroups show them."""

from __future__ import annotations

import os
from pathlib import Path

from .paths import Paths


def uptime(paths: Paths) -> float:
    """Seconds since the kernel started. Unlike the wall clock it is never set."""
    return float(paths.at("/proc/uptime").read_text(encoding="ascii").split()[0])


def most_descriptors(pid: int) -> float:
    """The hard limit of a process' descriptors. Raises ProcessLookupError where it is gone.

    Read from /proc: prlimit(2) on another user's process needs a capability that a container may
    lack.
    """
    try:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, f"process {pid} is gone") from error
    found = next(line.split()[4] for line in lines if line.startswith("Max open files"))
    return float("inf") if found == "unlimited" else int(found)


def descriptors(pid: int) -> int | None:
    """How many descriptors a process has, None where this may not be read (it needs a capability).
    Raises ProcessLookupError where it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, f"process {pid} is gone") from error
    except PermissionError:
        return None


def meminfo(paths: Paths) -> dict[str, int]:
    """/proc/meminfo in bytes, by its names. Raises OSError."""
    found = {}
    for line in paths.at("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) << 10
    return found


def udp(paths: Paths) -> tuple[int, int]:
    """The VM's bound UDP sockets, IPv4 and IPv6, and the pages that their buffers hold.

    Raises OSError, ValueError. Not from /proc/net/udp: thousands of lines every few seconds take
    the kernel longer, and hold locks that packets need.
    """
    # `inuse` counts sockets that are hashed by port: the bound ones.
    sockets = pages = 0
    for name in ("sockstat", "sockstat6"):
        try:
            found = sockstat(paths, name)
        except FileNotFoundError:
            if name == "sockstat":
                raise
            continue
        for protocol in found.keys() & {"UDP", "UDP6"}:
            sockets += found[protocol]["inuse"]
            pages += found[protocol].get("mem", 0)
    return sockets, pages


def sockstat(paths: Paths, name: str) -> dict[str, dict[str, int]]:
    """/proc/net/sockstat or sockstat6: protocol -> its numbers. Raises OSError, ValueError."""
    lines = paths.at(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()
    return {
        words[0].rstrip(":"): dict(zip(words[1::2], map(int, words[2::2]), strict=False))
        for words in map(str.split, lines)
        if words
    }


def slice_stat(paths: Paths, name: str) -> dict[str, int]:
    """memory.stat of the slice `name`, in bytes; empty where there is no memory controller."""
    try:
        text = paths.at(f"/sys/fs/cgroup/{name}/memory.stat").read_text(encoding="ascii")
    except OSError:
        return {}
    pairs = (line.split() for line in text.splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdigit()}
