"""What the last update of this stack left, and what no update can make of it.

The engine knows the old value of an input only inside a step of its own; the stack's last state is
there before anything is declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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

    `devices`: the device name of each VM's boot disk; `machine_types`: that of each VM.
    """

    boot_gb: Mapping[str, int]
    disk_gb: Mapping[str, int]
    devices: Mapping[str, str]
    machine_types: Mapping[str, str] = field(default_factory=dict)


def require(config: FleetConfig, last: Last, images: Mapping[str, int]) -> None:
    """Raises `pulumi.RunError` for what cannot be made of what is there.

    `images`: sizes of those that are known, GB.
    """
    problems = shrinking(config, last) + no_room(config, last, images)
    if problems:
        raise pulumi.RunError("\n".join(str(problem) for problem in problems))


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


def _vms(config: FleetConfig) -> list[tuple[str, RendezvousConfig | SwarmVmConfig]]:
    swarm = [(f"swarm[{index}]", vm) for index, vm in enumerate(config.swarm)]
    return [("rendezvous", config.rendezvous), *swarm]


def _is_made(vm: RendezvousConfig | SwarmVmConfig, last: Last) -> bool:
    """Whether this VM is new, or asked for again."""
    if vm.name not in last.devices:
        return True
    return vm.image is not None and boot_device(vm.image) != last.devices[vm.name]


def read() -> Last:
    """What is in the stack's last state; nothing before a first update has ended."""
    stack = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    # Asked for the resources of a state that is not there yet, the engine (3.259) follows a nil;
    # asked for the stack's outputs it says that there are none.
    if not _ask("readStackOutputs", name=stack):
        return Last(boot_gb={}, disk_gb={}, devices={})
    resources = _ask("readStackResourceOutputs", stackName=stack).values()
    vms = [each["outputs"] for each in resources if each["type"] == _INSTANCE]
    disks = [each["outputs"] for each in resources if each["type"] == _DISK]
    boots = {vm["name"]: vm["bootDisk"] for vm in vms if vm.get("bootDisk")}
    return Last(
        boot_gb={name: int(boot["initializeParams"]["size"]) for name, boot in boots.items()},
        disk_gb={disk["name"]: int(disk["size"]) for disk in disks if disk.get("size")},
        devices={name: boot["deviceName"] for name, boot in boots.items()},
        machine_types={vm["name"]: vm["machineType"] for vm in vms if vm.get("machineType")},
    )


def _ask(function: str, **arguments: str) -> dict[str, Any]:
    answer = pulumi.runtime.invoke(f"pulumi:pulumi:{function}", arguments).value
    outputs = answer.get("outputs") if isinstance(answer, dict) else None
    return outputs if isinstance(outputs, dict) else {}
