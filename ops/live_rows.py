"""What `live` shows, as text: lines, cells, bars. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from ops import rolls, status
from ops.errors import TryLaterError
from ops.fleet import Fleet, Vm, age
from ops.looks import FleetLook
from ops.status import Row

_LEAST_BAR, _MOST_BAR = 8, 40
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_MOST_ORDERS: Final = 4
_HISTORY: Final = 500  # looks


def clock(when: float) -> str:
    """A time of day in UTC."""
    return datetime.fromtimestamp(when, UTC).strftime("%H:%M:%SZ")


def head(context: str, fleet: Fleet, width: int) -> Text:
    """The top line: which fleet, agents online, and when that was."""
    where = f"{context}: " if context else ""
    left = Text(f"{where}{fleet.name} in {fleet.project}", style="bold")
    online = fleet.registry.online
    said = "registry not known" if online is None else f"{online:,} of {fleet.wanted:,} online"
    right = Text(f"  {said}  {clock(fleet.time)}")
    left.align("left", max(0, width - right.cell_len))
    return left + right


# The table


@dataclass(kw_only=True)
class LiveState:
    """What the screens show."""

    context: str
    """The context's name; "" for none."""
    fleet: Fleet
    """As the last look that succeeded saw it."""
    standing: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    """Why the last look failed, and since when looks do; "" where it succeeded."""
    waits: str = ""
    """How far a restart has come; "" for none."""
    history: deque[tuple[float, int | None]] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    """(time, agents online) of each look."""

    def take_in(self, look: FleetLook) -> None:
        """Take in what a look has found."""
        self.standing = look.standing
        online = None
        if look.fleet is not None:
            self.fleet, self.problem = look.fleet, ""
            online = look.fleet.registry.online
        else:
            away = isinstance(look.error, TryLaterError)
            what = "API unreachable" if away else "no look at the fleet"
            self.problem = f"{what} since {clock(self.fleet.time)}: {look.error}"
        self.history.append((look.time, online))

    def span(self, looks: int) -> str:
        """The time between the last one and so many looks before, in a few letters."""
        first, _ = self.history[max(0, len(self.history) - looks)]
        return age(self.history[-1][0] - first)


Parts = tuple[tuple[str, str], ...]
"""(text, style)"""


