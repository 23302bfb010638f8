"""The status document of a VM (docs/CONTRACT.md, "Status").

`document` is pure: facts in, the JSON document out. publisher.py publishes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from ..desired.spec import ROLE_RENDEZVOUS, ROLE_SWARM
from ..machine.state_disk import Usage
from ..pressure.sampler import Sample
from ..rollout import roll_state
from ..swarm.supervisor import View

SCHEMA: Final = 1
# Most bytes of the document. A guest attribute takes more, but a console does not show it.
LIMIT: Final = 16 << 10

# Most characters of a text in the document.
_TEXT: Final = 400
# Most entries of its lists.
_TROUBLED: Final = 10
_TOP: Final = 20
_IGNORED: Final = 10

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Said:
    """A message for people."""

    text: str
    time: float
    """When it was said, in seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class RollStatus:
    state: str = roll_state.NONE
    """none, waiting, rolling, watching or halted."""
    version: str = ""
    sha256: str = ""
    done: int = 0
    """Agents that have the release."""
    of: int = 0
    """Agents in all."""
    reason: str = ""
    rejected: Sequence[roll_state.Rejected] = ()


@dataclass(frozen=True, kw_only=True)
class OrdersStatus:
    generation: int | None = None
    """Of the bucket's object."""
    state: str = "absent"
    """absent, read, unreachable or malformed."""
    hold: bool = False
    """Whether the VM is drained, by the bucket's order or on the VM itself."""
    restart: str = ""
    """ID of the last restart, from either of them."""
    error: str = ""
    ignored: Sequence[str] = ()
    """Fields that this version does not know."""


@dataclass(frozen=True, kw_only=True)
class SpecStatus:
    """The spec in use."""

    sha256: str
    state: str = "current"
    """current, unreachable, absent or malformed."""
    error: str = ""
    ignored: Sequence[str] = ()
    """Fields that this version does not know."""


@dataclass(frozen=True, kw_only=True)
class ScriptStatus:
    """The project's script."""

    expected: str
    state: str = "current"
    """current, waiting, applying, failed, foreign, absent or unreachable."""
    turn: float | None = None
    """When a waiting script is applied, in seconds since the epoch."""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class RegistryStatus:
    """The registry. None where a number is not known."""

    online: int | None
    """Nodes."""
    total: int | None
    """Nodes."""
    store: int | None
    """Bytes of its file."""
    store_time: float | None
    """When that was written, in seconds since the epoch."""
    copies: int
    """Good copies."""
    newest_copy: float | None
    """When that was taken, in seconds since the epoch."""
    set_aside: Sequence[str] = ()
    """Names of files, the newest last."""
    restored: str = ""
    """The copy that was put back at the last start, or ""."""
    started_empty: bool = False
    """Whether the last start was one without a registry."""
    bucket_copies: int | None = None
    """Copies in the bucket."""
    bucket_newest: float | None = None
    """When the newest of them was taken, in seconds since the epoch."""
    bucket_error: str = ""
    """Why the last copy is not in the bucket."""
    unsupported: Sequence[str] = ()
    """Declared features that the running binary does not know."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """The last writes of the guest attribute."""

    time: float | None = None
    """Of the last one that succeeded, in seconds since the epoch; None before."""
    error: str = ""
    """Why the last one failed, or ""."""


@dataclass(frozen=True, kw_only=True)
class StatusFacts:
    """The facts of either role, at one moment."""

    vm: str
    now: float
    """Seconds since the epoch."""
    boot: str
    uptime: float | None
    """Seconds since the kernel started."""
    script: str
    """sha256 of the applied script."""
    started: float
    """When pilot-node started, in seconds since the epoch."""
    version: str
    sha256: str
    roll: RollStatus
    orders: OrdersStatus
    spec: SpecStatus
    project_script: ScriptStatus
    disk: Usage = field(default_factory=Usage)
    ghosts: Sequence[str] = ()
    last_error: Said | None = None
    published: Published = field(default_factory=Published)


@dataclass(frozen=True, kw_only=True)
class SwarmFacts(StatusFacts):
    """A swarm VM."""

    goal: Mapping[int, str]
    """Port -> variant that it should run (Goal.variants)."""
    view: View
    releases: Mapping[str, str]
    """Variant -> its release (sha256)."""
    sample: Sample
    stopping: bool = False
    """The VM goes down."""
    drained: bool = False
    """No agent is wanted for now, by an order or for a maintenance."""


@dataclass(frozen=True, kw_only=True)
class RendezvousFacts(StatusFacts):
    """The rendezvous VM."""

    phase: str
    registry: RegistryStatus
    memory_total: int | None
    """Bytes, None where /proc did not say."""
    memory_available: int | None


def document(facts: SwarmFacts | RendezvousFacts) -> Document:
    """The status document of `facts`: at most LIMIT bytes as JSON (`encode`)."""
    common: Document = {
        "schema": SCHEMA,
        "vm": facts.vm,
        "role": ROLE_SWARM if isinstance(facts, SwarmFacts) else ROLE_RENDEZVOUS,
        "time": rfc3339(facts.now),
        "boot": facts.boot,
        "uptime": _whole(facts.uptime),
        "node": {"script": facts.script, "started": rfc3339(facts.started)},
        "release": {"version": facts.version, "sha256": facts.sha256},
        "roll": _roll(facts.roll),
        "orders": {
            "generation": facts.orders.generation,
            "state": facts.orders.state,
            "hold": facts.orders.hold,
            "restart": facts.orders.restart,
            "error": clip(facts.orders.error),
            "ignored": [clip(path) for path in facts.orders.ignored[:_IGNORED]],
        },
        "spec": {
            "sha256": facts.spec.sha256,
            "state": facts.spec.state,
            "error": clip(facts.spec.error),
            "ignored": [clip(path) for path in facts.spec.ignored[:_IGNORED]],
        },
        "script": {
            "expected": facts.project_script.expected,
            "state": facts.project_script.state,
            "turn": _time(facts.project_script.turn),
            "error": facts.project_script.error,
        },
        "disk": {
            "device": facts.disk.device,
            "size": facts.disk.size,
            "free": facts.disk.free,
        },
        "ghosts": [clip(key) for key in facts.ghosts],
        "last_error": facts.last_error
        and {"text": clip(facts.last_error.text), "time": rfc3339(facts.last_error.time)},
        "published": {"time": _time(facts.published.time), "error": clip(facts.published.error)},
        "trimmed": [],
    }
    found = _swarm(common, facts) if isinstance(facts, SwarmFacts) else _rendezvous(common, facts)
    return trim(found)


def phase(facts: SwarmFacts) -> str:
    """What a swarm VM is doing, in one word: the first of the contract's that holds."""
    view = facts.view
    there = view.ready | view.starting.keys() | view.stopping.keys()
    if facts.stopping:
        return "stopping"
    if facts.drained:
        return "draining" if there else "held"
    if facts.roll.state in roll_state.ON_TRIAL:
        return "rolling"
    whole = (
        view.ready == frozenset(facts.goal)
        and not view.starting
        and not view.stopping
        and (
            view.variant == facts.goal
            # "": an agent of an earlier pilot-node whose variant is not known counts as right.
            or all(view.variant.get(port, "") in ("", ID) for port, ID in facts.goal.items())
        )
    )
    return "whole" if whole else "converging"


