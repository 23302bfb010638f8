"""Cgroups of containers: each needs its own, and its memory limit is set there.

Where this machine has version 2 beside version 1, the container gets version 2, as Debian 12 has
it, with what needs no controller: freezing, killing, programs that filter packets. Where the pids
controller is there, a container may have as many tasks as the kernel of a machine of its size.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.machines.processes import until

NO_CGROUP_2: Final = (
    "containers need cgroup v2, as Debian 12 has it, and this machine has version 1 alone"
)
_MIB: Final = 1024**2
# Linux lets the kernel's stacks take an eighth of memory (kernel/fork.c), and one is 16 KiB on
# x86-64: 8,192 tasks per GiB.
_TASKS_A_MIB: Final = _MIB // 8 // (16 * 1024)


@dataclass(frozen=True, kw_only=True)
class Hierarchies:
    """Where this machine's cgroups are mounted."""

    unified: Path | None
    """Version 2."""
    legacy: dict[str, Path]
    """Version 1, by controller."""

    @property
    def description(self) -> str:
        """What a container has of it."""
        if self.unified is None:
            return "cgroup v1 alone"
        if not self.legacy:
            return "cgroup v2"
        if self.limits_tasks:
            return "cgroup v2 with pids alone"
        return "cgroup v2 without controllers"

    @property
    def limits_memory(self) -> bool:
        """Tell whether a container's memory can be limited."""
        return "memory" in self.legacy or self._has("memory")

    @property
    def limits_tasks(self) -> bool:
        """Tell whether a container's tasks can be limited. Beside version 1 its services limit
        theirs as well (container.sh); version 2 alone was never tried."""
        return self._has("pids")

    def _has(self, controller: str) -> bool:
        if self.unified is None:
            return False
        return controller in (self.unified / "cgroup.controllers").read_text().split()


def hierarchies(mounts: str) -> Hierarchies:
    """Return what `/proc/mounts` says of this machine's cgroups."""
    unified = None
    legacy: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and unified is None:
            unified = Path(where)
        elif kind == "cgroup":
            for name in options.split(","):
                if name.startswith("name=") or name in ("memory", "pids"):
                    legacy.setdefault(name, Path(where))
    return Hierarchies(unified=unified, legacy=legacy)


class Group:
    """The cgroup `name` (`LAB/MACHINE`) in every hierarchy that there is."""

    def __init__(self, found: Hierarchies, name: str) -> None:
        """Take it; `make` makes it."""
        roots = dict.fromkeys(found.legacy.values())
        if found.unified is not None:
            roots[found.unified] = None
        self._found = found
        self._name = name
        self.directories = [root / name for root in roots]

    def make(self, memory_mb: int) -> None:
        """Make it, with at most `memory_mb` MiB of memory and the tasks of a machine of that size,
        where they can be limited."""
        for directory in self.directories:
            directory.mkdir(parents=True, exist_ok=True)
        limit = str(memory_mb * _MIB)
        if "memory" in self._found.legacy:
            (self._found.legacy["memory"] / self._name / "memory.limit_in_bytes").write_text(limit)
        elif self._found.limits_memory:
            self._set("memory", limit)
        if self._found.limits_tasks:
            # This lab may not hand the controller out: containers go without it.
            with contextlib.suppress(OSError):
                self._set("pids", str(memory_mb * _TASKS_A_MIB))

    def _set(self, controller: str, limit: str) -> None:
        """Set a limit in version 2."""
        assert self._found.unified is not None
        directory = self._found.unified / self._name
        for parent in (self._found.unified, directory.parent):
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        (directory / f"{controller}.max").write_text(limit)

    def processes(self) -> list[int]:
        """Return the ids of the processes in it and below, sorted."""
        found: set[int] = set()
        for directory in self.directories:
            for folder, _, _ in os.walk(directory):
                # It may go meanwhile, or be a threaded one, which has none of its own.
                with contextlib.suppress(OSError):
                    found.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
        return sorted(found)

    def remove(self, seconds: float = 5.0) -> bool:
        """Remove it with all below, once its processes are gone; tell whether that worked."""
        return until(lambda: all(_remove(each) for each in self.directories), seconds)


def _remove(directory: Path) -> bool:
    if not directory.exists():
        return True
    below = sorted(directory.rglob("*/"), key=lambda path: len(path.parts), reverse=True)
    try:
        for each in [*(path for path in below if path.is_dir()), directory]:
            each.rmdir()
    except FileNotFoundError:
        return False
    except OSError:  # a process is still on its way out
        return False
    return True
