"""Firewall rules that open the registry, the dashboard or SSH to the world."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .values import UNKNOWN, Resource, Violation, join

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Protocols that reach a TCP port, by name and by IANA number. "0" and "all" are any protocol.
_TCP: Final = frozenset({"tcp", "6", "all", "0", ""})
# A rule that names any of these as its source does not reach from everywhere.
_NARROWING: Final = (
    "sourceTags",
    "sourceServiceAccounts",
    "srcSecureTags",
    "srcFqdns",
    "srcNetworks",
)
# Sources beside the ranges (any of them lets an address in). The plan does not show their
# addresses: a country, a list of Google's or an address group may hold half the world.
_VAGUE: Final = ("srcAddressGroups", "srcRegionCodes", "srcThreatIntelligences")
# These narrow the ranges of a rule; without ranges the plan does not show their addresses either.
_SCOPES: Final = ("srcNetworkScope", "srcNetworkContext", "srcNetworkType")
_GROUPS: Final = frozenset({"AddressGroup", "OrgAddressGroup"})
_PRIVATE: Final = tuple(
    ipaddress.ip_network(cidr)
    for cidr in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
_EVERYBODY: Final = "everybody"
_REMEDY: Final = (
    "Name the ranges that need it; people reach the dashboard and SSH through Google's IAP range, "
    "35.235.240.0/20"
)


@dataclass(frozen=True, kw_only=True)
class ExposureConfig:
    """Settings of `not-open-to-the-world`."""

    # TCP ports that must not be open to the world (SSH, registry, dashboard).
    ports: Sequence[int] = (22, 9000, 3000)
    # Prefix lengths. A shorter prefix counts as the world, and so do ranges that together have more
    # public addresses than one such prefix.
    widestV4: int = 8  # noqa: N815 - the name in the configuration
    widestV6: int = 32  # noqa: N815
    # Sources of firewall policies' rules whose addresses the plan does not show.
    vagueSources: Sequence[str] = (*_VAGUE, *_SCOPES)  # noqa: N815
    # Pulumi names of address groups that may be wide, because no rule allows them anything.
    exemptGroups: Sequence[str] = ()  # noqa: N815


def open_to_the_world(resource: Resource, config: ExposureConfig) -> Iterator[Violation]:
    """Ingress rules of `resource` that let the world reach one of the configured ports."""
    if resource.package not in {"gcp", "google-native", "google", "google-beta"}:
        return
    if resource.kind in _GROUPS and resource.name not in config.exemptGroups:
        yield from _group(resource.props.get("items"), config)
    for path, rule in _rules(resource.props, ""):
        yield from _judge(path, rule, config)


def _group(items: Any, config: ExposureConfig) -> Iterator[Violation]:
    """An address group as wide as the world. Other rules say which ports it reaches."""
    if items is None or items == []:
        return
    world, known = _world(items, {}, config)
    if world:
        yield Violation(
            path="items",
            problem=f"{world} is in this group of addresses, which rules let in by its name alone",
            remedy="Name the ranges that need it; a group for rules that deny goes into "
            "exemptGroups",
        )
    elif not known:
        yield Violation(
            path="items",
            problem="it is not known yet who is in this group of addresses",
            remedy="It is judged in the update; to see it in the plan, write the ranges out",
            unjudged=True,
        )


def _rules(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every firewall rule in `value`, of any resource type.

    A VPC rule has `allows`, or `allowed` (and `sourceRanges`); a rule of a firewall policy has a
    `match` and an `action`, alone or in a list of rules.
    """
    if isinstance(value, Mapping):
        if _allows(value) is not None or ("match" in value and "action" in value):
            yield path, value
        for key, item in value.items():
            yield from _rules(item, join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(item, join(path, index))


def _allows(value: Mapping[str, Any]) -> Any:
    """What a VPC rule allows, in either package's words; `None` where it is no such rule."""
    native = value.get("allowed")
    if isinstance(native, list) and any("ipProtocol" in e for e in native if isinstance(e, dict)):
        return [
            {**entry, "protocol": entry.get("ipProtocol")} if isinstance(entry, dict) else entry
            for entry in native
        ]
    return value["allows"] or [] if "allows" in value else None


def _judge(path: str, rule: Mapping[str, Any], config: ExposureConfig) -> Iterator[Violation]:
    # Ingress is the default, and an unknown direction may turn out to be ingress.
    if rule.get("disabled") is True or rule.get("direction") not in (None, "INGRESS", UNKNOWN):
        return
    allowed = _allows(rule)
    if allowed is not None:
        sources, where = rule.get("sourceRanges"), "sourceRanges"
        protocol, matched = "protocol", rule
    else:
        # Any other action lets traffic through, inspected or not.
        if rule["action"] in ("deny", "goto_next"):
            return
        match = rule["match"]
        if not isinstance(match, Mapping):
            match = {"srcIpRanges": match, "layer4Configs": match}
        sources, where = match.get("srcIpRanges"), "match.srcIpRanges"
        allowed, protocol, matched = match.get("layer4Configs"), "ipProtocol", match
    reached, ports_known = _reached(allowed, protocol, config.ports)
    if not reached:
        return
    at = join(path, where) if "." not in where else ".".join(filter(None, [path, where]))
    ports = ", ".join(str(port) for port in reached)
    world, ranges_known = _world(sources, matched, config)
    vague = _vague(sources, matched, config)
    for key in vague:
        yield Violation(
            path=".".join(filter(None, [path, "match", key])),
            problem=f"{key} does not say in the plan who can reach TCP {ports}",
            remedy=f"{_REMEDY}; or, after looking, leave {key} out of vagueSources",
            unjudged=not ports_known,
        )
    if vague and world == _EVERYBODY:
        return
    if world and ports_known:
        yield Violation(path=at, problem=f"{world} can reach TCP {ports}", remedy=_REMEDY)
    elif world or not ranges_known:
        yield Violation(
            path=at,
            problem=f"it is not known yet who can reach TCP {ports}",
            remedy="It is judged in the update; to see it in the plan, write the ranges and ports "
            "out",
            unjudged=True,
        )


def _vague(sources: Any, matched: Mapping[str, Any], config: ExposureConfig) -> list[str]:
    """Sources of a rule whose addresses the plan does not show."""
    named = bool(sources) or any(matched.get(key) for key in _NARROWING)
    return [
        key for key in config.vagueSources if matched.get(key) and not (named and key in _SCOPES)
    ]


def _reached(allowed: Any, protocol: str, ports: Sequence[int]) -> tuple[list[int], bool]:
    """Which of `ports` an allow list reaches or could reach, and whether that is certain."""
    if allowed is not None and not isinstance(allowed, list):
        return sorted(ports), False
    sure: set[int] = set()
    perhaps: set[int] = set()
    for entry in allowed or []:
        if not isinstance(entry, Mapping):
            perhaps.update(ports)
            continue
        name = entry.get(protocol)
        if name is not UNKNOWN and str(name or "").strip().lower() not in _TCP:
            continue
        ranges = entry.get("ports")
        if ranges is not None and not isinstance(ranges, list):
            perhaps.update(ports)
            continue
        for text in ranges or ["0-65535"]:
            hit = ports if text is UNKNOWN else [port for port in ports if _holds(text, port)]
            unsure = text is UNKNOWN or name is UNKNOWN
            (perhaps if unsure else sure).update(hit)
    return (sorted(sure), True) if sure else (sorted(perhaps), False)


def _holds(text: Any, port: int) -> bool:
    """Whether a port or range of ports, `"22"` or `"20-30"`, holds `port`."""
    first, dash, last = str(text).partition("-")
    try:
        return int(first) <= port <= int(last if dash else first)
    except ValueError:
        # Google refuses a text that is no port; it counts as any.
        return True


def _world(sources: Any, rule: Mapping[str, Any], config: ExposureConfig) -> tuple[str, bool]:
    """The part of `sources` that is the world ("" if none), and whether all of it is known."""
    if sources is UNKNOWN or any(rule.get(key) is UNKNOWN for key in _NARROWING):
        return "", False
    items = sources if isinstance(sources, list) else []
    if not items:
        # No source at all means any source, unless the rule names or narrows it otherwise.
        told = any(rule.get(key) for key in (*_NARROWING, *_VAGUE))
        told = told or any(rule.get(key) not in (None, "", "INTERNET") for key in _SCOPES)
        return ("" if told else _EVERYBODY), True
    networks: list[Network] = []
    for item in items:
        if item is UNKNOWN:
            continue
        try:
            networks.append(ipaddress.ip_network(str(item).strip(), strict=False))
        except ValueError:
            return f"{item!r}, which is no range and might be any,", True
    return _too_wide(networks, config), UNKNOWN not in items


def _too_wide(networks: Iterable[Network], config: ExposureConfig) -> str:
    networks = list(networks)
    for version, widest, bits in ((4, config.widestV4, 32), (6, config.widestV6, 128)):
        mine = [network for network in networks if network.version == version]
        # Adjacent ranges count as one.
        for network in ipaddress.collapse_addresses(mine):  # type: ignore[type-var]
            if network.prefixlen < widest:
                return str(network)
        public = [n for n in ipaddress.collapse_addresses(mine) if not _private(n)]  # type: ignore[type-var]
        if sum(network.num_addresses for network in public) > 2 ** (bits - widest):
            return f"{len(public)} ranges, together wider than a /{widest},"
    return ""


def _private(network: Network) -> bool:
    return any(
        network.version == private.version and network.subnet_of(private)  # type: ignore[arg-type]
        for private in _PRIVATE
    )
