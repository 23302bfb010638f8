"""The contents of a VM's metadata server, and how they are written; no I/O.

Names, values and shapes follow Google's documentation of the predefined metadata keys, its own
emulator of the server (2016: which directories are numbered, what answers JSON unasked, what the
ETag covers) and answers that were published since. Where Google says nothing, the docstrings here
state the decision.
"""

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lab.cloud import Json, links
from lab.cloud.links import Scope
from lab.machines.driver import Machine, Nic

NO_MAINTENANCE: Final = "NONE"
_MTU: Final = 1460  # Google's default for a VPC network, in bytes
_TRUE: Final = frozenset({"true", "y", "yes", "1"})  # Google's table of boolean metadata values
_NOWHERE: Final = Scope(project="")
_DISK_TYPES: Final = {"pd-balanced": "PERSISTENT-BALANCED", "pd-ssd": "PERSISTENT-SSD"}


# The tree


@dataclass(frozen=True)
class Directory:
    """Named children."""

    children: Mapping[str, "Node"] = field(default_factory=dict)
    free: bool = False
    """The names are the user's: JSON does not camel-case them."""
    apart: bool = False
    """The content is answered for this path and below it only, not for a directory above."""


@dataclass(frozen=True)
class Numbered:
    """Children named 0, 1, …: a list in JSON."""

    items: Sequence["Node"] = ()


@dataclass(frozen=True)
class Words:
    """A list that is one value: lines in text, a list in JSON."""

    items: Sequence[str] = ()
    json: bool = False
    """JSON where the request does not say which."""


@dataclass(frozen=True)
class Made:
    """A value that is made on request: listed, never part of a recursive answer."""


Leaf = str | int | Words | Made
Node = Directory | Numbered | Leaf


@dataclass(frozen=True, kw_only=True)
class GuestFacts:
    """Everything that a VM's metadata server answers from; equal facts give equal answers."""

    instance: Json
    machine: Machine
    project_number: str
    project: Mapping[str, str]
    """Project-wide custom metadata."""
    zonal: Mapping[str, str]
    """Custom metadata of the project's InstanceSettings in the VM's zone."""
    image: str = ""
    """Path of the boot disk's image (`projects/…`)."""
    licenses: Sequence[str] = ()
    disk_types: Mapping[str, str] = field(default_factory=dict)
    """Type of each attached disk (`pd-balanced`), by device name."""
    guest: Mapping[str, str] = field(default_factory=dict)
    """Guest attributes by `NAMESPACE/KEY`."""
    maintenance: str = NO_MAINTENANCE

    @property
    def project_id(self) -> str:
        """Return the project's id."""
        return self.machine.path.split("/")[1]

    @property
    def own(self) -> dict[str, str]:
        """Return the instance's own custom metadata."""
        return items(self.instance["metadata"])

    @property
    def common(self) -> dict[str, str]:
        """Return what `project/attributes/` holds: project-wide metadata, overlaid by the zone's.

        Google documents that a zone's VMs inherit the project-wide value of a key again once its
        zonal entry is removed (`gcloud compute project-zonal-metadata remove`): the zonal one
        hides it, in the same directory. Instance metadata is a directory of its own. The reader
        chooses between the two: the guest environment prefers the instance's.
        """
        return {**self.project, **self.zonal}

    def guest_attributes_enabled(self) -> bool:
        """Tell whether `enable-guest-attributes` is true: the instance's, or the project's."""
        key = "enable-guest-attributes"
        return self.own.get(key, self.common.get(key, "")).strip().lower() in _TRUE

    def account(self, name: str) -> Json | None:
        """Return the service account (email, scopes) called `default` or by its email, or None."""
        for each in self.instance.get("serviceAccounts", []):
            email = each["email"]
            if email == "default":
                email = f"{self.project_number}-compute@developer.gserviceaccount.com"
            if name in ("default", email):
                return {"email": email, "scopes": list(each.get("scopes") or [])}
        return None


