"""Reads a stack file without an engine: every problem at once, before Pulumi starts.

Pulumi stops at the first top-level value of a wrong type, and reads the file by its own rules
(go-yaml: octal `020`, `1_000`, dates that become times). A text that go-yaml and PyYAML read
differently is refused. Encrypted values (`secure:`) are not checked: only the engine can read them.

    python -m components.stack_file Pulumi.swarm.yaml
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import yaml

from components.config import PROJECT_NAME, FleetConfig
from components.config_parse import parse_fleet
from components.config_reader import ConfigError, Problem, show

# Aliases can make any number of values out of a few lines. Like go-yaml: a thousand values are
# always allowed, beyond that a hundred per node of the file, and never more than the last number.
_FREE_VALUES, _VALUES_PER_NODE, _MAX_VALUES = 1_000, 100, 400_000
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Numbers that every reader and a float take for the same.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")
_FRACTION = re.compile(r"-?(?:0|[1-9][0-9]{0,8})\.[0-9]{1,6}")
# Texts that go-yaml may take for a number (without underscores) or for a date.
_NUMBER = re.compile(
    r"[-+]?(?:0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|\.?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_DATE = re.compile(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})(?:[Tt ].*)?")
# PyYAML raises these for text that it cannot read: not only YAMLError.
_UNREADABLE = (yaml.YAMLError, ValueError, OverflowError, RecursionError)
_NOT_OURS = "which is not YAML of a stack file"


class EncryptedError(Exception):
    """The fleet depends on encrypted values. The text names their keys."""


class _TooManyError(Exception):
    """Aliases make too many values."""


class _Loader(yaml.SafeLoader):
    """Makes nodes with the tags of the file only, none from the type of a text."""

    def resolve(self, *_: Any) -> str:
        return ""


@dataclass(kw_only=True)
class StackValues:
    """The `config:` of a stack file."""

    # By key (`NAMESPACE:NAME`), as the engine has them; None for a value that cannot be read.
    values: dict[str, Any] = field(default_factory=dict)
    # Problems with the text.
    problems: list[Problem] = field(default_factory=list)
    # Paths of encrypted values.
    encrypted: list[str] = field(default_factory=list)
    # Texts of scalars that readers take for different values, by path.
    ambiguous: dict[str, str] = field(default_factory=dict)


def read(text: str, name: str) -> StackValues:
    """Reads the text of a stack file called `name` (for messages).

    Raises `ConfigError` where it is no stack file at all.
    """
    reading = StackValues()
    try:
        root = yaml.compose(text, Loader=_Loader)
        document = {} if root is None else _Values(reading, name).value(root, name)
    except _TooManyError:
        message = "its aliases make too many values"
        raise ConfigError([Problem(path=name, message=message)]) from None
    except _UNREADABLE as error:
        raise ConfigError([Problem(path=name, message=_not_yaml(error))]) from None
    config = document.get("config", {}) if isinstance(document, dict) else document
    if not isinstance(document, dict) or not isinstance(config, dict | None):
        message = "must be a map with the key `config:`, and that a map of the stack's values"
        raise ConfigError([*reading.problems, Problem(path=name, message=message)])
    for key, value in (config or {}).items():
        reading.values[key] = _top(key, value, reading)
    return reading


def parse(text: str, name: str) -> FleetConfig:
    """The fleet in the text of a stack file called `name` (for messages).

    An encrypted token is "", like one whose version is added by hand: VMs get only its name. Raises
    `ConfigError` for problems, and `EncryptedError` where another value is encrypted.
    """
    reading = read(text, name)
    ours = f"{PROJECT_NAME}:"
    tokens = {f"{ours}tokens.{what}" for what in reading.values.get(f"{ours}tokens") or {}}
    hidden = [
        path
        for path in reading.encrypted
        if path == "gcp:project" or (path.startswith(ours) and path not in tokens)
    ]
    if hidden:
        if reading.problems:
            raise ConfigError(reading.problems)
        raise EncryptedError(", ".join(hidden))
    values = {
        key.removeprefix(ours): value
        for key, value in reading.values.items()
        if key.startswith(ours)
    }
    project = reading.values.get("gcp:project")
    return parse_fleet(
        values, project=None if project is None else str(project), refused=reading.problems
    )


def problems_of(folder: Path, stack: str, engine: Mapping[str, str]) -> list[Problem]:
    """Problems with the text of the file of `stack` in `folder`.

    The program asks for them, because people run Pulumi without the check before it. `engine` has
    the engine's values. Where they differ from the file's, the configuration is elsewhere
    (`--config-file`) and there are no problems; also where the file is missing or unreadable.
    """
    path = folder / f"Pulumi.{stack}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        pulumi.log.warn(_not_judged(path, error.strerror or type(error).__name__))
        return []
    except UnicodeDecodeError as error:
        pulumi.log.warn(_not_judged(path, f"byte {error.start} is not UTF-8"))
        return []
    try:
        reading = read(text, path.name)
    except ConfigError as error:
        return list(error.problems)
    return reading.problems if is_source_of(reading, engine) else []


def _not_judged(path: Path, why: str) -> str:
    return (
        f"{path.name}: cannot be read ({why}), so the configuration is not from there. If that is "
        "intended (`--config-file`), move the file away"
    )


def is_source_of(reading: StackValues, engine: Mapping[str, str]) -> bool:
    """Whether the engine's values may come from this file."""
    for key, mine in reading.values.items():
        if key != "gcp:project" and not key.startswith(f"{PROJECT_NAME}:"):
            continue
        theirs: Any = engine.get(key)
        if isinstance(mine, dict | list) and theirs is not None:
            try:
                theirs = json.loads(theirs)
            except ValueError:
                return False
        if not _may_be(mine, theirs, key, reading):
            return False
    return True


