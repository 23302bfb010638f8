"""Reads the machine from /proc, and compares the kernel's numbers with the startup script's.

The script alone sets numbers of the kernel, each with its reason (`ensure_kernel` in
startup.sh.j2). It leaves them in a file of sysctl.d.
"""

from __future__ import annotations

import os
import re

from ..machine.paths import AGAIN, Paths
from .limits import KernelFacts

SYSCTLS = "/etc/sysctl.d/60-pilot.conf"
_NUMBERS = "/proc/sys"
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def machine(paths: Paths) -> KernelFacts:
    """RAM (MemTotal) and the page size."""
    fields = dict(
        line.split(":", 1)
        for line in paths.at("/proc/meminfo").read_text(encoding="ascii").splitlines()
        if ":" in line
    )
    return KernelFacts(ram=int(fields["MemTotal"].split()[0]) << 10, page=os.sysconf("SC_PAGESIZE"))


def problem(paths: Paths, *, has_agents: bool) -> str:
    """Which numbers of the kernel are not as the startup script wants them, and what to do; or "".

    Where /proc/sys is read-only, as in a container, they are its host's, and not compared.
    """
    if not os.access(paths.at(_NUMBERS), os.W_OK):
        return ""
    problems = []
    try:
        lines = paths.at(SYSCTLS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        problems.append(f"{SYSCTLS}: {error.strerror}; {AGAIN}")
    else:
        # Somebody may have edited it.
        wanted = [line.partition("=") for line in lines if not line.startswith(("#", ";"))]
        told = [_difference(paths, name.strip(), value) for name, equals, value in wanted if equals]
        found = [text for text in told if text]
        if found:
            problems.append(
                f"{', '.join(found)}: `sysctl --load={SYSCTLS}` sets it, or says why not"
            )
    if has_agents and "[always]" in _read(paths, _HUGE_PAGES):
        problems.append(f"huge pages double the agents' memory: `echo madvise >{_HUGE_PAGES}`")
    return f"kernel: {'; '.join(problems)}" if problems else ""


def _difference(paths: Paths, name: str, value: str) -> str:
    """How the number `name` differs from `value`, "" where it does not."""
    now = " ".join(_read(paths, f"{_NUMBERS}/{name.replace('.', '/')}").split())
    wanted = " ".join(value.split())
    # The kernel prints a list of ports in order, and merged.
    same = _ports(now) == _ports(wanted) if name.endswith("_ports") else now == wanted
    return "" if same else f"{name} is {now or 'not there'}, not {wanted}"


def _ports(text: str) -> set[int]:
    """The ports of `text`, as `3000,9000-9001`."""
    ranges = re.findall(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    return {port for low, high in ranges for port in range(int(low), int(high or low) + 1)}


def _read(paths: Paths, path: str) -> str:
    """A number as the kernel prints it, "" where it cannot be read."""
    try:
        return paths.at(path).read_text(encoding="ascii")
    except OSError:
        return ""
