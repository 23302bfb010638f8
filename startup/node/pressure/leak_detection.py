"""Whether memory leaks: pure functions over what was seen every few minutes.

The sum of a fleet's memory says little: agents are started, stopped and restarted, and each of
these moves it by more than a leak does in a day. What is followed instead is how much the *same*
agents grew from one look to the next, as a mean over all that were there both times and were past
their first minutes. Added up, this is the curve of what one agent has grown by since the history
began: a restart leaves no step in it, and thousands of agents make it smooth. Who joins or leaves
the comparison does so at a moment's size, which is mostly chance; that adds up, too, so how much it
may have been is followed beside the curve and makes a slope less sure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

HOUR: Final = 3600.0
# Seconds between two looks (docs/FACTS.md).
LOOK: Final = 300.0
# Seconds after which an agent's heap has found its size: Go collects every 2 min when idle, and
# connections to the registry are made within the first.
WARM: Final = 600.0
# Bytes an hour of all agents of a VM, without more connections: upstream's figure (docs/FACTS.md).
FAST: Final = 100e6
# Bytes an hour of one agent. 1,000 must be found after a day; half of it, so that noise hides
# none. In 3,000 agents this is 1.5 MB an hour, which no hour shows.
SLOW: Final = 500.0
# Seconds that are looked at for the one and for the other, and that there must be at least.
FAST_SPAN: Final = (HOUR, 1200.0)
SLOW_SPAN: Final = (24 * HOUR, 12 * HOUR)
# Standard errors by which a slope must differ from 0 to be one. Looks five minutes apart are not
# independent, so more than the two that a text book asks for.
SURE: Final = 4.0
CONNECTIONS_SURE: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class Held:
    """One agent's memory: `since` tells one start of it from the next (anything that differs),
    `age` is seconds since that start, `bytes` what it alone holds."""

    since: tuple[int, int]
    age: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is seen at one time: `at` in seconds, each agent by port; `overhead` is what the kernel
    holds for an agent (page tables, sockets; bytes, None where it does not say), `connections` the
    mean of a sample."""

    at: float
    agents: Mapping[int, Held]
    overhead: float | None = None
    connections: float | None = None


@dataclass(frozen=True, kw_only=True)
class GrowthPoint:
    """A point of the curve. `at`: seconds in which the same agents were seen; `grown`: bytes that
    an agent has grown by since the first point; `drift`: variance (bytes squared) that who joined
    and left has brought into it; connections an agent, None where unknown."""

    at: float
    grown: float
    drift: float
    connections: float | None


@dataclass(frozen=True, kw_only=True)
class History:
    """The curve, at most a day of it; the look that the next one is compared with, and the starts
    (port, since) that were compared in it."""

    last: Look | None = None
    compared: frozenset[tuple[int, tuple[int, int]]] = frozenset()
    points: Sequence[GrowthPoint] = ()
    agents: int = 0


@dataclass(frozen=True, kw_only=True)
class LeakVerdict:
    """`growth`: bytes an hour of all agents over the last hour, None until it is known; `leak`: a
    sentence, or ""."""

    growth: float | None = None
    leak: str = ""


@dataclass(frozen=True, kw_only=True)
class LineFit:
    """A straight line's slope, and its standard error."""

    slope: float
    error: float


def seen(history: History, look: Look) -> History:
    """`history` with `look`. Where fewer than half of the agents were there before (after a
    restart, during a roll), nothing can be compared: the curve stands still, its clock too."""
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
            # Of the two sizes that a difference is made of, one is the joiner's or the leaver's.
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
    """What the kernel holds more for an agent. It is known as a mean only: it can be compared
    while nearly all agents are the same ones."""
    if look.overhead is None or last.overhead is None:
        return 0.0
    stable = same >= 0.9 * max(len(look.agents), len(last.agents))
    return look.overhead - last.overhead if stable else 0.0


def judge(history: History, connection_bytes: int) -> LeakVerdict:
    """What the curve says. Each new connection explains `connection_bytes` (the planning size)."""
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
            leak=f"agents grow by {growth / 1e6:.0f} MB an hour ({each:.0f} KB each, over "
            f"{minutes:.0f} min) without as many more connections",
        )
    return LeakVerdict(growth=growth, leak=_slow(history))


def _slow(history: History) -> str:
    """What only a day shows."""
    points = _span(history.points, *SLOW_SPAN)
    if not points:
        return ""
    line = _with_connections(points)
    half = len(points) // 2
    halves = [_with_connections(part) for part in (points[:half], points[half:])]
    # In both halves: a single step (a night of more traffic) is no slope.
    steady = all(part is not None and part.slope * HOUR > SLOW / 2 for part in halves)
    if line is None or not steady:
        return ""
    slope = line.slope * HOUR
    if slope < SLOW or line.slope < SURE * _error(line, points):
        return ""
    hours = (points[-1].at - points[0].at) / HOUR
    return (
        f"each agent grows by {slope / 1e3:.1f} KB an hour (over {hours:.0f} h), without more "
        f"connections: {slope * history.agents * 24 / 1e6:.0f} MB a day in all"
    )


def fit(xs: Sequence[float], ys: Sequence[float], zs: Sequence[float] = ()) -> LineFit | None:
    """The line through (x, y) by least squares; with `zs`, what of it z does not explain.

    None where there is no such line: fewer than four points, all at one x, or x and z so much
    alike (99 %) that it cannot be told which of them y follows.
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
    """The standard error of a slope, with what joined and left: a line through a random walk of
    variance V over a time T has a slope of variance 6 V / 5 T^2."""
    seconds = points[-1].at - points[0].at
    return math.sqrt(line.error**2 + 1.2 * (points[-1].drift - points[0].drift) / seconds**2)


def _explained(points: Sequence[GrowthPoint], agents: int) -> float:
    """Connections an hour by which all agents certainly grew; 0 where that is not known."""
    known = [(p.at, p.connections) for p in points if p.connections is not None]
    line = fit([at for at, _ in known], [number for _, number in known])
    if line is None or line.slope <= CONNECTIONS_SURE * line.error:
        return 0.0
    return line.slope * HOUR * agents


def _span(points: Sequence[GrowthPoint], most: float, least: float) -> Sequence[GrowthPoint]:
    """The points of the last `most` seconds; none where they are not `least` seconds in all."""
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
