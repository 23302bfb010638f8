"""Reads the fleet as it is: its VMs through Google's API, the status of each, the dashboard.

It judges nothing. A status comes from a machine that runs strangers' code: it is taken as text of
unknown shape.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from ops.defaults import DASHBOARD_PORT
from ops.errors import MissingError, OpsError, UnreachableError, UsageError
from ops.google import Cloud, pairs
from ops.json_document import Doc, seconds
from ops.registry_counts import RegistryCounts, ask_dashboard

LABEL: Final = "pilot-fleet"
STATUS: Final = "pilot/status"
SWARM: Final = "swarm"
RENDEZVOUS: Final = "rendezvous"
SILENT_AFTER: Final = 180.0  # seconds (docs/CONTRACT.md, "Status")
# A client of Google's keeps as many connections.
_AT_ONCE: Final = 10


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A VM of the project as the API shows it, the fleet's or not."""

    name: str
    zone: str
    state: str
    machine: str
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    """Seconds since the epoch."""

    @property
    def path(self) -> str:
        """Its path in the project, as gcloud and the console show it."""
        return f"zones/{self.zone}/instances/{self.name}"

    @property
    def fleet(self) -> str:
        """The fleet that its label names, or ""."""
        return self.labels.get(LABEL, "")

    @property
    def role(self) -> str:
        """`swarm`, `rendezvous` or "". Its metadata come first: the VM acts by them."""
        return self.metadata.get("pilot-role") or self.labels.get("pilot-role", "")

    @property
    def is_on(self) -> bool:
        """Whether it runs."""
        return self.state == "RUNNING"

    @cached_property
    def spec(self) -> Doc:
        """Its spec; an empty document where that cannot be read."""
        try:
            return Doc(json.loads(self.metadata.get("pilot-spec", "")))
        except (ValueError, RecursionError):
            return Doc(None)


@dataclass(frozen=True, kw_only=True)
class Vm:
    """A VM of the fleet and what it says of itself."""

    instance: Instance
    status: Doc
    """Empty where there is none. May be old, or of an earlier boot: then `problem` says so."""
    problem: str = ""
    """Why the status is not a state of now; "" where it is."""

    @property
    def name(self) -> str:
        return self.instance.name

    @property
    def is_swarm(self) -> bool:
        return self.instance.role == SWARM

    @property
    def wanted(self) -> int:
        """Agents that its spec wants."""
        return (self.instance.spec.number("agents") or 0) if self.is_swarm else 0

    @property
    def speaks(self) -> bool:
        """Whether its status is a state of now."""
        return not self.problem

    def count(self, what: str) -> int | None:
        """Agents that are `running`, `starting`, `stopping` or `failed`; None: not known now."""
        if self.instance.state == "TERMINATED" and self.is_swarm:
            return 0
        return self.status.number(f"agents.{what}") if self.speaks else None


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """One look at a fleet."""

    name: str
    project: str
    time: float
    """Seconds since the epoch."""
    vms: tuple[Vm, ...]
    """The rendezvous' VM first, then by name."""
    registry: RegistryCounts
    unseen: tuple[str, ...] = ()
    """A sentence per zone that did not answer: its VMs are not among `vms`."""

    @property
    def swarm(self) -> tuple[Vm, ...]:
        """The VMs with agents, the smallest first."""
        found = [vm for vm in self.vms if vm.is_swarm]
        return tuple(sorted(found, key=lambda vm: (vm.wanted, vm.name)))

    @property
    def rendezvous(self) -> Vm | None:
        """The VM of the rendezvous."""
        return _rendezvous(self.vms)

    @property
    def wanted(self) -> int:
        """Agents declared for the fleet: those of the VMs that are there, and `missing`."""
        return sum(vm.wanted for vm in self.vms) + self.missing

    @property
    def missing(self) -> int:
        """Agents that the rendezvous' spec counts and no VM's spec wants. Nothing else shows that
        a VM was deleted."""
        told = self.rendezvous.instance.spec.number("agents") if self.rendezvous else None
        return max(0, (told or 0) - sum(vm.wanted for vm in self.vms))

    @property
    def problem(self) -> str:
        """`missing` as a sentence; "" where none is."""
        if not self.missing:
            return ""
        hidden = f", or it is not seen ({'; '.join(self.unseen)})" if self.unseen else ""
        return (
            f"{self.missing:,} of {self.wanted:,} agents that the rendezvous was told of are "
            f"wanted by no VM: one was deleted, or its spec cannot be read (`ops audit`){hidden}"
        )

    def vm(self, name: str) -> Vm:
        """A VM by name. MissingError lists the names that there are."""
        for vm in self.vms:
            if vm.name == name:
                return vm
        names = ", ".join(vm.name for vm in self.vms)
        text = f"{name} is no VM of fleet {self.name}: there are {names}"
        raise MissingError("; ".join((text, *self.unseen)))


