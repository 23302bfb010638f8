"""The serial console, which an operator can read when nothing else of a VM answers."""

from __future__ import annotations

import os
from contextlib import suppress

from .paths import Paths


def tell(paths: Paths, text: str) -> None:
    """Write a line to the console. A console that is not there or takes nothing is ignored."""
    with suppress(OSError):
        # O_NONBLOCK: a terminal that nobody reads must not stop this program.
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(paths.at("/dev/console"), flags)
        try:
            os.write(handle, f"{text}\r\n".encode(errors="replace"))
        finally:
            os.close(handle)
