"""Ends the program at once and silently, where the user already has the message."""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

# PYTHON_PROCESS_EXITED_AFTER_SHOWING_USER_ACTIONABLE_MESSAGE_CODE of Pulumi's Python runtime: the
# language host adds no message of its own.
USER_HAS_BEEN_TOLD: Final = 32


def at_once() -> None:
    """Ends the process here: no finalizers, and no wait for calls that nobody answers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(USER_HAS_BEEN_TOLD)


def at_once_on_interrupt() -> None:
    """From now on SIGINT ends the process at once and silently.

    Language hosts of 2026 send it after the engine has stopped and said why: a policy refused
    something, or somebody pressed Ctrl-C. Python's default is two tracebacks and a wait that the
    host's SIGKILL ends after 5 s. The engine finishes running steps without the program.
    """
    signal.signal(signal.SIGINT, lambda *_: at_once())
