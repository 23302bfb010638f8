"""The command line: the real one's flags that the fleet uses, in Go's manner, and test knobs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from .knobs import REFUSALS, Knobs
from .log import FORMATS, LEVELS

USAGE: Final = """\
flags of the real rendezvous:
  -registry-addr HOST:PORT   registry, TCP (default :9000)
  -beacon-addr HOST:PORT     beacon, UDP (default :9001)
  -http HOST:PORT            dashboard (default none)
  -store FILE                snapshot of the registry (default none: nothing is kept)
  -log-level LEVEL           debug, info, warn, error (default info)
  -log-format FORMAT         text, json (default text)
  -config FILE               JSON object of flags by name; the command line wins
  -admin-token TOKEN         allows PUT /api/banner
  -dashboard-token TOKEN     shows networks in /api/stats only to who has it
  -repl-token TOKEN          taken, and without effect: nothing replicates here
  -stale-threshold DURATION  silence after which an agent is gone (default 30m)
  -version                   print the version and exit
test knobs, also at run time (GET, POST /knobs on loopback):
  -delay SECONDS             answer registrations that late (default 0)
  -refuse HOW                registrations: no, error, disconnect, hang (default no)
  -new-keys-per-minute N     per source address (default 10)
  -ignore-whitelist          limit new keys from whitelisted ranges as well
  -plain-refusals            every refusal says "request failed", as the real one of February 2026
"""
_UNITS: Final[Mapping[str, float]] = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600
}  # fmt: skip
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


class FlagsError(Exception):
    """The command line or the configuration file cannot be used; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to listen. An empty host is every address of the machine, as in Go."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """The settings of this process. `stale_threshold` is in seconds."""

    registry: Address = Address(host="", port=9000)
    beacon: Address = Address(host="", port=9001)
    http: Address | None = None
    store: Path | None = None
    log_level: str = "info"
    log_format: str = "text"
    admin_token: str = ""
    dashboard_token: str = ""
    repl_token: str = ""
    stale_threshold: float = 1800
    version: bool = False
    knobs: Knobs = field(default_factory=Knobs)


def duration(text: str) -> float:
    """Seconds in a Go duration (`1h30m`, `500ms`, `0`). ValueError for anything else."""
    if text == "0":
        return 0.0
    parts = list(_PART.finditer(text))
    if not parts or "".join(part.group() for part in parts) != text:
        raise ValueError(f'"{text}" is not a duration such as 30m, 1h30m or 500ms')
    return sum(float(part[1]) * _UNITS[part[2]] for part in parts)


def address(text: str) -> Address:
    """HOST:PORT, :PORT or [HOST]:PORT. ValueError for anything else."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'"{text}" is not HOST:PORT')
    return Address(host=host, port=int(port))


def _choice(text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        raise ValueError(f'"{text}" is none of {", ".join(choices)}')
    return text


def _seconds(text: str) -> float:
    """A number of seconds, or a Go duration."""
    try:
        seconds = float(text)
    except ValueError:
        return duration(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f'"{text}" is no number of seconds from 0 on')
    return seconds


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f'"{text}" is no whole number from 0 on')
    return int(text)


def _truth(text: str) -> bool:
    # strconv.ParseBool
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f'"{text}" is neither true nor false')


_SWITCHES: Final = ("version", "ignore-whitelist", "plain-refusals")
_KNOBS: Final = {one.name for one in fields(Knobs)}


_READERS: Final[Mapping[str, Callable[[str], object]]] = {
    "registry-addr": address,
    "beacon-addr": address,
    "http": lambda value: address(value) if value else None,
    "store": lambda value: Path(value) if value else None,
    "log-level": lambda value: _choice(value, tuple(LEVELS)),
    "log-format": lambda value: _choice(value, FORMATS),
    "config": str,
    "admin-token": str,
    "dashboard-token": str,
    "repl-token": str,
    "stale-threshold": duration,
    "version": _truth,
    "delay": _seconds,
    "refuse": lambda value: _choice(value, REFUSALS),
    "new-keys-per-minute": _count,
    "ignore-whitelist": _truth,
    "plain-refusals": _truth,
}


def _given(arguments: Sequence[str]) -> dict[str, object]:
    """Flags of a command line by name, as Go's flag package splits them."""
    found: dict[str, object] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not word.startswith("-") or not name:
            raise FlagsError(f'"{word}" is no flag')
        if name not in _READERS:
            raise FlagsError(f"-{name}: there is no such flag")
        if not equals and name in _SWITCHES:
            value = "true"
        elif not equals:
            if not rest:
                raise FlagsError(f"-{name} needs a value")
            value = rest.pop(0)
        try:
            found[name] = _READERS[name](value)
        except ValueError as error:
            raise FlagsError(f"-{name}: {error}") from None
    return found


def _configured(file: Path) -> dict[str, object]:
    """Flags of a configuration file. As in the real one, names that are no flags are left alone."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlagsError(f"-config {file}: {error}") from None
    if not isinstance(content, dict):
        raise FlagsError(f"-config {file}: must hold one JSON object")
    found: dict[str, object] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in _READERS:
            continue
        text = json.dumps(value) if isinstance(value, bool | int | float) else str(value)
        try:
            found[name] = _READERS[name](text)
        except ValueError as error:
            raise FlagsError(f"-config {file}: {key}: {error}") from None
    return found


def parse(arguments: Sequence[str]) -> RegistryOptions:
    """The command line without the program's name. UsageError says what is wrong with it."""
    given = _given(arguments)
    config = given.pop("config", "")
    if config:
        given = {**_configured(Path(str(config))), **given}
        given.pop("config", None)
    named = {
        {"registry-addr": "registry", "beacon-addr": "beacon"}.get(name, name.replace("-", "_")): v
        for name, v in given.items()
    }
    knobs = Knobs(**{name: value for name, value in named.items() if name in _KNOBS})  # type: ignore[arg-type]
    rest = {name: value for name, value in named.items() if name not in _KNOBS}
    return RegistryOptions(knobs=knobs, **rest)  # type: ignore[arg-type]
