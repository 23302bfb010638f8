"""Compute resources that are records: what a request becomes, with all that Google answers.

Instances have a module of their own (`lab.cloud.instances`). A `complete` function gets the
request's body and returns the resource; references are checked, defaults stated. `present` adds
what is derived from other resources when it is read, so that nothing is recorded twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from lab.cloud import Json, addressing, attributes, catalog, links
from lab.cloud.addressing import NoAddressError
from lab.cloud.errors import ApiError, OperationError, invalid, not_found, required
from lab.cloud.links import Level, Scope, link
from lab.cloud.store import Transaction, fingerprint

Complete = Callable[[Transaction, Scope, Json], Json]
Present = Callable[[Transaction, Json], Json]

MOST_SNAPSHOT_SCHEDULES: Final = 10  # Google's limit of resource policies on a disk


def _as_it_is(_: Transaction, body: Json) -> Json:
    return body


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of resource: `changeable` are the fields that PATCH and PUT may change."""

    collection: str
    singular: str
    level: Level
    complete: Complete
    present: Present = _as_it_is
    changeable: frozenset[str] = frozenset()
    labelled: bool = False


def find(transaction: Transaction, path: str) -> Json:
    """Return the resource at `path`; 404 where there is none."""
    body = transaction.get(*links.split(path))
    if body is None:
        raise not_found(path)
    return body


def referenced(
    transaction: Transaction, body: Json, field: str, scope: Scope, collection: str
) -> str:
    """Return the link to the resource that a field names; 400 where it is not there."""
    value = body.get(field)
    if not value:
        raise required(f"resource.{field}")
    path = links.reference(value, f"resource.{field}", scope, collection)
    if transaction.get(*links.split(path)) is None:
        raise invalid(f"resource.{field}", value, "The referenced resource does not exist.")
    return link(path)


def instances(transaction: Transaction, project: str) -> Iterator[Json]:
    """Yield a project's instances."""
    for collection in transaction.collections(f"{links.STORE}projects/{project}/zones/"):
        if collection.endswith("/instances"):
            yield from transaction.look(collection).values()


def project_of(body: Json) -> str:
    """Return the project of a resource."""
    return str(body["selfLink"].removeprefix(links.PREFIX).split("/")[1])


def _global(scope: Scope) -> Scope:
    return Scope(project=scope.project)


# Networks


def _network(_: Transaction, __: Scope, body: Json) -> Json:
    if body.get("autoCreateSubnetworks", "IPv4Range" not in body):
        message = (
            "resource.autoCreateSubnetworks must be false: this stand-in has no auto mode"
            " networks; declare the subnetworks"
        )
        raise ApiError(501, "notImplemented", message)
    routing = {"routingMode": "REGIONAL", "bgpBestPathSelectionMode": "LEGACY"}
    return {
        "networkFirewallPolicyEnforcementOrder": "AFTER_CLASSIC_FIREWALL",
        "mtu": 1460,
        **body,
        "autoCreateSubnetworks": False,
        "routingConfig": {**routing, **(body.get("routingConfig") or {})},
    }


def _subnetworks(transaction: Transaction, project: str) -> Iterator[Json]:
    for collection in transaction.collections(f"{links.STORE}projects/{project}/regions/"):
        if collection.endswith("/subnetworks"):
            yield from transaction.look(collection).values()


def _network_now(transaction: Transaction, body: Json) -> Json:
    subnetworks = _subnetworks(transaction, project_of(body))
    found = [each["selfLink"] for each in subnetworks if each["network"] == body["selfLink"]]
    return {**body, "subnetworks": found} if found else body


