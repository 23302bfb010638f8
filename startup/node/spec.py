"""`pilot-spec` (docs/CONTRACT.md): text in, frozen dataclasses out, every problem at once."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypedDict

from . import fields

SCHEMA: Final = 1
ROLE_SWARM: Final = "swarm"
ROLE_RENDEZVOUS: Final = "rendezvous"

RESERVED_VARIABLES: Final = re.compile(fields.RESERVED_VARIABLES)
_LOADER_VARIABLES = re.compile(fields.LOADER_VARIABLES)
_VARIABLE = re.compile(fields.VARIABLE)
_SHA256 = re.compile(fields.KINDS["sha256"][0])

# Where a spec says nothing else: one of an older program has no such field.
SECRETS_ENDPOINT: Final = "https://secretmanager.googleapis.com"


class SpecError(Exception):
    """A spec that cannot be used. `problems` has one line each, beginning with its path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True)
class Binary:
    """A binary of a release: its name on a VM, its object in the bucket, the hash of its bytes."""

    name: str
    object: str
    sha256: str

    @classmethod
    def of(cls, name: str, sha256: str) -> Binary:
        """The binary with that content, which is what its object is named by."""
        return cls(name=name, object=f"releases/{sha256}/{name}", sha256=sha256)


@dataclass(frozen=True, kw_only=True)
class Roll:
    """How a release is rolled out: `batch` agents at a time, watched for `watch_seconds`."""

    auto: bool
    batch: int
    watch_seconds: int