def items(metadata: Any) -> dict[str, str]:
    """Return metadata as a plain mapping, from a list of items or a mapping of them."""
    given = (metadata or {}).get("items") or {}
    if isinstance(given, dict):
        return {str(key): str(value) for key, value in given.items()}
    return {each["key"]: each["value"] for each in given}


def tree(facts: GuestFacts) -> Directory:
    """Return everything below `/computeMetadata/v1/`."""
    return Directory(
        {
            "instance": _instance(facts),
            "oslogin": Directory({"authenticate": Directory({"sessions": Directory()})}),
            "project": Directory(
                {
                    "attributes": _custom(facts.common),
                    "numeric-project-id": int(facts.project_number),
                    "project-id": facts.project_id,
                }
            ),
            "universe": Directory({"universe-domain": "googleapis.com"}),
        }
    )


def _instance(facts: GuestFacts) -> Directory:
    instance, project = facts.instance, f"projects/{facts.project_number}"
    scheduling = instance["scheduling"]
    return Directory(
        {
            "attributes": _custom(facts.own),
            "cpu-platform": instance["cpuPlatform"],
            "description": instance.get("description", ""),
            "disks": Numbered([_disk(each, facts.disk_types) for each in instance["disks"]]),
            "guest-attributes": _guest(facts.guest),
            "hostname": facts.machine.hostname,
            "id": int(instance["id"]),
            "image": facts.image,
            "licenses": Numbered([Directory({"id": each}) for each in facts.licenses]),
            "machine-type": f"{project}/machineTypes/{links.last(instance['machineType'])}",
            "maintenance-event": facts.maintenance,
            "name": instance["name"],
            "network-interfaces": Numbered(
                [
                    _nic(shown, nic, project)
                    for shown, nic in zip(
                        instance["networkInterfaces"], facts.machine.nics, strict=True
                    )
                ]
            ),
            "partner-attributes": Directory(free=True),
            "preempted": "FALSE",
            "remaining-cpu-time": -1,  # what Google answers where no time is limited
            "scheduling": Directory(
                {
                    "automatic-restart": _boolean(scheduling["automaticRestart"]),
                    "on-host-maintenance": scheduling["onHostMaintenance"],
                    "preemptible": _boolean(scheduling["preemptible"]),
                }
            ),
            "service-accounts": _accounts(facts),
            "tags": Words(instance["tags"].get("items", []), json=True),
            # Changes when a VM moves to another host, which never happens here.
            "virtual-clock": Directory({"drift-token": "0"}),
            "zone": f"{project}/zones/{links.last(instance['zone'])}",
        }
    )


def _boolean(value: object) -> str:
    return "TRUE" if value else "FALSE"


def _custom(given: Mapping[str, str]) -> Directory:
    return Directory({key: given[key] for key in sorted(given)}, free=True)


def _guest(given: Mapping[str, str]) -> Directory:
    namespaces: dict[str, dict[str, Node]] = {}
    for name in sorted(given):
        namespace, _, key = name.partition("/")
        namespaces.setdefault(namespace, {})[key] = given[name]
    # Apart, because a status that a VM publishes must not end the long polls of its own agents.
    # Google's published recursive answers show {} as well.
    return Directory(
        {name: Directory(keys, free=True) for name, keys in namespaces.items()},
        free=True,
        apart=True,
    )


def _disk(shown: Json, types: Mapping[str, str]) -> Directory:
    device = shown["deviceName"]
    return Directory(
        {
            "device-name": device,
            "index": int(shown["index"]),
            "interface": shown["interface"],
            "mode": shown["mode"],
            "type": _DISK_TYPES.get(types.get(device, ""), "PERSISTENT"),
        }
    )


def _nic(shown: Json, nic: Nic, project: str) -> Directory:
    configs = [
        Directory({"external-ip": each.get("natIP", ""), "type": each["type"]})
        for each in shown.get("accessConfigs", [])
    ]
    return Directory(
        {
            "access-configs": Numbered(configs),
            "dns-servers": Words(["169.254.169.254"]),
            "forwarded-ips": Numbered(),
            "gateway": nic.gateway,
            "ip": nic.address,
            "ip-aliases": Numbered(
                [each["ipCidrRange"] for each in shown.get("aliasIpRanges") or []]
            ),
            "mac": nic.mac,
            "mtu": _MTU,
            "network": f"{project}/networks/{links.last(shown['network'])}",
            "subnetmask": str(ipaddress.ip_network(nic.cidr).netmask),
            "target-instance-ips": Numbered(),
        }
    )


