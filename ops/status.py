"""A look at the fleet as a table: a row per VM, totals, and why they differ. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ops.defaults import THRESHOLD
from ops.fleet import Fleet, Vm, age
from ops.json_document import Doc
from ops.table import Column, Line, Sheet
from ops.watch import disk_problem, ghosts, is_short

_MIB: Final = 2**20
_GIB: Final = 2**30
_WHOLE: Final = "whole"
_BANNER: Final = "banner"
_WELL: Final = (_WHOLE, "serving")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A VM in a line. Numbers that are not known now are None; memory is in bytes."""

    vm: str
    role: str
    machine: str
    zone: str
    phase: str
    """By the VM's status, or `off`, `silent`, `unknown`."""
    release: str
    wanted: int | None
    running: int | None
    starting: int | None
    stopping: int | None
    failed: int | None
    window: int | None
    window_limit: int | None
    memory_used: int | None
    memory_left: int | None
    memory_total: int | None
    disk_device: int | None
    """The state disk, in bytes; its file system and what is free on it follow."""
    disk_size: int | None
    disk_free: int | None
    is_well: bool
    notes: tuple[str, ...]
    """Sentences, the worst first."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The fleet in figures."""

    fleet: str
    project: str
    time: float
    rows: tuple[Row, ...]
    wanted: int
    running: int
    failed: int
    unknown: int
    """Agents wanted on VMs that do not say how many run."""
    online: int | None
    total: int | None
    networks: tuple[dict[str, Any], ...]
    problem: str
    """Which part of the fleet is missing, or ""."""
    unseen: tuple[str, ...]
    """A sentence per zone that did not answer."""
    registry_source: str
    networks_source: str
    registry_problem: str
    restored: str
    """The copy that the registry was restored from at its last start, or ""."""
    set_aside: tuple[str, ...]
    """Registry files that were set aside, the newest last."""
    unsupported: tuple[str, ...]
    """Declared for the rendezvous, and unknown to its binary."""
    explained: tuple[str, ...]
    """Why running and online agents differ."""

    @property
    def is_well(self) -> bool:
        """Whether all is as declared."""
        return (
            all(row.is_well for row in self.rows)
            and not self.problem
            and self.online is not None
            and self.online >= THRESHOLD * self.wanted
            and not self.registry_problem
        )

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "well": self.is_well}


def picture(fleet: Fleet) -> Picture:
    """The figures of a look."""
    rows = tuple(map(row, fleet.vms))
    swarm = [each for each in rows if each.role == "swarm"]
    running = sum(each.running or 0 for each in swarm)
    registry = fleet.registry
    kept = fleet.rendezvous.status if fleet.rendezvous else Doc(None)
    networks = tuple(asdict(each) for each in registry.networks)
    unknown = sum(each.wanted or 0 for each in swarm if each.running is None)
    return Picture(
        fleet=fleet.name,
        project=fleet.project,
        time=fleet.time,
        rows=rows,
        wanted=fleet.wanted,
        running=running,
        failed=sum(each.failed or 0 for each in swarm),
        unknown=unknown,
        online=registry.online,
        total=registry.total,
        networks=networks,
        problem=fleet.problem,
        unseen=fleet.unseen,
        registry_source=registry.source,
        networks_source=registry.networks_source,
        registry_problem=registry.problem,
        restored=kept.text("registry.restored"),
        set_aside=tuple(kept.texts("registry.set_aside")),
        unsupported=tuple(kept.texts("registry.unsupported")),
        explained=tuple(_explained(running, unknown, registry.online, rows)),
    )


def row(vm: Vm) -> Row:
    """A VM in a line."""
    status, speaks = vm.status, vm.speaks
    total = status.number("memory.total")
    left = status.number("memory.available") if speaks else None
    serious = tuple(_serious(vm)) if speaks else ()
    phase = status.text("phase") or "unknown"
    if not vm.instance.is_on:
        phase = "off"
    elif not speaks:
        phase = "silent" if status.content else "unknown"
    return Row(
        vm=vm.name,
        role=vm.instance.role,
        machine=vm.instance.machine,
        zone=vm.instance.zone,
        phase=phase,
        release=_release(vm),
        wanted=vm.wanted if vm.is_swarm else None,
        running=vm.count("running"),
        starting=vm.count("starting"),
        stopping=vm.count("stopping"),
        failed=vm.count("failed"),
        window=status.number("window.size") if speaks else None,
        window_limit=status.number("window.limit") if speaks else None,
        memory_used=total - left if total is not None and left is not None else None,
        memory_left=left,
        memory_total=total,
        disk_device=status.number("disk.device"),
        disk_size=status.number("disk.size"),
        disk_free=status.number("disk.free") if speaks else None,
        is_well=speaks and phase in _WELL and not serious,
        notes=tuple(_notes(vm, serious)),
    )


def _release(vm: Vm) -> str:
    """The accepted version; where the VM does not say, the spec's."""
    return vm.status.text("release.version") or vm.instance.spec.text("release.version")