@dataclass(frozen=True, kw_only=True)
class Script:
    """The project's script that a VM should have: the sha256 of its bytes ("": none is known), and
    how many seconds after it first expects it a running VM applies it."""

    sha256: str
    after_seconds: int = 0


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What both roles have in common. `reserve_mb` in MiB. `ignored`: paths of fields that this
    version does not know (a newer program's)."""

    name: str
    role: str
    version: str
    binary: Binary
    environment: Mapping[str, str]
    bucket: str
    storage: str
    reserve_mb: int
    script: Script
    agents: int
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SwarmSpec(Spec):
    """A swarm VM. Agent i, from 1, has UDP port `base_port + i`. Sizes in MiB."""

    base_port: int
    registry: str
    beacon: str
    window: int
    roll: Roll
    agent_mb: int
    connection_mb: int
    active_connections: int

    @property
    def ports(self) -> range:
        return range(self.base_port + 1, self.base_port + self.agents + 1)


@dataclass(frozen=True, kw_only=True)
class RendezvousSpec(Spec):
    """The rendezvous. `agents` is the whole fleet's; `subnet` is exempt from the rate limit.

    `secrets` has, for each token that there is (fields.TOKENS), the name of its version in Secret
    Manager, below `secrets_endpoint`: never the token itself.
    """

    registry_port: int
    beacon_port: int
    dashboard_port: int
    subnet: str
    secrets: Mapping[str, str]
    secrets_endpoint: str


def parse(text: str | bytes) -> SwarmSpec | RendezvousSpec:
    """The spec in `text`. Raises SpecError with every problem and its path."""
    return _build(Reader.of(text, "pilot-spec"))


def expected_script(text: str | bytes) -> Script:
    """`script` of a spec that need not be one that this version understands; a Script without a
    sha256 where there is none to be read.

    A newer program's spec may hold what only the script that it expects can read: that script is
    what brings the pilot-node that understands it.
    """
    try:
        found = json.loads(text)["script"]
        sha256, after = found["sha256"], found.get("afterSeconds", 0)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return Script(sha256="")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        return Script(sha256="")
    # A turn that cannot be read is none: the script may be what reads it.
    least, most = fields.NUMBERS["script.afterSeconds"]
    known = isinstance(after, int) and not isinstance(after, bool) and least <= after <= most
    return Script(sha256=sha256, after_seconds=after if known else 0)


class _Common(TypedDict):
    """The fields of Spec, as read."""

    name: str
    role: str
    version: str
    binary: Binary
    environment: Mapping[str, str]
    bucket: str
    storage: str
    reserve_mb: int
    script: Script
    agents: int


def _build(top: Reader) -> SwarmSpec | RendezvousSpec:
    schema = top.number("schema")
    if schema != SCHEMA and not top.problems:
        # Another schema means other fields: listing them as unknown would only bury the reason.
        raise SpecError([f"schema: is {schema}, this script knows {SCHEMA}: run `pulumi up`"])
    role = top.text("role")
    if role not in (ROLE_SWARM, ROLE_RENDEZVOUS):
        raise SpecError(top.problems)
    what = "daemon" if role == ROLE_SWARM else "rendezvous"
    release = top.child("release")
    memory = top.child("memory")
    script = top.child("script")
    endpoints = top.child("endpoints")
    common: _Common = {
        "name": top.text("name"),
        "role": role,
        "version": release.text("version"),
        "binary": _binary(release.child(what), f"pilot-{what}"),
        "environment": _environment(top.child("environment")),
        "bucket": top.text("bucket"),
        "storage": endpoints.base_url("storage"),
        "reserve_mb": memory.number("reserveMb"),
        "script": Script(
            sha256=script.text("sha256"), after_seconds=script.number("afterSeconds", default=0)
        ),
        "agents": top.number("agents"),
    }
    spec: SwarmSpec | RendezvousSpec
    if role == ROLE_SWARM:
        base_port = top.number("basePort")
        if base_port + common["agents"] > 65535:
            top.problem(
                "agents", f"{common['agents']} from port {base_port + 1} pass 65535, the last port"
            )
        roll = top.child("roll")
        spec = SwarmSpec(
            **common,
            base_port=base_port,
            registry=top.address("registry"),
            beacon=top.address("beacon"),
            window=top.number("window"),
            roll=Roll(
                auto=roll.boolean("auto"),
                batch=roll.number("batch"),
                watch_seconds=roll.number("watchSeconds"),
            ),
            agent_mb=memory.number("agentMb"),
            connection_mb=memory.number("connectionMb"),
            active_connections=memory.number("activeConnections"),
        )
        roll.end()
    else:
        ports = top.child("ports")
        spec = RendezvousSpec(
            **common,
            registry_port=ports.number("registry"),
            beacon_port=ports.number("beacon"),
            dashboard_port=ports.number("dashboard"),
            subnet=top.network("subnet"),
            secrets=_secrets(top.child("secrets", optional=True)),
            secrets_endpoint=endpoints.base_url("secrets", default=SECRETS_ENDPOINT),
        )
        if spec.registry_port == spec.dashboard_port and not ports.problems:
            ports.problem("dashboard", f"is {spec.dashboard_port}, the registry's port as well")
        ports.end()
    for reader in (release, memory, script, endpoints):
        reader.end()
    top.end_document()
    if top.problems:
        raise SpecError(top.problems)
    return replace(spec, ignored=tuple(top.ignored))


def _binary(reader: Reader, name: str) -> Binary:
    sha256 = reader.text("sha256")
    binary = Binary.of(name, sha256)
    found = reader.text("object")
    if sha256 and found and found != binary.object:
        reader.problem("object", f"is {found!r}, must be {binary.object!r}")
    reader.end()
    return binary


def _secrets(reader: Reader) -> dict[str, str]:
    found = {name: reader.text(name) for name in reader.names() if name in fields.TOKENS}
    reader.end()
    return found


def _environment(reader: Reader) -> dict[str, str]:
    environment = {}
    for name in reader.names():
        if not _VARIABLE.fullmatch(name):
            reader.problem(name, "is not the name of an environment variable")
        elif RESERVED_VARIABLES.fullmatch(name):
            reader.problem(name, "is set by the unit itself")
        elif _LOADER_VARIABLES.fullmatch(name):
            reader.problem(name, "is obeyed by the loader of every program: not taken")
        value = reader.string(name, None, "a string")
        # An environment file is lines of bytes: what cannot stand in a line cannot be passed.
        if any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in value):
            reader.problem(name, "holds a control character (a line break, NUL, ...)")
        elif any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            reader.problem(name, "is not valid Unicode (a lone surrogate)")
        environment[name] = value
    for name, value in environment.items():
        if value and (problem := _go_problem(name, value, environment)):
            reader.problem(name, problem)
    return environment


