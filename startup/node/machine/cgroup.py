"""The agents' cgroups, and their processes. Read from the file system: systemd is not asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .paths import Paths

UNIT = "pilot-agent@{}.service"
SLICE = "pilot.slice"


def cgroup(paths: Paths) -> Path | None:
    """pilot.slice in cgroup v2, or in v1 where a container has its host's."""
    for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd"):
        if (found := paths.at(base) / SLICE).is_dir():
            return found
    return None


def processes(paths: Paths) -> dict[int, list[int]]:
    """Port -> process IDs of its agent, for agents that have any."""
    base = cgroup(paths)
    if base is None:
        return {}
    ports = numbers(base, "pilot-agent@", ".service")
    return {port: found for port in ports if (found := _members(base / UNIT.format(port)))}


def processes_of(paths: Paths, port: int) -> list[int]:
    """Process IDs of the agent `port`."""
    base = cgroup(paths)
    return _members(base / UNIT.format(port)) if base else []


def _members(folder: Path) -> list[int]:
    """Process IDs in a cgroup, none where it is gone."""
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text("ascii").split()]
    except OSError:
        return []


def numbers(folder: Path, before: str, after: str) -> frozenset[int]:
    """The numbers N for which `folder` holds `before`N`after`."""
    return frozenset(number for number, _ in numbered(folder, before, after))


def numbered(folder: Path, before: str, after: str) -> Iterator[tuple[int, int]]:
    """Each number N for which `folder` holds `before`N`after`, and that entry's inode."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(before) and name.endswith(after):
                number = name[len(before) : len(name) - len(after)]
                # Not 010001: an agent may make such a file beside the sockets.
                if number.isascii() and number.isdigit() and str(int(number)) == number:
                    yield int(number), entry.inode()


def is_stopped(paths: Paths, port: int) -> bool:
    """Whether the agent's oldest process is stopped: state T of proc(5)."""
    found = []
    for process in processes_of(paths, port):
        with suppress(OSError, ValueError, LookupError):
            text = paths.at(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
            # After the name, which may hold anything, the 1st field is the state, the 20th the
            # start.
            fields = text.rpartition(")")[2].split()
            found.append((int(fields[19]), fields[0]))
    return bool(found) and min(found)[1] == "T"
