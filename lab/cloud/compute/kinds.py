"""The kinds of resources that are records: one table, and what is the same for all of them.

Instances are in `lab.cloud.compute.instances`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from lab.cloud import Json, links
from lab.cloud.compute import addresses, attributes, disks, lookups, networks
from lab.cloud.errors import invalid, required
from lab.cloud.links import Level, Scope, link
from lab.cloud.store import Transaction, fingerprint

Complete = Callable[[Transaction, Scope, Json], Json]
Present = Callable[[Transaction, Json], Json]


def _as_it_is(_: Transaction, body: Json) -> Json:
    return body


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of resource."""

    collection: str
    """Its name in paths, such as `networks`."""
    singular: str
    level: Level
    complete: Complete
    """Makes the resource of an insert request's body; checks references, states defaults."""
    present: Present = _as_it_is
    """Adds what is derived from other resources, when the resource is read."""
    changeable: frozenset[str] = frozenset()
    """The fields that PATCH and PUT may change."""
    labelled: bool = False


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
        complete=networks.network,
        present=networks.network_now,
        changeable=frozenset({"routingConfig", "mtu", "networkFirewallPolicyEnforcementOrder"}),
    ),
    Kind(
        collection="firewalls",
        singular="firewall",
        level="global",
        complete=networks.firewall,
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
    Kind(
        collection="images",
        singular="image",
        level="global",
        complete=disks.new_image,
        labelled=True,
    ),
    Kind(
        collection="snapshots",
        singular="snapshot",
        level="global",
        complete=disks.snapshot,
        labelled=True,
    ),
    Kind(
        collection="subnetworks",
        singular="subnetwork",
        level="regions",
        complete=networks.subnetwork,
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
        complete=networks.router,
        changeable=frozenset({"nats", "bgp", "description", "interfaces", "bgpPeers"}),
    ),
    Kind(
        collection="addresses",
        singular="address",
        level="regions",
        complete=addresses.address,
        present=addresses.address_now,
        labelled=True,
    ),
    Kind(
        collection="resourcePolicies",
        singular="resourcePolicy",
        level="regions",
        complete=disks.resource_policy,
        changeable=frozenset({"snapshotSchedulePolicy", "description"}),
    ),
    Kind(
        collection="disks",
        singular="disk",
        level="zones",
        complete=disks.disk,
        present=disks.disk_now,
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
"""Kinds that can be deleted after something was made of them, and that use nothing themselves."""


def user_of(transaction: Transaction, body: Json) -> str | None:
    """Return the path of a resource that names this one, or None."""
    project = lookups.project_of(body)
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
