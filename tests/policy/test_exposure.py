"""Firewall rules: access to registry, dashboard and SSH."""

from __future__ import annotations

from typing import Any

import pytest

from policy.exposure import ExposureConfig, open_to_the_world
from policy.values import UNKNOWN, Violation
from tests.policy.planned import planned

FIREWALL = "gcp:compute/firewall:Firewall"
WORLD = ["0.0.0.0/0"]
IAP = ["35.235.240.0/20"]
SSH = [{"protocol": "tcp", "ports": ["22"]}]
NEW_STYLE = [
    "networkFirewallPolicyRule:NetworkFirewallPolicyRule",
    "regionNetworkFirewallPolicyRule:RegionNetworkFirewallPolicyRule",
    "firewallPolicyRule:FirewallPolicyRule",
]


def found(kind: str, props: dict[str, Any], **config: Any) -> list[Violation]:
    return list(open_to_the_world(planned(kind, props), ExposureConfig(**config)))


def firewall(allows: Any = SSH, sources: Any = WORLD, **more: Any) -> list[Violation]:
    return found(FIREWALL, {"allows": allows, "sourceRanges": sources, **more})


def refused(findings: list[Violation]) -> bool:
    return any(not finding.unjudged for finding in findings)


@pytest.mark.parametrize(
    "sources",
    [
        ["0.0.0.0/0"],
        [" 0.0.0.0/0 "],
        ["10.0.0.1/0"],
        ["::/0"],
        ["0.0.0.0/1", "128.0.0.0/1"],
        ["64.0.0.0/7"],
        ["10.0.0.0/8", "11.0.0.0/8"],
        [f"{i}.0.0.0/9" for i in (20, 30, 40)],
        ["2000::/3"],
        ["10.10.0.0/20", "0.0.0.0/0"],
        ["anything"],
        [UNKNOWN, "0.0.0.0/0"],
        [],
        None,
    ],
    ids=str,
)
def test_the_world_is_refused(sources: Any) -> None:
    assert refused(firewall(sources=sources))


@pytest.mark.parametrize(
    "sources",
    [IAP, ["10.10.0.0/20"], ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], ["203.0.113.7"]],
    ids=str,
)
def test_named_ranges_pass(sources: Any) -> None:
    assert firewall(sources=sources) == []


@pytest.mark.parametrize(
    "allows",
    [
        [{"protocol": "tcp"}],
        [{"protocol": "TCP", "ports": ["22"]}],
        [{"protocol": "6", "ports": ["22"]}],
        [{"protocol": 6, "ports": ["22"]}],
        [{"protocol": "all"}],
        [{"protocol": "tcp", "ports": []}],
        [{"protocol": "tcp", "ports": ["20-30"]}],
        [{"protocol": "tcp", "ports": ["8999-9001"]}],
        [{"protocol": "tcp", "ports": ["3000"]}],
        [{"protocol": "tcp", "ports": ["0-65535"]}],
        [{"protocol": "udp", "ports": ["9001"]}, {"protocol": "tcp", "ports": ["80", "9000"]}],
        [{"protocol": "tcp", "ports": ["ssh"]}],
    ],
    ids=str,
)
def test_rules_that_reach_a_port_are_refused(allows: Any) -> None:
    assert refused(firewall(allows=allows))


@pytest.mark.parametrize(
    "allows",
    [
        [{"protocol": "udp", "ports": ["9001"]}],
        [{"protocol": "17", "ports": ["22"]}],
        [{"protocol": "icmp"}],
        [{"protocol": "tcp", "ports": ["80", "443", "23-2999", "3001-8999", "9001-65535"]}],
        [],
        None,
    ],
    ids=str,
)
def test_rules_that_reach_no_port_pass(allows: Any) -> None:
    assert firewall(allows=allows) == []


def test_directions_and_switches() -> None:
    assert firewall(direction="EGRESS") == []
    assert firewall(disabled=True) == []
    assert found(FIREWALL, {"denies": SSH, "sourceRanges": WORLD}) == []
    assert refused(firewall(direction="INGRESS"))
    assert refused(firewall(direction=UNKNOWN))
    assert refused(firewall(disabled=UNKNOWN))


