"""Alerts: which a look shows, and which begin or end between two looks. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ops.defaults import GROWTH, THRESHOLD
from ops.fleet import Fleet, Vm
from ops.json_document import Doc

SHORT: Final = 0.20
"""Available memory below this fraction is an alert: there, benchmarks are frozen
(docs/CONTRACT.md)."""
FULL: Final = 0.10
"""Free space of a state disk below this fraction is an alert, as in components/alerts.py."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits beyond which there is an alert."""

    online: float = THRESHOLD
    """A fraction of the declared agents."""
    growth: int = GROWTH
    """Bytes per hour."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """The beginning or the end of an alert."""

    time: float
    key: str
    """What it is about, for machines."""
    text: str
    begins: bool

    def line(self) -> str:
        """The event in one line."""
        when = datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"{when} {self.said}"

    @property
    def said(self) -> str:
        """The line without its time."""
        return f"{'ALERT' if self.begins else 'over '} {self.key}: {self.text}"

    def json(self) -> str:
        """The event as a line of JSON."""
        return json.dumps(vars(self))


def alerts(fleet: Fleet, limits: Limits) -> dict[str, str]:
    """The alerts of one look: key -> sentence."""
    found: dict[str, str] = {}
    registry, wanted = fleet.registry, fleet.wanted
    if registry.online is None:
        found["registry/down"] = registry.problem or "it does not answer"
    elif registry.problem:
        found["dashboard/down"] = registry.problem
    if text := fleet.problem:
        found["fleet/missing"] = text
    least = limits.online * wanted
    if registry.online is not None and registry.online < least:
        found["fleet/online"] = (
            f"{registry.online:,} of {wanted:,} agents are online, less than {least:,.0f}"
        )
    counts = [vm.count("running") for vm in fleet.swarm]
    if None not in counts:
        # The registry counts dead agents for a while; the VMs know at once.
        running = sum(each or 0 for each in counts)
        if running < least:
            found["fleet/running"] = f"{running:,} of {wanted:,} agents run, less than {least:,.0f}"
    for vm in fleet.vms:
        found |= {f"{vm.name}/{key}": text for key, text in _of(vm, limits)}
    return found


def is_short(vm: Vm) -> bool:
    """Whether less memory is left than benchmarks are frozen at."""
    total, left = vm.status.number("memory.total"), vm.status.number("memory.available")
    return bool(vm.speaks and total and left is not None and left < SHORT * total)


def disk_problem(vm: Vm) -> str:
    """The problem of a VM's state disk, or ""."""
    size, left = vm.status.number("disk.size"), vm.status.number("disk.free")
    if not vm.speaks or not size or left is None or left >= FULL * size:
        return ""
    return (
        f"{1 - left / size:.0%} of its state disk's {size / 2**30:.1f} GiB is used: raise `diskGb` "
        "in the stack file, it grows while the VM runs"
    )


def _of(vm: Vm, limits: Limits) -> Iterator[tuple[str, str]]:
    if not vm.speaks:
        yield ("silent" if vm.instance.is_on else "off"), vm.problem
        return
    status = vm.status
    if failed := status.number("agents.failed"):
        yield "failed", f"{failed} agents fail"
    if is_short(vm):
        yield "memory", "less than 20 % of its memory is left"
    if full := disk_problem(vm):
        yield "disk", full
    growth = status.number("memory.growth")
    if leak := status.text("memory.leak"):
        yield "leak", leak
    elif growth is not None and growth > limits.growth:
        yield "leak", f"its agents' memory grows by {growth / 2**20:.0f} MiB per hour"
    if status.text("roll.state") == "halted":
        version, why = status.text("roll.version"), status.text("roll.reason")
        yield "roll", f"the roll of {version} halted: {why}"
    if ghost := "; ".join(ghosts(status)):
        yield "ghost", ghost
    yield from _of_script(vm)


def _of_script(vm: Vm) -> Iterator[tuple[str, str]]:
    status = vm.status
    if (state := status.text("script.state")) == "foreign":
        yield "script", "the project's startup script is not the one that its spec expects"
    elif state == "failed":
        expected = status.text("script.expected")[:12]
        yield "script", f"the new startup script {expected} failed ({status.text('script.error')})"


def ghosts(status: Doc) -> Iterator[str]:
    """Ghost scripts that the VM reports, a sentence per place."""
    keys = status.texts("ghosts")
    shared = [key.removeprefix("project/") for key in keys if key.startswith("project/")]
    if own := [key for key in keys if not key.startswith("project/")]:
        yield f"ghost script at the instance: {', '.join(own)}"
    if shared:
        yield f"ghost script in the project's metadata: {', '.join(shared)}"


def events(before: Mapping[str, str], now: Mapping[str, str], when: float) -> Iterator[Event]:
    """Alerts that began or ended since the look before."""
    for key, text in now.items():
        if key not in before:
            yield Event(time=when, key=key, text=text, begins=True)
    for key, text in before.items():
        if key not in now:
            yield Event(time=when, key=key, text=text, begins=False)


def falls(
    before: Fleet | None, now: Fleet, limits: Limits, standing: Mapping[str, str]
) -> dict[str, str]:
    """Alerts that only two looks show: a VM is gone, or agents of a VM are.

    `standing` are the alerts of the look before; one of this kind stands until it is mended.
    """
    found: dict[str, str] = {}
    there = {vm.name: vm for vm in now.vms}
    for key, text in standing.items():
        name, _, what = key.rpartition("/")
        if (what == "gone" and name not in there) or (
            what == "agents" and name in there and _lacks(there[name], limits)
        ):
            found[key] = text
    for old in before.vms if before else ():
        new = there.get(old.name)
        if new is None:
            why = "; ".join(now.unseen) or "the VM is not there any more"
            found.setdefault(f"{old.name}/gone", why)
            continue
        was, runs = old.count("running"), new.count("running")
        if was is None or runs is None or runs >= was or new.wanted < old.wanted:
            continue
        if _lacks(new, limits):
            text = f"{was:,} agents ran, now {runs:,} of {new.wanted:,}"
            found.setdefault(f"{new.name}/agents", text)
    return found


def _lacks(vm: Vm, limits: Limits) -> bool:
    """Whether agents are missing though the VM neither drains nor rolls."""
    runs = vm.count("running")
    expected = vm.status.text("phase") in ("whole", "converging")
    return vm.speaks and runs is not None and expected and runs < limits.online * vm.wanted
