"""What ends a command: a sentence that says what is wrong, where, and what to do."""

from typing import Final

FINE: Final = 0
FOUND: Final = 1
"""Something is not as it should be: the fleet, not this program."""
USAGE: Final = 2
UNANSWERED: Final = 3
"""It could not be found out or ordered: no right, nobody answers, no such VM."""
UNFINISHED: Final = 4
"""What was ordered has not come about in time; it may still, and the command can be repeated."""
INTERRUPTED: Final = 130


class OpsError(Exception):
    """A sentence for the operator."""

    code = UNANSWERED


class UsageError(OpsError):
    """The command line, or what it names, makes no sense."""

    code = USAGE


class DeniedError(OpsError):
    """A right is missing."""


class MissingError(OpsError):
    """What was asked for is not there."""


class TryLaterError(OpsError):
    """It is refused for now: the same may be done later."""


class UnreachableError(TryLaterError):
    """Nobody answers."""


class UnsupportedError(OpsError):
    """The API at the other end does not have this."""


class ClashError(OpsError):
    """Somebody else has just written the same thing."""


class UnfinishedError(OpsError):
    """What was ordered has not come about in time."""

    code = UNFINISHED


class StuckError(OpsError):
    """The fleet refuses what was ordered, and says why."""

    code = FOUND


class OutputError(OpsError):
    """The answer cannot be written to where it should go."""
