"""One look at a fleet after the other, with its alerts and those that begin or end.

`watch` prints them and `live` shows them: both ask the same, and as often.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ops import watch
from ops.errors import OpsError
from ops.fleet import Fleet
from ops.watch import Event, Limits


@dataclass(frozen=True, kw_only=True)
class FleetLook:
    """What a look has found."""

    time: float
    """Seconds since the epoch."""
    fleet: Fleet | None
    """None: the look failed, with `error`."""
    error: OpsError | None
    standing: Mapping[str, str]
    """The alerts that stand: key -> sentence."""
    events: tuple[Event, ...]
    """Those that have begun or ended since the look before."""


class FleetLooks:
    """Looks at a fleet, one at a time: who asks while another looks waits for that."""

    def __init__(
        self,
        ask: Callable[[], Fleet],
        held: Callable[[Fleet], Mapping[str, str]],
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`held`: the alerts that only the fleet's bucket tells (`holds.alerts`)."""
        self._ask, self._held, self._limits, self._clock = ask, held, limits, clock
        self._before: Fleet | None = None
        self._standing: dict[str, str] = {}
        self._lock = threading.Lock()

    def next(self) -> FleetLook:
        """Look now."""
        with self._lock:
            return self._next()

    def _next(self) -> FleetLook:
        when, now, wrong = self._clock(), None, None
        try:
            now = self._ask()
        except OpsError as error:
            # Earlier alerts stand; not being able to look is one more.
            wrong = error
            found = {**self._standing, "ops/blind": str(error)}
        else:
            when = now.time
            found = watch.alerts(now, self._limits)
            found |= watch.falls(self._before, now, self._limits, self._standing)
            found |= self._held(now)
            self._before = now
        events = tuple(watch.events(self._standing, found, when))
        self._standing = found
        return FleetLook(time=when, fleet=now, error=wrong, standing=found, events=events)
