"""Tries again what failed temporarily, for a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

LIMIT_VARIABLE = "PILOT_RETRY_SECONDS"
PAUSE_VARIABLE = "PILOT_RETRY_PAUSE"


class TemporaryError(Exception):
    """A failure that may be over a moment later: no route, a closed port, a 503."""


class FinalError(Exception):
    """A failure that trying again does not change. The text says what, where and what to do."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long to go on, in seconds."""

    limit: float = 300.0
    """In all. A metadata server or a bucket that is away for two minutes at boot must only delay
    it, and a new IAM binding takes "typically 2 minutes, potentially 7" (Google)."""
    pause: float = 1.0
    """After the first failure. It doubles with each."""
    pause_max: float = 8.0


def bounds_of(environment: Mapping[str, str]) -> Bounds:
    """The bounds by a process's environment."""
    default = Bounds()
    return Bounds(
        limit=float(environment.get(LIMIT_VARIABLE) or default.limit),
        pause=float(environment.get(PAUSE_VARIABLE) or default.pause),
    )


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Tries again while the failure is a TemporaryError. Each one is logged."""

    bounds: Bounds
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __call__(self, what: str, attempt: Callable[[], T]) -> T:
        """The result of the first attempt that succeeds.

        Any other exception than TemporaryError passes through at once. When the next pause would
        end after `bounds.limit`, the last failure is raised as a FinalError.
        """
        start = self.clock()
        pause = self.bounds.pause
        while True:
            try:
                return attempt()
            except TemporaryError as error:
                elapsed = self.clock() - start
                if elapsed + pause > self.bounds.limit:
                    raise FinalError(f"{what}: {error} (gave up after {elapsed:.0f} s)") from error
                self.say(f"{what}: {error}; again in {pause:g} s")
            self.sleep(pause)
            pause = min(pause * 2, self.bounds.pause_max)
