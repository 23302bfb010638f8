"""Facts for a status document, as they are on a VM where all is well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from startup.node.machine.state_disk import Usage
from startup.node.pressure.sampler import Sample
from startup.node.report.status import (
    OrdersStatus,
    RegistryStatus,
    RendezvousFacts,
    RollStatus,
    ScriptStatus,
    SpecStatus,
    SwarmFacts,
)

NOW = 1_780_000_000.9
OLD, NEW = "aa" * 32, "bb" * 32
PORTS = (10001, 10002, 10003)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    failures: int
    until: float
    why: str = "died"


@dataclass(frozen=True, kw_only=True)
class Window:
    size: int = 15
    limit: int = 15
    rest_until: float = 0.0
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class View:
    """As startup.node.swarm.supervisor.View, of which the status needs these fields."""

    now: float = 100.0
    ready: frozenset[int] = frozenset(PORTS)
    starting: Mapping[int, float] = field(default_factory=dict)
    stopping: Mapping[int, float] = field(default_factory=dict)
    trouble: Mapping[int, Trouble] = field(default_factory=dict)
    variant: Mapping[int, str] = field(default_factory=lambda: dict.fromkeys(PORTS, "v-old"))
    window: Window = field(default_factory=Window)
    starts: int = 3
    stops: int = 0
    failures: int = 0


def common(**changes: Any) -> dict[str, Any]:
    return {
        "vm": "swarm-1",
        "now": NOW,
        "boot": "11111111-2222-3333-4444-555555555555",
        "uptime": 812.7,
        "script": "cc" * 32,
        "started": NOW - 700,
        "version": "1.18.0",
        "sha256": OLD,
        "roll": RollStatus(),
        "orders": OrdersStatus(),
        "spec": SpecStatus(sha256="dd" * 32),
        "project_script": ScriptStatus(expected="cc" * 32),
        "disk": Usage(device=10 << 30, size=9 << 30, free=8 << 30),
        **changes,
    }


def swarm(**changes: Any) -> SwarmFacts:
    given: dict[str, Any] = {
        **common(),
        "goal": dict.fromkeys(PORTS, "v-old"),
        "view": View(),
        "releases": {"v-old": OLD, "v-new": NEW},
        "sample": Sample(total=4 << 30, available=3 << 30, agent_limit=20 << 20),
        **changes,
    }
    return SwarmFacts(**given)


def rendezvous(**changes: Any) -> RendezvousFacts:
    given: dict[str, Any] = {
        **common(vm="pilot-rendezvous"),
        "phase": "serving",
        "registry": RegistryStatus(
            online=9500,
            total=9600,
            store=45 << 20,
            store_time=NOW - 4,
            copies=12,
            newest_copy=NOW - 290,
            bucket_copies=30,
            bucket_newest=NOW - 285,
        ),
        "memory_total": 16 << 30,
        "memory_available": 12 << 30,
        **changes,
    }
    return RendezvousFacts(**given)
