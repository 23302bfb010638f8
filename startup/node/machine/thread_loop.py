"""A daemon thread that does one step over and over, until it is told to end."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ThreadLoop:
    """Calls `step`, which returns the seconds until the next call, None where only `again` is to
    end the pause. An exception in it is a bug, and ends the process (base_loop.py)."""

    def __init__(self, name: str, step: Callable[[], float | None]) -> None:
        self.is_ending = False
        self._step = step
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def again(self) -> None:
        """End the pause. While a step is at work, the next one follows at once."""
        self._due.set()

    def end(self) -> None:
        """Begin no other step. Does not wait for the one at work."""
        self.is_ending = True
        self._due.set()

    def join(self, seconds: float | None = None) -> None:
        """Wait until it has ended, at most `seconds`. One that was never started has."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self.is_ending:
            # Cleared first: what comes from here on gets another step.
            self._due.clear()
            pause = self._step()
            if not self.is_ending:
                self._due.wait(pause)
