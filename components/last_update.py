"""Reads the stack's last state, and compares the configuration with it before anything is declared.

It refuses what no update can do (a smaller disk, a swarm VM that changes zone), and tells which VMs
an update makes or stops. rendezvous_zone.py has the rendezvous that changes zone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pulumi

from components.config import (
    PROJECT_NAME,
    STATE_DISK_SUFFIX,
    FleetConfig,
    RendezvousConfig,
    SwarmVmConfig,
)
from components.config_reader import Problem
from components.vm import boot_device
from components.zone_types import NeededMachineType

_INSTANCE = "gcp:compute/instance:Instance"
_DISK = "gcp:compute/disk:Disk"
_ADDRESS = "gcp:compute/address:Address"


@dataclass(frozen=True, kw_only=True)
class LastUpdate:
    """The stack as its last update left it."""

    # Size of the boot disk in GB, by VM.
    boot_gb: Mapping[str, int]
    # Size in GB of other disks, by disk.
    disk_gb: Mapping[str, int]
    # Device name of the boot disk, by VM.
    devices: Mapping[str, str]
    # By VM.
    machine_types: Mapping[str, str] = field(default_factory=dict)
    # Address of the service account, by VM.
    accounts: Mapping[str, str] = field(default_factory=dict)
    # Zone of the state disk, by VM; of the VM where the disk is not recorded.
    zones: Mapping[str, str] = field(default_factory=dict)
    # Zone of each disk but boot disks, by its name.
    disk_zones: Mapping[str, str] = field(default_factory=dict)
    # IP address, by the name of the resource.
    addresses: Mapping[str, str] = field(default_factory=dict)
    # Zones of each instance, by VM: two where one was left in a zone that did not answer.
    instance_zones: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # Zones that the rendezvous has left, where its disks are kept.
    left_zones: frozenset[str] = frozenset()
    # The fleet's image; None where the last update recorded none.
    image: str | None = None
    # What fits, by VM: the stack's output `vms`.
    fits: Mapping[str, str] = field(default_factory=dict)


def require_possible(
    config: FleetConfig, last: LastUpdate, images: Mapping[str, int], missing: Sequence[str] = ()
) -> None:
    """Raises `pulumi.RunError` where this update is not possible.

    `images`: known sizes, GB. `missing`: sentences about what Google does not have.
    """
    problems = [
        *missing,
        *map(
            str,
            moving_vms(config, last)
            + shrinking_disks(config, last)
            + disks_below_image(config, last, images),
        ),
    ]
    if problems:
        raise pulumi.RunError("\n".join(problems))


def moving_vms(config: FleetConfig, last: LastUpdate) -> list[Problem]:
    """Swarm VMs that would leave their zone: one problem for those that leave one for another."""
    moves: dict[tuple[str, str], dict[str, SwarmVmConfig]] = {}
    staying = set()
    for path, vm in _vms(config):
        zone = last.zones.get(vm.name)
        if isinstance(vm, RendezvousConfig):
            continue
        if zone == vm.zone:
            staying.add(vm.zone)
        elif zone is not None:
            moves.setdefault((zone, vm.zone), {})[f"{PROJECT_NAME}:{path}.zone"] = vm
    problems = []
    for (old, new), by_path in moves.items():
        # Where nothing stays in the fleet's zone, that one has changed.
        is_fleets = new == config.zone and new not in staying
        path = f"{PROJECT_NAME}:zone" if is_fleets else ", ".join(by_path)
        problems.append(Problem(path=path, message=_must_stay(list(by_path.values()), old, new)))
    return problems


def _must_stay(vms: Sequence[SwarmVmConfig], old: str, new: str) -> str:
    names = ", ".join(vm.name for vm in vms)
    subject, each = (f"{names} is", "it") if len(vms) == 1 else (f"{names} are", "each")
    return (
        f"{subject} in {old}, and no update moves a VM to {new}: a disk cannot leave its zone, so "
        f"{each} would get an empty one and lose the agents' identities. "
        f"Keep `zone: {old}`, the fleet's or on the line of each. For agents in {new}, add a VM of "
        "another name there and remove the old one when it is drained "
        '(docs/PRODUCTION.md, "Zones")'
    )


def shrinking_disks(config: FleetConfig, last: LastUpdate) -> list[Problem]:
    """Disks that would become smaller, which Google does not do."""
    problems = []
    for path, vm in _vms(config):
        disk = _state_disk(vm, last)
        current_gb = last.disk_gb.get(disk, 0)
        if vm.disk_gb < current_gb:
            message = (
                f"{vm.disk_gb:,} is less than the {current_gb:,} GB of the disk {disk}. No disk "
                "can shrink: a new, empty one would replace it"
            )
            problems.append(Problem(path=f"{PROJECT_NAME}:{path}.diskGb", message=message))
        current_gb = last.boot_gb.get(vm.name, 0)
        if vm.boot_disk_gb < current_gb and not _is_made(vm, last):
            message = (
                f"{vm.boot_disk_gb:,} is less than the {current_gb:,} GB of {vm.name}'s boot disk. "
                "No disk can shrink: for a smaller one set `image:` on its line, which asks for a "
                "new VM"
            )
            problems.append(Problem(path=f"{PROJECT_NAME}:{path}.bootDiskGb", message=message))
    return problems


def _state_disk(vm: RendezvousConfig | SwarmVmConfig, last: LastUpdate) -> str:
    """Name of the VM's state disk. Of a rendezvous that has moved it ends in its zone, and the
    disk with the plain name is the one that it left."""
    plain = f"{vm.name}{STATE_DISK_SUFFIX}"
    if isinstance(vm, RendezvousConfig) and last.disk_zones.get(plain, vm.zone) != vm.zone:
        return f"{plain}-{vm.zone}"
    return plain


def disks_below_image(
    config: FleetConfig, last: LastUpdate, images: Mapping[str, int]
) -> list[Problem]:
    """New boot disks that are smaller than their image."""
    problems = []
    for path, vm in _vms(config):
        image = vm.image or config.image
        image_gb = images.get(image, 0)
        if vm.boot_disk_gb < image_gb and _is_made(vm, last):
            message = f"{vm.boot_disk_gb:,} is less than the {image_gb:,} GB of the image {image}"
            problems.append(Problem(path=f"{PROJECT_NAME}:{path}.bootDiskGb", message=message))
    return problems


def needed_images(config: FleetConfig, last: LastUpdate) -> set[str]:
    """The paths of images that an update to `config` makes a boot disk from, and of a changed
    image of the fleet.

    VMs that were lost at Google, and those that Pulumi is told to replace, are not known here.
    """
    made = [(path, vm) for path, vm in _vms(config) if _is_made(vm, last)]
    needed = {f"{path}.image" if vm.image else "image" for path, vm in made}
    # Earlier versions of this program recorded no image: that is no change.
    if config.image != last.image and (last.image or not last.devices):
        needed.add("image")
    return {f"{PROJECT_NAME}:{key}" for key in needed}


def needed_machine_types(config: FleetConfig, last: LastUpdate) -> dict[str, NeededMachineType]:
    """By the path of the key, the machine types of VMs that get a new one or are (re)made."""
    return {
        f"{PROJECT_NAME}:{path}.machineType": NeededMachineType(
            vm=vm.name, zone=vm.zone, machine_type=vm.machine.name
        )
        for path, vm in _vms(config)
        if _is_made(vm, last) or vm.machine.name != last.machine_types.get(vm.name)
    }


def vms_with_new_account(config: FleetConfig, last: LastUpdate, account: str | None) -> list[str]:
    """VMs that an update to `config` stops to give them the service account `account`; None: one
    that the program makes."""
    return [
        vm.name
        for vm in _by_size(config)
        if config.account_of(vm.name) == account != last.accounts.get(vm.name, account)
    ]


def stopping_vms(config: FleetConfig, last: LastUpdate) -> list[str]:
    """VMs that an update to `config` stops or makes again, in the order of their turns.

    The VM with the fewest agents is first and the rendezvous last, so that a failing stop (no room
    in the zone to start again) shows on a VM of agents first.
    """
    names = []
    for vm in _by_size(config):
        if vm.name not in last.machine_types:
            continue
        if isinstance(vm, RendezvousConfig) and rendezvous_moves(vm, last):
            # Another one is made. The old one goes when all else is done.
            continue
        account = config.account_of(vm.name)
        if (
            vm.machine.name != last.machine_types[vm.name]
            or account != last.accounts.get(vm.name, account)
            or _is_made(vm, last)
        ):
            names.append(vm.name)
    return names


def _by_size(config: FleetConfig) -> list[RendezvousConfig | SwarmVmConfig]:
    return [*sorted(config.swarm, key=lambda each: (each.agents, each.name)), config.rendezvous]


def _vms(config: FleetConfig) -> list[tuple[str, RendezvousConfig | SwarmVmConfig]]:
    swarm = [(f"swarm[{index}]", vm) for index, vm in enumerate(config.swarm)]
    return [("rendezvous", config.rendezvous), *swarm]


def rendezvous_moves(rendezvous: RendezvousConfig, last: LastUpdate) -> bool:
    """Whether this update makes the rendezvous again in another zone."""
    # By what is there, not by what an update that failed was about to do.
    there = last.instance_zones.get(rendezvous.name) or {
        zone for zone in (last.zones.get(rendezvous.name),) if zone
    }
    return bool(there) and rendezvous.zone not in there


def _is_made(vm: RendezvousConfig | SwarmVmConfig, last: LastUpdate) -> bool:
    """Whether this update makes the VM: it is new, moves, or gets an image of its own."""
    if vm.name not in last.devices:
        return True
    if isinstance(vm, RendezvousConfig) and rendezvous_moves(vm, last):
        return True
    return vm.image is not None and boot_device(vm.image) != last.devices[vm.name]


def read() -> LastUpdate:
    """Read the stack's last state. It is empty until the first update has ended."""
    stack = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    # Without a state the engine (3.259) crashes when asked for resources (nil pointer), but answers
    # when asked for outputs.
    outputs = _ask("readStackOutputs", name=stack)
    if not outputs:
        return LastUpdate(boot_gb={}, disk_gb={}, devices={})
    resources = _ask("readStackResourceOutputs", stackName=stack)
    left = outputs.get("rendezvousLeft")
    last = from_resources(
        [
            (each["type"], each["outputs"])
            for urn, each in resources.items()
            # A stack may hold other resources.
            if "::pilot:fleet:" in urn
        ],
        left_zones=frozenset(map(str, left)) if isinstance(left, list) else frozenset(),
    )
    image, fits = outputs.get("image"), outputs.get("vms")
    return replace(
        last,
        image=image if isinstance(image, str) else None,
        fits={name: str(text) for name, text in fits.items()} if isinstance(fits, dict) else {},
    )