def _may_be(mine: Any, theirs: Any, path: str, reading: StackValues) -> bool:
    """Whether `theirs` (the engine's, None for nothing) may be the engine's reading of `mine`.

    A map of the engine's may have more keys: an environment of Pulumi ESC adds to it.
    """
    if path in reading.ambiguous:
        return _may_come_of(reading.ambiguous[path], theirs)
    if path in reading.encrypted or any(problem.path == path for problem in reading.problems):
        return True
    if isinstance(mine, dict):
        return isinstance(theirs, dict) and all(
            _may_be(value, theirs.get(key), f"{path}.{key}", reading) for key, value in mine.items()
        )
    if isinstance(mine, list):
        return (
            isinstance(theirs, list)
            and len(mine) == len(theirs)
            and all(
                _may_be(one, other, f"{path}[{at}]", reading)
                for at, (one, other) in enumerate(zip(mine, theirs, strict=True))
            )
        )
    return bool(mine == theirs)


def _may_come_of(text: str, theirs: Any) -> bool:
    """Whether go-yaml may read an ambiguous scalar as `theirs`. True where it is not known."""
    if _is_date(text):
        # It adds a time of day.
        return bool(theirs != text or len(text) > len("2026-11-29"))
    number = _number(text)
    if number is None:
        return True
    try:
        return not isinstance(theirs, bool) and float(theirs) == number
    except (TypeError, ValueError):
        return False


def _number(text: str) -> float | None:
    """The number that go-yaml reads in a scalar, by its source; None where that is not certain."""
    # go-yaml ignores underscores, except after a dot in front.
    plain = text if text.startswith(".") else text.replace("_", "")
    if "_" in plain:
        return None
    try:
        if re.fullmatch(r"[-+]?0[0-7]+", plain):
            number = float(int(plain, 8))
        elif re.fullmatch(r"[-+]?0[xXoObB].+", plain):
            number = float(int(plain, 0))
        else:
            number = float(plain)
    except (ValueError, OverflowError):
        return None
    # Larger numbers are not exact in both.
    return number if abs(number) < 1e15 else None


