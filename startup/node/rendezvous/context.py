"""The loop, as the parts of the rendezvous see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..desired.spec import RendezvousSpec
from ..machine.paths import Paths
from ..rollout.roll_state import RollState


class LoopContext(Protocol):
    """Implemented by RendezvousLoop."""

    @property
    def paths(self) -> Paths: ...
    @property
    def say(self) -> Callable[[str], None]: ...
    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def wall_clock(self) -> Callable[[], float]: ...
    @property
    def roll(self) -> RollState | None:
        """None until it was read from the state disk."""

    @property
    def spec(self) -> RendezvousSpec: ...

    def fault(self, text: str, *, said: bool = False) -> None:
        """Something failed: it is logged when it is new, and is part of the status."""

    def is_due(self, what: str, every: float) -> bool:
        """Whether `every` seconds have passed since this was last true of `what`."""

    def attempt(self, step: Callable[[], object]) -> None:
        """Run `step`. An OSError becomes a fault, and the round goes on."""
