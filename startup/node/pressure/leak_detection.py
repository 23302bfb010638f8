"""Decides whether agents leak memory: pure functions over looks that are minutes apart.

The sum of all agents' memory says little: each start and stop moves it by more than a leak does in
a day. So only agents that are there at two looks in a row, and are past their first minutes, are
compared. The mean of their growth, added up, is a curve: what one agent has grown by since the
history began. A restart leaves no step in it, and thousands of agents make it smooth.

An agent joins or leaves the comparison at a size that is mostly chance, and these errors add up.
The `drift` beside the curve says by how much, and makes a slope less certain.
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
# Bytes per hour of one agent. 1,000 must be found after a day; this is half, so that noise hides
# none. For 3,000 agents it is 1.5 MB per hour, which one hour does not show.
SLOW: Final = 500.0
# Seconds: the longest span that is looked at for FAST and for SLOW, and the shortest.
FAST_SPAN: Final = (HOUR, 1200.0)
SLOW_SPAN: Final = (24 * HOUR, 12 * HOUR)
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
    drift: float
    """Variance (bytes squared) of `grown` because agents joined and left the comparison."""
    connections: float | None
    """Per agent, None where unknown."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The state from look to look."""

    last: Look | None = None
    """The look that the next one is compared with."""
    compared: frozenset[tuple[int, tuple[int, int]]] = frozenset()
    """The starts (port, since) that were compared in it."""
    points: Sequence[GrowthPoint] = ()
    """The curve, at most a day of it."""
    agents: int = 0


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
    last, points, compared = history.last, list(history.points), history.compared
    if not points:
        points = [GrowthPoint(at=0.0, grown=0.0, drift=0.0, connections=look.connections)]
    if last is not None and look.at > last.at:
        same = {
            (port, before.since): float(look.agents[port].bytes - before.bytes)
            for port, before in last.agents.items()
            if before.age >= WARM
            and port in look.agents
            and look.agents[port].since == before.since
        }
        if same and 2 * len(same) >= len(look.agents):
            mean = sum(same.values()) / len(same)
            variance = sum((grown - mean) ** 2 for grown in same.values()) / len(same)
            # A difference is made of two sizes; half of its variance comes from each.
            changed = len(compared ^ same.keys()) if compared else 0
            points.append(
                GrowthPoint(
                    at=points[-1].at + look.at - last.at,
                    grown=points[-1].grown + mean + _kernels(last, look, len(same)),
                    drift=points[-1].drift + changed * variance / 2 / len(same) ** 2,
                    connections=look.connections,
                )
            )
            compared = frozenset(same)
    end = points[-1].at
    kept = tuple(point for point in points if point.at >= end - SLOW_SPAN[0])
    return History(last=look, compared=compared, points=kept, agents=len(look.agents))


def _kernels(last: Look, look: Look, same: int) -> float:
    """Growth of what the kernel holds per agent. Only its mean is known, so it is compared while
    nearly all agents are the same."""
    if look.overhead is None or last.overhead is None:
        return 0.0
    stable = same >= 0.9 * max(len(look.agents), len(last.agents))
    return look.overhead - last.overhead if stable else 0.0


def judge(history: History, connection_bytes: int) -> LeakVerdict:
    """Whether the curve shows a leak. Each new connection explains `connection_bytes`."""
    recent = _span(history.points, *FAST_SPAN)
    line = fit([p.at for p in recent], [p.grown for p in recent]) if recent else None
    if line is None:
        return LeakVerdict()
    growth = line.slope * HOUR * history.agents
    excess = growth - _explained(recent, history.agents) * connection_bytes
    if excess > FAST and line.slope > SURE * _error(line, recent):
        minutes = (recent[-1].at - recent[0].at) / 60
        each = growth / history.agents / 1e3
        return LeakVerdict(
            growth=growth,
            leak=f"agents grow by {growth / 1e6:.0f} MB per hour ({each:.0f} KB each, over "
            f"{minutes:.0f} min) without as many more connections",
        )
    return LeakVerdict(growth=growth, leak=_slow(history))


def _slow(history: History) -> str:
    """A leak that takes half a day to be seen, as a sentence, or ""."""
    points = _span(history.points, *SLOW_SPAN)
    if not points:
        return ""
    line = _with_connections(points)
    half = len(points) // 2
    halves = [_with_connections(part) for part in (points[:half], points[half:])]
    # It grows in both halves: a single step (a night of more traffic) is no leak.
    steady = all(part is not None and part.slope * HOUR > SLOW / 2 for part in halves)
    if line is None or not steady:
        return ""
    slope = line.slope * HOUR
    if slope < SLOW or line.slope < SURE * _error(line, points):
        return ""
    hours = (points[-1].at - points[0].at) / HOUR
    return (
        f"each agent grows by {slope / 1e3:.1f} KB per hour (over {hours:.0f} h), without more "
        f"connections: {slope * history.agents * 24 / 1e6:.0f} MB per day in all"
    )


def fit(xs: Sequence[float], ys: Sequence[float], zs: Sequence[float] = ()) -> LineFit | None:
    """The line through (x, y) by least squares; with `zs`, the part that z does not explain.

    None where there is no such line: fewer than four points, all at one x, or x and z so alike
    (99 %) that it is unknown which of them y follows.
    """
    count = len(xs)
    if count < 4:
        return None
    x, y = _centred(xs), _centred(ys)
    spread = _dot(x, x)
    freedom = count - 2
    if zs:
        z = _centred(zs)
        if (zz := _dot(z, z)) > 0:
            x = _without(x, z, zz)
            y = _without(y, z, zz)
            freedom -= 1
    xx = _dot(x, x)
    if spread <= 0 or xx < 0.01 * spread or freedom < 1:
        return None
    slope = _dot(x, y) / xx
    rest = sum((b - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return LineFit(slope=slope, error=math.sqrt(rest / freedom / xx))


def _with_connections(points: Sequence[GrowthPoint]) -> LineFit | None:
    known = [p.connections for p in points if p.connections is not None]
    xs, ys = [p.at for p in points], [p.grown for p in points]
    return fit(xs, ys, known if len(known) == len(points) else ())


def _error(line: LineFit, points: Sequence[GrowthPoint]) -> float:
    """The standard error of a slope, with the drift: a line through a random walk of variance V
    over a time T has a slope of variance 6 V / 5 T^2."""
    seconds = points[-1].at - points[0].at
    return math.sqrt(line.error**2 + 1.2 * (points[-1].drift - points[0].drift) / seconds**2)


def _explained(points: Sequence[GrowthPoint], agents: int) -> float:
    """Connections per hour that all agents certainly gained; 0 where that is not known."""
    known = [(p.at, p.connections) for p in points if p.connections is not None]
    line = fit([at for at, _ in known], [number for _, number in known])
    if line is None or line.slope <= CONNECTIONS_SURE * line.error:
        return 0.0
    return line.slope * HOUR * agents


def _span(points: Sequence[GrowthPoint], most: float, least: float) -> Sequence[GrowthPoint]:
    """The points of the last `most` seconds; none where they span less than `least` seconds."""
    if not points:
        return ()
    end = points[-1].at
    recent = [point for point in points if point.at >= end - most]
    return recent if end - recent[0].at >= least else ()


def _centred(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [value - mean for value in values]


def _without(values: Sequence[float], other: Sequence[float], square: float) -> list[float]:
    share = _dot(values, other) / square
    return [value - share * o for value, o in zip(values, other, strict=True)]


def _dot(one: Sequence[float], two: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))
