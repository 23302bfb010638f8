"""How far a wait has come, as a bar on a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ops import run
from ops.plan import Await

_ERR: Final = Console(stderr=True, highlight=False, soft_wrap=True)


class Bar(run.Progress):
    """A progress bar on a terminal; elsewhere nothing."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._most = 0

    def shown(self, waiting: Await | None) -> None:
        if waiting is None:
            if self._progress is not None:
                self._progress.stop()
            self._progress, self._task, self._most = None, None, 0
            return
        if not _ERR.is_terminal:
            return
        if self._progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self._progress = Progress(*columns, TimeElapsedColumn(), console=_ERR, transient=True)
            self._task = self._progress.add_task("", total=None, left="")
            self._progress.start()
        assert self._task is not None
        left = waiting.left
        self._most = max(self._most, left or 0)
        self._progress.update(
            self._task,
            description=escape(f"{waiting.vm} {waiting.what}"),
            total=self._most if left is not None else None,
            completed=self._most - (left or 0),
            left="" if left is None else f"{left:,} left",
        )
