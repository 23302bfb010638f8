"""The kernel's walls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wall:
    """How much of a limit is used, both in the limit's own unit (tasks, files, bytes, pages)."""

    wall: str
    used: int
    limit: int
