"""Reserved addresses, and which addresses of subnetworks and of the internet are taken."""

from collections.abc import Iterator
from typing import Any

from lab.cloud import Json, links
from lab.cloud.compute import addressing, lookups
from lab.cloud.compute.addressing import NoAddressError
from lab.cloud.errors import OperationError, invalid
from lab.cloud.links import Scope
from lab.cloud.store import Transaction


def addresses(transaction: Transaction, project: str) -> Iterator[Json]:
    """Yield a project's reserved addresses."""
    for collection in transaction.collections(f"{links.STORE}projects/{project}/regions/"):
        if collection.endswith("/addresses"):
            yield from transaction.look(collection).values()


def internal_users(transaction: Transaction, subnetwork: str) -> dict[str, str]:
    """Return the instance that uses each taken address of a subnetwork (a link)."""
    project = links.path_of(subnetwork, Scope(project="")).split("/")[1]
    return {
        nic["networkIP"]: each["selfLink"]
        for each in lookups.instances(transaction, project)
        for nic in each["networkInterfaces"]
        if nic["subnetwork"] == subnetwork
    }


def external_users(transaction: Transaction) -> dict[str, str]:
    """Return the instance that uses each external address, in all projects."""
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


def address(transaction: Transaction, scope: Scope, body: Json) -> Json:
    """Return the address of an insert request: the one asked for, or the lowest that is free."""
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
    subnetwork = lookups.referenced(transaction, body, "subnetwork", scope, "subnetworks")
    subnet = lookups.find(transaction, links.path_of(subnetwork, scope))
    address = internal_address(
        transaction, subnet, body.get("address"), "resource.address", spare_reserved=True
    )
    return {"address": address, "subnetwork": subnetwork, "purpose": "GCE_ENDPOINT"}


def internal_address(
    transaction: Transaction, subnet: Json, wanted: Any, field: str, *, spare_reserved: bool
) -> str:
    """Return a free address of a subnet: the wanted one, or the lowest.

    With `spare_reserved` a reserved address counts as taken, so that it is not reserved twice. An
    instance may name a reserved address that is not in use. OperationError where it is taken.
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


def address_now(transaction: Transaction, body: Json) -> Json:
    """Return an address with the instance that uses it."""
    subnetwork = body.get("subnetwork")
    users = internal_users(transaction, subnetwork) if subnetwork else external_users(transaction)
    user = users.get(body["address"])
    return {**body, "status": "IN_USE", "users": [user]} if user else body
