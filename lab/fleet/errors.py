"""Errors that are one sentence, and waits that end."""

from __future__ import annotations

import time
from collections.abc import Callable


class DemoError(Exception):
    """What went wrong and what to do, in a sentence."""


def until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Waits for a condition. DemoError with `otherwise` where it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(otherwise)
        time.sleep(0.1)
