"""The measurements of tools/bench/scale.py, and their tables. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tools.bench.chart import Chart

# pilot-node has to be so many times as fast as upstream's rounds (docs/FACTS.md): at least, with a
# slow and with a prompt registry, and the aim. This project's own numbers.
LEAST_SLOW = 4.0
LEAST_PROMPT = 12.0
AIM_PROMPT = 20.0
SLOW_S = 0.6

# The first and the last so many starts, of thousands, are compared.
_FEW = 600
_BOTH = 2

BEGIN = "<!-- measured: begin -->"
END = "<!-- measured: end -->"


@dataclass(frozen=True, kw_only=True)
class Fill:
    """One way of starting agents, measured."""

    way: str
    delay: float
    """Seconds by which the registry answers late."""
    agents: int
    failed: int
    most_open: int
    """The most registrations that were open at once."""
    curve: tuple[tuple[float, int], ...]
    """(seconds since the command, agents registered)."""
    cpu: float
    """CPU seconds of everything measured, agents and registry included."""
    others: float
    """CPUs busy with anything else meanwhile."""

    @property
    def rate(self) -> float:
        """Agents registered per second between the first and the last tenth of them, which the
        start of a program and the last few agents distort. NaN where there is no such time."""
        tenth = math.ceil(self.agents / 10)
        seen = self.curve
        first = next((point for point in seen if point[1] >= tenth), seen[-1])
        last = next((point for point in seen if point[1] >= self.agents - tenth), seen[-1])
        if last[0] <= first[0]:
            return math.nan
        return (last[1] - first[1]) / (last[0] - first[0])

    @property
    def seconds(self) -> float:
        """From the command to the last registration."""
        return self.curve[-1][0]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """pilot-node against another way at one registry."""

    name: str
    value: float
    least: float | None
    """What it must reach; None: nothing."""

    @property
    def holds(self) -> bool:
        return self.least is None or self.value >= self.least


def ratios(fills: Sequence[Fill]) -> list[Ratio]:
    """pilot-node against rounds, which has a least value, and against bare processes."""
    found = []
    for delay in sorted({fill.delay for fill in fills}, reverse=True):
        by_way = {fill.way: fill for fill in fills if fill.delay == delay}
        node = by_way["pilot-node"].rate
        least = LEAST_SLOW if delay else LEAST_PROMPT
        for way, wanted in (("rounds", least), ("bare processes", None)):
            name = f"pilot-node / {way}, {registry(delay)}"
            found.append(Ratio(name=name, value=node / by_way[way].rate, least=wanted))
    return found


def problems(fills: Sequence[Fill], *, trial: bool = False) -> list[str]:
    """Sentences: agents that failed, and ratios below their least. In a `trial` of a few agents
    only failures count."""
    found = [
        f"{fill.way}, {registry(fill.delay)}: {fill.failed} of {fill.agents} failed"
        for fill in fills
        if fill.failed
    ]
    short = [] if trial else [ratio for ratio in ratios(fills) if not ratio.holds]
    return found + [f"{r.name}: {r.value:.1f}, must be at least {r.least:g}" for r in short]


def registry(delay: float) -> str:
    return f"registry in {delay:g} s" if delay else "prompt registry"


def speed_table(fills: Sequence[Fill]) -> str:
    """The ways and their ratios, in Markdown."""
    rows = [
        (
            registry(fill.delay),
            fill.way,
            f"{fill.agents:,}",
            f"{fill.seconds:.1f}",
            f"{fill.rate:.1f}",
            f"{fill.cpu / fill.agents * 1000:.0f}",
            str(fill.most_open),
            str(fill.failed),
            f"{fill.others:.2f}",
        )
        for fill in fills
    ]
    head = (
        "registry",
        "started by",
        "agents",
        "seconds",
        "agents/s",
        "CPU ms/agent",
        "open",
        "failed",
        "others' CPUs",
    )
    lines = [table(head, rows, left=2), ""]
    for ratio in ratios(fills):
        wanted = "" if ratio.least is None else f" (at least {ratio.least:g}"
        if ratio.least == LEAST_PROMPT:
            wanted += f", aim {AIM_PROMPT:g}"
        lines.append(f"- {ratio.name}: **{ratio.value:.1f}**{wanted}{')' if wanted else ''}")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class FillSample:
    """One look while the VM fills. All but `online` count from the command; CPU is in seconds."""

    seconds: float
    online: int
    """Agents that are registered."""
    memory: int
    """Bytes taken, machine-wide."""
    machine: float
    """CPU of the machine."""
    ours: float
    """CPU of everything measured."""
    pid1: float
    """CPU of the VM's PID 1."""
    node: float
    """CPU of pilot-node."""
    registry: float
    """CPU of the registry."""