@pytest.mark.parametrize("key", ["sourceTags", "sourceServiceAccounts"])
def test_sources_by_tag_or_account(key: str) -> None:
    assert found(FIREWALL, {"allows": SSH, key: ["pilot-swarm"]}) == []
    # Both together mean either, so a tag does not narrow a range.
    assert refused(firewall(**{key: ["pilot-swarm"]}))
    assert refused(found(FIREWALL, {"allows": SSH, key: []}))


@pytest.mark.parametrize(
    "props",
    [
        {"allows": SSH, "sourceRanges": UNKNOWN},
        {"allows": SSH, "sourceRanges": ["10.0.0.0/8", UNKNOWN]},
        {"allows": UNKNOWN, "sourceRanges": WORLD},
        {"allows": [UNKNOWN], "sourceRanges": WORLD},
        {"allows": [{"protocol": "tcp", "ports": UNKNOWN}], "sourceRanges": WORLD},
        {"allows": [{"protocol": "tcp", "ports": [UNKNOWN]}], "sourceRanges": WORLD},
        {"allows": [{"protocol": UNKNOWN, "ports": ["22"]}], "sourceRanges": WORLD},
        {"allows": SSH, "sourceTags": UNKNOWN},
    ],
    ids=str,
)
def test_unknown_values_are_not_judged_yet(props: dict[str, Any]) -> None:
    [finding] = found(FIREWALL, props)
    assert finding.unjudged


def test_unknown_ports_for_named_ranges_are_fine() -> None:
    assert firewall(allows=UNKNOWN, sources=IAP) == []


def new_style(action: Any = "allow", **match: Any) -> dict[str, Any]:
    rule = {
        "srcIpRanges": WORLD,
        "layer4Configs": [{"ipProtocol": "tcp", "ports": ["22"]}],
        **match,
    }
    return {"action": action, "direction": "INGRESS", "match": rule}


@pytest.mark.parametrize("kind", NEW_STYLE)
def test_rules_of_firewall_policies(kind: str) -> None:
    kind = "gcp:compute/" + kind
    [finding] = found(kind, new_style())
    assert finding.path == "match.srcIpRanges"
    assert found(kind, new_style(srcIpRanges=IAP)) == []
    assert found(kind, new_style("deny")) == []
    assert found(kind, new_style("goto_next")) == []
    assert refused(found(kind, new_style("apply_security_profile_group")))
    assert refused(found(kind, new_style(layer4Configs=[{"ipProtocol": "all"}])))
    assert found(kind, new_style(layer4Configs=[{"ipProtocol": "udp"}])) == []
    assert refused(found(kind, new_style(srcIpRanges=None)))
    assert found(kind, new_style(srcIpRanges=None, srcSecureTags=[{"name": "t"}])) == []
    assert found(kind, {**new_style(), "disabled": True}) == []
    assert found(kind, {**new_style(), "direction": "EGRESS"}) == []
    [finding] = found(kind, {**new_style(), "match": UNKNOWN})
    assert finding.unjudged


VAGUE = {
    "srcAddressGroups": ["projects/p/locations/global/addressGroups/g"],
    "srcRegionCodes": ["US"],
    "srcThreatIntelligences": ["iplist-public-clouds"],
}


@pytest.mark.parametrize("key", VAGUE)
def test_sources_without_known_addresses(key: str) -> None:
    kind = "gcp:compute/networkFirewallPolicyRule:NetworkFirewallPolicyRule"
    values: list[Any] = [VAGUE[key], UNKNOWN]
    for value in values:
        for ranges in (None, IAP):
            # Any source of a rule lets its addresses in, so good ranges do not help.
            [finding] = found(kind, new_style(srcIpRanges=ranges, **{key: value}))
            assert finding.path == f"match.{key}"
            assert not finding.unjudged
    looked: dict[str, Any] = {"vagueSources": []}
    assert found(kind, new_style(srcIpRanges=None, **{key: VAGUE[key]}), **looked) == []
    assert refused(found(kind, new_style(**{key: VAGUE[key]}), **looked))
    assert found(kind, new_style(srcIpRanges=IAP, **{key: []})) == []
    web = [{"ipProtocol": "tcp", "ports": ["443"]}]
    assert found(kind, new_style(srcIpRanges=IAP, layer4Configs=web, **{key: VAGUE[key]})) == []
    denied = {**new_style(**{key: VAGUE[key]}), "action": "deny"}
    assert found(kind, denied) == []
    [later] = found(kind, new_style(srcIpRanges=IAP, layer4Configs=UNKNOWN, **{key: VAGUE[key]}))
    assert later.unjudged


