"""Actions on instances: each changes the record of one."""

from collections.abc import Callable
from typing import Any, Final

from lab.cloud import Json, links
from lab.cloud.compute import addresses, attributes, instances, lookups
from lab.cloud.errors import ApiError, invalid, not_found, not_ready
from lab.cloud.links import Scope
from lab.cloud.store import Transaction, fingerprint


def find_nic(instance: Json, name: str) -> Json:
    """Return a network interface by name; 404 where there is none."""
    for nic in instance["networkInterfaces"]:
        if nic["name"] == name:
            return dict(nic)
    raise not_found(f"{links.path_of(instance['selfLink'], Scope(project=''))}/{name}")


def stopped(instance: Json, what: str) -> None:
    """Refuse (400) the change of `what` while the machine is not off."""
    if instance["status"] != instances.TERMINATED:
        path = links.path_of(instance["selfLink"], Scope(project=""))
        why = f"{what} can only be changed while the instance is TERMINATED, not {{}}"
        raise not_ready(path, why.format(instance["status"]))


Change = Callable[[Transaction, Scope, Json, Json], None]


def _set_metadata(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    instance["metadata"] = attributes.change_metadata(instance["metadata"], given)


def _set_labels(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    attributes.change_labels(instance, given)


def _set_tags(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    instance["tags"] = attributes.change_tags(instance["tags"], given)


def _set_machine_type(transaction: Transaction, scope: Scope, instance: Json, given: Json) -> None:
    stopped(instance, "the machine type")
    kind = instances.machine_type(given.get("machineType"), scope)
    instances.check_disk_types(transaction, instance["disks"], (), links.last(kind))
    instance["machineType"] = kind


def _set_service_account(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    stopped(instance, "the service account")
    instance.pop("serviceAccounts", None)
    if given.get("email"):
        scopes = list(given.get("scopes") or [])
        instance["serviceAccounts"] = [{"email": given["email"], "scopes": scopes}]


def _set_scheduling(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    kind = links.last(instance["machineType"])
    instance["scheduling"] = instances.scheduling({**instance["scheduling"], **given}, kind)


def _set_shielded(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    stopped(instance, "the Shielded VM options")
    instance["shieldedInstanceConfig"] = {**instance["shieldedInstanceConfig"], **given}


def _set_deletion_protection(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    instance["deletionProtection"] = given.get("deletionProtection", "true") == "true"


def _set_min_cpu_platform(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    stopped(instance, "the minimum CPU platform")
    instance["minCpuPlatform"] = given.get("minCpuPlatform", "")


def _set_display(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    stopped(instance, "the display device")
    instance["displayDevice"] = {"enableDisplay": bool(given.get("enableDisplay"))}


def _set_auto_delete(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    _device(instance, given.get("deviceName"))["autoDelete"] = given.get("autoDelete") == "true"


def _update_nic(transaction: Transaction, scope: Scope, instance: Json, given: Json) -> None:
    name = str(given.get("networkInterface"))
    nic = find_nic(instance, name)
    if given.get("fingerprint") != nic["fingerprint"]:
        raise ApiError(412, "conditionNotMet", "Supplied fingerprint does not match.")
    wanted = given.get("networkIP", nic["networkIP"])
    if wanted != nic["networkIP"]:
        stopped(instance, "the address")
        subnet = lookups.find(transaction, links.path_of(nic["subnetwork"], scope))
        nic["networkIP"] = addresses.internal_address(
            transaction, subnet, wanted, "networkIP", spare_reserved=False
        )
    _replace_nic(instance, nic)


def _add_access(transaction: Transaction, _: Scope, instance: Json, given: Json) -> None:
    nic = find_nic(instance, str(given.get("networkInterface")))
    if nic.get("accessConfigs"):
        raise invalid("networkInterface", nic["name"], "At most one access config is allowed.")
    nic["accessConfigs"] = [
        instances.access_config(transaction, given, "networkInterface", nic["networkIP"])
    ]
    _replace_nic(instance, nic)


def _delete_access(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    nic = find_nic(instance, str(given.get("networkInterface")))
    nic.pop("accessConfigs", None)
    _replace_nic(instance, nic)


def _replace_nic(instance: Json, nic: Json) -> None:
    plain = {key: each for key, each in nic.items() if key != "fingerprint"}
    nic["fingerprint"] = fingerprint(plain)
    instance["networkInterfaces"] = [
        nic if each["name"] == nic["name"] else each for each in instance["networkInterfaces"]
    ]


def _device(instance: Json, name: Any) -> Json:
    for each in instance["disks"]:
        if each["deviceName"] == name:
            found: Json = each
            return found
    raise invalid("deviceName", name, "No attached disk found with device name.")


def attach(transaction: Transaction, scope: Scope, instance: Json, given: Json) -> None:
    """Attach an existing disk; OperationError where another instance has it."""
    disk = instances.source_disk(transaction, scope, given.get("source"), "source", given)
    taken = {each["index"] for each in instance["disks"]}
    index = next(number for number in range(instances.MOST_DISKS + 1) if number not in taken)
    instance["disks"].append(instances.attached(disk, index, given))
    instances.check_disks(instance["disks"])
    instances.check_disk_types(
        transaction, instance["disks"], (), links.last(instance["machineType"])
    )


def detach(_: Transaction, __: Scope, instance: Json, given: Json) -> None:
    """Detach a disk by device name; the boot disk only while the machine is off."""
    found = _device(instance, given.get("deviceName"))
    if found["boot"]:
        stopped(instance, "the boot disk")
    instance["disks"] = [each for each in instance["disks"] if each is not found]


RECORD_CHANGES: Final[dict[str, Change]] = {
    "setMetadata": _set_metadata,
    "setLabels": _set_labels,
    "setTags": _set_tags,
    "setMachineType": _set_machine_type,
    "setServiceAccount": _set_service_account,
    "setScheduling": _set_scheduling,
    "setMinCpuPlatform": _set_min_cpu_platform,
    "setDeletionProtection": _set_deletion_protection,
    "setDiskAutoDelete": _set_auto_delete,
    "updateShieldedInstanceConfig": _set_shielded,
    "updateDisplayDevice": _set_display,
    "updateNetworkInterface": _update_nic,
    "addAccessConfig": _add_access,
    "deleteAccessConfig": _delete_access,
    "attachDisk": attach,
    "detachDisk": detach,
}
"""The actions by name: the last part of the path and the type of the operation."""
