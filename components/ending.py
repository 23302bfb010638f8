"""How the program ends when somebody else has spoken the last word."""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

# PYTHON_PROCESS_EXITED_AFTER_SHOWING_USER_ACTIONABLE_MESSAGE_CODE of Pulumi's Python runtime: the
# language host adds no sentence of its own.
USER_HAS_BEEN_TOLD: Final = 32


def at_once() -> None:
    """Ends the process here: no finalizers, no wait for calls that nobody answers any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(USER_HAS_BEEN_TOLD)


def at_once_on_interrupt() -> None:
    """From now on SIGINT ends the process at once, without a word.

    Language hosts of 2026 send it when the engine has stopped: a policy refused something, or
    somebody pressed Ctrl-C, and the engine has said so. Python's own way is two tracebacks and a
    wait that ends with the host's SIGKILL 5 s later. What is under way, the engine finishes and
    writes down without the program.
    """
    signal.signal(signal.SIGINT, lambda *_: at_once())
