"""A table with notes: beside its rows where there is room, else below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

NOTES = 40
"""Columns of a terminal that notes beside a row need."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table."""

    name: str
    is_number: bool = False
    spare: int = 0
    """Where the table is too wide, columns go by this number, the highest first; 0: never."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row and its notes."""

    cells: Sequence[Text]
    """One per column."""
    notes: Sequence[str] = ()
    style: str = ""
    """The first note's."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The table."""

    columns: Sequence[Column]
    lines: Sequence[Line]
    total: Sequence[Text] = ()
    """A last row; empty: none."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def width(table: Table) -> int:
            wide = options.update(max_width=10_000, width=10_000)
            return console.measure(table, options=wide).maximum

        columns = list(self.columns)
        is_beside = width(self._table(columns, notes=False)) + NOTES < options.max_width
        if is_beside or not any(line.notes for line in self.lines):
            yield self._table(columns, notes=True)
            return
        for spare in sorted((each for each in columns if each.spare), key=lambda each: -each.spare):
            if width(self._table(columns, notes=False)) <= options.max_width:
                break
            columns.remove(spare)
        yield self._table(columns, notes=False)
        yield from self._below()

    def _below(self) -> Iterator[Text]:
        yield Text()
        for line in self.lines:
            for number, note in enumerate(line.notes):
                yield Text(f"{line.cells[0].plain}: {note}", style="" if number else line.style)

    def _table(self, columns: Sequence[Column], *, notes: bool) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for each in columns:
            table.add_column(each.name, justify="right" if each.is_number else "left", no_wrap=True)
        if notes:
            table.add_column("", overflow="fold")
        shown = [at for at, each in enumerate(self.columns) if each in columns]
        for line in self.lines:
            cells = [line.cells[at] for at in shown]
            if not notes:
                table.add_row(*cells)
                continue
            first, *others = line.notes or ("",)
            table.add_row(*cells, Text(first, style=line.style))
            for note in others:
                table.add_row(*[""] * len(shown), Text(note))
        if self.total:
            table.add_section()
            table.add_row(*(self.total[at] for at in shown))
        return table
