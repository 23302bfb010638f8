"""Instances and disks as a driver needs them."""

from collections.abc import Iterable

from lab.cloud import Json, links
from lab.cloud.compute import catalog, lookups
from lab.cloud.errors import invalid
from lab.cloud.links import Scope
from lab.cloud.store import Transaction
from lab.machines.driver import Attachment, Disk, Machine, Nic


def machine(transaction: Transaction, instance: Json) -> Machine:
    """Return an instance as a driver needs it."""
    path = links.path_of(instance["selfLink"], Scope(project=""))
    project = path.split("/")[1]
    kind = catalog.machine_type(links.last(instance["machineType"]))
    if kind is None:
        raise invalid("machineType", instance["machineType"], "Unknown machine type.")
    return Machine(
        path=path,
        id=int(instance["id"]),
        hostname=instance.get("hostname") or f"{instance['name']}.c.{project}.internal",
        vcpus=kind.vcpus,
        memory_mb=kind.memory_mb,
        disks=tuple(_attachments(transaction, instance["disks"])),
        nics=tuple(_machine_nic(transaction, nic) for nic in instance["networkInterfaces"]),
    )


def _attachments(transaction: Transaction, disks: Iterable[Json]) -> Iterable[Attachment]:
    for each in disks:
        body = transaction.get(*links.split(links.path_of(each["source"], Scope(project=""))))
        if body is not None:
            yield Attachment(
                disk=driver_disk(body),
                device_name=each["deviceName"],
                boot=each["boot"],
                read_only=each["mode"] == "READ_ONLY",
            )


def driver_disk(body: Json) -> Disk:
    """Return a disk as a driver needs it."""
    source, snapshot = body.get("sourceImage"), body.get("sourceSnapshot")
    return Disk(
        path=links.path_of(body["selfLink"], Scope(project="")),
        size_gb=int(body["sizeGb"]),
        image=links.path_of(source, Scope(project="")) if source else None,
        snapshot=links.path_of(snapshot, Scope(project="")) if snapshot else None,
    )


def _machine_nic(transaction: Transaction, nic: Json) -> Nic:
    subnet = lookups.find(transaction, links.path_of(nic["subnetwork"], Scope(project="")))
    configs = nic.get("accessConfigs") or [{}]
    return Nic(
        address=nic["networkIP"],
        cidr=subnet["ipCidrRange"],
        gateway=subnet["gatewayAddress"],
        mac=mac(nic["networkIP"]),
        external=configs[0].get("natIP"),
    )


def mac(address: str) -> str:
    """Return the MAC address of an interface: Google's prefix 42:01, then from its address.

    As on Google, the last four bytes are the address itself. Subnetworks that overlap belong to
    different networks, which are different LANs.
    """
    return "42:01:" + ":".join(f"{int(part):02x}" for part in address.split("."))
