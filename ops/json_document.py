"""Reads JSON documents of unknown shape: specs, statuses, orders, a dashboard's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ops.refusals import one_line


class Doc:
    """A JSON document of unknown shape, read by dotted path. A value of another type than the one
    asked for counts as absent."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def _at(self, path: str) -> Any:
        found = self.content
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def text(self, path: str) -> str:
        """A string as one printable line; "" where there is none."""
        found = self._at(path)
        return one_line(found) if isinstance(found, str) else ""

    def number(self, path: str) -> int | None:
        """A whole number; None where there is none."""
        found = self._at(path)
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        try:
            return int(found) if is_number else None
        except (OverflowError, ValueError):
            return None

    def flag(self, path: str) -> bool:
        """Whether the value is `true`."""
        return self._at(path) is True

    def texts(self, path: str) -> list[str]:
        """The strings of a list, each as one printable line."""
        return [one_line(each) for each in self._items(path) if isinstance(each, str)]

    def documents(self, path: str) -> list[Doc]:
        """The documents of a list."""
        return [Doc(each) for each in self._items(path) if isinstance(each, Mapping)]

    def _items(self, path: str) -> Sequence[Any]:
        found = self._at(path)
        return found if isinstance(found, list) else []

    def when(self, path: str) -> float | None:
        """A time in RFC 3339, as seconds since the epoch; None where there is none."""
        return seconds(self.text(path))


def seconds(text: str) -> float | None:
    """Seconds since the epoch; None where `text` is no RFC 3339 time with a zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo else None
