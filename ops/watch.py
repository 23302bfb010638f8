"""The health loop: what of a look is an alert, and what of two looks is an event. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ops.fleet import Doc, Fleet, Vm

SHORT: Final = 0.20
"""Less of a VM's memory than this fraction left is a warning: there, benchmarks are frozen
(docs/CONTRACT.md)."""
FULL: Final = 0.10
"""Less of a state disk than this fraction left is a warning, as in components/alerts.py."""
THRESHOLD: Final = 9_000 / 9_500
"""Online agents below this fraction of the declared ones are an alert (the blog's numbers)."""
GROWTH: Final = 100 * 2**20
"""Bytes an hour of growth that are an alert (the blog's 100 MB/h; the VM itself sets it against
connections and then speaks of a leak)."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`online`: a fraction of the declared agents. `growth`: bytes an hour."""

    online: float = THRESHOLD
    growth: int = GROWTH


@dataclass(frozen=True, kw_only=True)
class Event:
    """An alert that begins, or one that is over. `key` is what it is about, for machines."""

    time: float
    key: str
    text: str
    begins: bool

    def line(self) -> str:
        """One line."""
        when = datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"{when} {'ALERT' if self.begins else 'over '} {self.key}: {self.text}"


def alerts(fleet: Fleet, limits: Limits) -> dict[str, str]:
    """What is wrong in a look: a sentence for each key."""
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
        # The registry counts the dead for a while; the VMs know at once.
        running = sum(each or 0 for each in counts)
        if running < least:
            found["fleet/running"] = f"{running:,} of {wanted:,} agents run, less than {least:,.0f}"
    for vm in fleet.vms:
        found |= {f"{vm.name}/{key}": text for key, text in _of(vm, limits)}
    return found


def is_short(vm: Vm) -> bool:
    """Is less memory left than benchmarks are frozen at?"""
    total, left = vm.status.number("memory.total"), vm.status.number("memory.available")
    return bool(vm.speaks and total and left is not None and left < SHORT * total)


def disk_problem(vm: Vm) -> str:
    """What is wrong with its state disk, or ""."""
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
        yield "leak", f"its agents' memory grows by {growth / 2**20:.0f} MiB an hour"
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
    """What the VM runs that nobody declared, by where it stands."""
    keys = status.texts("ghosts")
    shared = [key.removeprefix("project/") for key in keys if key.startswith("project/")]
    if own := [key for key in keys if not key.startswith("project/")]:
        yield f"ghost script at the instance: {', '.join(own)}"
    if shared:
        yield f"ghost script in the project's metadata: {', '.join(shared)}"


def events(before: Mapping[str, str], now: Mapping[str, str], when: float) -> Iterator[Event]:
    """What began and what is over since the look before."""
    for key, text in now.items():
        if key not in before:
            yield Event(time=when, key=key, text=text, begins=True)
    for key, text in before.items():
        if key not in now:
            yield Event(time=when, key=key, text=text, begins=False)


def falls(
    before: Fleet | None, now: Fleet, limits: Limits, standing: Mapping[str, str]
) -> dict[str, str]:
    """What only two looks show: VMs that are gone, and agents that are gone from one VM.

    `standing` are the alerts of the look before: one of these goes on until it is mended.
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
    """Do agents lack that nobody drains, rolls or has fewer of declared?"""
    runs = vm.count("running")
    expected = vm.status.text("phase") in ("whole", "converging")
    return vm.speaks and runs is not None and expected and runs < limits.online * vm.wanted
