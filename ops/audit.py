"""The ghost hunt: reads a live project, and finds what differs from what was declared.

Google's guest agent looks for a startup script at the instance, then in its zone's instance
settings, then at the project, and runs the first that it finds. So a script anywhere but in the
project's item replaces the fleet's unseen, and the project's item runs on every VM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ops.errors import MissingError, UnsupportedError
from ops.fleet import LABEL, RENDEZVOUS, SWARM, Fleet, Instance
from ops.ghost_keys import what_runs
from ops.google import Cloud, Listed, pairs

OWN: Final = "startup-script"
DECLARED: Final = ("enable-guest-attributes", "enable-oslogin", "pilot-role", "pilot-spec")
"""The metadata keys of a fleet VM (docs/CONTRACT.md); all others are somebody else's."""
# Pulumi compares with its state, and sees a change made at Google only after a refresh.
_MEND: Final = "make up ARGS=--refresh"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as declared."""

    rule: str
    """For machines."""
    where: str
    """The resource."""
    what: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Bag:
    """The metadata of an instance, or of something that gives VMs metadata."""

    kind: str
    """`instance`, `template`, `group`, `image`, `zone` or `project`."""
    where: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ProjectMetadata:
    """All metadata of a project that the API shows."""

    name: str
    instances: tuple[Instance, ...]
    bags: tuple[Bag, ...]
    metadata: Mapping[str, str]
    """The project's own."""
    unread: tuple[str, ...] = ()
    """What the API did not show."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the checkout declares."""

    script: str = ""
    """The script's sha256 in hex; "": not known."""
    metadata: Mapping[str, Mapping[str, str]] | None = None
    """VM -> its metadata; None: not known."""
    zones: Mapping[str, str] = field(default_factory=dict)
    """VM -> its zone, where it is known."""
    allowed: tuple[str, ...] = ()
    """Names of resources that may have a script of their own."""