@dataclass(frozen=True, kw_only=True)
class Idle:
    """CPU seconds during `seconds` of idling."""

    seconds: float
    agents: float
    """By the scheduler's nanoseconds."""
    pid1: float
    node: float
    registry: float
    ours: float
    """Of everything measured."""
    others: float
    """CPUs busy with anything else."""
    stolen: float
    """Taken by the hypervisor."""


@dataclass(frozen=True, kw_only=True)
class Full:
    """A VM full of agents. Memory is in bytes."""

    way: str
    agents: int
    failed: int
    points: tuple[FillSample, ...]
    idle: Idle
    memory: int
    """Taken machine-wide when settled."""
    registry_memory: int
    """The part of it that the registry's process takes."""
    pid1_memory: int
    """Resident."""
    node_memory: int
    """Resident."""
    pss: float
    """Mean of a sample of agents."""
    threads: float
    """Mean of a sample of agents."""
    before: float
    """CPUs busy before anything was started."""
    drain: float
    """Seconds to end all agents, 15 at a time."""

    @property
    def seconds(self) -> float:
        """Until the last agent has registered."""
        return self._at(self.agents).seconds

    def pid1_ms(self, first: int, last: int) -> float:
        """CPU of PID 1 between two registrations, in ms per start."""
        began, ended = self._at(first), self._at(last)
        started = ended.online - began.online
        return (ended.pid1 - began.pid1) / started * 1000 if started else math.nan

    def _at(self, online: int) -> FillSample:
        return next(p for p in self.points if p.online >= online)


