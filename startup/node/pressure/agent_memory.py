"""Measures agents' memory, from their pages and counters in /proc."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..machine import agent_units
from ..machine.paths import Paths
from .leak_detection import Held

# Most agents whose pages are walked for a batch's mean: 15 ms.
BATCH_AGENTS: Final = 64
# Most processes of one agent that are counted. It has one, but may start others.
PROCESSES: Final = 16


@dataclass(frozen=True, kw_only=True)
class Pages:
    """A process' memory, in bytes."""

    pss: int
    """Its own, and its share of shared pages."""
    private: int
    """Pages that it alone has written. Not the program's text: the first agent of a new release
    would seem to have all of it."""


def pages(paths: Paths, process: int) -> Pages:
    """Read smaps_rollup of `process`. Raises OSError, also where it has ended."""
    found = {}
    text = paths.at(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) << 10
    try:
        return Pages(pss=found["Pss"], private=found["Private_Dirty"])
    except KeyError as error:
        # It ended while it was read, or the kernel has another format.
        raise OSError(f"{process}: smaps_rollup has no {error}") from error


def spread(ports: Sequence[int], count: int) -> list[int]:
    """At most `count` of `ports`, evenly spread. The same for the same ports."""
    ordered = sorted(ports)
    if len(ordered) <= count:
        return ordered
    return [ordered[i * len(ordered) // count] for i in range(count)]


def private_bytes(paths: Paths, ports: Sequence[int]) -> float | None:
    """Mean private bytes of the agents of `ports`, over at most BATCH_AGENTS of them, evenly
    spread; None when none of these runs."""
    # Only these agents are looked up: for all of a VM it would be thousands of files.
    found = [
        measured.private
        for port in spread(ports, BATCH_AGENTS)
        if (measured := measure(paths, agent_units.processes_of(paths, port))) is not None
    ]
    return sum(found) / len(found) if found else None


def measure(paths: Paths, processes: Sequence[int]) -> Pages | None:
    """The memory of all processes of an agent, None where none could be read."""
    found = []
    for process in processes[:PROCESSES]:
        try:
            found.append(pages(paths, process))
        except OSError:
            continue
    if not found:
        return None
    return Pages(pss=sum(one.pss for one in found), private=sum(one.private for one in found))


def held(paths: Paths, processes: Sequence[int], uptime: float) -> Held | None:
    """An agent's anonymous memory by /proc's counters, 45 us per process (smaps_rollup takes five
    times as long). None where it has ended. `uptime`: of the kernel, in seconds."""
    # The oldest process is the agent itself.
    starts: list[tuple[int, int]] = []
    total = 0
    for process in processes[:PROCESSES]:
        try:
            folder = paths.at(f"/proc/{process}")
            stat = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            _, resident, shared, *_ = (folder / "statm").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        # Field 22 of proc(5), its start in ticks since boot. The 1st here is field 3.
        starts.append((int(stat[19]), process))
        total += (int(resident) - int(shared)) * _PAGE
    if not starts:
        return None
    return Held(since=min(starts), age=uptime - min(starts)[0] / _TICKS, bytes=total)


_PAGE: Final = os.sysconf("SC_PAGESIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
