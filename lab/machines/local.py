"""The common part of the drivers: blank disks, snapshots, resets, consoles."""

from pathlib import Path

from lab.machines.driver import Disk, Machine, MachineError
from lab.machines.places import Places, copy_raw, make_raw, read_console


class LocalDriver:
    """The part of a driver that is the same for guests and containers."""

    _places: Places

    def start(self, machine: Machine) -> None:
        """Power a machine on."""
        raise NotImplementedError

    def power_cut(self, machine: Machine) -> None:
        """End a machine without telling it."""
        raise NotImplementedError

    def _pid(self, path: str) -> int | None:
        raise NotImplementedError

    def _create_blank_disk(self, disk: Disk) -> None:
        """Make a sparse file for a disk without an image, filled from its snapshot if any."""
        raw = self._places.disk(disk.path, "raw")
        if disk.snapshot is not None and not raw.exists():
            copy_raw(self._places.snapshot(disk.snapshot), raw)
        make_raw(raw, disk.size_gb)

    def create_snapshot(self, disk: Disk, snapshot: str) -> None:
        """Copy a disk that was made blank, as it is now."""
        if disk.image is not None:
            message = f"{disk.path}: this driver takes snapshots of disks without an image only"
            raise MachineError(message)
        copy_raw(self._places.disk(disk.path, "raw"), self._places.snapshot(snapshot))

    def delete_snapshot(self, snapshot: str) -> None:
        """Delete a snapshot's data."""
        self._places.snapshot(snapshot).unlink(missing_ok=True)

    def reset(self, machine: Machine) -> None:
        """Cut a machine's power and start it again."""
        self.power_cut(machine)
        self.start(machine)

    def is_running(self, machine: Machine) -> bool | None:
        """Tell whether a machine's process runs."""
        return self._pid(machine.path) is not None

    def serial_output(self, machine: Machine) -> bytes:
        """Return all that a machine wrote to its console."""
        return read_console(self._places.console(machine.path))

    def ssh_key(self) -> Path:
        """Return the private key that may log in to every machine as root."""
        return self._places.ssh_key()
