"""Reads the keys of the configuration that are no VM's: names, ranges, endpoints, access."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from components import names, spec_tables
from components.config import Access, MonitoringConfig
from components.config_reader import MapReader, describe, show

_RESOURCE = re.compile(r"[^\s/]{1,128}")
_SERVICE_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
# Accounts that Google makes by itself. They may do far too much, and anybody may use them.
_DEFAULT_ACCOUNT = re.compile(
    r"[0-9]+-compute@developer\.gserviceaccount\.com|[^@]+@appspot\.gserviceaccount\.com"
    r"|[0-9]+@cloudservices\.gserviceaccount\.com"
)
# Long enough that nobody guesses it, in characters that are plain in a shell, URL and header.
_TOKEN = re.compile(r"[-0-9A-Za-z_.~+/=]{16,512}")
_CHANNEL = re.compile(
    r"[^@\s/]+@[^@\s/]+\.[^@\s/]+"
    r"|projects/[-a-z0-9]{6,30}/(?:notificationChannels/[0-9]+|topics/[A-Za-z][-\w.~+%]{2,254})"
)
# A member of an IAM policy: a person, group, account or federated identity; never everybody.
_MEMBER = re.compile(
    r"(?:user|group|serviceAccount):[^@\s:]+@[^@\s:]+\.[^@\s:]+|domain:[^@\s:/]+\.[^@\s:/]+"
    r"|principal(?:Set)?://iam\.googleapis\.com/[^\s]+"
)
_DEFAULT_SUBNET = ipaddress.IPv4Network("10.10.0.0/20")


def read_bucket(node: MapReader, project: str | None) -> str:
    default = f"{project or 'project'}-pilot-fleet"
    bucket = node.string("bucket", names.BUCKET, "a bucket's name", default)
    if bucket != default and (problem := names.bucket_problem(bucket)):
        node.problem("bucket", f"{bucket!r} {problem}")
    return bucket


def _subnet(text: str) -> ipaddress.IPv4Network:
    network = ipaddress.IPv4Network(text)
    if not 8 <= network.prefixlen <= 29:
        raise ValueError(text)
    # Google refuses these: this host, loopback, link-local, multicast and beyond.
    if (
        network.is_loopback
        or network.is_link_local
        or network.is_multicast
        or network.is_reserved
        or network.overlaps(ipaddress.IPv4Network("0.0.0.0/8"))
    ):
        raise ValueError(text)
    return network


def _endpoint(text: str) -> str:
    """A base URL, over TLS unless its address is private. ValueError for others.

    VMs send their service account's token there.
    """
    if not spec_tables.pattern("endpoints.storage").fullmatch(text):
        raise ValueError(text)
    url = urlsplit(text)
    if url.port == 0:
        raise ValueError(text)
    if url.scheme == "http" and not ipaddress.ip_address(url.hostname or "").is_private:
        raise ValueError(text)
    return text


def read_tokens(node: MapReader) -> dict[str, str]:
    tokens = {}
    for purpose in spec_tables.table("TOKENS"):
        value = node.take(purpose)
        if value is None:
            continue
        # The messages never show the token.
        if not isinstance(value, str):
            node.problem(purpose, f"must be text, not {describe(value)}")
        elif value and not _TOKEN.fullmatch(value):
            node.problem(
                purpose,
                "is no token: give 16 to 512 letters, digits or -_.~+/= (openssl rand -hex 32), or "
                "an empty text to add the secret's version by hand",
            )
        else:
            tokens[purpose] = value
    node.unknown_keys()
    return tokens


def read_monitoring(node: MapReader) -> MonitoringConfig:
    monitoring = MonitoringConfig(
        enabled=node.boolean("enabled", MonitoringConfig.enabled),
        agent=node.boolean("agent", MonitoringConfig.agent),
        channels=node.strings(
            "channels",
            _CHANNEL,
            "an e-mail address, a topic (projects/PROJECT/topics/TOPIC) or a channel that exists "
            "(projects/PROJECT/notificationChannels/NUMBER)",
        ),
        online=node.fraction("online", MonitoringConfig.online),
    )
    if not monitoring.enabled and (monitoring.channels or node.values.get("online") is not None):
        node.problem(
            "enabled", "is not true, so the rest has no effect: set it, or remove the rest"
        )
    node.unknown_keys()
    return monitoring


def read_access(node: MapReader) -> Access:
    members = "a member such as group:fleet@example.com (user:, serviceAccount:, principalSet://)"
    access = Access(
        look=node.strings("look", _MEMBER, members),
        order=node.strings("order", _MEMBER, members),
        role=node.string(
            "role",
            names.ROLE,
            "a custom role such as projects/P/roles/R (Google's own that may reset VMs may also "
            "rewrite their metadata, which is root on them)",
            required=False,
        )
        or None,
    )
    for index, member in enumerate(access.order):
        if member in access.look:
            node.problem(
                f"order[{index}]",
                f"{show(member)} is in look as well: remove it there, order includes look",
            )
    if access.role and not access.order:
        node.problem("role", "has no effect while order is empty: remove it")
    node.unknown_keys()
    return access


def read_allowed_scripts(root: MapReader, fleet: tuple[str, ...]) -> tuple[str, ...]:
    names = root.strings("allowedScripts", _RESOURCE, "the name of a VM or another resource")
    for name in names:
        if name in fleet:
            root.problem(
                "allowedScripts",
                f"{name} is a VM of the fleet, which runs the project's startup script and no "
                "other: put what has to run on it into startup/",
            )
    return names


def read_registry_ranges(root: MapReader) -> tuple[str, ...]:
    ranges = []
    for index, item in enumerate(root.items("registryRanges")):
        try:
            if not isinstance(item, str):
                raise ValueError(item)
            ranges.append(str(ipaddress.IPv4Network(item)))
        except ValueError:
            root.problem(
                f"registryRanges[{index}]",
                f"{show(item)} is not an IPv4 range such as 203.0.113.0/24 (no host bits set)",
            )
    return tuple(ranges)


def read_service_account(node: MapReader) -> str:
    """The address of the service account at `node`, or "" where there is none."""
    account = node.string(
        "serviceAccount", _SERVICE_ACCOUNT, "a service account's address", required=False
    )
    if _DEFAULT_ACCOUNT.fullmatch(account):
        node.problem(
            "serviceAccount",
            f"{account} is a default account of Google's, which may do far too much: make one "
            "for the VMs, or leave this empty",
        )
    return account


def read_subnet(root: MapReader) -> ipaddress.IPv4Network:
    """The fleet's subnet."""
    return root.choose(
        "subnetCidr",
        _subnet,
        "an IPv4 range that a subnet can have, from /8 to /29, such as 10.10.0.0/20",
        _DEFAULT_SUBNET,
    )


def read_endpoint(node: MapReader, key: str, default: str) -> str:
    """The base URL at `key`."""
    return node.choose(
        key, _endpoint, "a URL without a path, over https unless the address is private", default
    )