@dataclass(frozen=True)
class GridLine:
    """A line of the table. It becomes a text of rich's only where it is on the screen."""

    parts: Parts

    def __rich__(self) -> Text:
        return Text.assemble(*self.parts)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The table of the VMs, as wide as there is room."""

    heading: GridLine
    rows: Mapping[str, GridLine]
    """By VM."""


def grid(fleet: Fleet, width: int, *, stale: bool = False) -> Grid:
    """A row per VM. Columns go where there is no room, as in `status`; the bar takes what is left.
    A VM that does not speak is grey, and all are where the look is `stale`."""
    rows = [status.row(vm) for vm in fleet.vms]
    columns, lines = status.columns_and_lines(rows)
    gap = 2 if width > 100 else 1
    wide = [
        max(len(column.name), *(len(line.cells[at]) for line in lines))
        for at, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    for at in sorted((at for at in shown if columns[at].spare), key=lambda at: -columns[at].spare):
        if sum(wide[each] + gap for each in shown) + _LEAST_BAR + gap <= width:
            break
        shown.remove(at)
    room = width - sum(wide[at] + gap for at in shown) - gap
    room = min(_MOST_BAR, max(_LEAST_BAR, room))
    # After the state, which it explains.
    place = sum(at <= [each.name for each in columns].index("state") for at in shown)
    space = " " * gap

    def line(texts: Sequence[Text], drawn: Parts) -> GridLine:
        found: list[Parts] = []
        for at in shown:
            plain, style = texts[at].plain, str(texts[at].style)
            pad = plain.rjust if columns[at].is_number else plain.ljust
            found.append(((pad(wide[at]) + space, style),))
        filled = " " * (room - sum(len(text) for text, _ in drawn)) + space
        found.insert(place, (*drawn, (filled, "")))
        return GridLine(tuple(part for parts in found for part in parts))

    def grey(one: GridLine) -> GridLine:
        return GridLine((("".join(text for text, _ in one.parts), "dim"),))

    made = {}
    for vm, row, each in zip(fleet.vms, rows, lines, strict=True):
        one = line(each.cells, bar(row, room))
        made[vm.name] = grey(one) if stale or not vm.speaks else one
    heading = line([Text(column.name) for column in columns], (("agents", ""),))
    return Grid(heading=heading, rows=made)


def bar(row: Row, width: int) -> Parts:
    """The agents of a VM: █ running, ▒ starting, ! failed, · none. Whoever there is has a cell."""
    if not row.wanted:
        return ()
    if row.running is None:
        return (("?" * width, ""),)
    parts = ((row.running, "█", "green"), (row.starting, "▒", "cyan"), (row.failed, "!", "red"))
    most = max(row.wanted, sum(count or 0 for count, _, _ in parts))
    sizes = [max(count * width // most, 1) if count else 0 for count, _, _ in parts]
    # Small parts are rounded up at the cost of the largest.
    sizes[sizes.index(max(sizes))] -= max(0, sum(sizes) - width)
    drawn = [(sign * size, style) for size, (_, sign, style) in zip(sizes, parts, strict=True)]
    return (*drawn, ("·" * (width - sum(sizes)), ""))


def spark(values: Sequence[int | None], most: int, width: int, height: int) -> Text:
    """Values over time, the newest at the right, between 0 and `most`. None leaves a gap."""
    shown = values[-width:] if width > 0 else ()
    steps = len(_LEVELS) * height
    lines = []
    for below in range((height - 1) * len(_LEVELS), -1, -len(_LEVELS)):
        signs = []
        for value in shown:
            level = 0 if value is None else round(min(1.0, value / max(most, 1)) * steps)
            # A known value of 0 gets the lowest sign. Only an unknown one leaves a gap.
            level = max(level, 0 if value is None else 1) - below
            signs.append(" " if level <= 0 else _LEVELS[min(level, len(_LEVELS)) - 1])
        lines.append("".join(signs).rjust(width))
    return Text("\n".join(lines))


# The orders that stand


def orders(fleet: Fleet, standing: Mapping[str, str]) -> list[str]:
    """Sentences about the orders that VMs follow and rolls that wait for a word or go on."""
    said = list(_orders(fleet, standing))
    if len(said) > _MOST_ORDERS:
        said[_MOST_ORDERS - 1 :] = [f"… and {len(said) - _MOST_ORDERS + 1} more (`ops status`)"]
    return said


def _orders(fleet: Fleet, standing: Mapping[str, str]) -> Iterator[str]:
    for vm in fleet.vms:
        if vm.speaks and vm.status.flag("orders.hold"):
            # Without an alert, a plan holds it, or it has not read yet that its order has ended.
            yield f"{vm.name}: {standing.get(f'{vm.name}/held', 'it is held by an order')}"
    if paused := paused_vms(fleet):
        yield f"benchmarks are paused on {', '.join(paused)}"
    for vm in fleet.vms:
        if vm.speaks and vm.status.text("roll.state") not in ("", "none"):
            each = rolls.roll(vm)
            done = f", {each.done:,} of {each.of:,}" if each.of and each.done is not None else ""
            why = f" ({each.reason})" if each.reason else ""
            yield f"{each.vm}: roll to {each.version} {each.state}{done}{why}"


def paused_vms(fleet: Fleet) -> list[str]:
    """VMs whose benchmarks an order pauses."""
    return [vm.name for vm in fleet.swarm if vm.speaks and vm.status.text("benchmarks") == "paused"]


# A VM


def vm_head(vm: Vm, when: float, width: int) -> Text:
    """The top line of a VM's screen."""
    row = status.row(vm)
    text = f"{vm.name}: {row.phase}"
    if vm.is_swarm:
        running = "?" if row.running is None else f"{row.running:,}"
        text += f", {running} of {row.wanted:,} agents run"
    left = Text(text, style="bold")
    left.align("left", max(0, width - 11))
    return left + Text(f"  {clock(when)}")


def vm_body(vm: Vm, console: str) -> RenderableType:
    """A VM: its notes, troubled agents, memory, limits, roll, and its console's last lines."""
    parts: list[RenderableType] = []

    def section(title: str, *lines: RenderableType) -> None:
        parts.extend((Text(title, style="bold"), *lines, Text()))

    row = status.row(vm)
    window = ""
    if row.window is not None:
        window = f", window {row.window} of {row.window_limit}"
    section(f"{row.release} on {row.machine} in {row.zone}{window}", *map(Text, row.notes))
    if vm.is_swarm and vm.speaks:
        section("agents in trouble", *_troubled(vm))
        section("top by memory", status.top(vm))
        section("limits above 80 %", *_near(vm))
    if vm.speaks:
        section("roll", _roll(vm))
    section("console, its last lines (c reads them again)", Text(console))
    return Group(*parts)


def _troubled(vm: Vm) -> Iterator[Text]:
    found = vm.status.documents("agents.troubled")
    if not found:
        yield Text("none")
    for each in found:
        again = each.number("again")
        later = "" if again is None else f", again in {age(again)}"
        failures = each.number("failures") or 0
        yield Text(f"port {each.number('port')}: {each.text('why')}, {failures} times{later}")


def _near(vm: Vm) -> Iterator[Text]:
    found = vm.status.documents("walls")
    if not found:
        yield Text("none")
    for each in found:
        used, limit = each.number("used"), each.number("limit")
        if used is not None and limit:
            yield Text(f"{each.text('wall')}: {used:,} of {limit:,} ({used / limit:.0%})")


def _roll(vm: Vm) -> RenderableType:
    found = rolls.roll(vm)
    if not found.is_open:
        return Text(f"none: {found.accepted} is accepted")
    return rolls.render([found])
