"""Networks, subnetworks, firewall rules and routers: the resource that an insert request becomes.

References are checked and defaults are stated. A `…_now` function adds what is derived from other
resources when the resource is read, so that nothing is recorded twice.
"""

from collections.abc import Iterator

from lab.cloud import Json, links
from lab.cloud.compute import addressing, lookups
from lab.cloud.errors import ApiError, invalid, required
from lab.cloud.links import Scope
from lab.cloud.store import Transaction, fingerprint


def network(_: Transaction, __: Scope, body: Json) -> Json:
    """Return the network of an insert request; 501 for auto mode."""
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


def network_now(transaction: Transaction, body: Json) -> Json:
    """Return a network with its subnetworks."""
    subnetworks = _subnetworks(transaction, lookups.project_of(body))
    found = [each["selfLink"] for each in subnetworks if each["network"] == body["selfLink"]]
    return {**body, "subnetworks": found} if found else body


def subnetwork(transaction: Transaction, scope: Scope, body: Json) -> Json:
    """Return the subnetwork of an insert request; 400 where its range overlaps another."""
    cidr = body.get("ipCidrRange")
    if not isinstance(cidr, str):
        raise required("resource.ipCidrRange")
    problem = addressing.subnet_problem(cidr)
    if problem:
        raise invalid("resource.ipCidrRange", cidr, problem)
    network = lookups.referenced(
        transaction, body, "network", lookups.everywhere(scope), "networks"
    )
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


def firewall(transaction: Transaction, scope: Scope, body: Json) -> Json:
    """Return the firewall rule of an insert request."""
    if not body.get("allowed") and not body.get("denied"):
        raise required("resource.allowed")
    result = {
        "priority": 1000,
        "direction": "INGRESS",
        "disabled": False,
        "logConfig": {"enable": False},
        **body,
        "network": lookups.referenced(
            transaction, body, "network", lookups.everywhere(scope), "networks"
        ),
    }
    if result["direction"] == "INGRESS" and not any(
        result.get(field) for field in ("sourceRanges", "sourceTags", "sourceServiceAccounts")
    ):
        result["sourceRanges"] = ["0.0.0.0/0"]
    return result


def router(transaction: Transaction, scope: Scope, body: Json) -> Json:
    """Return the router of an insert request."""
    result = {
        **body,
        "network": lookups.referenced(
            transaction, body, "network", lookups.everywhere(scope), "networks"
        ),
        "encryptedInterconnectRouter": False,
    }
    return {key: each for key, each in result.items() if each is not None}
