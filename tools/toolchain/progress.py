"""Progress of a long build: the time so far, and an estimate of the rest."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

HEARTBEAT_SECONDS = 60.0
"""Between two lines where there is no terminal: enough for who waits for a build to know that it
goes on."""


def say(text: str) -> None:
    """Print a line to standard error, so that `env --json` stays clean."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds: `0:07`, `12:34`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def about(seconds: float) -> str:
    """An estimate in words, no more precise than it is."""
    if seconds < 20:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds / 10) * 10} s"
    return f"about {round(seconds / 60)} min"


def seconds_left(
    done: Sequence[tuple[float, float]], current: float, spent: float, later: Sequence[float]
) -> float:
    """Estimate of the seconds left.

    `done` has (planned, taken) of each finished step, `current` the planned seconds of the running
    step, `spent` the seconds it has run, `later` the planned seconds of the others. The plan is
    scaled by this machine's pace so far, and by a step that takes longer than planned.
    """
    planned = sum(plan for plan, _ in done)
    pace = sum(taken for _, taken in done) / planned if planned else 1.0
    if spent > current * pace:
        pace = 1.1 * spent / current
    return current * pace - spent + sum(later) * pace


class Step:
    """Reports a running step until the `with` block ends."""

    def __init__(self, steps: Steps, title: str, planned: float) -> None:
        self._steps, self._title, self._planned = steps, title, planned
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def line(self) -> str:
        now = time.monotonic()
        left = self._steps.left(self._planned, now - self._started)
        so_far = clock(now - self._steps.started)
        return f"{self._title} … {so_far} so far, {about(left)} left"

    def _tell(self) -> None:
        terminal = sys.stderr.isatty()
        if not terminal:
            say(self.line())
        while not self._over.wait(1.0 if terminal else HEARTBEAT_SECONDS):
            if terminal:
                # A line that wraps could not be taken back.
                width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
                sys.stderr.write("\r\x1b[K" + self.line()[: width - 1])
                sys.stderr.flush()
            else:
                say(self.line())
        if terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self._steps.finish(self._planned, time.monotonic() - self._started)


class Steps:
    """Steps with their planned seconds, taken in order."""

    def __init__(self, plan: Sequence[float]) -> None:
        self.started = time.monotonic()
        self._plan = list(plan)
        self._done: list[tuple[float, float]] = []

    def step(self, title: str) -> Step:
        return Step(self, title, self._plan[len(self._done)])

    def left(self, planned: float, spent: float) -> float:
        return seconds_left(self._done, planned, spent, self._plan[len(self._done) + 1 :])

    def finish(self, planned: float, taken: float) -> None:
        self._done.append((planned, taken))

    def total(self) -> float:
        return sum(self._plan)
