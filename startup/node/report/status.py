"""The status: what a VM says it is (docs/CONTRACT.md, "Status").

`document` is pure: facts in, the JSON document out. `Publisher` brings it to where it is read, from
a thread of its own, so that a metadata server that is away never holds up the agents.
"""

from __future__ import annotations

import json
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
# Bytes of the document: of what a guest attribute takes, a part that a console still shows.
LIMIT: Final = 16 << 10

# Characters of a text in the document, and entries of its lists.
_TEXT: Final = 400
_TROUBLED: Final = 10
_TOP: Final = 20
_IGNORED: Final = 10

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Said:
    """A sentence and when it was said (seconds since the epoch)."""

    text: str
    time: float


@dataclass(frozen=True, kw_only=True)
class RollStatus:
    """A roll: `state` is none, waiting, rolling, watching or halted; `done` of `of` agents."""

    state: str = roll_state.NONE
    version: str = ""
    sha256: str = ""
    done: int = 0
    of: int = 0
    reason: str = ""
    rejected: Sequence[roll_state.Rejected] = ()


@dataclass(frozen=True, kw_only=True)
class OrdersStatus:
    """Orders: `state` is absent, read, unreachable or malformed. `hold` and `restart` are what
    holds now, of whichever source; `generation` is the object's; `ignored` are fields that are not
    known here."""

    generation: int | None = None
    state: str = "absent"
    hold: bool = False
    restart: str = ""
    error: str = ""
    ignored: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class SpecStatus:
    """The spec in use: `state` is current, unreachable, absent or malformed; `ignored` are fields
    that are not known here."""

    sha256: str
    state: str = "current"
    error: str = ""
    ignored: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ScriptStatus:
    """The project's script: `state` is current, waiting, applying, failed, foreign, absent or
    unreachable. `turn`: when one that waits is applied, in seconds since the epoch."""

    expected: str
    state: str = "current"
    turn: float | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class RegistryStatus:
    """The registry and its store: nodes, bytes, times in seconds since the epoch. None where it
    could not be had; `set_aside` are names, newest last; `restored` a copy's name, or "";
    `unsupported`: what is declared, and unknown to the binary that runs."""

    online: int | None
    total: int | None
    store: int | None
    store_time: float | None
    copies: int
    newest_copy: float | None
    set_aside: Sequence[str] = ()
    restored: str = ""
    unsupported: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Published:
    """When the guest attribute was last taken (seconds since the epoch, None: not yet), and why
    the last attempt failed, or ""."""

    time: float | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class StatusFacts:
    """What both roles say, of one moment. `now` and `started` are seconds since the epoch,
    `uptime` seconds since the kernel started; `script` is the applied one's sha256."""

    vm: str
    now: float
    boot: str
    uptime: float | None
    script: str
    started: float
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
    """A swarm VM. `goal` is Goal.variants (port -> variant that it should run); `releases` says of
    each variant which release (sha256) it is of; `stopping`: this VM is on its way down; `drained`:
    no agent is wanted for now, by an order or for a maintenance."""

    goal: Mapping[int, str]
    view: View
    releases: Mapping[str, str]
    sample: Sample
    stopping: bool = False
    drained: bool = False


@dataclass(frozen=True, kw_only=True)
class RendezvousFacts(StatusFacts):
    """The rendezvous VM. Memory in bytes, None where /proc did not say."""

    phase: str
    registry: RegistryStatus
    memory_total: int | None
    memory_available: int | None


def document(facts: SwarmFacts | RendezvousFacts) -> Document:
    """The status document of `facts`; as JSON (`encode`) at most LIMIT bytes."""
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
    """In one word what a swarm VM is at; the first that holds of the contract's."""
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
        # One that was adopted and cannot be told is "": nothing is known to be wrong with it.
        and all(view.variant.get(port, "") in ("", ID) for port, ID in facts.goal.items())
    )
    return "whole" if whole else "converging"


def encode(found: Document) -> str:
    """`found` as one line of JSON, the same for the same content."""
    return json.dumps(found, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def significant(found: Document) -> Document:
    """`found` without what changes by itself from one second to the next: when this differs from
    what was last published, somebody wants to know it now."""
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
    """`found`, made to fit into LIMIT: its lists are shortened, the longest in bytes first, and
    `trimmed` says which (`agents.troubled: 4 of 10`)."""
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
            # Names set aside and releases rejected are in the order of time: the newest count.
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
    """`text` on one line, printable, at most `limit` characters: it may be a stranger's."""
    line = "".join(c if c.isprintable() else " " for c in text[: limit * 4])
    line = " ".join(line.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _swarm(common: Document, facts: SwarmFacts) -> Document:
    view, sample = facts.view, facts.sample
    busy = view.ready | view.starting.keys() | view.stopping.keys()
    resting = {port: t for port, t in view.trouble.items() if port not in busy}
    # The worst first; those that are up again and not yet forgiven are listed behind.
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
            "unsupported": [clip(name) for name in registry.unsupported],
        },
    }


def _by_release(facts: SwarmFacts, ready: AbstractSet[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for port in ready:
        # "unknown": it runs, of what is not known (adopted, and its link is gone).
        sha256 = facts.releases.get(facts.view.variant.get(port, ""), "unknown")
        found[sha256] = found.get(sha256, 0) + 1
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
    """What stands at `path` (at most two names), an empty list where there is nothing."""
    first, _, second = path.partition(".")
    return found.get(first, {}).get(second, []) if second else found.get(first, [])


def _with(found: Document, path: str, value: Any) -> Document:
    first, _, second = path.partition(".")
    return {**found, first: {**found[first], second: value} if second else value}
