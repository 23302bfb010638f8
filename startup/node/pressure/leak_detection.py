"""Decides whether agents leak memory: pure functions over looks that are minutes apart.

The sum of all agents' memory says little: each start and stop moves it by more than a leak does in
a day. So only agents that are there at two looks in a row, and are past their first minutes, are
compared. The mean of their growth, added up, is a curve: what one agent has grown by since
pilot-node started. A restart leaves no step in it, and thousands of agents make it smooth.

A fast leak is found here. A slope that only a day shows is found by an alert, from the curve as a
metric (`AgentsGrow` in components/prometheus_rules.yml).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

HOUR: Final = 3600.0
# Seconds between two looks (docs/FACTS.md).
LOOK: Final = 300.0
# Seconds after which an agent's heap has its size: Go collects every 2 min when idle, and
# connections to the registry are made within the first minute.
WARM: Final = 600.0
# Bytes per hour of all agents of a VM, without more connections: upstream's figure (docs/FACTS.md).
FAST: Final = 100e6
# Seconds of the curve that are looked at: at most, and at least.
SPAN: Final = (HOUR, 1200.0)
# Standard errors by which a slope must differ from 0. A text book asks for two; looks five minutes
# apart are not independent.
SURE: Final = 4.0
CONNECTIONS_SURE: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class Held:
    """One agent's memory."""

    since: tuple[int, int]
    """Differs from one start of the agent to the next."""
    age: float
    """Seconds since that start."""
    bytes: int
    """What it alone holds."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """All agents, at one time."""

    at: float
    """Seconds of a clock."""
    agents: Mapping[int, Held]
    """By port."""
    overhead: float | None = None
    """Bytes that the kernel holds per agent (page tables, sockets), None where it does not say."""
    connections: float | None = None
    """Mean of a sample of agents."""


@dataclass(frozen=True, kw_only=True)
class GrowthPoint:
    """A point of the curve."""

    at: float
    """Seconds in which agents could be compared."""
    grown: float
    """Bytes that one agent has grown by since the first point."""
    connections: float | None
    """Per agent, None where unknown."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The state from look to look."""

    last: Look | None = None
    """The look that the next one is compared with."""
    points: Sequence[GrowthPoint] = ()
    """The curve, at most SPAN of it."""
    agents: int = 0

    @property
    def grown(self) -> float | None:
        """Bytes that one agent has grown by since the first look, None before there is one."""
        return self.points[-1].grown if self.points else None


@dataclass(frozen=True, kw_only=True)
class LeakVerdict:
    growth: float | None = None
    """Bytes per hour of all agents over the last hour, None until it is known."""
    leak: str = ""
    """A sentence, "" where memory does not leak."""


@dataclass(frozen=True, kw_only=True)
class LineFit:
    """A straight line."""

    slope: float
    error: float
    """Standard error of the slope."""


def seen(history: History, look: Look) -> History:
    """`history` with `look`. Where fewer than half of the agents were there before (after a
    restart, during a roll), nothing is compared: the curve and its clock stand still."""
    last, points = history.last, list(history.points)
    if not points:
        points = [GrowthPoint(at=0.0, grown=0.0, connections=look.connections)]
    if last is not None and look.at > last.at:
        same = [
            float(look.agents[port].bytes - before.bytes)
            for port, before in last.agents.items()
            if before.age >= WARM
            and port in look.agents
            and look.agents[port].since == before.since
        ]
        if same and 2 * len(same) >= len(look.agents):
            mean = sum(same) / len(same)
            points.append(
                GrowthPoint(
                    at=points[-1].at + look.at - last.at,
                    grown=points[-1].grown + mean + _kernels(last, look, len(same)),
                    connections=look.connections,
                )
            )
    end = points[-1].at
    kept = tuple(point for point in points if point.at >= end - SPAN[0])
    return History(last=look, points=kept, agents=len(look.agents))


def _kernels(last: Look, look: Look, same: int) -> float:
    """Growth of what the kernel holds per agent. Only its mean is known, so it is compared while
    nearly all agents are the same."""
    if look.overhead is None or last.overhead is None:
        return 0.0
    stable = same >= 0.9 * max(len(look.agents), len(last.agents))
    return look.overhead - last.overhead if stable else 0.0


def judge(history: History, connection_bytes: int) -> LeakVerdict:
    """Whether the curve shows a leak. Each new connection explains `connection_bytes`."""
    points = history.points
    seconds = points[-1].at - points[0].at if points else 0.0
    line = fit([p.at for p in points], [p.grown for p in points])
    if line is None or seconds < SPAN[1]:
        return LeakVerdict()
    growth = line.slope * HOUR * history.agents
    excess = growth - _explained(points, history.agents) * connection_bytes
    if excess <= FAST or line.slope <= SURE * line.error:
        return LeakVerdict(growth=growth)
    each = growth / history.agents / 1e3
    return LeakVerdict(
        growth=growth,
        leak=f"agents grow by {growth / 1e6:.0f} MB per hour ({each:.0f} KB each, over "
        f"{seconds / 60:.0f} min) without as many more connections",
    )


def fit(xs: Sequence[float], ys: Sequence[float]) -> LineFit | None:
    """The line through (x, y) by least squares, None where there is none: fewer than four points,
    or all at one x."""
    count = len(xs)
    if count < 4:
        return None
    x, y = _centred(xs), _centred(ys)
    xx = _dot(x, x)
    if xx <= 0:
        return None
    slope = _dot(x, y) / xx
    rest = sum((b - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return LineFit(slope=slope, error=math.sqrt(rest / (count - 2) / xx))


def _explained(points: Sequence[GrowthPoint], agents: int) -> float:
    """Connections per hour that all agents certainly gained; 0 where that is not known."""
    known = [(p.at, p.connections) for p in points if p.connections is not None]
    line = fit([at for at, _ in known], [number for _, number in known])
    if line is None or line.slope <= CONNECTIONS_SURE * line.error:
        return 0.0
    return line.slope * HOUR * agents


def _centred(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [value - mean for value in values]


def _dot(one: Sequence[float], two: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))