@dataclass(frozen=True, kw_only=True)
class ProjectVms:
    """All VMs of a project."""

    vms: tuple[Instance, ...]
    """By name."""
    unseen: tuple[str, ...] = ()
    """A sentence per zone that did not answer."""


def instances(cloud: Cloud) -> ProjectVms:
    """Every VM of the project that Google shows."""
    found = cloud.instances()
    vms = sorted(
        (_instance(each) for _, each in found.items), key=lambda each: (each.name, each.zone)
    )
    return ProjectVms(vms=tuple(vms), unseen=found.unseen)


def _instance(found: Any) -> Instance:
    return Instance(
        name=found.name,
        zone=found.zone.rsplit("/", 1)[-1],
        state=found.status,
        machine=found.machine_type.rsplit("/", 1)[-1],
        labels=dict(found.labels),
        metadata=pairs(found.metadata),
        started=seconds(found.last_start_timestamp),
    )


def choose(found: ProjectVms, fleet: str) -> tuple[str, list[Instance]]:
    """The fleet's name and its VMs: the fleet that is named, or the only one.

    MissingError where there is none, UnreachableError where it may be in a zone that did not
    answer, UsageError where there are several.
    """
    members = [each for each in found.vms if each.fleet]
    names = sorted({each.fleet for each in members})
    wrong = ""
    if fleet and fleet not in names:
        there = f"there is {', '.join(names)}" if names else "there is no fleet at all"
        wrong = f"no VM has the label {LABEL}={fleet}; {there}"
    elif not names:
        wrong = f"no VM of this project has the label {LABEL}: is it the right project?"
    if wrong and found.unseen:
        raise UnreachableError("; ".join((*found.unseen, wrong)))
    if wrong:
        raise MissingError(wrong)
    if not fleet and len(names) > 1:
        raise UsageError(f"there are several fleets: choose one with --fleet ({', '.join(names)})")
    chosen = fleet or names[0]
    return chosen, [each for each in members if each.fleet == chosen]


def listen(instance: Instance, text: str | None, now: float) -> Vm:
    """The VM with the status that it published (`text`, None: nothing), judged by its age."""
    try:
        content = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        content = ...
    status = Doc(content if isinstance(content, Mapping) else None)
    return Vm(instance=instance, status=status, problem=_problem(instance, content, now))


def _problem(instance: Instance, content: Any, now: float) -> str:
    if not instance.is_on:
        return f"it is {instance.state}"
    if content is None:
        return "it has published no status: it boots, or its script did not run (ops logs)"
    if not isinstance(content, Mapping):
        return "its status is not a JSON document"
    status = Doc(content)
    schema, when = status.number("schema"), status.when("time")
    if schema != 1 or when is None:
        what = "no time" if schema == 1 else f"schema {schema}, this command knows 1"
        return f"its status has {what}"
    return _lateness(when, instance.started, now)


def _lateness(when: float, started: float | None, now: float) -> str:
    # The time of a status has no fractions of a second.
    if started is not None and when < math.floor(started):
        return f"its status is of an earlier boot, {age(now - when)} old"
    if now - when > SILENT_AFTER:
        return f"it is silent for {age(now - when)}"
    if when - now > SILENT_AFTER:
        return f"its clock is {age(when - now)} ahead of this machine's"
    return ""