def full_ratios(node: Full, bare: Full) -> list[Ratio]:
    """pilot-node against bare processes, both full; lower is better."""
    few = min(_FEW, node.agents // 2)
    per_agent = bare.idle.agents / bare.idle.seconds / bare.agents
    values = {
        "time to full": node.seconds / bare.seconds,
        f"PID 1 per start, the last {few} / the first {few} of pilot-node": (
            node.pid1_ms(node.agents - few, node.agents) / node.pid1_ms(0, few)
        ),
        "drain": node.drain / bare.drain,
        "memory per agent, machine-wide": (node.memory / node.agents) / (bare.memory / bare.agents),
        "idle CPU of everything / of the bare daemons alone": (
            node.idle.ours / node.idle.seconds / node.agents / per_agent
        ),
    }
    return [Ratio(name=name, value=value, least=None) for name, value in values.items()]


def full_table(*fulls: Full) -> str:
    """The full VM in Markdown: a column per way, and the ratios where there are two."""
    columns = [_full_rows(full) for full in fulls]
    names = [name for name, _, _ in columns[0]]
    rows = [
        (name, *(column[index][1] for column in columns), columns[0][index][2])
        for index, name in enumerate(names)
    ]
    head = (f"{fulls[0].agents:,} agents", *(full.way for full in fulls), "aim")
    lines = [table(head, rows, left=1)]
    if len(fulls) == _BOTH:
        lines.append("")
        lines += [f"- {ratio.name}: **{ratio.value:.2f}**" for ratio in full_ratios(*fulls)]
    return "\n".join(lines)


def _full_rows(full: Full) -> list[tuple[str, str, str]]:
    """Rows of (name, measurement, aim). PID 1 and pilot-node start no bare process."""
    last = next(p for p in full.points if p.online >= full.agents)
    idle, n = full.idle, full.agents
    few = min(_FEW, n // 2)
    per_agent = full.memory / n / 1e6
    rest = (full.memory - full.registry_memory) / n / 1e6
    rows = [
        ("time to full", f"{full.seconds:.0f} s", "60 s"),
        ("agents registered per second", f"{n / full.seconds:.0f}", ""),
        ("failed", str(full.failed), "0"),
        ("memory per agent, machine-wide", f"{per_agent:.2f} MB", "< 1.9 MB"),
        ("… without the registry's process", f"{rest:.2f} MB", ""),
        ("PSS per agent", f"{full.pss / 1e6:.2f} MB", ""),
        ("threads per agent", f"{full.threads:.1f}", ""),
        ("idle CPU per agent", f"{idle.agents / idle.seconds / n * 1000:.3f} ms/s", "< 0.1 ms/s"),
        (
            "idle CPU of everything, per agent",
            f"{idle.ours / idle.seconds / n * 1000:.3f} ms/s",
            "",
        ),
        ("CPU of everything, per start", f"{last.ours / n * 1000:.1f} ms", ""),
        ("drain", f"{full.drain:.1f} s", ""),
        ("PID 1: CPU per start", f"{last.pid1 / n * 1000:.1f} ms", ""),
        (f"… of the first {few}", f"{full.pid1_ms(0, few):.1f} ms", ""),
        (f"… of the last {few}", f"{full.pid1_ms(n - few, n):.1f} ms", ""),
        ("PID 1: CPU when idle", f"{idle.pid1 / idle.seconds:.2%} of one", ""),
        ("PID 1: memory", f"{full.pid1_memory / 1e6:.0f} MB", ""),
        ("pilot-node: CPU per start", f"{last.node / n * 1000:.1f} ms", ""),
        ("pilot-node: CPU when idle", f"{idle.node / idle.seconds:.2%} of one", "< 1 %"),
        ("pilot-node: memory", f"{full.node_memory / 1e6:.0f} MB", ""),
        ("registry: CPU per registration", f"{last.registry / n * 1000:.1f} ms", ""),
        ("registry: CPU when idle", f"{idle.registry / idle.seconds:.2%} of one", ""),
        (
            "others on the machine: CPUs, filling",
            f"{max(0.0, last.machine - last.ours) / full.seconds:.2f}",
            "0",
        ),
        ("others on the machine: CPUs, idle", f"{idle.others:.2f}", "0"),
    ]
    if full.way != "pilot-node":
        no_part = ("PID 1: CPU per start", "… of the", "pilot-node:")
        rows = [(name, "" if name.startswith(no_part) else text, aim) for name, text, aim in rows]
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table; all but the first `left` columns are aligned to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def into(document: str, measured: str) -> str:
    """`document` with the text between its two marks replaced. ValueError without them."""
    before, found, rest = document.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"it has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{measured.strip()}\n{END}{after}"


def as_json(fills: Sequence[Fill], whole: Sequence[Full]) -> dict[str, Any]:
    """Everything that was measured, for other computations."""
    return {
        "fills": [asdict(fill) | {"rate": fill.rate} for fill in fills],
        "full": [asdict(full) for full in whole],
    }


def panels(full: Full) -> list[Chart]:
    """Agents, memory and CPU while the VM fills."""
    points = full.points
    return [
        Chart(
            title="agents registered",
            unit="",
            lines={"agents": [(p.seconds, float(p.online)) for p in points]},
        ),
        Chart(
            title="memory taken, machine-wide",
            unit="GB",
            lines={"memory": [(p.seconds, p.memory / 1e9) for p in points]},
        ),
        Chart(
            title="CPUs busy",
            unit="",
            lines={
                "all of it": _slope(points, lambda p: p.ours),
                "PID 1": _slope(points, lambda p: p.pid1),
                "pilot-node": _slope(points, lambda p: p.node),
                "registry": _slope(points, lambda p: p.registry),
            },
        ),
    ]


def _slope(
    points: Sequence[FillSample], of: Callable[[FillSample], float]
) -> list[tuple[float, float]]:
    """CPUs busy, over windows of at least two seconds because ticks are coarse."""
    found, last = [], points[0]
    for point in points[1:]:
        took = point.seconds - last.seconds
        if took >= 2:
            middle = (point.seconds + last.seconds) / 2
            found.append((middle, (of(point) - of(last)) / took))
            last = point
    return found