def parse_declared(text: str, script: str) -> Declared:
    """What `python -m components.declared STACK` has printed; `script` instead of its sha256, if
    given. ValueError, KeyError, TypeError or AttributeError where the text is something else."""
    found = json.loads(text)
    return Declared(
        script=script or str(found["script"]),
        metadata={name: dict(each) for name, each in found["metadata"].items()},
        # A checkout before zones prints none.
        zones={name: str(zone) for name, zone in found.get("zones", {}).items()},
        allowed=tuple(str(name) for name in found.get("allowed", ())),
    )


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an audit."""

    fleet: str
    looked_at: Mapping[str, int]
    """Kind of resource -> how many were looked at."""
    findings: tuple[Finding, ...]
    unread: tuple[str, ...] = ()
    """What the API did not show."""

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def read(
    cloud: Cloud, instances: Iterable[Instance], unseen: Iterable[str] = ()
) -> ProjectMetadata:
    """Read a project's metadata. `unread` names the parts that the API does not have, and the
    zones and regions that do not answer (for `instances` those of `unseen`)."""
    found = tuple(instances)
    unread = [f"VMs: {each}" for each in unseen]

    def part(what: str, ask: Callable[[], Listed]) -> Sequence[tuple[str, Any]]:
        try:
            listed = ask()
        except UnsupportedError:
            unread.append(f"{what} (this API does not have them)")
            return ()
        unread.extend(f"{what}: {each}" for each in listed.unseen)
        return listed.items

    bags: list[Bag] = [
        Bag(kind="instance", where=each.path, metadata=each.metadata) for each in found
    ]
    templates = part("regional instance templates", cloud.templates)
    if not templates:
        templates = cloud.global_templates().items
    bags += [
        Bag(
            kind="template",
            where=f"{where}/instanceTemplates/{each.name}",
            metadata=pairs(each.properties.metadata),
        )
        for where, each in templates
    ]
    bags += [
        Bag(
            kind="image",
            where=f"global/machineImages/{each.name}",
            metadata=pairs(each.instance_properties.metadata),
        )
        for _, each in part("machine images", cloud.machine_images)
    ]
    bags += [
        Bag(
            kind="group",
            where=f"{where}/instanceGroupManagers/{each.name}",
            metadata=dict(each.all_instances_config.properties.metadata),
        )
        for where, each in part("managed instance groups", cloud.instance_groups)
    ]
    for zone in sorted({each.zone for each in found}):
        try:
            metadata = cloud.zone_metadata(zone)
        except MissingError:
            continue
        except UnsupportedError:
            unread.append(f"instance settings of {zone} (this API does not have them)")
            continue
        bags.append(Bag(kind="zone", where=f"zones/{zone}/instanceSettings", metadata=metadata))
    return ProjectMetadata(
        name=cloud.place.project,
        instances=found,
        bags=tuple(bags),
        metadata=cloud.project_metadata(),
        unread=tuple(unread),
    )


def audit(
    project: ProjectMetadata, fleet: Fleet, declared: Declared, allowed: Iterable[str] = ()
) -> Report:
    """Judge a project. `allowed` names resources whose scripts are wanted, beside those that the
    checkout allows."""
    counts: dict[str, int] = {"project": 1}
    for bag in project.bags:
        counts[bag.kind] = counts.get(bag.kind, 0) + 1
    wanted = frozenset({*allowed, *declared.allowed})
    found = [
        *(each for bag in project.bags for each in _ghosts(bag, fleet, wanted)),
        *_project(project, fleet, declared),
        *_members(project, fleet),
        *_missing(fleet, declared),
        *(each for vm in fleet.vms for each in _metadata(vm.instance, declared)),
        *_words(project, fleet),
    ]
    return Report(fleet=fleet.name, looked_at=counts, findings=tuple(found), unread=project.unread)


def _ghosts(bag: Bag, fleet: Fleet, allowed: frozenset[str]) -> Iterator[Finding]:
    name = bag.where.rsplit("/", 1)[-1]
    # A script that reaches the fleet's VMs cannot be allowed; a zone's settings do.
    is_fleets = (
        bag.kind == "zone"
        or not _FLEETS.isdisjoint(bag.metadata)
        or bag.where in {vm.instance.path for vm in fleet.vms}
    )
    if name in allowed and not is_fleets:
        return
    for key, value in bag.metadata.items():
        if does := what_runs(key, value):
            digest = hashlib.sha256(value.encode()).hexdigest()
            # zones/ZONE/instances/NAME, zones/ZONE/instanceSettings
            zone = bag.where.removeprefix("zones/").partition("/")[0]
            remedy = _REMEDY.get(bag.kind, "take it out").format(name=name, zone=zone, key=key)
            if not is_fleets:
                remedy += f"; where it is wanted, --allow {name}"
            elif name in allowed:
                remedy += " (a script that the fleet's VMs run cannot be allowed)"
            yield Finding(
                rule=f"ghost-{bag.kind}",
                where=f"{bag.where} [{key}]",
                what=f"{len(value.encode())} bytes that {does} (sha256 {digest[:12]})",
                remedy=remedy,
            )


_FLEETS: Final = frozenset({"pilot-role", "pilot-spec"})
_REMEDY: Final = {
    "instance": "gcloud compute instances remove-metadata {name} --zone={zone} --keys={key}, then "
    "reboot it",
    "template": "delete the template, and look for what was made from it",
    "zone": "take the key out of the instance settings of {zone}",
}


def _project(project: ProjectMetadata, fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    where = f"projects/{project.name}"
    for key, value in project.metadata.items():
        if key != OWN and (does := what_runs(key, value)):
            yield Finding(
                rule="ghost-project",
                where=f"{where} [{key}]",
                what=f"it reaches every VM of the project: {len(value.encode())} bytes that "
                f"{does.replace('in place of', 'beside')}",
                remedy=f"gcloud compute project-info remove-metadata --keys={key}",
            )
    expected = {digest for vm in fleet.vms if (digest := vm.instance.spec.text("script.sha256"))}
    if declared.script:
        for digest in sorted(expected - {declared.script}):
            yield Finding(
                rule="script-differs",
                where=f"{where} [{OWN}]",
                what=f"VMs expect a script of sha256 {digest[:12]}, this checkout renders "
                f"{declared.script[:12]}",
                remedy="`make preview ARGS=--refresh` shows what differs; is the checkout the "
                "deployed one?",
            )
        expected = {declared.script}
    script = project.metadata.get(OWN)
    if script is None:
        yield Finding(
            rule="script-missing",
            where=f"{where} [{OWN}]",
            what="the project has no startup script: a VM that boots starts no agent",
            remedy=_MEND,
        )
        return
    digest = hashlib.sha256(script.strip().encode()).hexdigest()
    if expected and digest not in expected:
        yield Finding(
            rule="script-foreign",
            where=f"{where} [{OWN}]",
            what=f"its sha256 is {digest[:12]}, declared is "
            f"{', '.join(sorted(each[:12] for each in expected))}",
            remedy=f"find out who changed it, then `{_MEND}`",
        )
    if len(expected) > 1:
        yield Finding(
            rule="script-differs",
            where=f"{where} [{OWN}]",
            what=f"the VMs' specs expect {len(expected)} different scripts",
            remedy=_MEND,
        )


def _members(project: ProjectMetadata, fleet: Fleet) -> Iterator[Finding]:
    """VMs with the fleet's metadata and without its label."""
    members = {vm.instance.path for vm in fleet.vms}
    for each in project.instances:
        looks_like = [key for key in each.metadata if key.startswith("pilot-")]
        if each.path not in members and looks_like:
            yield Finding(
                rule="stranger",
                where=each.path,
                what=f"has {', '.join(looks_like)} in its metadata but not the label "
                f"{LABEL}={fleet.name}: it runs agents and is in nobody's count",
                remedy="delete it, or declare it",
            )
    if not fleet.rendezvous:
        yield Finding(rule="no-rendezvous", where=f"fleet {fleet.name}", what="no VM has that role")