def _subnetwork(transaction: Transaction, scope: Scope, body: Json) -> Json:
    cidr = body.get("ipCidrRange")
    if not isinstance(cidr, str):
        raise required("resource.ipCidrRange")
    problem = addressing.subnet_problem(cidr)
    if problem:
        raise invalid("resource.ipCidrRange", cidr, problem)
    network = referenced(transaction, body, "network", _global(scope), "networks")
    for other in _subnetworks(transaction, scope.project):
        if other["network"] == network and addressing.overlaps(cidr, other["ipCidrRange"]):
            why = (
                f"Invalid IPCidrRange: {cidr} conflicts with existing subnetwork"
                f" '{other['name']}' in region '{links.last(other['region'])}'."
            )
            raise invalid("resource.ipCidrRange", cidr, why)
    log = body.get("logConfig") or {"enable": False}
    result = {
        "purpose": "PRIVATE",
        "stackType": "IPV4_ONLY",
        "privateIpGoogleAccess": False,
        "privateIpv6GoogleAccess": "DISABLE_GOOGLE_ACCESS",
        **body,
        "network": network,
        "gatewayAddress": addressing.gateway(cidr),
        "enableFlowLogs": bool(log.get("enable")),
        "logConfig": log,
    }
    return {**result, "fingerprint": fingerprint(result)}


def _firewall(transaction: Transaction, scope: Scope, body: Json) -> Json:
    if not body.get("allowed") and not body.get("denied"):
        raise required("resource.allowed")
    result = {
        "priority": 1000,
        "direction": "INGRESS",
        "disabled": False,
        "logConfig": {"enable": False},
        **body,
        "network": referenced(transaction, body, "network", _global(scope), "networks"),
    }
    if result["direction"] == "INGRESS" and not any(
        result.get(field) for field in ("sourceRanges", "sourceTags", "sourceServiceAccounts")
    ):
        result["sourceRanges"] = ["0.0.0.0/0"]
    return result


def _router(transaction: Transaction, scope: Scope, body: Json) -> Json:
    result = {
        **body,
        "network": referenced(transaction, body, "network", _global(scope), "networks"),
        "encryptedInterconnectRouter": False,
    }
    return {key: each for key, each in result.items() if each is not None}


# Addresses


def addresses(transaction: Transaction, project: str) -> Iterator[Json]:
    """Yield a project's reserved addresses."""
    for collection in transaction.collections(f"{links.STORE}projects/{project}/regions/"):
        if collection.endswith("/addresses"):
            yield from transaction.look(collection).values()


def internal_users(transaction: Transaction, subnetwork: str) -> dict[str, str]:
    """Return who uses which address of the subnetwork with that link: address to instance."""
    project = links.path_of(subnetwork, Scope(project="")).split("/")[1]
    return {
        nic["networkIP"]: each["selfLink"]
        for each in instances(transaction, project)
        for nic in each["networkInterfaces"]
        if nic["subnetwork"] == subnetwork
    }


def external_users(transaction: Transaction) -> dict[str, str]:
    """Return who uses which external address, in all projects: address to instance."""
    found = {}
    for collection in transaction.collections(f"{links.STORE}projects/"):
        if collection.endswith("/instances"):
            for each in transaction.look(collection).values():
                for nic in each["networkInterfaces"]:
                    for access in nic.get("accessConfigs", []):
                        if "natIP" in access:
                            found[access["natIP"]] = each["selfLink"]
    return found


def reserved(transaction: Transaction, subnetwork: str | None) -> dict[str, Json]:
    """Return the reserved addresses of a subnetwork, or, with None, all external ones."""
    found = {}
    for collection in transaction.collections(f"{links.STORE}projects/"):
        if collection.endswith("/addresses"):
            for each in transaction.look(collection).values():
                if each.get("subnetwork") == subnetwork:
                    found[each["address"]] = each
    return found


def _address(transaction: Transaction, scope: Scope, body: Json) -> Json:
    kind = body.get("addressType") or "EXTERNAL"
    if kind not in ("EXTERNAL", "INTERNAL"):
        raise invalid("resource.addressType", kind, "Must be EXTERNAL or INTERNAL.")
    if kind == "EXTERNAL" and (body.get("subnetwork") or body.get("address")):
        why = "An external address has neither a subnetwork nor an address of one's own choice."
        raise invalid("resource.addressType", kind, why)
    fields = _internal(transaction, scope, body) if kind == "INTERNAL" else _external(transaction)
    return {
        "description": "",
        **body,
        "addressType": kind,
        "networkTier": "PREMIUM",
        "ipVersion": "IPV4",
        **fields,
        "status": "RESERVED",
    }


def _external(transaction: Transaction) -> Json:
    taken = external_users(transaction).keys() | reserved(transaction, None).keys()
    try:
        return {"address": addressing.first_external(set(taken))}
    except NoAddressError as error:
        raise OperationError("QUOTA_EXCEEDED", str(error), 403) from error


