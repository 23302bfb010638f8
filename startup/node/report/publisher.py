"""Publishes the status as a guest attribute and a file, from a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ..machine import files
from ..machine.paths import Paths
from ..machine.retry import FinalError, TemporaryError
from ..machine.thread_loop import ThreadLoop
from .status import Document, Published, clip, encode, significant

ATTRIBUTE: Final = "pilot/status"
# Seconds between two publications when something changed.
SOON: Final = 5.0
# And when nothing did.
LATER: Final = 60.0


class Publisher:
    """Writes /run/pilot/status.json and the guest attribute, from its own thread.

    `publish` only leaves the document. It goes out SOON after the last one where it says something
    new, LATER where it does not. While the metadata server is away the newest document is tried
    again after SOON, then twice that, up to LATER.
    """

    def __init__(
        self,
        *,
        paths: Paths,
        put: Callable[[str, str], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`put` is MetadataServer.put_guest_attribute. `say` is called when publishing begins to
        fail and when it works again."""
        self._paths = paths
        self._put = put
        self._say = say
        self._clock = clock
        self._wall_clock = wall_clock
        self._newest: Document | None = None
        self._sent: Document | None = None
        self._sent_at = 0.0
        self._pause = SOON
        self._failed = False
        self._closed = False
        self._published = Published()
        self._loop = ThreadLoop("status", self._turn)

    def start(self) -> None:
        self._loop.start()

    @property
    def published(self) -> Published:
        """The last publication, for the next document."""
        return self._published

    def publish(self, found: Document) -> None:
        """Leave `found` to be published. Never waits."""
        self._newest = found
        self._loop.again()

    def close(self, seconds: float = 5.0) -> None:
        """Publish the newest document at once, and end. Waits at most `seconds`."""
        self._closed = True
        self._loop.again()
        self._loop.join(seconds)

    def step(self, *, at_once: bool = False) -> float | None:
        """Publish where it is time, or `at_once`. Seconds until it may be time again, None: not
        before the next document."""
        newest = self._newest
        if newest is None:
            return None
        wait = 0.0 if at_once else self._wait(newest)
        if wait > 0:
            return wait
        self._send(newest)
        return self._pause

    def _wait(self, newest: Document) -> float:
        if self._sent is None and not self._failed:
            return 0.0
        elapsed = self._clock() - self._sent_at
        if self._failed:
            return self._pause - elapsed
        news = significant(newest) != significant(self._sent or {})
        return (SOON if news else LATER) - elapsed

    def _send(self, newest: Document) -> None:
        text = encode(newest)
        # Both are tried: a full /run must be reported through the guest attribute.
        here = self._problem(lambda: files.write(self._paths.run / "status.json", text + "\n"))
        there = self._problem(lambda: self._put(ATTRIBUTE, text))
        problem = "; ".join(filter(None, (here, there)))
        taken = self._published.time if there else self._wall_clock()
        self._sent_at = self._clock()
        if problem:
            self._pause = min(self._pause * 2, LATER) if self._failed else SOON
            self._published = Published(time=taken, error=clip(problem))
            if not self._failed:
                self._say(f"status: {problem}; tried again until it is taken")
        else:
            if self._failed:
                self._say("status: taken again")
            self._pause = SOON
            self._sent = newest
            self._published = Published(time=taken)
        self._failed = bool(problem)

    @staticmethod
    def _problem(step: Callable[[], object]) -> str:
        """Why `step` failed, "" where it did not."""
        try:
            step()
        except (OSError, TemporaryError, FinalError) as error:
            return str(error) or type(error).__name__
        return ""

    def _turn(self) -> float | None:
        closing = self._closed
        pause = self.step(at_once=closing)
        if closing:
            self._loop.end()
        return pause
