"""A JSON document, read field by field; every problem is kept with its path."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping

from . import fields

VARIABLE = re.compile(fields.VARIABLE)


class SpecError(Exception):
    """A spec that cannot be used. `problems` has one line each, beginning with its path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Reader:
    """Reads one JSON object, of a spec or of orders, and collects all problems.

    A wrong value is read as an empty one of its type. Where there are `problems`, the document must
    not be used. `ignored` has the paths of fields that this version does not know. All readers of a
    document share both.
    """

    def __init__(
        self, value: Mapping[str, object], path: str, problems: list[str], ignored: list[str]
    ) -> None:
        self._value = value
        self._path = path
        self._read: set[str] = set()
        self._broken = False
        self.problems = problems
        self.ignored = ignored

    @classmethod
    def of(cls, text: str | bytes, name: str) -> Reader:
        """A reader of the JSON object in `text`. Raises SpecError where it holds none."""
        try:
            value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise SpecError([f"{name}: not JSON: {error}"]) from error
        if not isinstance(value, dict):
            raise SpecError([f"{name}: must be an object, is {kind_of(value)}"])
        return cls(value, "", [], [])

    def problem(self, key: str, text: str) -> None:
        self.problems.append(f"{self._path}{_key(key)}: {text}")

    def names(self) -> list[str]:
        return sorted(self._value)

    def string(self, key: str, pattern: re.Pattern[str] | None, expected: str) -> str:
        value = self._take(key)
        if value is _MISSING:
            return ""
        if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
            self.problem(key, f"must be {expected}, is {kind_of(value)}")
            return ""
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._take(key)
        if value is _MISSING:
            return 0
        # In Python a bool is an int.
        if not isinstance(value, int) or isinstance(value, bool):
            self.problem(key, f"must be an integer, is {kind_of(value)}")
            return 0
        if not low <= value <= high:
            self.problem(key, f"must be {low} to {high}, is {value}")
            return 0
        return value

    def text(self, key: str) -> str:
        """The text at a path of fields.py."""
        pattern, expected = fields.KINDS[fields.TEXTS[self._path + key]]
        return self.string(key, re.compile(pattern), expected)

    def number(self, key: str, *, default: int | None = None) -> int:
        """The whole number at a path of fields.py. `default`: for a field that is absent."""
        if default is not None and key not in self._value:
            return default
        return self.integer(key, *fields.NUMBERS[self._path + key])

    def boolean(self, key: str, *, default: bool | None = None) -> bool:
        """`default`: for a field that is absent."""
        if default is not None and key not in self._value:
            return default
        value = self._take(key)
        if value is not _MISSING and not isinstance(value, bool):
            self.problem(key, f"must be true or false, is {kind_of(value)}")
        return value is True

    def address(self, key: str) -> str:
        value = self.text(key)
        if value and not 1 <= int(value.rpartition(":")[2]) <= 65535:
            self.problem(key, f"has no such port: {value!r}")
        return value

    def base_url(self, key: str, *, default: str = "") -> str:
        """`default`: for a field that is absent."""
        if default and key not in self._value:
            return default
        value = self.text(key)
        port = value.partition("://")[2].partition(":")[2]
        if port and not 1 <= int(port) <= 65535:
            self.problem(key, f"has no such port: {value!r}")
        return value

    def network(self, key: str) -> str:
        value = self.text(key)
        if value:
            try:
                ipaddress.IPv4Network(value)
            except ValueError as error:
                self.problem(key, f"must be a CIDR such as 10.10.0.0/20: {error}")
        return value

    def child(self, key: str, *, optional: bool = False) -> Reader:
        """A reader of the object at `key`; of an empty one where it is `optional` and absent."""
        reader = Reader({}, f"{self._path}{key}.", self.problems, self.ignored)
        if optional and key not in self._value:
            return reader
        value = self._take(key)
        if value is None:
            self.problem(key, "is null: this binary was not built when the VM was declared")
        elif value is not _MISSING and not isinstance(value, dict):
            self.problem(key, f"must be an object, is {kind_of(value)}")
        if isinstance(value, dict):
            reader._value = value
        else:
            # The object itself is missing: its fields are not reported.
            reader._broken = True
        return reader

    def end(self) -> None:
        """Note the fields that were not read: a newer program may have written them."""
        self.ignored += [f"{self._path}{_key(key)}" for key in sorted({*self._value} - self._read)]

    def end_document(self) -> None:
        """`end` of the whole document, after its parts. A field that its `requires` names and this
        version does not know is a problem: the writer says that it must not be ignored."""
        required = self._value.get("requires", [])
        self._read.add("requires")
        self.end()
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            self.problem("requires", f"must be a list of fields, is {kind_of(required)}")
            return
        for path in sorted({*required} & {*self.ignored}):
            self.problems.append(f"{path}: is not known to this version, and must not be ignored")

    def _take(self, key: str) -> object:
        self._read.add(key)
        if key in self._value:
            return self._value[key]
        if not self._broken:
            self.problem(key, "is missing")
        return _MISSING


_MISSING = object()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"given twice: {', '.join(map(repr, twice))}")
    return found


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not a JSON value")


def _key(key: str) -> str:
    return key if VARIABLE.fullmatch(key) else repr(key)


def kind_of(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        # A value that could be read may be too deep to be written.
        return "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