def age(span: float) -> str:
    """A span of seconds in the largest unit that it holds twice."""
    whole = max(0, int(span))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def read(
    cloud: Cloud,
    *,
    fleet: str = "",
    dashboard: str = "",
    only: Iterable[str] = (),
    there: ProjectVms | None = None,
) -> Fleet:
    """Look at the fleet. Where `only` names VMs, the others' status is not read.

    One request per 500 VMs (none where `there` has them), one per status, one for the dashboard.
    """
    project = instances(cloud) if there is None else there
    name, found = choose(project, fleet)
    asked = set(only) or {each.name for each in found}

    def status(instance: Instance) -> str | OpsError | None:
        if not instance.is_on or instance.name not in asked:
            return None
        try:
            return cloud.guest_attribute(instance.zone, instance.name, STATUS)
        except OpsError as error:
            # Any refusal is this VM's problem alone: the others are still shown.
            return error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        texts = list(pool.map(status, found))
    now = time.time()
    heard = (_heard(instance, text, now) for instance, text in zip(found, texts, strict=True))
    vms = tuple(sorted(heard, key=lambda vm: (vm.is_swarm, vm.name)))
    rendezvous = _rendezvous(vms)
    return Fleet(
        name=name,
        project=cloud.place.project,
        time=now,
        vms=vms,
        registry=registry(cloud, rendezvous, dashboard),
        unseen=project.unseen,
    )


def _heard(instance: Instance, text: str | OpsError | None, now: float) -> Vm:
    if isinstance(text, OpsError):
        return Vm(instance=instance, status=Doc(None), problem=f"its status cannot be read: {text}")
    return listen(instance, text, now)


def registry(cloud: Cloud, rendezvous: Vm | None, dashboard: str) -> RegistryCounts:
    """What the registry counts, from the dashboard that is named, else from its VM's status.

    A dashboard that is not named is asked for networks only, which no VM tells: behind a tunnel
    there may be another fleet's.
    """
    told = _told(rendezvous)
    if dashboard:
        found = ask_dashboard(dashboard)
        if found.online is not None:
            return found
        problem = f"the dashboard does not answer at {dashboard} (`ops dashboard` opens a tunnel)"
        why = f"; {told.problem}" if told.problem else ""
        return replace(told, problem=f"{problem}{why}")
    if rendezvous is None or told.online is None:
        return told
    try:
        found = ask_dashboard(dashboard_url(cloud, rendezvous.instance))
    except OpsError:
        return told
    return replace(told, networks=found.networks, networks_source=found.networks_source)


def newest_rendezvous(found: Iterable[Instance]) -> Instance | None:
    """The instance of the rendezvous. While it moves to another zone there are two, and after a
    zone that did not answer too: the one that was started last."""
    mine = [each for each in found if each.role == RENDEZVOUS]
    # A swarm VM whose metadata were changed by hand is labelled as what it is.
    labelled = [each for each in mine if each.labels.get("pilot-role") == RENDEZVOUS]
    return max(labelled or mine, key=lambda each: each.started or 0.0, default=None)


def _rendezvous(vms: Sequence[Vm]) -> Vm | None:
    newest = newest_rendezvous(vm.instance for vm in vms)
    return next((vm for vm in vms if vm.instance is newest), None)


def _told(rendezvous: Vm | None) -> RegistryCounts:
    """The counts in the status of the rendezvous' VM."""
    if rendezvous is None:
        return RegistryCounts(problem="the fleet has no rendezvous")
    name = rendezvous.name
    if rendezvous.problem:
        return RegistryCounts(problem=f"{name}: {rendezvous.problem}")
    online = rendezvous.status.number("registry.online")
    if online is None:
        return RegistryCounts(problem=f"{name} says that its registry is down")
    return RegistryCounts(
        online=online, total=rendezvous.status.number("registry.total"), source=name
    )


def dashboard_url(cloud: Cloud, rendezvous: Instance) -> str:
    """The dashboard's usual URL: behind the tunnel that `ops dashboard` opens, or behind a
    forwarded port where the cloud is on this machine."""
    if not cloud.place.is_here:
        return f"http://localhost:{DASHBOARD_PORT}"
    port = cloud.forward(rendezvous.zone, rendezvous.name, DASHBOARD_PORT)
    return f"http://127.0.0.1:{port}"
