"""Reads the machine from /proc, and sets the kernel's numbers."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from ..machine.paths import Paths
from .limits import KernelFacts, LimitsError

# In a container these errors mean that only the host may set the number. EINVAL means that the
# number is wrong.
_THE_HOSTS = frozenset({errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM})


def machine(paths: Paths) -> KernelFacts:
    """RAM (MemTotal), the page size and threads-max."""
    fields = dict(
        line.split(":", 1)
        for line in paths.at("/proc/meminfo").read_text(encoding="ascii").splitlines()
        if ":" in line
    )
    return KernelFacts(
        ram=int(fields["MemTotal"].split()[0]) << 10,
        page=os.sysconf("SC_PAGESIZE"),
        threads_max=int(paths.at("/proc/sys/kernel/threads-max").read_text(encoding="ascii")),
    )


def apply(paths: Paths, numbers: Mapping[str, str], *, container: bool) -> list[str]:
    """Set `numbers` and read each back. Returns those that only the host may set, `NAME (REASON)`
    each: in a container they are no error. Raises LimitsError with every number that was refused.
    """
    refused, left = [], []
    for name, value in numbers.items():
        path = paths.at("/proc/sys/" + name.replace(".", "/"))
        try:
            problem = _set(path, value)
        except OSError as error:
            problem = f"{os.strerror(error.errno or 0)}"
            if container and error.errno in _THE_HOSTS:
                left.append(f"{name} ({problem})")
                continue
        if problem:
            refused.append(f"{name}={value}: {problem}")
    if refused:
        raise LimitsError(f"the kernel refused {'; '.join(refused)}")
    return left


def huge_pages_on_request(paths: Paths) -> str:
    """Have the kernel give huge pages only to programs that ask for them; the problem, or "".

    Debian's kernel gives them to all. Go takes memory in large pieces and uses little of each: with
    huge pages the first touch takes 2 MiB, and an agent is twice as large (docs/FACTS.md).
    """
    path = paths.at("/sys/kernel/mm/transparent_hugepage/enabled")
    try:
        # The present setting is in brackets: "[always] madvise never".
        if "[always]" in _read(path):
            handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
            try:
                os.write(handle, b"madvise\n")
            finally:
                os.close(handle)
    except FileNotFoundError:
        # This kernel has no huge pages.
        return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _set(path: Path, value: str) -> str:
    """Write `value` where it differs: a read-only number may be right already. The problem, or
    ""."""
    if _read(path) == value.split():
        return ""
    # Without O_CREAT: a name that the kernel does not know must not become a file.
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(handle, f"{value}\n".encode())
    finally:
        os.close(handle)
    now = _read(path)
    return "" if now == value.split() else f"it is {' '.join(now)} after writing"


def _read(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").split()