@pytest.mark.parametrize("key", ["srcNetworkScope", "srcNetworkContext", "srcNetworkType"])
def test_a_scope_narrows_ranges_down_and_alone_says_nothing(key: str) -> None:
    kind = "gcp:compute/networkFirewallPolicyRule:NetworkFirewallPolicyRule"
    for scope in ("INTERNET", "NON_INTERNET", UNKNOWN):
        assert refused(found(kind, new_style(srcIpRanges=None, **{key: scope})))
        assert found(kind, new_style(srcIpRanges=IAP, **{key: scope})) == []
        assert refused(found(kind, new_style(**{key: scope})))
    named = new_style(srcIpRanges=None, srcNetworks=["n"], **{key: "VPC_NETWORKS"})
    assert found(kind, named) == []
    looked: dict[str, Any] = {"vagueSources": []}
    assert found(kind, new_style(srcIpRanges=None, **{key: "NON_INTERNET"}), **looked) == []
    assert refused(found(kind, new_style(srcIpRanges=None, **{key: "INTERNET"}), **looked))


GROUP = "gcp:networksecurity/addressGroup:AddressGroup"


def test_address_groups_are_judged_by_their_width() -> None:
    for good in (IAP, ["10.0.0.0/8"], [], None):
        assert found(GROUP, {"type": "IPV4", "items": good}) == []
    for wide in (WORLD, ["64.0.0.0/7"], ["0.0.0.0/1", "128.0.0.0/1"], ["x"], [UNKNOWN, *WORLD]):
        [finding] = found(GROUP, {"type": "IPV4", "items": wide})
        assert finding.path == "items"
        assert not finding.unjudged
    unknown: list[Any] = [UNKNOWN, [UNKNOWN]]
    for items in unknown:
        [finding] = found(GROUP, {"items": items})
        assert finding.unjudged
    assert found(GROUP, {"items": WORLD}, exemptGroups=["it"]) == []
    assert found(GROUP, {"items": WORLD}, exemptGroups=["other"])
    assert found("gcp:compute/urlMap:UrlMap", {"items": WORLD}) == []


def test_rules_in_the_words_of_googles_own_package() -> None:
    kind = "google-native:compute/v1:Firewall"
    rule: dict[str, Any] = {"allowed": [{"ipProtocol": "tcp", "ports": ["22"]}]}
    assert refused(found(kind, rule | {"sourceRanges": WORLD}))
    assert found(kind, rule | {"sourceRanges": IAP}) == []
    assert found(kind, {"allowed": True, "sourceRanges": WORLD}) == []


def test_resources_that_are_no_firewall_rules() -> None:
    kind = "gcp:compute/urlMap:UrlMap"
    assert found(kind, {"match": new_style()["match"]}) == []
    assert found(kind, {"action": "allow"}) == []
    assert found("aws:ec2/group:Group", {"allows": SSH, "sourceRanges": WORLD}) == []


def test_rules_inside_a_policy() -> None:
    kind = "gcp:compute/networkFirewallPolicyWithRules:NetworkFirewallPolicyWithRules"
    good, bad = new_style(srcIpRanges=IAP), new_style()
    [finding] = found(kind, {"rules": [good, bad]})
    assert finding.path == "rules[1].match.srcIpRanges"


def test_every_setting_changes_the_findings() -> None:
    web = {"allows": [{"protocol": "tcp", "ports": ["443"]}], "sourceRanges": WORLD}
    assert found(FIREWALL, web) == []
    assert refused(found(FIREWALL, web, ports=[443]))
    wide = {"allows": SSH, "sourceRanges": ["20.0.0.0/7"]}
    assert found(FIREWALL, wide, widestV4=7) == []
    six = {"allows": SSH, "sourceRanges": ["2600::/24"]}
    assert refused(found(FIREWALL, six))
    assert found(FIREWALL, six, widestV6=24) == []


def test_the_message_names_ports_ranges_and_the_way_out() -> None:
    [finding] = firewall(allows=[{"protocol": "tcp"}])
    text = str(finding)
    assert "sourceRanges: 0.0.0.0/0 can reach TCP 22, 3000, 9000" in text
    assert "35.235.240.0/20" in text