def _internal(transaction: Transaction, scope: Scope, body: Json) -> Json:
    subnetwork = referenced(transaction, body, "subnetwork", scope, "subnetworks")
    subnet = find(transaction, links.path_of(subnetwork, scope))
    address = internal_address(
        transaction, subnet, body.get("address"), "resource.address", spare_reserved=True
    )
    return {"address": address, "subnetwork": subnetwork, "purpose": "GCE_ENDPOINT"}


def internal_address(
    transaction: Transaction, subnet: Json, wanted: Any, field: str, *, spare_reserved: bool
) -> str:
    """Return a free address of a subnet: the wanted one, or the lowest.

    `spare_reserved` says that a reserved address counts as taken (to reserve it again); an
    instance may name one that nobody uses. OperationError where it is taken, as Google says it.
    """
    users = internal_users(transaction, subnet["selfLink"])
    held = reserved(transaction, subnet["selfLink"])
    cidr = subnet["ipCidrRange"]
    if not wanted:
        try:
            return addressing.first_internal(cidr, users.keys() | held.keys())
        except NoAddressError as error:
            raise OperationError("IP_SPACE_EXHAUSTED", str(error)) from error
    if not isinstance(wanted, str) or not addressing.usable(cidr, wanted):
        why = f"The requested address is not a usable one of the subnetwork's range {cidr}."
        raise invalid(field, wanted, why)
    if wanted in users or (spare_reserved and wanted in held):
        message = f"IP '{wanted}' is already being used by another resource."
        raise OperationError("IP_IN_USE_BY_ANOTHER_RESOURCE", message)
    return wanted


def _address_now(transaction: Transaction, body: Json) -> Json:
    subnetwork = body.get("subnetwork")
    users = internal_users(transaction, subnetwork) if subnetwork else external_users(transaction)
    user = users.get(body["address"])
    return {**body, "status": "IN_USE", "users": [user]} if user else body


# Disks and what is scheduled for them


def _resource_policy(_: Transaction, __: Scope, body: Json) -> Json:
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
    return find(transaction, path)


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
        source = image(transaction, result["sourceImage"], _global(scope))
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
        source = find(transaction, links.path_of(str(result["sourceSnapshot"]), _global(scope)))
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
    find(transaction, path)
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
        for each in instances(transaction, project_of(body))
        if any(held.get("source") == body["selfLink"] for held in each["disks"])
    ]


def _disk_now(transaction: Transaction, body: Json) -> Json:
    users = disk_users(transaction, body)
    return {**body, "users": users} if users else body


def _image(_: Transaction, __: Scope, body: Json) -> Json:
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


def _snapshot(transaction: Transaction, scope: Scope, body: Json) -> Json:
    value = body.get("sourceDisk")
    if not value:
        raise required("resource.sourceDisk")
    source = find(transaction, links.path_of(str(value), scope))
    return {
        **body,
        "sourceDisk": source["selfLink"],
        "sourceDiskId": source["id"],
        "diskSizeGb": source["sizeGb"],
        "storageLocations": ["us"],
        "snapshotType": "STANDARD",
        "status": "CREATING",
    }


def _instance_template(_: Transaction, __: Scope, body: Json) -> Json:
    properties = dict(body.get("properties") or {})
    if not properties.get("machineType"):
        raise required("resource.properties.machineType")
    properties["metadata"] = attributes.metadata(properties.get("metadata"))
    properties["tags"] = attributes.tags(properties.get("tags"))
    return {**body, "properties": properties}


