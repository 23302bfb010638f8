"""How agents run as units: name, slice, user and socket of each.

Each agent is a user of its own (layout OWN), in one of a few slices below pilot.slice, with its
socket in its home. The release before ran all agents as the user pilot in pilot.slice, with their
sockets in one directory (layout SHARED). During an update from it agents of both run side by side,
so those are adopted and stopped as well, and never started.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from .paths import Paths
from .user import UID

SLICE: Final = "pilot.slice"
# Slices below pilot.slice. PID 1 asks all members of a slice for each one that starts (systemd's
# issue 17590): of 5,000 agents 250 instead of all.
SLICES: Final = 20
_PREFIX, _SUFFIX = "pilot-agent", ".service"
# As the unit's `--setuid 19000%i`: 1,900,000,000 and the port, above what containers and
# subordinate ids use. For a port of four digits it is 190,000,000 and the port.
_USERS: Final = "19000"


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """One of the two, compared by identity."""

    own: bool
    """Whether each agent has a user of its own."""

    def template(self, port: int) -> str:
        """The unit's name before the `@`: with its slice's number, since a template's slice cannot
        follow from its instance."""
        return f"{_PREFIX}-{port % SLICES:02d}" if self.own else _PREFIX

    @property
    def templates(self) -> tuple[str, ...]:
        """Names of its unit files."""
        ports = range(SLICES if self.own else 1)
        return tuple(f"{self.template(port)}@{_SUFFIX}" for port in ports)

    def unit(self, port: int) -> str:
        return f"{self.template(port)}@{port}{_SUFFIX}"

    def cgroup(self, port: int) -> str:
        """The agent's cgroup, below that of pilot.slice."""
        unit = self.unit(port)
        return f"pilot-{port % SLICES:02d}.slice/{unit}" if self.own else unit

    def user(self, port: int) -> int:
        return int(f"{_USERS}{port}") if self.own else UID

    def socket(self, paths: Paths, port: int) -> Path:
        return paths.home(port) / "daemon.sock" if self.own else paths.sockets / f"{port}.sock"


SHARED: Final = Layout(own=False)
OWN: Final = Layout(own=True)
LAYOUTS: Final = (SHARED, OWN)
# The file in `units/` whose text all unit files of OWN have.
SOURCE: Final = f"{_PREFIX}-NN@{_SUFFIX}"


def base(paths: Paths) -> Path | None:
    """The cgroup of pilot.slice, None where there is none."""
    found = paths.at("/sys/fs/cgroup") / SLICE
    return found if found.is_dir() else None


def running(paths: Paths) -> dict[int, Layout]:
    """Port -> the layout in which its agent runs. Read from the cgroups: systemd is not asked."""
    found: dict[int, Layout] = {}
    if (top := base(paths)) is not None:
        for name in _names(top):
            if (port := _port(name, SHARED)) is not None:
                found[port] = SHARED
            elif name.startswith("pilot-") and name.endswith(".slice"):
                found |= dict.fromkeys(_ports(name, tuple(_names(top / name))), OWN)
    return found


def layout_of(paths: Paths, port: int) -> Layout | None:
    """The layout in which the agent `port` runs, None where it does not."""
    top = base(paths)
    return next(
        (each for each in LAYOUTS if top is not None and (top / each.cgroup(port)).is_dir()), None
    )


def processes(paths: Paths) -> dict[int, list[int]]:
    """Port -> process IDs of its agent, for agents that have any."""
    top = base(paths)
    if top is None:
        return {}
    return {
        port: found
        for port, layout in running(paths).items()
        if (found := _members(top / layout.cgroup(port)))
    }


def processes_of(paths: Paths, port: int) -> list[int]:
    """Process IDs of the agent `port`."""
    top, layout = base(paths), layout_of(paths, port)
    return _members(top / layout.cgroup(port)) if top and layout else []


def socket_of(paths: Paths, port: int) -> Path:
    """The socket of the agent `port`, that runs."""
    return (layout_of(paths, port) or OWN).socket(paths, port)


# Of each slice the last few: every two seconds most have the names that they had before.
@lru_cache(maxsize=4 * SLICES)
def _ports(slice_: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """The ports of the agents in a slice whose cgroups have these names."""
    ports = (_port(f"{slice_}/{name}", OWN) for name in names)
    return tuple(port for port in ports if port is not None)


# Thousands of names, and nobody but root can make others.
@cache
def _port(path: str, layout: Layout) -> int | None:
    """The port of the agent whose cgroup is `path`, None where that is no agent's."""
    text = path.partition("@")[2].removesuffix(_SUFFIX)
    # Not 010001: the name that its port would have is another.
    found = int(text) if text.isascii() and text.isdigit() else None
    return found if found is not None and layout.cgroup(found) == path else None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names alone, thousands of them)
    except FileNotFoundError:
        # The cgroup of a slice ends with its last agent.
        return []


def _members(folder: Path) -> list[int]:
    """Process IDs in a cgroup, none where it is gone."""
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text("ascii").split()]
    except OSError:
        return []
