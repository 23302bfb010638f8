"""Which agents this VM should run, by its spec, its orders and the roll. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..desired.orders import Standing
from ..desired.spec import SwarmSpec
from ..rollout.roll_state import Release, RollState
from ..rollout.rollout import releases
from .decide import Goal

# The maintenance event before this VM is stopped. It will not be back soon, so its agents are
# drained. A live migration is a pause of less than a second, and stops no agent.
TERMINATE = "TERMINATE_ON_HOST_MAINTENANCE"


@dataclass(frozen=True, kw_only=True)
class WantedAgents:
    """The agents that should run."""

    ports: tuple[int, ...]
    """In order."""
    drained: str = ""
    """Why there are none, "" where the VM is not drained."""


def plan(spec: SwarmSpec, standing: Standing, maintenance: str) -> WantedAgents:
    """The agents that should run now."""
    if standing.orders.hold:
        return WantedAgents(ports=(), drained="held by order")
    if standing.here.hold:
        return WantedAgents(ports=(), drained="held by `pilot-node drain`")
    if maintenance == TERMINATE:
        return WantedAgents(
            ports=(), drained="drained: this VM is about to be stopped for maintenance"
        )
    return WantedAgents(ports=tuple(spec.ports))


def goal(
    spec: SwarmSpec,
    ports: tuple[int, ...],
    roll: RollState,
    variants: Mapping[str, str],
    running: Mapping[int, str],
) -> Goal:
    """The goal for `ports`. `variants`: the variant of each release (sha256) that can be started.
    `running`: the variant of each running port, "" where that is not known.

    A release whose binary is not here yet changes nothing: running agents go on as they are, and
    others wait.
    """
    wanted: dict[int, str] = {}
    for port, release in releases(roll, ports).items():
        variant = variants.get(release.sha256, running.get(port))
        if variant is not None:
            wanted[port] = variant
    return Goal(variants=wanted, window=spec.window)


def wanted_releases(roll: RollState, ports: tuple[int, ...]) -> tuple[Release, ...]:
    """The releases that a goal for `ports` needs, each once."""
    return tuple({r.sha256: r for r in releases(roll, ports).values()}.values())