KINDS: Final = (
    Kind(
        collection="networks",
        singular="network",
        level="global",
        complete=_network,
        present=_network_now,
        changeable=frozenset({"routingConfig", "mtu", "networkFirewallPolicyEnforcementOrder"}),
    ),
    Kind(
        collection="firewalls",
        singular="firewall",
        level="global",
        complete=_firewall,
        changeable=frozenset(
            [
                "allowed",
                "denied",
                "description",
                "direction",
                "disabled",
                "logConfig",
                "priority",
                "sourceRanges",
                "sourceTags",
                "sourceServiceAccounts",
                "targetTags",
                "targetServiceAccounts",
                "destinationRanges",
            ]
        ),
    ),
    Kind(
        collection="instanceTemplates",
        singular="instanceTemplate",
        level="global",
        complete=_instance_template,
    ),
    Kind(collection="images", singular="image", level="global", complete=_image, labelled=True),
    Kind(
        collection="snapshots",
        singular="snapshot",
        level="global",
        complete=_snapshot,
        labelled=True,
    ),
    Kind(
        collection="subnetworks",
        singular="subnetwork",
        level="regions",
        complete=_subnetwork,
        changeable=frozenset(
            [
                "description",
                "logConfig",
                "enableFlowLogs",
                "privateIpGoogleAccess",
                "secondaryIpRanges",
                "privateIpv6GoogleAccess",
                "stackType",
            ]
        ),
    ),
    Kind(
        collection="routers",
        singular="router",
        level="regions",
        complete=_router,
        changeable=frozenset({"nats", "bgp", "description", "interfaces", "bgpPeers"}),
    ),
    Kind(
        collection="addresses",
        singular="address",
        level="regions",
        complete=_address,
        present=_address_now,
        labelled=True,
    ),
    Kind(
        collection="resourcePolicies",
        singular="resourcePolicy",
        level="regions",
        complete=_resource_policy,
        changeable=frozenset({"snapshotSchedulePolicy", "description"}),
    ),
    Kind(
        collection="disks",
        singular="disk",
        level="zones",
        complete=disk,
        present=_disk_now,
        labelled=True,
    ),
)


def record(transaction: Transaction, kind: Kind, scope: Scope, body: Json) -> Json:
    """Return the whole resource of an insert request, with name, id, links and labels."""
    name = links.valid_name(body.get("name"))
    path = f"{scope.path}/{kind.collection}/{name}"
    asked = {key: each for key, each in body.items() if key not in ("labels", scope.level[:-1])}
    result = {
        "kind": f"compute#{kind.singular}",
        "id": transaction.new_id(),
        "creationTimestamp": links.now(),
        **kind.complete(transaction, scope, asked),
        "name": name,
        "selfLink": link(path),
    }
    if scope.level != "global":
        result[scope.level[:-1]] = link(scope.path)
    if kind.labelled:
        result.update(attributes.label_fields(body.get("labels")))
    return result


def change(kind: Kind, body: Json, given: Json) -> Json:
    """Return a resource after PATCH or PUT; 400 for a field that cannot change."""
    for field, value in given.items():
        free = field in kind.changeable or field in _NOT_JUDGED
        if not free and not _same(body.get(field), value):
            raise invalid(f"resource.{field}", value, "This field cannot be changed.")
    wanted = {key: each for key, each in given.items() if key in kind.changeable}
    result = {key: each for key, each in {**body, **wanted}.items() if each is not None}
    if "fingerprint" in body:
        plain = {key: each for key, each in result.items() if key != "fingerprint"}
        result["fingerprint"] = fingerprint(plain)
    return result


_NOT_JUDGED: Final = frozenset({"labels", "fingerprint", "kind", "id", "creationTimestamp"})


def _same(held: Any, given: Any) -> bool:
    # A client may name a resource by link or by path where the answer has the link.
    if isinstance(held, str) and isinstance(given, str):
        return links.last(held) == links.last(given)
    return given is None or bool(held == given)


REMEMBERED: Final = ("images", "instanceTemplates", "snapshots")
"""What can be deleted whatever was made of it, and names no user of what it was made of."""


def user_of(transaction: Transaction, body: Json) -> str | None:
    """Return the path of a resource that names this one, None where nothing does."""
    project = project_of(body)
    own = body["selfLink"]
    for collection in transaction.collections(f"{links.STORE}projects/{project}/"):
        if collection.endswith(("/operations", *(f"/{kind}" for kind in REMEMBERED))):
            continue
        for name, other in transaction.look(collection).items():
            if other.get("selfLink") != own and _names(other, own):
                return f"{collection.removeprefix(links.STORE)}/{name}"
    return None


def _names(value: Any, wanted: str) -> bool:
    if isinstance(value, dict):
        return any(_names(each, wanted) for each in value.values())
    if isinstance(value, list):
        return any(_names(each, wanted) for each in value)
    return bool(value == wanted)
