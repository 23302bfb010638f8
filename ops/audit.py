"""The ghost hunt: what of a live project is not what was declared. Pure rules, and their reading.

Google's guest agent looks for a startup script at the instance, then (zonal) at its zone's instance
settings, then at the project, and runs the first that it finds. So a script anywhere but in the
project's one item replaces the fleet's, unseen; and the project's item runs on every VM.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from ops.errors import MissingError, UnsupportedError
from ops.fleet import LABEL, RENDEZVOUS, SWARM, Fleet, Instance
from ops.google import Cloud, pairs

OWN: Final = "startup-script"
DECLARED: Final = ("enable-guest-attributes", "enable-oslogin", "pilot-role", "pilot-spec")
"""The keys of a fleet VM's metadata (docs/CONTRACT.md); all others are somebody else's."""
# Google's runner (startup, shutdown, Windows' and sysprep's forms, their URLs) and cloud-init.
_SCRIPT: Final = re.compile(
    r"(startup|shutdown|specialize|oobe|bootstrap)-?script|^user-?data|^vendor-?data"
    r"|^cloud-?init|^cloud-?config|^configure-sh$|^gce-container-declaration$"
)
# Pulumi compares with its state: what was changed at Google it sees only when it asks there.
_MEND: Final = "make up ARGS=--refresh"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`rule` is for machines, `where` the resource; `what` and `remedy` are sentences."""

    rule: str
    where: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Bag:
    """Metadata of something that VMs are made of, or get: `kind` is instance, template, group,
    image, zone or project."""

    kind: str
    where: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Project:
    """All that the API shows of a project's metadata; `unread` says what it does not show."""

    name: str
    instances: tuple[Instance, ...]
    bags: tuple[Bag, ...]
    metadata: Mapping[str, str]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the checkout declares: the script's sha256 (hex, "" unknown), and the metadata of each
    VM (None: unknown)."""

    script: str = ""
    metadata: Mapping[str, Mapping[str, str]] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found, and what could not be looked at."""

    fleet: str
    looked_at: Mapping[str, int]
    findings: tuple[Finding, ...]
    unread: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def is_script(key: str) -> bool:
    """Does a VM run what is under this metadata key?"""
    return bool(_SCRIPT.search(re.sub(r"[\s_]", "-", key.strip()).lower()))


def read(cloud: Cloud, instances: Iterable[Instance]) -> Project:
    """Look at a project. Parts that an API does not have are named in `unread`."""
    found = tuple(instances)
    unread: list[str] = []

    def part(what: str, ask: Callable[[], Iterable[_T]]) -> list[_T]:
        try:
            return list(ask())
        except UnsupportedError:
            unread.append(what)
            return []

    bags: list[Bag] = [
        Bag(kind="instance", where=each.path, metadata=each.metadata) for each in found
    ]
    templates = part("regional instance templates", cloud.templates)
    if "regional instance templates" in unread:
        templates = list(cloud.global_templates())
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
        for each in part("machine images", cloud.machine_images)
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
            unread.append(f"instance settings of {zone}")
            continue
        bags.append(Bag(kind="zone", where=f"zones/{zone}/instanceSettings", metadata=metadata))
    return Project(
        name=cloud.place.project,
        instances=found,
        bags=tuple(bags),
        metadata=cloud.project_metadata(),
        unread=tuple(unread),
    )


def audit(
    project: Project, fleet: Fleet, declared: Declared, allowed: Iterable[str] = ()
) -> Report:
    """Judge a project. `allowed`: names of resources whose own scripts are known and wanted."""
    counts: dict[str, int] = {"project": 1}
    for bag in project.bags:
        counts[bag.kind] = counts.get(bag.kind, 0) + 1
    wanted = frozenset(allowed)
    found = [
        *(each for bag in project.bags for each in _ghosts(bag, wanted)),
        *_project(project, fleet, declared),
        *_members(project, fleet),
        *_missing(fleet, declared),
        *(each for vm in fleet.vms for each in _metadata(vm.instance, declared)),
        *_words(fleet),
    ]
    return Report(fleet=fleet.name, looked_at=counts, findings=tuple(found), unread=project.unread)


def _ghosts(bag: Bag, allowed: frozenset[str]) -> Iterator[Finding]:
    name = bag.where.rsplit("/", 1)[-1]
    if name in allowed:
        return
    for key, value in bag.metadata.items():
        if is_script(key):
            digest = hashlib.sha256(value.encode()).hexdigest()
            yield Finding(
                rule=f"ghost-{bag.kind}",
                where=f"{bag.where} [{key}]",
                what=f"{len(value.encode())} bytes that a VM runs at boot in place of the "
                f"project's startup script (sha256 {digest[:12]})",
                remedy=_REMEDY.get(bag.kind, "take it out").format(name=name, key=key),
            )


_REMEDY: Final = {
    "instance": "gcloud compute instances remove-metadata {name} --keys={key}, then reboot it",
    "template": "delete the template, and look for what was made from it",
    "zone": "take the key out of the zone's instance settings",
}


def _project(project: Project, fleet: Fleet, declared: Declared) -> Iterator[Finding]:
    where = f"projects/{project.name}"
    for key in project.metadata:
        if key != OWN and is_script(key):
            yield Finding(
                rule="ghost-project",
                where=f"{where} [{key}]",
                what="every VM of the project runs it",
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


def _members(project: Project, fleet: Fleet) -> Iterator[Finding]:
    """VMs that only pretend to be of the fleet, or do not say that they are."""
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
    """VMs that are declared, and are not there."""
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
        if not is_script(key):
            yield Finding(
                rule="undeclared-key",
                where=f"{where} [{key}]",
                what="nobody declared it",
                remedy=f"gcloud compute instances remove-metadata {instance.name} --keys={key}, "
                f"or `{_MEND}`",
            )
    wrong = dict(_disagreements(instance))
    if not spec.content:
        wrong["pilot-spec"] = "is no JSON document"
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
    for key in sorted(expected.keys() | (found.keys() & set(DECLARED))):
        if not _same(found.get(key), expected.get(key)):
            yield Finding(
                rule="metadata-differs",
                where=f"{where} [{key}]",
                what=_difference(found.get(key), expected.get(key)),
                remedy=f"`make preview ARGS=--refresh` shows it; `{_MEND}` mends it",
            )


def _disagreements(instance: Instance) -> Iterator[tuple[str, str]]:
    """What in a VM's metadata contradicts itself, its labels or its name."""
    found, spec = instance.metadata, instance.spec
    role = found.get("pilot-role", "")
    if role not in (SWARM, RENDEZVOUS):
        yield "pilot-role", f"is {role!r}: the VM takes itself for a stranger"
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
    # A checkout without the binary does not know its sha256, unless the stack file names it.
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


def _words(fleet: Fleet) -> Iterator[Finding]:
    """What the VMs themselves say, or do not."""
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
            if key not in vm.instance.metadata:
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
