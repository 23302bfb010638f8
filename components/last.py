"""What the last update of this stack left, and what no update can make of it.

The engine knows the old value of an input only inside a step of its own; the stack's last state is
there before anything is declared.
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
from components.reading import Problem
from components.vm import boot_device

_INSTANCE = "gcp:compute/instance:Instance"
_DISK = "gcp:compute/disk:Disk"


@dataclass(frozen=True, kw_only=True)
class Last:
    """Sizes of disks in GB: of VMs' boot disks by the VM, of other disks by the disk.

    `devices`: the device name of each VM's boot disk; `machine_types` and `accounts` (addresses):
    those of each VM. `image`: the fleet's; None where none is recorded.
    """

    boot_gb: Mapping[str, int]
    disk_gb: Mapping[str, int]
    devices: Mapping[str, str]
    machine_types: Mapping[str, str] = field(default_factory=dict)
    accounts: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None


def require(
    config: FleetConfig, last: Last, images: Mapping[str, int], missing: Sequence[str] = ()
) -> None:
    """Raises `pulumi.RunError` for what cannot be made of what is there.

    `images`: sizes of those that are known, GB. `missing`: sentences about what Google does not
    have.
    """
    problems = [*missing, *map(str, shrinking(config, last) + no_room(config, last, images))]
    if problems:
        raise pulumi.RunError("\n".join(problems))


def shrinking(config: FleetConfig, last: Last) -> list[Problem]:
    """Disks that would be smaller than they are: Google makes none smaller."""
    problems = []
    for path, vm in _vms(config):
        disk = f"{vm.name}{STATE_DISK_SUFFIX}"
        there = last.disk_gb.get(disk, 0)
        if vm.disk_gb < there:
            message = (
                f"{vm.disk_gb:,} is less than the {there:,} GB of the disk {disk}, and no disk is "
                "made smaller: another one would be made in its place, without what is on it"
            )
            problems.append(Problem(path=f"{PROJECT_NAME}:{path}.diskGb", message=message))
        there = last.boot_gb.get(vm.name, 0)
        if vm.boot_disk_gb < there and not _is_made(vm, last):
            message = (
                f"{vm.boot_disk_gb:,} is less than the {there:,} GB of {vm.name}'s boot disk, and "
                "no disk is made smaller: a smaller one takes another VM, which `image:` on its "
                "line asks for"
            )
            problems.append(Problem(path=f"{PROJECT_NAME}:{path}.bootDiskGb", message=message))
    return problems


def no_room(config: FleetConfig, last: Last, images: Mapping[str, int]) -> list[Problem]:
    """Boot disks that are to be made, and are smaller than their image."""
    problems = []
    for path, vm in _vms(config):
        image = vm.image or config.image
        least = images.get(image, 0)
        if vm.boot_disk_gb < least and _is_made(vm, last):
            message = f"{vm.boot_disk_gb:,} is less than the {least:,} GB of the image {image}"
            problems.append(Problem(path=f"{PROJECT_NAME}:{path}.bootDiskGb", message=message))
    return problems


def needed_images(config: FleetConfig, last: Last) -> set[str]:
    """The paths of images that an update to `config` makes a boot disk of, and of the fleet's where
    it is another one than before.

    VMs that were lost at Google, and those that Pulumi is told to replace, are not known here.
    """
    made = [(path, vm) for path, vm in _vms(config) if _is_made(vm, last)]
    needed = {f"{path}.image" if vm.image else "image" for path, vm in made}
    # A release before this one recorded none: what its VMs were made of is no news.
    if config.image != last.image and (last.image or not last.devices):
        needed.add("image")
    return {f"{PROJECT_NAME}:{key}" for key in needed}


def needed_types(config: FleetConfig, last: Last) -> dict[str, tuple[str, str]]:
    """VM and machine type, by the path of the key, of VMs that an update to `config` makes, makes
    again or gives another type."""
    return {
        f"{PROJECT_NAME}:{path}.machineType": (vm.name, vm.machine.name)
        for path, vm in _vms(config)
        if _is_made(vm, last) or vm.machine.name != last.machine_types.get(vm.name)
    }


def other_account(config: FleetConfig, last: Last) -> list[str]:
    """VMs that an update to `config` stops to give them the account that it names."""
    if config.service_account is None:
        # The program makes it.
        return []
    was = last.accounts
    return [
        vm.name
        for vm in _by_size(config)
        if was.get(vm.name, config.service_account) != config.service_account
    ]


def stopped(config: FleetConfig, last: Last) -> list[str]:
    """VMs that an update to `config` stops, or makes again: they take turns, in this order.

    The one with the fewest agents is the first. The rendezvous is the last: whatever may go wrong
    with a stop (no room in the zone for the start) is met on a VM of agents first.
    """
    # Without one in the configuration the program makes it (components/identity.py).
    account = config.service_account or f"{PROJECT_NAME}@{config.project}.iam.gserviceaccount.com"
    names = []
    for vm in _by_size(config):
        if vm.name not in last.machine_types:
            continue
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


def _is_made(vm: RendezvousConfig | SwarmVmConfig, last: Last) -> bool:
    """Whether this VM is new, or asked for again."""
    if vm.name not in last.devices:
        return True
    return vm.image is not None and boot_device(vm.image) != last.devices[vm.name]


def read() -> Last:
    """Read the stack's last state. It is empty until a first update has ended."""
    stack = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    # Asked for the resources of a state that is not there yet, the engine (3.259) follows a nil;
    # asked for the stack's outputs it says that there are none.
    outputs = _ask("readStackOutputs", name=stack)
    if not outputs:
        return Last(boot_gb={}, disk_gb={}, devices={})
    resources = _ask("readStackResourceOutputs", stackName=stack)
    last = known(
        [
            (each["type"], each["outputs"])
            for urn, each in resources.items()
            # A stack may hold what is not the fleet's.
            if "::pilot:fleet:" in urn
        ]
    )
    image = outputs.get("image")
    return replace(last, image=image if isinstance(image, str) else None)


def known(resources: Iterable[tuple[str, Mapping[str, Any]]]) -> Last:
    """Collect what is recorded of `resources`, each (type, outputs).

    A missing part is left out: a provider that could not read a disk records none of it.
    """
    found = list(resources)
    vms = [outputs for type_, outputs in found if type_ == _INSTANCE]
    disks = [outputs for type_, outputs in found if type_ == _DISK]
    boots = {vm["name"]: vm.get("bootDisk") or {} for vm in vms}
    sizes = {name: (boot.get("initializeParams") or {}).get("size") for name, boot in boots.items()}
    accounts = {vm["name"]: (vm.get("serviceAccount") or {}).get("email") for vm in vms}
    return Last(
        boot_gb={name: int(size) for name, size in sizes.items() if size},
        disk_gb={disk["name"]: int(disk["size"]) for disk in disks if disk.get("size")},
        devices={name: boot.get("deviceName") or "" for name, boot in boots.items()},
        machine_types={vm["name"]: vm["machineType"] for vm in vms if vm.get("machineType")},
        accounts={name: email for name, email in accounts.items() if email},
    )


def _ask(function: str, **arguments: str) -> dict[str, Any]:
    answer = pulumi.runtime.invoke(f"pulumi:pulumi:{function}", arguments).value
    outputs = answer.get("outputs") if isinstance(answer, dict) else None
    return outputs if isinstance(outputs, dict) else {}
