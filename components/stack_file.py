"""Reads a stack file without an engine: every problem at once, before Pulumi starts.

Pulumi itself stops at the first top-level value of a wrong type, and reads the file with a YAML
1.2 parser. So this reader resolves the same few plain types (true, false, null, numbers) and
nothing else of YAML 1.1: no dates, no octal or base-60 numbers, no `yes` and `on`. What is
encrypted (`secure:`) is taken as given: only the engine can read it.

    python -m components.stack_file Pulumi.swarm.yaml
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from components.config import PROJECT_NAME, FleetConfig
from components.reading import ConfigError, Problem


class _Loader(yaml.SafeLoader):
    """YAML as Pulumi reads it."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands here twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


_INTEGER = "-?(?:0|[1-9][0-9]{0,30})"
_EXPONENT = "[eE][-+]?[0-9]{1,3}"
for _tag, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", "~nN"),
    ("int", _INTEGER, "-0123456789"),
    ("float", rf"{_INTEGER}(?:\.[0-9]+(?:{_EXPONENT})?|{_EXPONENT})", "-0123456789"),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"(?:{_pattern})\Z"),
        [*_first, ""] if _tag == "null" else [*_first],
    )


# What PyYAML raises for text that it cannot make sense of: not all of it is a YAMLError (tags).
_UNREADABLE = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RecursionError,
)


class EncryptedError(Exception):
    """The fleet depends on encrypted values. The text names their keys."""


def parse(text: str, name: str) -> FleetConfig:
    """The fleet in the text of a stack file called `name` (for messages).

    An encrypted token is "" in it, as one whose version is added by hand: no VM is told more of
    either than its name. Raises `ConfigError` for whatever is wrong with the text, and
    `EncryptedError` where another value is encrypted, so that nobody here can tell.
    """
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except _UNREADABLE as error:
        raise ConfigError([Problem(path=name, message=_not_yaml(error))]) from None
    if document is None:
        document = {}
    config = document.get("config", {}) if isinstance(document, dict) else None
    if not isinstance(config, dict):
        message = "must be a map with the key `config:`, and that a map of the stack's values"
        raise ConfigError([Problem(path=name, message=message)])
    values: dict[str, Any] = {}
    project: Any = None
    twice: list[Problem] = []
    for key, value in config.items():
        namespace, colon, rest = str(key).partition(":")
        if not colon:
            namespace, rest = PROJECT_NAME, namespace
        if namespace == PROJECT_NAME:
            if rest in values:
                message = f"stands here twice, with and without {PROJECT_NAME}:"
                twice.append(Problem(path=f"{PROJECT_NAME}:{rest}", message=message))
            values[rest] = value
        elif key == "gcp:project":
            project = value
    if twice:
        raise ConfigError(twice)
    _take_as_given(values, project)
    return FleetConfig.parse(values, project=None if project is None else str(project))


def _take_as_given(values: dict[str, Any], project: object) -> None:
    """Makes encrypted tokens "". Raises `EncryptedError` for what else is encrypted."""
    tokens = values.get("tokens")
    if isinstance(tokens, dict):
        values["tokens"] = {
            what: "" if _encrypted(token) else token for what, token in tokens.items()
        }
    hidden = ["gcp:project"] if _encrypted(project) else []
    for key, value in values.items():
        hidden += _hidden(value, f"{PROJECT_NAME}:{key}", set())
    if hidden:
        raise EncryptedError(", ".join(hidden))


def _encrypted(value: object) -> bool:
    """Whether Pulumi takes `value` for an encrypted one: at any depth, a map of this one key."""
    return isinstance(value, dict) and set(value) == {"secure"} and isinstance(value["secure"], str)


def _hidden(value: object, path: str, seen: set[int]) -> Iterator[str]:
    """Paths of the encrypted values in `value`. An alias is followed once: it may be a circle."""
    if _encrypted(value):
        yield path
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in inner:
            below = f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]"
            yield from _hidden(item, below, seen)


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