def _missing(fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    """VMs that are declared and not there."""
    if declared.metadata is None:
        if text := fleet.problem:
            yield Finding(rule="missing", where=f"fleet {fleet.name}", what=text, remedy=_MEND)
        return
    for name in sorted(declared.metadata.keys() - {vm.name for vm in fleet.vms}):
        yield Finding(
            rule="missing",
            where=f"fleet {fleet.name}",
            what=f"{name} is declared and not there, or without the label {LABEL}={fleet.name}",
            remedy=_MEND,
        )


def _metadata(instance: Instance, declared: Declared) -> Iterator[Finding]:
    found, spec, where = instance.metadata, instance.spec, instance.path
    for key in sorted(found.keys() - set(DECLARED)):
        if not what_runs(key, found[key]):
            yield Finding(
                rule="undeclared-key",
                where=f"{where} [{key}]",
                what="nobody declared it",
                remedy=f"gcloud compute instances remove-metadata {instance.name} "
                f"--zone={instance.zone} --keys={key}, or `{_MEND}`",
            )
    wrong = dict(_disagreements(instance))
    if not spec.content:
        wrong["pilot-spec"] = "is not a JSON document"
    for key, what in wrong.items():
        yield Finding(rule="metadata", where=f"{where} [{key}]", what=what, remedy=_MEND)
    if declared.metadata is None or wrong:
        return
    expected = declared.metadata.get(instance.name)
    if expected is None:
        yield Finding(
            rule="not-declared", where=where, what="the stack file has no VM of that name"
        )
        return
    zone = declared.zones.get(instance.name, instance.zone)
    if zone != instance.zone:
        yield Finding(
            rule="zone-differs",
            where=where,
            what=f"the VM of that name is declared in {zone}",
            remedy="`make preview ARGS=--refresh` shows which one is the fleet's: delete another",
        )
    for key in sorted(expected.keys() | (found.keys() & set(DECLARED))):
        if not _same(found.get(key), expected.get(key)):
            yield Finding(
                rule="metadata-differs",
                where=f"{where} [{key}]",
                what=_difference(found.get(key), expected.get(key)),
                remedy=f"`make preview ARGS=--refresh` shows it; `{_MEND}` mends it",
            )


def _disagreements(instance: Instance) -> Iterator[tuple[str, str]]:
    """Contradictions between a VM's metadata, its labels and its name."""
    found, spec = instance.metadata, instance.spec
    role = found.get("pilot-role", "")
    if role not in (SWARM, RENDEZVOUS):
        yield "pilot-role", f"is {role!r}: the VM does not take itself for the fleet's"
    elif role != instance.labels.get("pilot-role"):
        yield "pilot-role", f"is {role}, the label says {instance.labels.get('pilot-role')!r}"
    if spec.content and spec.text("role") != role:
        yield "pilot-spec", f"is for a {spec.text('role') or '?'}, the VM's role is {role or '?'}"
    elif spec.content and spec.text("name") != instance.name:
        yield "pilot-spec", f"is the spec of {spec.text('name') or '?'}"
    for key in ("enable-guest-attributes", "enable-oslogin"):
        if found.get(key, "").upper() != "TRUE":
            yield key, f"is {found.get(key)!r}, not TRUE"


def _same(found: str | None, expected: str | None) -> bool:
    if found is None or expected is None:
        return found == expected
    try:
        one, other = json.loads(found), json.loads(expected)
    except ValueError:
        return found == expected
    # A checkout without the binary knows its sha256 from the stack file only.
    for name in ("daemon", "rendezvous"):
        if isinstance(other, dict) and other.get("release", {}).get(name, ...) is None:
            other["release"][name] = one.get("release", {}).get(name)
    return bool(one == other)


def _difference(found: str | None, expected: str | None) -> str:
    if found is None or expected is None:
        return "is missing" if found is None else "should not be there"
    try:
        one, other = json.loads(found), json.loads(expected)
        keys = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    except (ValueError, AttributeError):
        return f"is {found[:60]!r}, declared is {expected[:60]!r}"
    return f"differs from what is declared in {', '.join(keys)}"


def _words(project: ProjectMetadata, fleet: Fleet) -> Iterator[Finding]:
    """Findings from the VMs' statuses."""
    for vm in fleet.vms:
        where = vm.instance.path
        if not vm.speaks and vm.instance.is_on:
            yield Finding(
                rule="silent",
                where=where,
                what=vm.problem,
                remedy=f"`ops logs {vm.name}`: a ghost script is one way to be silent",
            )
        if not vm.speaks:
            continue
        for key in vm.status.texts("ghosts"):
            of_project = key.removeprefix("project/")
            held = vm.instance.metadata if of_project == key else project.metadata
            if of_project not in held:
                yield Finding(
                    rule="ghost-instance",
                    where=f"{where} [{key}]",
                    what="the VM saw it, the API does not show it (any more)",
                )
        if vm.status.text("script.state") in ("foreign", "absent"):
            state = vm.status.text("script.state")
            yield Finding(
                rule="script-foreign",
                where=where,
                what=f"the VM finds the project's startup script {state}",
            )
