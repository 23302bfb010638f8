"""Something that is asked over and over, from a daemon thread of its own.

A source is asked by a long poll where there is one. What it said last is a `Reading`, which the
loop takes without waiting for anybody. Absent, unreachable and read are three things: what was read
stays the value while the source is away. Whether a value means anything is for its reader to say.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from .retry import FinalError, TemporaryError

T = TypeVar("T")

READ = "read"
ABSENT = "absent"
UNREACHABLE = "unreachable"
# Seconds between two questions at least: a server that answers a long poll at once, or refuses,
# must not keep a CPU busy. The pause doubles to PAUSE_MAX while nothing is heard.
PAUSE = 0.2
PAUSE_MAX = 8.0


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[T]):
    """What a source said last. `state` is "" until it said anything; then READ (`value` is
    there), ABSENT (it is None), or UNREACHABLE (it is what was read before, None if nothing
    was), with `error`."""

    state: str = ""
    value: T | None = None
    error: str = ""


class Wake:
    """Ends a wait, from any thread and from a signal's handler: no lock, which a handler could
    find held by what it interrupted."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        with suppress(BlockingIOError):
            # A full pipe wakes as well.
            os.write(self._write, b"x")

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, or for `seconds`; whether it was. It is not set any more."""
        select.select([self._read], [], [], max(0.0, seconds))
        try:
            return bool(os.read(self._read, 65536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Source(Generic[T]):
    """Asks `ask` over and over. `ask` gives a value, or None for absent; it may take its time."""

    def __init__(
        self,
        name: str,
        ask: Callable[[], T | None],
        *,
        wake: Wake,
        every: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` is set at each change. `every`: seconds from one question to the next."""
        self.name = name
        self._ask = ask
        self._wake = wake
        self._every = max(every, PAUSE)
        self._clock = clock
        self._reading: Reading[T] = Reading()
        self._ended = threading.Event()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. A question that is open is left to end by itself."""
        self._ended.set()

    def latest(self) -> Reading[T]:
        """What it said last, without waiting. Raises RuntimeError when its thread is dead, which
        is a mistake in this tree: whoever cannot see must not go on as if nothing changed."""
        if self._broken is not None:
            raise RuntimeError(f"{self.name}: {self._broken!r}") from self._broken
        return self._reading

    def _run(self) -> None:
        pause = PAUSE
        try:
            while not self._ended.is_set():
                began = self._clock()
                heard = self._once()
                pause = PAUSE if heard else min(pause * 2, PAUSE_MAX)
                rest = began + self._every - self._clock() if heard else pause
                self._ended.wait(max(0.0, rest))
        except BaseException as error:
            self._broken = error
            self._wake.set()
            raise

    def _once(self) -> bool:
        """One question; whether it was answered."""
        before = self._reading
        try:
            value = self._ask()
        except (TemporaryError, FinalError, OSError) as error:
            now = Reading(state=UNREACHABLE, value=before.value, error=str(error))
        else:
            now = Reading(state=ABSENT if value is None else READ, value=value)
        if now != before and not self._ended.is_set():
            self._reading = now
            self._wake.set()
        return now.state != UNREACHABLE
