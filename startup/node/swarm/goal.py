"""What this VM should be, out of its spec, its orders and the roll: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..desired.orders import Standing
from ..desired.spec import SwarmSpec
from ..rollout.roll_state import Release, RollState
from ..rollout.rollout import releases
from .decide import Goal

# What the metadata server says before it stops this VM for the host's maintenance. It is not
# coming back by itself soon, so its agents leave in good order. A live migration is a pause of
# less than a second, and no reason to stop anybody.
TERMINATE = "TERMINATE_ON_HOST_MAINTENANCE"


@dataclass(frozen=True, kw_only=True)
class WantedAgents:
    """The agents that should run (ports, in order) and why there are none, "" where they may."""

    ports: tuple[int, ...]
    drained: str = ""


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
    """The goal for `ports`. `variants` has the variant of each release that can be started, by
    sha256; `running` what each port runs now ("" where that is not known). A release that cannot
    be started (its binary is not here yet) changes nothing: who runs goes on as it is, who does
    not has to wait."""
    wanted: dict[int, str] = {}
    for port, release in releases(roll, ports).items():
        variant = variants.get(release.sha256, running.get(port))
        if variant is not None:
            wanted[port] = variant
    return Goal(variants=wanted, window=spec.window)


def wanted_releases(roll: RollState, ports: tuple[int, ...]) -> tuple[Release, ...]:
    """The releases that a goal for `ports` needs, each once."""
    return tuple({r.sha256: r for r in releases(roll, ports).values()}.values())
