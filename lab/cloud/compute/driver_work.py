"""The part of an operation that the driver does: start machines, make disks, take snapshots.

It runs in the operation's thread, outside the store's lock. Each piece of work can be run again
from its beginning, because the lab may have been killed in the middle of it.
"""

from collections.abc import Callable
from typing import Any, Final

from lab.cloud import Json, links
from lab.cloud.compute import instances, lookups, machines
from lab.cloud.compute.operations import Operations
from lab.cloud.errors import OperationError
from lab.cloud.links import Scope
from lab.cloud.store import Store
from lab.machines.driver import Driver, Machine, MachineError

_NOWHERE: Final = Scope(project="")


class DriverWork:
    """Does what operations on instances, disks and snapshots ask of `driver`."""

    def __init__(self, store: Store, driver: Driver) -> None:
        self._store = store
        self._driver = driver

    def register(self, operations: Operations) -> None:
        """Have `operations` call the work of each type of operation."""
        works: dict[tuple[str, str], Callable[[str], None]] = {
            ("instances", "insert"): self._insert,
            ("instances", "start"): self._start,
            ("instances", "stop"): self._stop,
            ("instances", "reset"): self._reset,
            ("instances", "delete"): self._delete,
            ("instances", "attachDisk"): self._change_disks,
            ("instances", "detachDisk"): self._change_disks,
            ("disks", "insert"): self._disk_insert,
            ("disks", "resize"): self._disk_resize,
            ("disks", "delete"): self._disk_delete,
            ("snapshots", "insert"): self._snapshot_insert,
            ("snapshots", "delete"): self._snapshot_delete,
        }
        for (collection, kind), work in works.items():
            operations.register(collection, kind, work)

    def _load(self, path: str) -> tuple[Json, list[Json]] | None:
        with self._store.transaction() as tx:
            body = tx.get(*links.split(path))
            if body is None:
                return None
            disks = [
                disk
                for each in body["disks"]
                if (disk := tx.get(*links.split(links.path_of(each["source"], _NOWHERE))))
            ]
            return body, disks

    def set_status(self, path: str, status: str, *, only_from: str = "", **more: Any) -> None:
        """Set the status of a resource, and the fields `more`.

        Does nothing where the resource is gone, or is not in the status `only_from`.
        """
        with self._store.transaction() as tx:
            body = tx.get(*links.split(path))
            if body is not None and (not only_from or body["status"] == only_from):
                tx.put(*links.split(path), {**body, "status": status, **more})

    def _machine(self, path: str) -> Machine:
        with self._store.transaction() as tx:
            return machines.machine(tx, lookups.find(tx, path))

    def _insert(self, path: str) -> None:
        loaded = self._load(path)
        if loaded is None:
            return
        _, disks = loaded
        try:
            for disk in disks:
                self._driver.create_disk(machines.driver_disk(disk))
            self.set_status(path, instances.STAGING)
            self._driver.start(self._machine(path))
        except MachineError:
            # An insert that fails leaves nothing, as on Google.
            self._delete(path)
            raise
        self.set_status(path, instances.RUNNING, lastStartTimestamp=links.now())

    def _start(self, path: str) -> None:
        try:
            self._driver.start(self._machine(path))
        except (MachineError, OperationError):
            self.set_status(path, instances.TERMINATED)
            raise
        self.set_status(path, instances.RUNNING, lastStartTimestamp=links.now())

    def _stop(self, path: str) -> None:
        try:
            self._driver.stop(self._machine(path))
        except MachineError:
            self.set_status(path, instances.RUNNING)
            raise
        self.set_status(path, instances.TERMINATED, lastStopTimestamp=links.now())

    def _reset(self, path: str) -> None:
        self._driver.reset(self._machine(path))
        self.set_status(path, instances.RUNNING, lastStartTimestamp=links.now())

    def _change_disks(self, path: str) -> None:
        self._driver.change_disks(self._machine(path))

    def _delete(self, path: str) -> None:
        loaded = self._load(path)
        if loaded is None:
            return
        body, disks = loaded
        self._driver.delete(self._machine(path))
        automatic = {each["source"] for each in body["disks"] if each["autoDelete"]}
        gone = [disk for disk in disks if disk["selfLink"] in automatic]
        for disk in gone:
            self._driver.delete_disk(machines.driver_disk(disk))
        with self._store.transaction() as tx:
            tx.delete(*links.split(path))
            for disk in gone:
                tx.delete(*links.split(links.path_of(disk["selfLink"], _NOWHERE)))
            for name in tx.documents(f"guest/{path}"):
                tx.delete(f"guest/{path}", name)

    def _disk(self, path: str) -> Json | None:
        with self._store.transaction() as tx:
            return tx.get(*links.split(path))

    def _disk_insert(self, path: str) -> None:
        body = self._disk(path)
        if body is not None:
            try:
                self._driver.create_disk(machines.driver_disk(body))
            except MachineError:
                with self._store.transaction() as tx:
                    tx.delete(*links.split(path))
                raise
            self.set_status(path, "READY")

    def _disk_resize(self, path: str) -> None:
        body = self._disk(path)
        if body is not None:
            self._driver.resize_disk(machines.driver_disk(body))

    def _disk_delete(self, path: str) -> None:
        body = self._disk(path)
        if body is not None:
            self._driver.delete_disk(machines.driver_disk(body))
            with self._store.transaction() as tx:
                tx.delete(*links.split(path))

    def _snapshot_insert(self, path: str) -> None:
        body = self._disk(path)
        source = body and self._disk(links.path_of(body["sourceDisk"], _NOWHERE))
        if source is not None:
            try:
                self._driver.create_snapshot(machines.driver_disk(source), path)
            except MachineError:
                with self._store.transaction() as tx:
                    tx.delete(*links.split(path))
                raise
            self.set_status(path, "READY")

    def _snapshot_delete(self, path: str) -> None:
        if self._disk(path) is not None:
            self._driver.delete_snapshot(path)
            with self._store.transaction() as tx:
                tx.delete(*links.split(path))
