"""Instances: the resource that an insert request becomes, with its disks and interfaces.

Nothing here has an effect: it reads a transaction. `lab.cloud.compute.driver_work` does the
driver's work.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from lab.cloud import Json, links
from lab.cloud.compute import (
    addresses,
    addressing,
    attributes,
    catalog,
    disks,
    kinds,
    lookups,
)
from lab.cloud.compute.addressing import NoAddressError
from lab.cloud.errors import ApiError, OperationError, invalid, not_ready, required
from lab.cloud.links import Scope, link
from lab.cloud.store import Transaction, fingerprint

RUNNING: Final = "RUNNING"
STAGING: Final = "STAGING"
PROVISIONING: Final = "PROVISIONING"
STOPPING: Final = "STOPPING"
TERMINATED: Final = "TERMINATED"


MOST_DISKS: Final = 128  # Compute Engine's limit of persistent disks on a machine


_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,63}")


def machine_type(value: Any, scope: Scope) -> str:
    """Return the link to a machine type of the zone; 400 where there is none of that name."""
    if not value:
        raise required("resource.machineType")
    name = links.last(str(value))
    if catalog.machine_type(name) is None:
        why = "The referenced resource does not exist."
        raise invalid("resource.machineType", value, why)
    return link(f"{scope.path}/machineTypes/{name}")


def create(transaction: Transaction, scope: Scope, body: Json) -> tuple[Json, list[Json]]:
    """Return the instance of an insert request, and the disks that are to be made for it.

    ApiError where the request is refused, OperationError where its operation fails.
    """
    name = links.valid_name(body.get("name"))
    path = f"{scope.path}/instances/{name}"
    made: list[Json] = []
    disks = [
        _attached(transaction, scope, given, name=name, index=index, made=made)
        for index, given in enumerate(body.get("disks") or [])
    ]
    check_disks(disks)
    kind = machine_type(body.get("machineType"), scope)
    check_disk_types(transaction, disks, made, links.last(kind))
    identity = transaction.new_id()
    asked = {key: each for key, each in body.items() if key not in _REBUILT and each is not None}
    instance: Json = {
        "canIpForward": False,
        "deletionProtection": False,
        "startRestricted": False,
        "satisfiesPzs": False,
        **asked,
        "kind": "compute#instance",
        "id": identity,
        "creationTimestamp": links.now(),
        "lastStartTimestamp": links.now(),
        "name": name,
        "selfLink": link(path),
        "zone": link(scope.path),
        "status": PROVISIONING,
        "cpuPlatform": "Unknown CPU Platform",
        "machineType": kind,
        "disks": disks,
        "metadata": attributes.metadata(body.get("metadata")),
        "tags": attributes.tags(body.get("tags")),
        "networkInterfaces": _nics(transaction, scope, body.get("networkInterfaces") or []),
        "scheduling": scheduling(body.get("scheduling"), links.last(kind)),
        "shieldedInstanceConfig": {
            "enableSecureBoot": False,
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
            **(body.get("shieldedInstanceConfig") or {}),
        },
        "shieldedInstanceIntegrityPolicy": {"updateAutoLearnPolicy": True},
        "resourceStatus": {"physicalHost": ""},
        **attributes.label_fields(body.get("labels")),
    }
    accounts = [each for each in body.get("serviceAccounts") or [] if each.get("email")]
    if accounts:
        instance["serviceAccounts"] = accounts
    return {**instance, "fingerprint": fingerprint(instance)}, made


_REBUILT: Final = frozenset({"params", "labels", "serviceAccounts", "region"})


def scheduling(given: Any, machine: str) -> Json:
    """Return an instance's scheduling, complete: clients fail on missing parts. 400 for a way of
    host maintenance that the machine type does not have."""
    asked = {key: each for key, each in (given or {}).items() if each is not None}
    spot = asked.get("preemptible") or asked.get("provisioningModel") == "SPOT"
    possible = ("TERMINATE",) if spot else catalog.host_maintenance(machine)
    result = {
        "onHostMaintenance": possible[0],
        "automaticRestart": not spot,
        "preemptible": bool(spot),
        "provisioningModel": "SPOT" if spot else "STANDARD",
        **asked,
    }
    if result["onHostMaintenance"] not in possible:
        why = f"{machine} supports {' and '.join(possible)} only."
        raise invalid("resource.scheduling.onHostMaintenance", result["onHostMaintenance"], why)
    return result


def _attached(
    transaction: Transaction, scope: Scope, given: Json, *, name: str, index: int, made: list[Json]
) -> Json:
    where = f"resource.disks[{index}]"
    if given.get("type", "PERSISTENT") != "PERSISTENT":
        raise invalid(f"{where}.type", given["type"], "This stand-in has persistent disks only.")
    if given.get("source"):
        body = source_disk(transaction, scope, given["source"], f"{where}.source", given)
    elif given.get("initializeParams"):
        body = _new_disk(transaction, scope, given, name=name, index=index, where=where)
        made.append(body)
    else:
        raise required(f"{where}.initializeParams")
    return attached(body, index, given)


def _new_disk(
    transaction: Transaction, scope: Scope, given: Json, *, name: str, index: int, where: str
) -> Json:
    asked = given["initializeParams"]
    disk_name = asked.get("diskName") or (name if given.get("boot") else f"{name}-{index}")
    wanted = {
        "name": disk_name,
        "sizeGb": asked.get("diskSizeGb"),
        "type": asked.get("diskType"),
        "sourceImage": asked.get("sourceImage"),
        "labels": asked.get("labels"),
        "description": asked.get("description"),
        "resourcePolicies": asked.get("resourcePolicies"),
    }
    if given.get("boot") and not asked.get("sourceImage"):
        raise required(f"{where}.initializeParams.sourceImage")
    path = f"{scope.path}/disks/{disk_name}"
    if transaction.get(*links.split(path)) is not None:
        raise OperationError("RESOURCE_ALREADY_EXISTS", f"The resource '{path}' already exists")
    return kinds.record(transaction, DISK, scope, wanted)


DISK: Final = next(kind for kind in kinds.KINDS if kind.collection == "disks")


def source_disk(
    transaction: Transaction, scope: Scope, source: Any, field: str, given: Json
) -> Json:
    """Return the existing disk that a request attaches; 404, or 400 where it is in use."""
    path = links.reference(source, field, scope, "disks")
    body = lookups.find(transaction, path)
    if body["status"] != "READY":
        raise not_ready(path, f"it is {body['status']}")
    users = disks.disk_users(transaction, body)
    if users and given.get("mode") != "READ_ONLY":
        user = links.path_of(users[0], scope)
        message = f"The disk resource '{path}' is already being used by '{user}'"
        raise OperationError("RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", message)
    return body


def attached(disk: Json, index: int, given: Json) -> Json:
    """Return how an instance shows a disk that is attached to it."""
    device = given.get("deviceName") or (
        "persistent-disk-0" if given.get("boot") else f"persistent-disk-{index}"
    )
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise invalid("deviceName", device, "Must be 1 to 63 of letters, digits, '.', '_', '-'.")
    shown: Json = {
        "kind": "compute#attachedDisk",
        "type": "PERSISTENT",
        "mode": given.get("mode") or "READ_WRITE",
        "source": disk["selfLink"],
        "deviceName": device,
        "index": index,
        "boot": bool(given.get("boot")),
        "autoDelete": bool(given.get("autoDelete")),
        "interface": given.get("interface") or "SCSI",
        "diskSizeGb": disk["sizeGb"],
    }
    for field in ("licenses", "guestOsFeatures", "architecture"):
        if field in disk:
            shown[field] = disk[field]
    return shown


def check_disks(disks: list[Json]) -> None:
    """Refuse (400) a list of disks that no machine can have."""
    if not disks or sum(each["boot"] for each in disks) != 1 or not disks[0]["boot"]:
        raise invalid("resource.disks", len(disks), "The first disk must be the boot disk.")
    if len(disks) > MOST_DISKS:
        raise invalid("resource.disks", len(disks), f"At most {MOST_DISKS} disks are allowed.")
    names = [each["deviceName"] for each in disks]
    sources = [each["source"] for each in disks]
    if len(set(names)) != len(names) or len(set(sources)) != len(sources):
        raise invalid("resource.disks", names, "Duplicate disk or device name.")


def check_disk_types(
    transaction: Transaction, disks: Iterable[Json], made: Iterable[Json], machine: str
) -> None:
    """Refuse (400) disks of a type that the machine type does not take."""
    new = {each["selfLink"]: each for each in made}
    for each in disks:
        body = new.get(each["source"]) or lookups.find(
            transaction, links.path_of(each["source"], Scope(project=""))
        )
        kind = links.last(body["type"])
        if not catalog.takes(machine, kind):
            message = f"{kind} disk type cannot be used by {machine} machine type."
            raise ApiError(400, "badRequest", message)


def _nics(transaction: Transaction, scope: Scope, given: list[Json]) -> list[Json]:
    if not given:
        raise required("resource.networkInterfaces")
    nics: list[Json] = []
    for index, each in enumerate(given):
        nics.append(_nic(transaction, scope, index, each, nics))
    return nics


def _nic(
    transaction: Transaction, scope: Scope, index: int, given: Json, before: list[Json]
) -> Json:
    where = f"resource.networkInterfaces[{index}]"
    if not given.get("subnetwork"):
        why = "A subnetwork is required: this stand-in has no auto mode networks."
        raise invalid(f"{where}.subnetwork", "", why)
    region = catalog.region_of(scope.place) or ""
    here = Scope(project=scope.project, level="regions", place=region)
    path = links.reference(given["subnetwork"], f"{where}.subnetwork", here, "subnetworks")
    subnet = transaction.get(*links.split(path))
    if subnet is None or subnet["region"] != link(here.path):
        why = "The referenced subnetwork resource cannot be found."
        raise invalid(f"{where}.subnetwork", given["subnetwork"], why)
    if any(each["subnetwork"] == subnet["selfLink"] for each in before):
        raise invalid(f"{where}.subnetwork", path, "Networks of interfaces must be distinct.")
    address = addresses.internal_address(
        transaction, subnet, given.get("networkIP"), f"{where}.networkIP", spare_reserved=False
    )
    nic: Json = {
        "kind": "compute#networkInterface",
        "name": f"nic{index}",
        "network": subnet["network"],
        "subnetwork": subnet["selfLink"],
        "networkIP": address,
        "stackType": "IPV4_ONLY",
    }
    configs = given.get("accessConfigs") or []
    if configs:
        nic["accessConfigs"] = [access_config(transaction, configs[0], where, address)]
    return {**nic, "fingerprint": fingerprint(nic)}


def access_config(transaction: Transaction, given: Json, where: str, internal: str) -> Json:
    """Return the external address of an interface: the reserved one asked for, or a free one."""
    users = addresses.external_users(transaction)
    held = addresses.reserved(transaction, None)
    wanted = given.get("natIP")
    if wanted:
        if wanted not in held:
            why = f"The specified external IP address '{wanted}' was not found (for {internal})."
            raise invalid(f"{where}.accessConfigs[0].natIP", wanted, why)
        if wanted in users:
            message = f"External IP address: {wanted} is already in-use."
            raise OperationError("IP_IN_USE_BY_ANOTHER_RESOURCE", message)
    else:
        try:
            wanted = addressing.first_external(users.keys() | held.keys())
        except NoAddressError as error:
            raise OperationError("QUOTA_EXCEEDED", str(error), 403) from error
    return {
        "kind": "compute#accessConfig",
        "type": "ONE_TO_ONE_NAT",
        "name": given.get("name") or "external-nat",
        "natIP": wanted,
        "networkTier": "PREMIUM",
    }
