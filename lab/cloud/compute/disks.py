"""Disks, their snapshots and snapshot schedules, and images."""

from typing import Any, Final

from lab.cloud import Json, links
from lab.cloud.compute import catalog, lookups
from lab.cloud.errors import invalid, not_found, required
from lab.cloud.links import Scope, link
from lab.cloud.store import Transaction

MOST_SNAPSHOT_SCHEDULES: Final = 10  # Google's limit of resource policies on a disk


def resource_policy(_: Transaction, __: Scope, body: Json) -> Json:
    """Return the resource policy of an insert request."""
    kept = {key: each for key, each in body.items() if each is not None}
    schedule = kept.get("snapshotSchedulePolicy", {}).get("schedule", {})
    for each in schedule.values():
        # Google computes the length of a backup's window itself.
        if isinstance(each, dict) and "startTime" in each:
            each.setdefault("duration", "PT14400S")
    return {**kept, "status": "READY"}


def image(transaction: Transaction, value: Any, scope: Scope) -> Json:
    """Return the image that a reference names, itself or the newest of its family; 404 if none."""
    path = links.path_of(str(value), scope)
    head, _, name = path.rpartition("/")
    if head.endswith("/family"):
        return newest(transaction, head.removesuffix("/family"), name)
    return lookups.find(transaction, path)


def newest(transaction: Transaction, collection: str, family: str) -> Json:
    """Return the newest image of a family that is not deprecated; 404 where there is none."""
    found = [
        each
        for each in transaction.look(links.STORE + collection).values()
        if each.get("family") == family and "deprecated" not in each
    ]
    if not found:
        raise not_found(f"{collection}/family/{family}")
    return max(found, key=lambda each: (each["creationTimestamp"], int(each["id"])))


def disk(transaction: Transaction, scope: Scope, body: Json) -> Json:
    """Return the disk of a request: its source image is the image's own link, never a family's."""
    result = {key: each for key, each in body.items() if each is not None}
    size = result.get("sizeGb")
    if result.get("sourceImage"):
        source = image(transaction, result["sourceImage"], lookups.everywhere(scope))
        result["sourceImage"] = source["selfLink"]
        result["sourceImageId"] = source["id"]
        for field in ("licenses", "guestOsFeatures", "architecture"):
            if field in source:
                result.setdefault(field, source[field])
        size = size or source["diskSizeGb"]
        if int(size) < int(source["diskSizeGb"]):
            least = source["diskSizeGb"]
            why = f"Requested disk size cannot be smaller than the image size ({least} GB)"
            raise invalid("resource.sizeGb", size, why)
    if result.get("sourceSnapshot"):
        source = lookups.find(
            transaction, links.path_of(str(result["sourceSnapshot"]), lookups.everywhere(scope))
        )
        result["sourceSnapshot"] = source["selfLink"]
        result["sourceSnapshotId"] = source["id"]
        size = size or source["diskSizeGb"]
        if int(size) < int(source["diskSizeGb"]):
            least = source["diskSizeGb"]
            why = f"Requested disk size cannot be smaller than the snapshot size ({least} GB)"
            raise invalid("resource.sizeGb", size, why)
    kind = links.last(str(result.get("type") or "pd-standard"))
    if kind not in catalog.DISK_TYPES:
        raise invalid("resource.type", body.get("type"), "The referenced resource does not exist.")
    policies = [
        _policy(transaction, each, scope) for each in result.pop("resourcePolicies", None) or []
    ]
    if policies:
        result["resourcePolicies"] = policies
    return {
        "physicalBlockSizeBytes": "4096",
        "enableConfidentialCompute": False,
        **result,
        "sizeGb": str(_size(size or catalog.DEFAULT_DISK_GB)),
        "type": link(f"{scope.path}/diskTypes/{kind}"),
        "status": "READY",
    }


def _size(value: Any) -> int:
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if not 1 <= size <= 65536:
        raise invalid("resource.sizeGb", value, "Disk size must be between 1 GB and 65536 GB.")
    return size


def _policy(transaction: Transaction, value: Any, scope: Scope) -> str:
    region = catalog.region_of(scope.place) or ""
    where = Scope(project=scope.project, level="regions", place=region)
    path = links.reference(value, "resourcePolicies", where, "resourcePolicies")
    lookups.find(transaction, path)
    return link(path)


def add_policies(transaction: Transaction, scope: Scope, body: Json, given: Json) -> None:
    """Attach resource policies to a disk; 404 for one that is not there, 400 for too many."""
    held = body.setdefault("resourcePolicies", [])
    for value in given.get("resourcePolicies") or []:
        policy = _policy(transaction, value, scope)
        if policy not in held:
            held.append(policy)
    if len(held) > MOST_SNAPSHOT_SCHEDULES:
        why = f"At most {MOST_SNAPSHOT_SCHEDULES} resource policies can be attached to a disk."
        raise invalid("resourcePolicies", len(held), why)


def remove_policies(scope: Scope, body: Json, given: Json) -> None:
    """Take resource policies off a disk."""
    gone = {link(links.path_of(str(each), scope)) for each in given.get("resourcePolicies") or []}
    kept = [each for each in body.pop("resourcePolicies", []) if each not in gone]
    if kept:
        body["resourcePolicies"] = kept


def resize(body: Json, given: Json) -> None:
    """Grow a disk; 400 where the new size is not larger."""
    size = _size(given.get("sizeGb"))
    if size <= int(body["sizeGb"]):
        why = f"New disk size '{size}' must be larger than existing size '{body['sizeGb']}'."
        raise invalid("sizeGb", size, why)
    body["sizeGb"] = str(size)


def disk_users(transaction: Transaction, body: Json) -> list[str]:
    """Return the links of the instances that a disk is attached to."""
    return [
        each["selfLink"]
        for each in lookups.instances(transaction, lookups.project_of(body))
        if any(held.get("source") == body["selfLink"] for held in each["disks"])
    ]


def disk_now(transaction: Transaction, body: Json) -> Json:
    """Return a disk with the instances that it is attached to."""
    users = disk_users(transaction, body)
    return {**body, "users": users} if users else body


def new_image(_: Transaction, __: Scope, body: Json) -> Json:
    """Return the image of an insert request."""
    return {
        "architecture": "X86_64",
        "diskSizeGb": "10",
        "archiveSizeBytes": "1073741824",
        "sourceType": "RAW",
        "storageLocations": ["us"],
        "guestOsFeatures": [
            {"type": each} for each in ("UEFI_COMPATIBLE", "VIRTIO_SCSI_MULTIQUEUE", "GVNIC")
        ],
        **body,
        "status": "READY",
    }


def snapshot(transaction: Transaction, scope: Scope, body: Json) -> Json:
    """Return the snapshot of an insert request; 404 where its disk is not there."""
    value = body.get("sourceDisk")
    if not value:
        raise required("resource.sourceDisk")
    source = lookups.find(transaction, links.path_of(str(value), scope))
    return {
        **body,
        "sourceDisk": source["selfLink"],
        "sourceDiskId": source["id"],
        "diskSizeGb": source["sizeGb"],
        "storageLocations": ["us"],
        "snapshotType": "STANDARD",
        "status": "CREATING",
    }