def from_resources(
    resources: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    left_zones: frozenset[str] = frozenset(),
) -> LastUpdate:
    """Collect the recorded values of `resources`, each (type, outputs).

    Missing parts are left out: a provider that cannot read a disk records nothing of it. Of two
    VMs of one name, one was left in a zone that did not answer: the other one counts.
    """
    found = list(resources)
    vms = [outputs for type_, outputs in found if type_ == _INSTANCE]
    vms.sort(key=lambda vm: _zone(vm) not in left_zones)
    disks = [outputs for type_, outputs in found if type_ == _DISK]
    boots = {vm["name"]: vm.get("bootDisk") or {} for vm in vms}
    sizes = {name: (boot.get("initializeParams") or {}).get("size") for name, boot in boots.items()}
    accounts = {vm["name"]: (vm.get("serviceAccount") or {}).get("email") for vm in vms}
    zones = {vm["name"]: vm.get("zone") for vm in vms}
    # The disk decides: a VM is made anew beside it, but its content is nowhere else. Of two of one
    # VM, one was left behind: the other one counts.
    disks.sort(key=lambda disk: _zone(disk) not in left_zones)
    zones |= {
        disk["name"].removesuffix(f"-{zone}").removesuffix(STATE_DISK_SUFFIX): zone
        for disk in disks
        if (zone := _zone(disk))
    }
    return LastUpdate(
        boot_gb={name: int(size) for name, size in sizes.items() if size},
        disk_gb={disk["name"]: int(disk["size"]) for disk in disks if disk.get("size")},
        devices={name: boot.get("deviceName") or "" for name, boot in boots.items()},
        machine_types={vm["name"]: vm["machineType"] for vm in vms if vm.get("machineType")},
        accounts={name: email for name, email in accounts.items() if email},
        # Some answers of Google's have a URL for a zone.
        zones={name: zone.rpartition("/")[2] for name, zone in zones.items() if zone},
        disk_zones={disk["name"]: zone for disk in disks if (zone := _zone(disk))},
        addresses={
            outputs["name"]: outputs["address"]
            for type_, outputs in found
            if type_ == _ADDRESS and outputs.get("address")
        },
        instance_zones={
            name: frozenset(_zone(vm) for vm in vms if vm["name"] == name and _zone(vm))
            for name in {vm["name"] for vm in vms}
        },
        left_zones=left_zones,
    )


def _zone(outputs: Mapping[str, Any]) -> str:
    return str(outputs.get("zone") or "").rpartition("/")[2]


def _ask(function: str, **arguments: str) -> dict[str, Any]:
    answer = pulumi.runtime.invoke(f"pulumi:pulumi:{function}", arguments).value
    outputs = answer.get("outputs") if isinstance(answer, dict) else None
    return outputs if isinstance(outputs, dict) else {}
