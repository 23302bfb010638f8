"""`pilot-spec` (docs/CONTRACT.md): text in, frozen dataclasses out, every problem at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from . import fields
from .go_runtime import go_problem
from .json_reader import VARIABLE, Reader, SpecError

SCHEMA: Final = 1
ROLE_SWARM: Final = "swarm"
ROLE_RENDEZVOUS: Final = "rendezvous"

RESERVED_VARIABLES: Final = re.compile(fields.RESERVED_VARIABLES)
_LOADER_VARIABLES = re.compile(fields.LOADER_VARIABLES)
_SHA256 = re.compile(fields.KINDS["sha256"][0])

# For specs without the field, as of an older program.
SECRETS_ENDPOINT: Final = "https://secretmanager.googleapis.com"


@dataclass(frozen=True, kw_only=True)
class Binary:
    """A binary of a release."""

    name: str
    """On a VM."""
    object: str
    """In the bucket."""
    sha256: str

    @classmethod
    def of(cls, name: str, sha256: str) -> Binary:
        """The binary `name` with that content. Its object is named by the content."""
        return cls(name=name, object=f"releases/{sha256}/{name}", sha256=sha256)


@dataclass(frozen=True, kw_only=True)
class Roll:
    """How a release is rolled out."""

    auto: bool
    """Without an order."""
    batch: int
    """Agents at a time."""
    watch_seconds: int
    """How long each batch is watched."""


@dataclass(frozen=True, kw_only=True)
class ScriptSpec:
    """The project's script that a VM should have."""

    sha256: str
    """Of its bytes, "" where none is known."""
    after_seconds: int = 0
    """A running VM applies it so long after it first expects it."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The fields of both roles."""

    name: str
    role: str
    version: str
    binary: Binary
    environment: Mapping[str, str]
    bucket: str
    storage: str
    """The endpoint of Cloud Storage."""
    reserve_mb: int
    """MiB."""
    script: ScriptSpec
    agents: int
    ignored: tuple[str, ...] = ()
    """Paths of fields that this version does not know (a newer program's)."""


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
    """The rendezvous. `agents` is the whole fleet's."""

    registry_port: int
    beacon_port: int
    dashboard_port: int
    subnet: str
    """Exempt from the registry's rate limit."""
    secrets: Mapping[str, str]
    """Purpose of a token (fields.TOKENS) -> name of its version in Secret Manager. Never the token
    itself."""
    secrets_endpoint: str
    upload_copies: bool
    """Whether the VM's account may write the registry's copies to the bucket."""


def parse(text: str | bytes) -> SwarmSpec | RendezvousSpec:
    """The spec in `text`. Raises SpecError with every problem and its path."""
    return _build(Reader.of(text, "pilot-spec"))


def expected_script(text: str | bytes) -> ScriptSpec:
    """`script` of a spec, also of one that this version does not understand; a ScriptSpec without a
    sha256 where it cannot be read.

    A newer program's spec may need a newer pilot-node, which only the expected script installs.
    """
    try:
        found = json.loads(text)["script"]
        sha256, after = found["sha256"], found.get("afterSeconds", 0)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ScriptSpec(sha256="")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        return ScriptSpec(sha256="")
    # An `afterSeconds` that cannot be read is 0: the script may bring the version that reads it.
    least, most = fields.NUMBERS["script.afterSeconds"]
    known = isinstance(after, int) and not isinstance(after, bool) and least <= after <= most
    return ScriptSpec(sha256=sha256, after_seconds=after if known else 0)


def _build(top: Reader) -> SwarmSpec | RendezvousSpec:
    schema = top.number("schema")
    if schema != SCHEMA and not top.problems:
        # Another schema has other fields. Listing them as unknown would hide the reason.
        raise SpecError([f"schema: is {schema}, this script knows {SCHEMA}: run `pulumi up`"])
    role = top.text("role")
    if role not in (ROLE_SWARM, ROLE_RENDEZVOUS):
        raise SpecError(top.problems)
    what = "daemon" if role == ROLE_SWARM else "rendezvous"
    release = top.child("release")
    memory = top.child("memory")
    script = top.child("script")
    endpoints = top.child("endpoints")
    # The fields of Spec.
    common: dict[str, Any] = {
        "name": top.text("name"),
        "role": role,
        "version": release.text("version"),
        "binary": _binary(release.child(what), f"pilot-{what}"),
        "environment": _environment(top.child("environment")),
        "bucket": top.text("bucket"),
        "storage": endpoints.base_url("storage"),
        "reserve_mb": memory.number("reserveMb"),
        "script": ScriptSpec(
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
            upload_copies=top.boolean("uploadCopies", default=False),
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
        if not VARIABLE.fullmatch(name):
            reader.problem(name, "is not the name of an environment variable")
        elif RESERVED_VARIABLES.fullmatch(name):
            reader.problem(name, "is set by the unit itself")
        elif _LOADER_VARIABLES.fullmatch(name):
            reader.problem(name, "is obeyed by the loader of every program: not taken")
        value = reader.string(name, None, "a string")
        # A value has to fit into one line of an environment file.
        if any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in value):
            reader.problem(name, "holds a control character (a line break, NUL, ...)")
        elif any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            reader.problem(name, "is not valid Unicode (a lone surrogate)")
        environment[name] = value
    for name, value in environment.items():
        if value and (problem := go_problem(name, value, environment)):
            reader.problem(name, problem)
    return environment