class _Values:
    """Makes values of nodes. A node with a problem becomes None, and the problem is recorded."""

    def __init__(self, reading: StackValues, name: str) -> None:
        self.reading = reading
        self.name = name
        self.open: list[int] = []
        self.seen: set[int] = set()
        self.count = 0

    def problem(self, path: str, message: str) -> None:
        self.reading.problems.append(Problem(path=path, message=message))

    def value(self, node: yaml.Node, path: str) -> Any:
        self.seen.add(id(node))
        self.count += 1
        if self.count > min(max(_FREE_VALUES, _VALUES_PER_NODE * len(self.seen)), _MAX_VALUES):
            raise _TooManyError
        if id(node) in self.open:
            self.problem(path, "is an alias of the map or list that holds it")
            return None
        if node.tag:
            self.problem(path, f"has the tag {show(node.tag)}, {_NOT_OURS}: leave it out")
            return None
        self.open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, f"{path}[{at}]") for at, item in enumerate(node.value)]
            assert isinstance(node, yaml.ScalarNode)
            return self.scalar(node, path)
        finally:
            self.open.pop()

    def mapping(self, node: yaml.MappingNode, path: str) -> Any:
        found: dict[str, Any] = {}
        keys: set[str] = set()
        merged: list[yaml.Node] = []
        for key_node, node_of_value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(path, f"has a key that is no text, {_NOT_OURS}{_where(key_node)}")
                continue
            key = key_node.value
            if path == "config" and ":" not in key:
                key = f"{PROJECT_NAME}:{key}"
            below = key if path in (self.name, "config") else f"{path}.{key}"
            if key in keys:
                self.problem(below, f"stands here twice{_where(key_node)}")
            elif key_node.value == "<<":
                # In quotes as well: Pulumi rewrites the file before it reads it.
                several = isinstance(node_of_value, yaml.SequenceNode)
                merged = node_of_value.value if several else [node_of_value]
            elif key_node.tag or not isinstance(_scalar(key_node), str):
                self.problem(below, "is a key that is no text to Pulumi: put it in quotes")
            else:
                found[key] = self.value(node_of_value, below)
            keys.add(key)
        for source in merged:
            inherited = self.value(source, path)
            if not isinstance(inherited, dict):
                self.problem(path, "merges (<<) a value that is not a map")
                continue
            found = inherited | found
        # At any depth, Pulumi takes a map with this key alone for an encrypted text.
        if set(found) == {"secure"} and isinstance(found["secure"], str):
            self.reading.encrypted.append(path)
            return ""
        return found

    def scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        text: str = node.value
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
            self.problem(path, "holds half of a character (a lone surrogate)")
            return None
        value = _scalar(node)
        if value is _AMBIGUOUS:
            self.reading.ambiguous[path] = text
            self.problem(
                path,
                f"{text[:60]} reads in more than one way: put it in quotes, or write a number as "
                "16 or 0.5",
            )
            return None
        return value


_AMBIGUOUS = object()


def _scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar; _AMBIGUOUS where it has no quotes and go-yaml may read another."""
    text: str = node.value
    if node.style:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FRACTION.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() else number
    # go-yaml takes nothing with another first character for a number.
    is_number = text[0] in "+-.0123456789" and _NUMBER.fullmatch(text.replace("_", ""))
    return _AMBIGUOUS if is_number or _is_date(text) else text


def _is_date(text: str) -> bool:
    match = _DATE.fullmatch(text)
    try:
        return bool(match and datetime.date(*map(int, match.groups())))
    except ValueError:
        return False


def _top(key: str, value: Any, reading: StackValues) -> Any:
    """`value` as the engine passes it to the program: scalars become text."""
    has_problem = any(problem.path == key for problem in reading.problems)
    if has_problem or not (key == "gcp:project" or key.startswith(f"{PROJECT_NAME}:")):
        return value
    message = ""
    if value is None:
        message = "has no value: leave the key out, or write one"
    elif isinstance(value, float):
        message = f"is the number {value:g} to Pulumi: put it in quotes"
    elif isinstance(value, str) and _is_json(value):
        message = "is JSON in a text: write it as YAML, without the quotes"
    if message:
        reading.problems.append(Problem(path=key, message=message))
        return None
    return json.dumps(value) if isinstance(value, bool | int) else value


def _is_json(text: str) -> bool:
    """Whether the program, which gets maps and lists as JSON, would take `text` for one."""
    try:
        return isinstance(json.loads(text), dict | list | None)
    except (ValueError, RecursionError):
        return False


def _where(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1}, column {node.start_mark.column + 1})"


def _not_yaml(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        return f"is not YAML: {error.problem or error.context or 'it cannot be read'}{where}"
    if isinstance(error, RecursionError):
        return "is not YAML that can be read: it is nested too deeply"
    return f"is not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def main(arguments: list[str]) -> int:
    """Prints every problem of the named stack file; 0 where there is none."""
    if len(arguments) != 1:
        print("usage: python -m components.stack_file Pulumi.STACK.yaml", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        print(f"error: {path}: {error.strerror}", file=sys.stderr)
        return 1
    except UnicodeDecodeError as error:
        print(f"error: {path}: is not UTF-8 text (byte {error.start})", file=sys.stderr)
        return 1
    try:
        parse(text, path.name)
    except ConfigError as error:
        print(f"error: {path.name}: {error}", file=sys.stderr)
        return 1
    except EncryptedError as error:
        print(f"{path.name}: encrypted, so that only the engine can check it: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
