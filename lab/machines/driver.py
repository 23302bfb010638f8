"""Drivers run the machines behind the API: their interface, and the driver that runs none.

The API calls a driver from an operation's own thread, outside the lock. A call returns when its
work is done; the operation is RUNNING meanwhile. A call may be repeated after the lab was killed,
so each must accept that its work is already done.
"""

from dataclasses import dataclass
from typing import Protocol


class MachineError(Exception):
    """A driver cannot do what was asked; the message goes into the operation's error."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A persistent disk."""

    path: str
    """Its resource: `projects/…/disks/NAME`."""
    size_gb: int
    image: str | None
    """The resource of the image that it is made of; None for a blank disk."""
    snapshot: str | None = None
    """The resource of the snapshot that it is filled from."""


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A disk on a machine: the guest sees `/dev/disk/by-id/google-DEVICE_NAME`."""

    disk: Disk
    device_name: str
    boot: bool
    read_only: bool


@dataclass(frozen=True, kw_only=True)
class Nic:
    """A network interface."""

    address: str
    cidr: str
    """The range of its subnet."""
    gateway: str
    mac: str
    external: str | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An instance as a driver needs it."""

    path: str
    """Its resource: `projects/…/instances/NAME`."""
    id: int
    hostname: str
    vcpus: int
    memory_mb: int
    """In MiB."""
    disks: tuple[Attachment, ...]
    nics: tuple[Nic, ...]


class Driver(Protocol):
    """Runs machines. Errors are MachineError."""

    @property
    def description(self) -> str:
        """One line: what this driver is, and how its machines differ from Google's."""
        ...

    def create_disk(self, disk: Disk) -> None:
        """Make a disk: from its image or its snapshot, or blank."""
        ...

    def resize_disk(self, disk: Disk) -> None:
        """Grow a disk to its size."""
        ...

    def delete_disk(self, disk: Disk) -> None:
        """Delete a disk's data."""
        ...

    def create_snapshot(self, disk: Disk, snapshot: str) -> None:
        """Copy a disk's content to the snapshot at that path; disks without an image only."""
        ...

    def delete_snapshot(self, snapshot: str) -> None:
        """Forget a snapshot."""
        ...

    def start(self, machine: Machine) -> None:
        """Power a machine on."""
        ...

    def stop(self, machine: Machine) -> None:
        """Ask the guest to power off, and cut its power where it does not within 90 s."""
        ...

    def reset(self, machine: Machine) -> None:
        """Cut a machine's power and start it again: no clean shutdown."""
        ...

    def delete(self, machine: Machine) -> None:
        """Stop a machine and forget it; its disks are deleted one by one."""
        ...

    def change_disks(self, machine: Machine) -> None:
        """Give a machine the disks it now has: one was attached or detached."""
        ...

    def is_running(self, machine: Machine) -> bool | None:
        """Tell whether a machine runs; None where the driver has no opinion."""
        ...

    def serial_output(self, machine: Machine) -> bytes:
        """Return all that a machine wrote to its first serial port since it was created."""
        ...

    def forward(self, machine: Machine, guest_port: int) -> int:
        """Forward a TCP port of this machine's loopback to a guest's port, and return it."""
        ...


class NoMachines:
    """A driver that boots nothing: instances exist in the API only, and say RUNNING."""

    @property
    def description(self) -> str:
        """What this driver is."""
        return "no machines: instances are recorded, nothing boots"

    def create_disk(self, disk: Disk) -> None:
        """Do nothing."""

    def resize_disk(self, disk: Disk) -> None:
        """Do nothing."""

    def delete_disk(self, disk: Disk) -> None:
        """Do nothing."""

    def create_snapshot(self, disk: Disk, snapshot: str) -> None:
        """Do nothing."""

    def delete_snapshot(self, snapshot: str) -> None:
        """Do nothing."""

    def start(self, machine: Machine) -> None:
        """Do nothing."""

    def stop(self, machine: Machine) -> None:
        """Do nothing."""

    def reset(self, machine: Machine) -> None:
        """Do nothing."""

    def delete(self, machine: Machine) -> None:
        """Do nothing."""

    def change_disks(self, machine: Machine) -> None:
        """Do nothing."""

    def is_running(self, machine: Machine) -> bool | None:  # noqa: ARG002 (the protocol's name)
        """Have no opinion: an instance is what the API says it is."""
        return None

    def serial_output(self, machine: Machine) -> bytes:
        """Return a line that says why there is nothing."""
        return f"{machine.path}: this driver boots nothing, so there is no console\r\n".encode()

    def forward(self, machine: Machine, guest_port: int) -> int:
        """Refuse: nothing boots, so nothing listens."""
        message = f"{machine.path}: this driver boots nothing, so port {guest_port} leads nowhere"
        raise MachineError(message)
