"""Input and output at a terminal: sentences, tables, pictures, questions."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from ops.errors import OutputError, UsageError

_OUT: Final = Console(highlight=False, soft_wrap=False)
# A table that is piped must not be cut to 80 columns.
_WIDE: Final = 240
# Colours and the like (CSI sequences), which a boot's messages are full of.
_SEQUENCE: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_PICTURE: Final = 118  # columns of a picture; a README shows as many


def ask(question: str, *, yes: bool) -> None:
    """Ask for agreement, unless `yes`. UsageError without it."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is there to ask: say --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was done")


def confirm_clean(fleet: str, given: str) -> None:
    """Have the fleet's name typed before its registry is emptied. UsageError without it."""
    if not given and sys.stdin.isatty():
        say("With --clean the registry forgets every agent and every trust link it knows.")
        given = input(f"Type the fleet's name ({fleet}) to go on: ").strip()
    if given != fleet:
        raise UsageError(f"--clean was not confirmed: type the fleet's name, or --confirm {fleet}")


class _Out:
    """Standard output whose failure is a sentence: a full disk, a pipe that nobody reads.

    `wrong` keeps the first failure, because a caller may ignore it (typer does).
    """

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self.wrong: OutputError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def write(self, text: str) -> int:
        with self._answering():
            return self._to.write(text)

    def flush(self) -> None:
        with self._answering():
            self._to.flush()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        if self.wrong is not None:
            raise self.wrong
        try:
            yield
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            self.wrong = OutputError(f"the answer cannot be written: {why}")
            raise self.wrong from error

    def drop(self) -> None:
        """Discard the buffer: the end of the process would write it again, and fail."""
        with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), self._to.fileno())


@contextmanager
def answers() -> Iterator[None]:
    """OutputError where something within cannot be written; flush at the end."""
    before = sys.stdout
    # The caller closed it, and wants no output.
    if before is None:
        yield
        return
    sys.stdout = out = _Out(before)
    try:
        try:
            yield
        finally:
            out.flush()
    finally:
        sys.stdout = before
        if out.wrong is not None:
            out.drop()
            raise out.wrong


def printable(text: str) -> str:
    """A console's text, which is untrusted: no escape sequence in it may reach this terminal."""
    plain = _SEQUENCE.sub("", text)
    return "".join(c if c.isprintable() or c in "\n\t" else "" for c in plain)


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Show on a terminal what is waited for; elsewhere nothing. Nothing may be printed within."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(text)):
        yield


def say(text: str) -> None:
    """Print a sentence to standard output."""
    _OUT.print(text, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print a problem to stderr, unless that is closed."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def show(found: dict[str, Any] | RenderableType) -> None:
    """Print a document as JSON, or a table."""
    if isinstance(found, dict):
        import json  # noqa: PLC0415 - help prints none

        print(json.dumps(found, indent=1, sort_keys=True))
        return
    if _OUT.is_terminal:
        _OUT.print(found)
    else:
        Console(highlight=False, width=_WIDE).print(found)


def draw(found: RenderableType, path: Path) -> None:
    """Write `ops status` as a picture (SVG)."""
    console = Console(record=True, width=_PICTURE, file=io.StringIO(), highlight=False)
    console.print(Text("$ ops status\n"))
    console.print(found)
    text = console.export_svg(title="ops status", clear=False)
    # A viewer would fetch the fonts from somebody else's server.
    text = re.sub(r"\n *@font-face \{.*?\n *\}", "", text, flags=re.DOTALL)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--svg {path}: {error.strerror}") from error
