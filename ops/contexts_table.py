"""Contexts as a table. Pure."""

from __future__ import annotations

from rich.table import Table

from ops.contexts import ContextsFile


def render(known: ContextsFile) -> Table:
    """A row per context; * marks the current one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "context", "project", "fleet", "endpoint"):
        table.add_column(column, no_wrap=True)
    for name, each in sorted(known.contexts.items()):
        endpoint = ", ".join(dict.fromkeys(each.endpoints.values()))
        mark = "*" if name == known.current else ""
        table.add_row(mark, name, each.project, each.fleet, endpoint)
    return table