def _go_problem(name: str, value: str, environment: Mapping[str, str]) -> str:
    """Why no Go program may run with `value` for the variable `name`, "" where one may. The plan
    says the same (components/config.py)."""
    problem = ""
    if name == "GODEBUG":
        problem = _debug_problem(value)
    elif name == "GOMEMLIMIT":
        match = re.fullmatch(fields.GO_SIZE, value)
        size = int(match[1]) << fields.GO_UNITS.get(match[2], 0) if match else 0
        if value != "off" and not fields.GO_LIMITS[0] <= size <= fields.GO_LIMITS[1]:
            problem = f"{_kind(value)} is no limit: off, or a size as 64MiB, from 16MiB on"
    elif name == "GOGC" and value == "off":
        if environment.get("GOMEMLIMIT") in (None, "", "off"):
            problem = "is off without a GOMEMLIMIT: nothing would ever be freed"
    elif name in fields.GO_NUMBERS:
        most, meaning = fields.GO_NUMBERS[name]
        if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= most:
            problem = f"{_kind(value)} is not {meaning}"
    return problem


def _debug_problem(value: str) -> str:
    for setting in value.split(","):
        key, _, given = setting.partition("=")
        if key in fields.GO_DEBUG and given not in fields.GO_DEBUG[key]:
            allowed = " or ".join(fields.GO_DEBUG[key]) or "left out"
            return f"{_kind(setting)} ends or ruins a program: {key} must be {allowed}"
    return ""


class Reader:
    """Reads one JSON object, noting problems instead of stopping at the first. Orders as well.

    What is wrong comes out as an empty value of its type, so that reading can go on; the
    problems, shared by all readers of a document, say that it must not be used. `ignored`, shared
    as well, has the paths of what this version does not know.
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
            raise SpecError([f"{name}: must be an object, is {_kind(value)}"])
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
            self.problem(key, f"must be {expected}, is {_kind(value)}")
            return ""
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._take(key)
        if value is _MISSING:
            return 0
        # In Python a bool is an int; in a spec it is a mistake.
        if not isinstance(value, int) or isinstance(value, bool):
            self.problem(key, f"must be an integer, is {_kind(value)}")
            return 0
        if not low <= value <= high:
            self.problem(key, f"must be {low} to {high}, is {value}")
            return 0
        return value

    def text(self, key: str) -> str:
        """The text at a path that fields.py knows."""
        pattern, expected = fields.KINDS[fields.TEXTS[self._path + key]]
        return self.string(key, re.compile(pattern), expected)

    def number(self, key: str, *, default: int | None = None) -> int:
        """The whole number at a path that fields.py knows. `default`, where there is one, stands
        for a field that is absent."""
        if default is not None and key not in self._value:
            return default
        return self.integer(key, *fields.NUMBERS[self._path + key])

    def boolean(self, key: str) -> bool:
        value = self._take(key)
        if value is not _MISSING and not isinstance(value, bool):
            self.problem(key, f"must be true or false, is {_kind(value)}")
        return value is True

    def address(self, key: str) -> str:
        value = self.text(key)
        if value and not 1 <= int(value.rpartition(":")[2]) <= 65535:
            self.problem(key, f"has no such port: {value!r}")
        return value

    def base_url(self, key: str, *, default: str = "") -> str:
        """`default`, where there is one, stands for a field that is absent."""
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
            self.problem(key, f"must be an object, is {_kind(value)}")
        if isinstance(value, dict):
            reader._value = value
        else:
            # Its fields are not missing: it is. One problem is enough.
            reader._broken = True
        return reader

    def end(self) -> None:
        """Note what was there and nobody asked for: a newer program may have written it."""
        self.ignored += [f"{self._path}{_key(key)}" for key in sorted({*self._value} - self._read)]

    def end_document(self) -> None:
        """`end` of the whole document, once its parts have ended. What its `requires` names and
        this version does not know is a problem: who wrote it says that it must not be ignored."""
        required = self._value.get("requires", [])
        self._read.add("requires")
        self.end()
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            self.problem("requires", f"must be a list of fields, is {_kind(required)}")
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
    return key if _VARIABLE.fullmatch(key) else repr(key)


def _kind(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        # What is just shallow enough to be read may be too deep to be written.
        return "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
