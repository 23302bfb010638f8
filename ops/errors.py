"""Errors that end a command, with its exit code: each says what is wrong, where, and what to do."""

from typing import Final

FINE: Final = 0
FOUND: Final = 1
"""Something in the fleet is not as it should be."""
USAGE: Final = 2
UNANSWERED: Final = 3
"""The command could not look or order: no right, nobody answers, no such VM."""
UNFINISHED: Final = 4
"""The order has not taken effect in time. It still may; the command can be repeated."""
INTERRUPTED: Final = 130


class OpsError(Exception):
    """An error with a sentence for the operator."""

    code = UNANSWERED


class UsageError(OpsError):
    """The command line, or something that it names, makes no sense."""

    code = USAGE


class DeniedError(OpsError):
    """A right is missing."""


class MissingError(OpsError):
    """The thing asked for is not there."""


class TryLaterError(OpsError):
    """Refused for now: the same request may succeed later."""


class UnreachableError(TryLaterError):
    """Nobody answers."""


class UnsupportedError(OpsError):
    """The API at this endpoint does not have this call."""


class ClashError(OpsError):
    """Somebody else wrote the same object meanwhile."""


class UnfinishedError(OpsError):
    """The order has not taken effect in time."""

    code = UNFINISHED


class StuckError(OpsError):
    """The fleet cannot follow the order, and says why."""

    code = FOUND


class OutputError(OpsError):
    """The output cannot be written."""
