"""Reads values of the configuration by type, and records every problem with its key's path."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """Something wrong in the configuration."""

    # The key in the stack file.
    path: str
    # The problem and its solution, in words.
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(Exception):
    """Every problem of a configuration at once, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"the stack's configuration has {count}:\n{lines}")


class MapReader:
    """Returns the values of a map by type, and records what is wrong with them.

    Every getter returns a usable stand-in after it records a problem, so that parsing continues
    and finds the rest. The caller raises before any stand-in is used.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        path: str,
        problems: list[Problem],
        *,
        top: bool = False,
    ) -> None:
        self.values = values
        self.path = path
        self.problems = problems
        # Whether this is the top level, where Pulumi passes all values as text.
        self.top = top
        self.known: set[str] = set()

    def at(self, key: str) -> str:
        if self.top:
            return f"{self.path}:{key}"
        return f"{self.path}.{key}"

    def problem(self, key: str, message: str) -> None:
        self.problems.append(Problem(path=self.at(key), message=message))

    def take(self, key: str) -> Any:
        self.known.add(key)
        return self.values.get(key)

    def unknown_keys(self) -> None:
        listed = False
        for key in self.values:
            if key in self.known:
                continue
            close = difflib.get_close_matches(str(key), self.known, n=1)
            if close:
                self.problem(str(key), f"unknown key: did you mean {close[0]}?")
            elif listed:
                self.problem(str(key), "unknown key")
            else:
                self.problem(
                    str(key), f"unknown key: the keys here are {', '.join(sorted(self.known))}"
                )
                listed = True

    def string(
        self,
        key: str,
        pattern: re.Pattern[str],
        kind: str,
        default: str | None = None,
        *,
        required: bool = True,
    ) -> str:
        """The text at `key`. `kind` describes the pattern in words."""
        value = self.take(key)
        # Pulumi has no optional key without a default, so an empty text means "the default".
        if value is None or (value == "" and not (default is None and required)):
            if default is None and required:
                self.problem(key, f"is missing: give {kind}")
            return default or ""
        if not isinstance(value, str):
            self.problem(key, f"must be text ({kind}), not {describe(value)}")
        elif not pattern.fullmatch(value):
            self.problem(key, f"{show(value)} is not {kind}")
        else:
            return value
        return default or ""

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """The whole number at `key`, between `low` and `high`."""
        value = self.take(key)
        fallback = low if default is None else default
        if value is None:
            if default is None:
                self.problem(key, f"is missing: give a whole number from {low:,} to {high:,}")
            return fallback
        # Pulumi passes top-level scalars as text.
        if self.top and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(key, f"must be a whole number, not {describe(value)}")
        elif not low <= value <= high:
            self.problem(key, f"{show(value)} is out of range: {low:,} to {high:,}")
        else:
            return value
        return fallback

    def boolean(self, key: str, default: bool) -> bool:
        value = self.take(key)
        if value is None:
            return default
        if self.top and value in ("true", "false"):
            return bool(value == "true")
        if not isinstance(value, bool):
            self.problem(key, f"must be true or false, not {describe(value)}")
            return default
        return value

    def fraction(self, key: str, default: float) -> float:
        """The number at `key`, above 0 and at most 1."""
        value = self.take(key)
        # Pulumi has no optional key without a default, so an empty text means "the default".
        if value is None or (self.top and value == ""):
            return default
        # Pulumi passes top-level scalars as text.
        if (
            self.top
            and isinstance(value, str)
            and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value)
        ):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problem(key, f"must be a number above 0 and at most 1, not {describe(value)}")
        elif not 0 < value <= 1:
            self.problem(key, f"{value:g} is out of range: above 0, at most 1 (1 is all of them)")
        else:
            return float(value)
        return default

    def strings(self, key: str, pattern: re.Pattern[str], kind: str) -> tuple[str, ...]:
        """The list of different texts at `key`. `kind` describes the pattern in words."""
        found: list[str] = []
        for index, item in enumerate(self.items(key)):
            if not isinstance(item, str) or not pattern.fullmatch(item):
                shown = show(item) if isinstance(item, str) else describe(item)
                self.problem(f"{key}[{index}]", f"{shown} is not {kind}")
            elif item in found:
                self.problem(f"{key}[{index}]", f"{show(item)} is there already")
            else:
                found.append(item)
        return tuple(found)

    def node(self, key: str, *, required: bool = False) -> MapReader:
        """The map at `key`; an empty one where the key is absent or wrong."""
        value = self._structured(self.take(key))
        if value is None:
            if not self._refuse_null(key) and required:
                self.problem(key, "is missing")
            value = {}
        elif not isinstance(value, Mapping):
            self.problem(key, f"must be a map, not {describe(value)}")
            value = {}
        elif required and not value:
            self.problem(key, "is empty")
        return MapReader(value, self.at(key), self.problems)

    def items(self, key: str) -> list[Any]:
        value = self._structured(self.take(key))
        if value is None:
            self._refuse_null(key)
            return []
        if not isinstance(value, list):
            self.problem(key, f"must be a list, not {describe(value)}")
            return []
        return value

    def choose(self, key: str, read: Callable[[str], T], kind: str, default: T) -> T:
        """The text at `key`, converted by `read`. Its ValueError means: this is not `kind`."""
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.problem(key, f"must be text ({kind}), not {describe(value)}")
            return default
        try:
            return read(value)
        except ValueError:
            self.problem(key, f"{show(value)} is not {kind}")
            return default

    def _refuse_null(self, key: str) -> bool:
        """Record a key that is there without a value. True where it is."""
        found = key in self.values and not self.top
        if found:
            self.problem(key, "has no value: leave the key out, or fill it")
        return found

    def _structured(self, value: Any) -> Any:
        # Pulumi passes top-level maps and lists as JSON text.
        if self.top and isinstance(value, str):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
        return value


def show(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) and abs(value) < 10**18 else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe(value: object) -> str:
    """A value of the wrong type, in words."""
    if isinstance(value, bool | None):
        return "empty" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "an encrypted value (it is no secret)" if set(value) == {"secure"} else "a map"
    for kind, words in (
        (list, "a list"),
        (str, f"the text {show(value)}"),
        (int | float, f"the number {show(value)}"),
    ):
        if isinstance(value, kind):
            return words
    return f"a {type(value).__name__}"
