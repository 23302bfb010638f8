"""Reads a stack file without an engine: every problem at once, before Pulumi starts.

Pulumi itself stops at the first top-level value of a wrong type, and reads the file with a YAML
1.2 parser. So this reader resolves the same few plain types (true, false, null, numbers) and
nothing else of YAML 1.1: no dates, no octal or base-60 numbers, no `yes` and `on`.

    python -m components.stack_file Pulumi.swarm.yaml
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable
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


def parse(text: str, name: str) -> FleetConfig:
    """The fleet in the text of a stack file called `name` (for messages).

    Raises `ConfigError` for whatever is wrong with it.
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
    return FleetConfig.parse(values, project=None if project is None else str(project))


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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
