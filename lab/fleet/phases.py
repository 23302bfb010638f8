"""The steps of `make lab` as its user sees them, and the log of what they say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

# Of the log, for its last line.
_TAIL_BYTES = 2000
_PER_SECOND = 4


class Phases:
    """One line that moves on a terminal, one line per step elsewhere.

    `log` is the file that the steps' commands write to: its last line is part of the moving one.
    """

    def __init__(self, log: Path, console: Console | None = None) -> None:
        self.log = log
        log.write_bytes(b"")
        self._console = console or Console(highlight=False, emoji=False, markup=False)
        self._moves = self._console.is_terminal and not self._console.is_dumb_terminal
        self._started = time.monotonic()
        self._said = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A step."""
        start, before, self._said = time.monotonic(), self.log.stat().st_size, ""
        if not self._moves:
            self._console.print(f"· {name} …")
            yield
            return

        def line() -> Text:
            what = self._said or self._last_line(before)
            text = f"· {name} … {time.monotonic() - start:.0f} s  {what}"
            return Text(text, no_wrap=True, overflow="ellipsis")

        with Live(
            get_renderable=line,
            console=self._console,
            refresh_per_second=_PER_SECOND,
            transient=True,
        ):
            yield
        self._console.print(f"· {name}  {time.monotonic() - start:.0f} s")

    def say(self, text: str) -> None:
        """How far the step is."""
        self._said = text

    def seconds(self) -> float:
        """Since the first step began."""
        return time.monotonic() - self._started

    def _last_line(self, before: int) -> str:
        with self.log.open("rb") as file:
            file.seek(max(before, self.log.stat().st_size - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").split("\n")]
        # `@ updating....` is how Pulumi waits: what it waits for is above.
        return next((line for line in reversed(lines) if line and line[0] != "@"), "")