def _accounts(facts: GuestFacts) -> Directory:
    default = facts.account("default")
    if default is None:
        return Directory(free=True)
    account = Directory(
        {
            "aliases": Words(["default"]),
            "email": default["email"],
            "identity": Made(),
            "scopes": Words(default["scopes"]),
            "token": Made(),
        }
    )
    return Directory(dict.fromkeys(sorted({default["email"], "default"}), account), free=True)


# Looking up and writing


def find(node: Node, parts: Sequence[str]) -> Node | None:
    """Return what is at a path below `node`, or None."""
    found: Node | None = node
    for part in parts:
        if isinstance(found, Directory):
            found = found.children.get(part)
        elif isinstance(found, Numbered):
            number = int(part) if re.fullmatch(r"0|[1-9]\d{0,3}", part) else len(found.items)
            found = found.items[number] if number < len(found.items) else None
        else:
            return None
    return found


def is_directory(node: Node) -> bool:
    """Tell whether a node has children with paths of their own."""
    return isinstance(node, Directory | Numbered)


def json_by_default(node: Node, recursive: bool) -> bool:
    """Tell whether a node is answered as JSON where `alt` is not given."""
    return (isinstance(node, Words) and node.json) or (recursive and is_directory(node))


def write(node: Node, *, recursive: bool, as_json: bool) -> str:
    """Return a node as the server writes it: a value, a listing, or everything below it."""
    if as_json:
        return json.dumps(as_value(node), separators=(",", ":"), ensure_ascii=False)
    if not is_directory(node):
        return _text(node)
    if recursive:
        return "".join(f"{path} {line}\n" for path, line in _lines(node, ""))
    return "".join(f"{name}{'/' if is_directory(each) else ''}\n" for name, each in _named(node))


def etag(node: Node, recursive: bool) -> str:
    """Return the ETag of an answer: 16 hex digits of what is written where `alt` is not given.

    So neither `alt` nor anything outside the answer changes it.
    """
    text = write(node, recursive=recursive, as_json=json_by_default(node, recursive))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_value(node: Node, *, below: bool = False) -> Any:
    """Return a node as a JSON value, as `recursive=true` shows it."""
    if isinstance(node, Directory):
        if below and node.apart:
            return {}
        name: Callable[[str], str] = str if node.free else _camel
        return {
            name(key): as_value(each, below=True)
            for key, each in node.children.items()
            if not isinstance(each, Made)
        }
    if isinstance(node, Numbered):
        return [as_value(each, below=True) for each in node.items]
    if isinstance(node, Words):
        return list(node.items)
    return node


def _named(node: Node) -> list[tuple[str, Node]]:
    if isinstance(node, Directory):
        return list(node.children.items())
    if isinstance(node, Numbered):
        return [(str(number), each) for number, each in enumerate(node.items)]
    return []


def _text(node: Node) -> str:
    if isinstance(node, Words):
        return "".join(f"{each}\n" for each in node.items)
    return str(node)


def _lines(node: Node, prefix: str) -> list[tuple[str, str]]:
    if isinstance(node, Directory) and node.apart and prefix:
        return []
    lines: list[tuple[str, str]] = []
    for name, each in _named(node):
        path = f"{prefix}/{name}" if prefix else name
        if is_directory(each):
            lines += _lines(each, path)
        elif isinstance(each, Words):
            lines += [(path, word) for word in each.items]
        elif not isinstance(each, Made):
            lines.append((path, str(each)))
    return lines


def _camel(name: str) -> str:
    first, *rest = name.split("-")
    return first + "".join(word.capitalize() for word in rest)


def image_of(disk: Json | None) -> str:
    """Return the path of the image that a disk was made from, empty where it has none."""
    source = (disk or {}).get("sourceImage")
    return links.path_of(source, _NOWHERE) if source else ""
