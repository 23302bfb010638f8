"""Drivers for tests: one that records its calls, one that fails, one that waits to be let go."""

import threading
from dataclasses import dataclass, field

from lab.machines.driver import Disk, Machine, MachineError, NoMachines

PATIENCE = 120.0
"""Seconds after which a test that waits has failed."""


@dataclass
class Recorder(NoMachines):
    """Records its calls and their machines; fails the calls named in `failing`."""

    calls: list[str] = field(default_factory=list)
    machines: dict[str, Machine] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    running: bool | None = None
    console: bytes = b""

    def _called(self, what: str, machine: Machine | Disk) -> None:
        name = machine.path.rsplit("/", 1)[-1]
        self.calls.append(f"{what} {name}")
        if isinstance(machine, Machine):
            self.machines[name] = machine
        if what in self.failing:
            message = f"{what} does not work today"
            raise MachineError(message)

    def create_disk(self, disk: Disk) -> None:
        self._called("create_disk", disk)

    def resize_disk(self, disk: Disk) -> None:
        self._called("resize_disk", disk)

    def delete_disk(self, disk: Disk) -> None:
        self._called("delete_disk", disk)

    def create_snapshot(self, disk: Disk, snapshot: str) -> None:
        self._called("create_snapshot", disk)

    def delete_snapshot(self, snapshot: str) -> None:
        self.calls.append(f"delete_snapshot {snapshot.rsplit('/', 1)[-1]}")

    def start(self, machine: Machine) -> None:
        self._called("start", machine)

    def stop(self, machine: Machine) -> None:
        self._called("stop", machine)

    def reset(self, machine: Machine) -> None:
        self._called("reset", machine)

    def delete(self, machine: Machine) -> None:
        self._called("delete", machine)

    def change_disks(self, machine: Machine) -> None:
        self._called("change_disks", machine)

    def is_running(self, machine: Machine) -> bool | None:
        return self.running

    def serial_output(self, machine: Machine) -> bytes:
        return self.console


@dataclass
class Gated(Recorder):
    """Waits in `start` until `go` is set; `started` says that it is there."""

    started: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def start(self, machine: Machine) -> None:
        self.started.set()
        assert self.go.wait(PATIENCE)
        super().start(machine)
