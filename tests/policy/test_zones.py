"""A zone of the fleet can be lost: one region, and not too many agents in one zone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from policy import zones
from policy.values import UNKNOWN, Resource
from tests.policy.planned import planned, spec, vm

RENDEZVOUS = vm(spec("rendezvous", agents=4000), name="rv")


def member(agents: Any, zone: Any, name: str = "swarm-1") -> Resource:
    """A VM of the fleet; without `zone` where that is None."""
    resource = vm(spec(agents=agents), name=name)
    props = {key: value for key, value in resource.props.items() if key != "zone"}
    return dataclasses.replace(resource, props=props if zone is None else props | {"zone": zone})


def judge(*resources: Resource, **config: Any) -> list[tuple[str | None, str]]:
    found = zones.losing_a_zone(resources, zones.ZonesConfig(**config))
    return [(who.name if who else None, str(finding)) for who, finding in found]


def test_zones_of_one_region_pass() -> None:
    assert judge(member(1000, "us-central1-b"), member(3000, "us-central1-f"), RENDEZVOUS) == []


@pytest.mark.parametrize("prefix", ["", "projects/p/zones/", "https://x/zones/"])
def test_a_vm_in_another_region_is_refused(prefix: str) -> None:
    [(culprit, text)] = judge(RENDEZVOUS, member(1000, f"{prefix}us-east1-b"))
    assert culprit == "swarm-1"
    assert text.startswith("zone: us-east1-b is not in us-central1, where the rendezvous is")
    assert "Choose a zone of us-central1" in text


@pytest.mark.parametrize("zone", [UNKNOWN, None, "", 7, ["us-east1-b"]])
def test_a_zone_that_is_absent_or_not_known_yet_is_not_judged(zone: Any) -> None:
    other = member(4000, "us-central1-b", "swarm-2")
    assert judge(RENDEZVOUS, member(4000, zone), other, maxZoneShare=0.5) == []
    elsewhere = dataclasses.replace(RENDEZVOUS, props={**RENDEZVOUS.props, "zone": zone})
    assert judge(elsewhere, member(1000, "us-east1-b")) == []


def test_a_zone_may_hold_the_share_that_the_site_allows() -> None:
    swarm = [
        member(1000, "us-central1-a", "a"),
        member(1000, "us-central1-b", "b"),
        member(2000, "us-central1-b", "c"),
    ]
    assert judge(RENDEZVOUS, *swarm) == []
    assert judge(RENDEZVOUS, *swarm, maxZoneShare=0.75) == []
    [(culprit, text)] = judge(RENDEZVOUS, *swarm, maxZoneShare=0.7)
    assert culprit is None
    assert text.startswith("us-central1-b holds 3000 of 4000 agents, and maxZoneShare allows 0.7")


def test_a_share_is_not_judged_while_agents_are_unknown() -> None:
    later = vm(UNKNOWN, name="later")
    assert judge(RENDEZVOUS, later, member(1000, "us-central1-b"), maxZoneShare=0.5) == []


def test_other_vms_are_left_alone() -> None:
    other = planned("gcp:compute/instance:Instance", {"zone": "us-east1-b", "metadata": {"a": "b"}})
    assert judge(RENDEZVOUS, other, member(1, "us-central1-a")) == []