def _notes(vm: Vm, serious: Sequence[str]) -> Iterator[str]:
    """Sentences about a VM, the worst first."""
    if vm.problem:
        yield vm.problem
    if not vm.speaks:
        return
    yield from serious
    yield from _ordinary(vm)
    if text := vm.status.text("last_error.text"):
        when = vm.status.when("last_error.time")
        now = vm.status.when("time")
        ago = f" ({age(now - when)} ago)" if when is not None and now is not None else ""
        yield f"last error{ago}: {text}"


def _serious(vm: Vm) -> Iterator[str]:
    """Problems of a VM, though all of its agents may run."""
    status = vm.status
    for text in ghosts(status):
        yield f"{text} (`ops audit`)"
    if status.text("roll.state") == "halted":
        version, why = status.text("roll.version"), status.text("roll.reason")
        yield f"the roll of {version} halted: {why}"
    running = vm.count("running")
    if vm.is_swarm and status.text("phase") == _WHOLE and running != vm.wanted:
        yield (
            f"it says that it is whole, and runs {_number(running)} of {vm.wanted:,}: it follows "
            f"another spec than the one in its metadata (`ops logs {vm.name}`)"
        )
    if failed := status.number("agents.failed"):
        first = next(iter(status.documents("agents.troubled")), None)
        why = f": port {first.number('port')}, {first.text('why')}" if first else ""
        yield f"{failed} agents fail{why}"
    short = "less than 20 % of its memory is left" if is_short(vm) else ""
    yield from filter(None, (short, disk_problem(vm), status.text("memory.leak")))
    for what, wrong in (
        ("orders", ("malformed",)),
        ("spec", ("absent", "malformed")),
        ("script", ("foreign", "absent", "failed")),
    ):
        if (state := status.text(f"{what}.state")) in wrong:
            error = status.text(f"{what}.error")
            yield f"its {what}: {state}" + (f" ({error})" if error else "")
    if vm.instance.role == "rendezvous" and status.number("registry.online") is None:
        yield "its registry does not answer"
    if tokens := [each for each in status.texts("registry.unsupported") if each != _BANNER]:
        yield (
            f"{', '.join(tokens)}: declared, but its binary has no such flag, so nothing is "
            "closed: a newer rendezvous has it"
        )


def _of_registry(status: Doc) -> Iterator[str]:
    if copy := status.text("registry.restored"):
        yield f"its registry was restored from the copy {copy} at its last start"
    if status.flag("registry.started_empty"):
        yield (
            "its registry started EMPTY: the fleet is new, no copy was there, or it was ordered "
            "(`--clean`)"
        )
    if _BANNER in status.texts("registry.unsupported"):
        yield "the banner is not shown: its binary has none"


def _ordinary(vm: Vm) -> Iterator[str]:
    status = vm.status
    if status.flag("orders.hold"):
        yield "held by an order"
    yield from _of_registry(status)
    if (state := status.text("roll.state")) not in ("", "none", "halted"):
        done, of = status.number("roll.done"), status.number("roll.of")
        yield f"roll of {status.text('roll.version')}: {state}, {done} of {of}"
    for one in status.documents("roll.rejected"):
        yield f"{one.text('version')} is rejected: {one.text('reason')}"
    if why := status.text("window.why"):
        yield f"window: {why}"
    if (state := status.text("benchmarks")) in ("frozen", "paused"):
        yield f"benchmarks {state}"
    for wall in status.documents("walls"):
        used, limit = wall.number("used"), wall.number("limit")
        if used is not None and limit:
            yield f"{wall.text('wall')} is {used / limit:.0%} full"
    yield from _sources(vm)


def _sources(vm: Vm) -> Iterator[str]:
    """States of a VM's orders, spec and script that are no fault of the VM."""
    status = vm.status
    for what in ("orders", "spec", "script"):
        if status.text(f"{what}.state") == "unreachable":
            yield f"its {what}: unreachable"
        if ignored := status.texts(f"{what}.ignored"):
            yield f"its {what}: not known to it and ignored: {', '.join(ignored)}"
    if status.text("script.state") == "waiting":
        applied, expected = status.text("node.script")[:12], status.text("script.expected")[:12]
        turn, now = status.when("script.turn"), status.when("time")
        left = f" in {age(turn - now)}" if turn is not None and now is not None else ""
        yield f"has the startup script {applied}; its turn with {expected} comes{left}"


def _explained(
    running: int, unknown: int, online: int | None, rows: tuple[Row, ...]
) -> Iterator[str]:
    quiet = [each.vm for each in rows if each.role == "swarm" and each.running is None]
    if quiet:
        do = "does" if len(quiet) == 1 else "do"
        yield (
            f"{', '.join(quiet)} {do} not say how many run: up to {unknown:,} agents are not "
            "counted"
        )
    if online is None:
        return
    if online > running:
        dead = "the registry counts the dead until its stale threshold (3 to 30 minutes)"
        more = " or those agents run" if quiet else ""
        yield f"{online - running:,} more are online than are known to run: {dead}{more}"
    elif online < running:
        yield (
            f"{running - online:,} run and are not online: they register again, at the latest a "
            "minute after their registry is back"
        )


