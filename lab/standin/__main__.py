"""`python -m lab.standin`, and the start of the one-file program that build.py makes."""

from __future__ import annotations

import sys

from .flags import USAGE, FlagsError, parse
from .server import main


def run() -> int:
    """The exit code: 2 for a command line that cannot be used, as Go's flag package has it."""
    arguments = sys.argv[1:]
    if arguments and arguments[0].lstrip("-") in ("h", "help"):
        sys.stdout.write(USAGE)
        return 0
    try:
        options = parse(arguments)
    except FlagsError as error:
        sys.stderr.write(f"{error}\n{USAGE}")
        return 2
    return main(options)


if __name__ == "__main__":
    sys.exit(run())
