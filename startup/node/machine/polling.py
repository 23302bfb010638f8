"""Asks a source over and over, from a daemon thread of its own.

Its last answer is a `Reading`, which the loop takes without waiting. Read, absent and unreachable
are three states: the last value stays while the source is unreachable. The reader checks the value.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from .retry import FinalError, TemporaryError
from .thread_loop import ThreadLoop

T = TypeVar("T")

READ = "read"
ABSENT = "absent"
UNREACHABLE = "unreachable"
# Least seconds between two questions: a server that answers a long poll at once, or refuses, must
# not keep a CPU busy. The pause doubles up to PAUSE_MAX while there is no answer.
PAUSE = 0.2
PAUSE_MAX = 8.0


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[T]):
    """The last answer of a source."""

    state: str = ""
    """Empty before the first answer, then READ, ABSENT or UNREACHABLE."""
    value: T | None = None
    """None where ABSENT. Where UNREACHABLE: what was read before, None if nothing was."""
    error: str = ""
    """Where UNREACHABLE."""


class Wake:
    """Ends a wait, from any thread and from a signal handler. It has no lock: the code that a
    handler interrupts might hold it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        with suppress(BlockingIOError):
            # A full pipe ends the wait as well.
            os.write(self._write, b"x")

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, or for `seconds`; whether it was set. Clears it."""
        select.select([self._read], [], [], max(0.0, seconds))
        try:
            return bool(os.read(self._read, 65536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Source(Generic[T]):
    """Calls `ask` over and over. `ask` returns a value, or None for absent, and may take long."""

    def __init__(
        self,
        name: str,
        ask: Callable[[], T | None],
        *,
        wake: Wake,
        every: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` is set at each change. `every`: seconds between two questions."""
        self.name = name
        self._ask = ask
        self._wake = wake
        self._every = max(every, PAUSE)
        self._clock = clock
        self._reading: Reading[T] = Reading()
        self._pause = PAUSE
        self._loop = ThreadLoop(name, self._step)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        """Ask no more. An open question ends by itself."""
        self._loop.end()

    def latest(self) -> Reading[T]:
        """The last answer, without waiting."""
        return self._reading

    def _step(self) -> float:
        began = self._clock()
        if self._once():
            self._pause = PAUSE
            return max(0.0, began + self._every - self._clock())
        self._pause = min(self._pause * 2, PAUSE_MAX)
        return self._pause

    def _once(self) -> bool:
        """One question; whether it was answered."""
        before = self._reading
        try:
            value = self._ask()
        except (TemporaryError, FinalError, OSError) as error:
            now = Reading(state=UNREACHABLE, value=before.value, error=str(error))
        else:
            now = Reading(state=ABSENT if value is None else READ, value=value)
        if now != before and not self._loop.is_ending:
            self._reading = now
            self._wake.set()
        return now.state != UNREACHABLE