# The table for people


# Where the fleet is in one zone, this column is left out.
_ZONE: Final = Column(name="zone", spare=4)
_COLUMNS: Final = (
    Column(name="VM"),
    Column(name="state"),
    Column(name="release", spare=2),
    Column(name="wanted", is_number=True),
    Column(name="running", is_number=True),
    Column(name="failed", is_number=True),
    Column(name="window", is_number=True, spare=3),
    Column(name="memory", is_number=True, spare=1),
    Column(name="left", is_number=True),
)


def render(seen: Picture) -> RenderableType:
    """The table."""
    known = (_number(seen.wanted), _number(seen.running), _number(seen.failed))
    columns, lines = columns_and_lines(seen.rows)
    total = ["in all", "", "", *known, "", "", ""]
    if _ZONE in columns:
        total.insert(1, "")
    sheet = Sheet(columns=columns, lines=lines, total=[Text(each) for each in total])
    return Group(sheet, Text(), *map(Text, totals(seen)))


def columns_and_lines(rows: Sequence[Row]) -> tuple[list[Column], list[Line]]:
    """The table's columns, and a line per row."""
    columns, lines = list(_COLUMNS), [_line(each) for each in rows]
    if len({each.zone for each in rows}) > 1:
        columns.insert(1, _ZONE)
        lines = [
            replace(line, cells=(line.cells[0], Text(each.zone), *line.cells[1:]))
            for line, each in zip(lines, rows, strict=True)
        ]
    return columns, lines


def _line(each: Row) -> Line:
    blank = each.role != "swarm"
    failed = _number(each.failed, blank=blank)
    return Line(
        cells=(
            Text(each.vm),
            Text(each.phase, style=_style(each)),
            Text(each.release),
            Text(_number(each.wanted, blank=blank)),
            Text(_number(each.running, blank=blank)),
            Text(failed, style="red" if each.failed else ""),
            Text(_window(each)),
            Text(_size(each.memory_used)),
            Text(_left(each)),
        ),
        notes=each.notes,
        style="" if each.is_well else "yellow",
    )


def totals(seen: Picture) -> Iterator[str]:
    """The lines below the table."""
    if seen.problem:
        yield seen.problem
    yield from (f"{zone}: VMs there are not shown" for zone in seen.unseen)
    if seen.online is None:
        yield f"registry: not known ({seen.registry_problem})"
    else:
        total = "" if seen.total is None else f", {seen.total:,} registered"
        says = f"says {seen.registry_source}"
        yield f"registry: {seen.online:,} of {seen.wanted:,} online{total} ({says})"
        if seen.registry_problem:
            yield seen.registry_problem
    for each in seen.networks:
        online, members = _number(each["online"]), _number(each["members"])
        says = f"(says {seen.networks_source})"
        yield f"  network {each['name']}: {online} of {members} online {says}"
    yield from seen.explained


def _style(each: Row) -> str:
    if each.is_well:
        return "green"
    return "red" if each.phase in ("off", "silent", "unknown", "failed") else "yellow"


def _number(found: int | None, *, blank: bool = False) -> str:
    if found is None:
        return "" if blank else "?"
    return f"{found:,}"


def _window(each: Row) -> str:
    if each.role != "swarm":
        return ""
    if each.window is None or each.window_limit is None:
        return "?"
    return f"{each.window}/{each.window_limit}"


def _size(found: int | None) -> str:
    return "?" if found is None else size(found)


def _left(each: Row) -> str:
    if each.memory_left is None or not each.memory_total:
        return "?"
    return f"{each.memory_left / each.memory_total:.0%}"


def size(found: int) -> str:
    """Bytes, in MiB below a GiB."""
    return f"{found / _MIB:.0f} MiB" if found < _GIB else f"{found / _GIB:.1f} GiB"


def top(vm: Vm) -> RenderableType:
    """The table of the agents that use most memory."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("port", "node", "memory (PSS)"):
        table.add_column(name, justify="right")
    for each in vm.status.documents("memory.top"):
        found = each.number("bytes")
        node = each.number("node_id")
        table.add_row(str(each.number("port")), "?" if node is None else str(node), _size(found))
    mean, limit = vm.status.number("memory.agent_mean"), vm.status.number("memory.agent_limit")
    if not table.row_count and mean is None:
        return Text(_unmeasured(vm))
    over = vm.status.number("memory.over")
    below = f"mean {_size(mean)}; {_number(over)} above {_size(limit)} (twice the planning size)"
    return Group(table, Text(), Text(below)) if table.row_count else Text(below)


def _unmeasured(vm: Vm) -> str:
    running, wanted = vm.count("running"), vm.wanted
    if not running:
        return f"nothing is measured: of {wanted:,} agents none runs ({vm.status.text('phase')})"
    uptime = vm.status.number("uptime")
    since = "" if uptime is None else f"; it booted {age(uptime)} ago"
    return (
        f"nothing was measured yet: {running:,} of {wanted:,} agents run{since}. A sample of them "
        "is measured every minute: look again then"
    )