def encode(found: Document) -> str:
    """`found` as one line of JSON, the same for the same content."""
    return json.dumps(found, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def significant(found: Document) -> Document:
    """`found` without the numbers that change from second to second. Where it differs from what
    was last published, the document is published at once."""
    kept = {
        key: value
        for key, value in found.items()
        if key not in ("time", "uptime", "connections", "udp_sockets", "published")
    }
    if "memory" in kept:
        kept["memory"] = {key: kept["memory"].get(key) for key in ("over", "leak")}
    if "disk" in kept:
        kept["disk"] = {key: kept["disk"].get(key) for key in ("device", "size")}
    if "window" in kept:
        kept["window"] = {key: v for key, v in kept["window"].items() if key != "resting"}
    if "walls" in kept:
        kept["walls"] = [wall["wall"] for wall in kept["walls"]]
    if "agents" in kept:
        troubled = [{**one, "again": 0} for one in kept["agents"]["troubled"]]
        kept["agents"] = {**kept["agents"], "troubled": troubled}
    return kept


def trim(found: Document) -> Document:
    """`found`, with its lists shortened until it fits into LIMIT, the longest in bytes first.
    `trimmed` names them (`agents.troubled: 4 of 10`)."""
    counts: dict[str, int] = {}
    while len(encode(found).encode()) > LIMIT:
        lists = {path: _at(found, path) for path in _LISTS}
        path, longest = max(lists.items(), key=lambda item: len(encode({"": item[1]})))
        if not longest:
            break
        counts.setdefault(path, len(longest))
        keep = len(longest) // 2
        if isinstance(longest, dict):
            kept: Any = dict(sorted(longest.items(), key=lambda item: -item[1])[:keep])
        else:
            # The newest entries are kept.
            kept = longest[len(longest) - keep :] if path in _NEWEST_LAST else longest[:keep]
        found = _with(found, path, kept)
        said = [f"{p}: {len(_at(found, p))} of {count}" for p, count in sorted(counts.items())]
        found = {**found, "trimmed": said}
    return found


_NEWEST_LAST: Final = ("roll.rejected", "registry.set_aside")
_LISTS: Final = (
    "agents.troubled",
    "memory.top",
    "release.agents",
    "ghosts",
    "walls",
    *_NEWEST_LAST,
)


def rfc3339(seconds: float) -> str:
    """`seconds` since the epoch, in UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clip(text: str, limit: int = _TEXT) -> str:
    """`text` on one line, printable, at most `limit` characters: it may come from an agent."""
    line = "".join(c if c.isprintable() else " " for c in text[: limit * 4])
    line = " ".join(line.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _swarm(common: Document, facts: SwarmFacts) -> Document:
    view, sample = facts.view, facts.sample
    # Of those in trouble alone: there are thousands of agents.
    busy = view.trouble.keys() & (view.starting.keys() | view.stopping.keys())
    resting = view.trouble.keys() - busy - view.ready
    # The worst first. Agents that are up again, and not yet steady, come last.
    order = sorted(view.trouble, key=lambda p: (p not in resting, -view.trouble[p].failures, p))
    return {
        **common,
        "phase": phase(facts),
        "agents": {
            "wanted": len(facts.goal),
            "running": len(view.ready),
            "starting": len(view.starting),
            "stopping": len(view.stopping),
            "failed": len(resting),
            "troubled": [_troubled(port, view) for port in order[:_TROUBLED]],
        },
        "window": {
            "size": view.window.size,
            "limit": view.window.limit,
            "resting": _whole(max(0.0, view.window.rest_until - view.now)),
            "why": clip(view.window.why),
        },
        "totals": {"starts": view.starts, "stops": view.stops, "failures": view.failures},
        "release": {**common["release"], "agents": _by_release(facts, view.ready)},
        "memory": {
            "total": sample.total,
            "available": sample.available,
            "slice": sample.slice,
            "agent_mean": _whole(sample.agent_mean),
            "agent_limit": sample.agent_limit,
            "over": sample.over,
            "top": [
                {"port": one.port, "node_id": one.node_id, "bytes": one.bytes}
                for one in sample.top[:_TOP]
            ],
            "growth": _whole(sample.growth),
            "grown": _whole(sample.grown),
            "leak": clip(sample.leak),
        },
        "connections": {
            "sampled": sample.asked,
            "mean": None if sample.connections is None else round(sample.connections, 2),
        },
        "udp_sockets": sample.udp_sockets,
        "benchmarks": sample.benchmarks,
        "walls": [
            {"wall": use.name, "used": use.used, "limit": use.limit} for use in sample.limits
        ],
    }


def _rendezvous(common: Document, facts: RendezvousFacts) -> Document:
    registry = facts.registry
    return {
        **common,
        "phase": facts.phase,
        "memory": {"total": facts.memory_total, "available": facts.memory_available},
        "registry": {
            "online": registry.online,
            "total": registry.total,
            "store": registry.store,
            "store_time": _time(registry.store_time),
            "copies": registry.copies,
            "newest_copy": _time(registry.newest_copy),
            "set_aside": [clip(name) for name in registry.set_aside],
            "restored": clip(registry.restored),
            "started_empty": registry.started_empty,
            "bucket": {
                "copies": registry.bucket_copies,
                "newest": _time(registry.bucket_newest),
                "error": clip(registry.bucket_error),
            },
            "unsupported": [clip(name) for name in registry.unsupported],
        },
    }


def _by_release(facts: SwarmFacts, ready: AbstractSet[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for variant, count in Counter(map(facts.view.variant.get, ready)).items():
        # "unknown": an agent of an earlier pilot-node whose link is gone.
        sha256 = facts.releases.get(variant or "", "unknown")
        found[sha256] = found.get(sha256, 0) + count
    return found


def _troubled(port: int, view: View) -> Document:
    trouble = view.trouble[port]
    return {
        "port": port,
        "failures": trouble.failures,
        "why": clip(trouble.why),
        "again": _whole(max(0.0, trouble.until - view.now)),
    }


def _roll(roll: RollStatus) -> Document:
    return {
        "state": roll.state,
        "version": roll.version,
        "sha256": roll.sha256,
        "done": roll.done,
        "of": roll.of,
        "reason": clip(roll.reason),
        "rejected": [
            {
                "version": one.version,
                "sha256": one.sha256,
                "reason": clip(one.reason),
                "time": rfc3339(one.time),
            }
            for one in roll.rejected
        ],
    }


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)


def _at(found: Document, path: str) -> Any:
    """The value at `path` (at most two names), an empty list where there is none."""
    first, _, second = path.partition(".")
    return found.get(first, {}).get(second, []) if second else found.get(first, [])


def _with(found: Document, path: str, value: Any) -> Document:
    first, _, second = path.partition(".")
    return {**found, first: {**found[first], second: value} if second else value}
