"""Memory of a VM and its agents: how much, how much more each hour, and who takes the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .walls import Wall


@dataclass(frozen=True, kw_only=True)
class Heavy:
    """An agent above the limit: bytes (PSS), and its node id, None where it did not say."""

    port: int
    node_id: int | None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was measured last; bytes, None where it could not be had.

    `total`, `available`: of the VM. `slice`: memory.current of pilot.slice. `agent_mean`: PSS of a
    sample of agents. `agent_limit`: twice the planning size; `over`: agents above it, `top`: the
    largest of these. `growth`: bytes an hour; `leak`: a sentence, or "". `connections`: an agent,
    of the `asked` that answered. `benchmarks`: none, running, frozen, paused. `walls`: those above
    80 %.
    """

    total: int | None = None
    available: int | None = None
    slice: int | None = None
    agent_mean: float | None = None
    agent_limit: int = 0
    over: int | None = None
    top: Sequence[Heavy] = ()
    growth: float | None = None
    leak: str = ""
    asked: int = 0
    connections: float | None = None
    udp_sockets: int | None = None
    benchmarks: str = "none"
    walls: Sequence[Wall] = ()
