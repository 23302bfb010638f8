"""Faults that a test can turn on, at start and while it runs. The real registry has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from .limiter import NEW_KEYS_PER_MINUTE

# no: registered. error: refused in words. disconnect: the connection is closed. hang: no answer.
REFUSALS: Final = ("no", "error", "disconnect", "hang")
MOST_PADDING: Final = 64


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """The present settings."""

    delay: float = 0.0
    """Seconds before a registration is looked at and answered."""
    refuse: str = "no"
    """How registrations are refused; "no": they are not."""
    new_keys_per_minute: int = NEW_KEYS_PER_MINUTE
    """Per source address."""
    ignore_whitelist: bool = False
    """The whitelist file exempts no address."""
    plain_refusals: bool = False
    """No refusal gives its reason, as the real one of February 2026."""
    away: bool = False
    """The registry's port is closed and every connection is dropped."""
    padding: int = 0
    """MiB that are added to the store."""
    in_place: bool = False
    """The store is written over, without a temporary file."""

    def changed(self, wanted: Mapping[str, object]) -> Knobs:
        """A copy with some knobs turned. ValueError names every bad value, and why."""
        problems = [
            f"{name}: {problem}"
            for name, value in wanted.items()
            if (problem := _problem(name, value)) is not None
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return replace(self, **wanted)  # type: ignore[arg-type]

    def shown(self) -> dict[str, object]:
        return asdict(self)


def _problem(name: str, value: object) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "delay":
            fits = number and 0 <= float(str(value)) <= 3600
            return None if fits else "must be seconds, from 0 to 3600"
        case "refuse":
            return None if value in REFUSALS else f"must be one of {', '.join(REFUSALS)}"
        case "new_keys_per_minute":
            fits = number and isinstance(value, int) and value >= 0
            return None if fits else "must be a whole number from 0 on"
        case "padding":
            fits = number and isinstance(value, int) and 0 <= value <= MOST_PADDING
            return None if fits else f"must be whole MiB, from 0 to {MOST_PADDING}"
        case "ignore_whitelist" | "plain_refusals" | "away" | "in_place":
            return None if isinstance(value, bool) else "must be true or false"
        case _:
            return "there is no such knob"


class OpenRegistrations:
    """Registrations that wait for their answer: now and at most, in all and per source."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._now = 0
        self.reset()

    def reset(self) -> None:
        """Count the peaks anew, from what is open."""
        self._peak = self._now
        self._peaks = dict(self._open)

    def begin(self, source: str) -> None:
        self._now += 1
        self._peak = max(self._peak, self._now)
        here = self._open[source] = self._open.get(source, 0) + 1
        self._peaks[source] = max(self._peaks.get(source, 0), here)

    def end(self, source: str) -> None:
        self._now -= 1
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]

    def shown(self) -> dict[str, object]:
        return {"open": self._now, "peak": self._peak, "peak_by_source": dict(self._peaks)}
