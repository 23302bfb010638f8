"""VMs in several zones: what is declared, what is lost with each zone, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from components import outputs
from tests.components.fleet import Recorder, changed, parse, problems, run_program, seed

A, B, F = "us-central1-a", "us-central1-b", "us-central1-f"
EXTENSION = "compute/zoneVmExtensionPolicy:ZoneVmExtensionPolicy"


def spread(*zones: str | None, rendezvous: str | None = None, **values: Any) -> dict[str, Any]:
    """The seed's fleet with a zone for each VM; None: that line names none."""
    swarm = [
        vm | ({"zone": zone} if zone else {})
        for vm, zone in zip(seed()["swarm"], zones, strict=True)
    ]
    own = {"zone": rendezvous} if rendezvous else {}
    return changed(rendezvous=seed()["rendezvous"] | own, swarm=swarm, **values)


THREE = spread(None, B, F)


@pytest.fixture(scope="module")
def fleet() -> Recorder:
    return run_program(THREE | {"monitoring": {"agent": True}})


def test_a_vm_and_its_disk_share_a_zone(fleet: Recorder) -> None:
    zones = {"pilot-rendezvous": A, "swarm-1": A, "swarm-2": B, "swarm-3": F}
    for type_, suffix in (("compute/instance:Instance", "vm"), ("compute/disk:Disk", "disk")):
        assert {name: vm["zone"] for name, vm in fleet.of(type_).items()} == {
            f"{name}-{suffix}": zone for name, zone in zones.items()
        }


def test_the_rendezvous_brings_its_disks_snapshots_along() -> None:
    moved = run_program(spread(A, A, A, rendezvous=B))
    attached = moved.of("compute/diskResourcePolicyAttachment:DiskResourcePolicyAttachment")
    assert [each["zone"] for each in attached.values()] == [B, B]
    policies = moved.of("compute/resourcePolicy:ResourcePolicy").values()
    assert {each["region"] for each in policies} == {"us-central1"}


def test_a_zone_of_a_line_changes_that_vm_only() -> None:
    before, after = run_program(seed()).resources, run_program(spread(None, B, None)).resources
    assert before.keys() == after.keys()
    differing = {name for (type_, name) in before if before[type_, name] != after[type_, name]}
    assert differing == {"swarm-2-vm", "swarm-2-disk"}


def test_naming_the_fleets_zone_changes_nothing() -> None:
    assert run_program(spread(A, A, A, rendezvous=A)).resources == run_program(seed()).resources


def test_the_ops_agent_comes_to_every_zone_and_keeps_its_name(fleet: Recorder) -> None:
    one = run_program(changed(monitoring={"agent": True})).of(EXTENSION)
    found = fleet.of(EXTENSION)
    assert one == {"pilot-fleet-ops-agent": found["pilot-fleet-ops-agent"]}
    assert {name: (each["name"], each["zone"]) for name, each in found.items()} == {
        "pilot-fleet-ops-agent": ("pilot-fleet-ops-agent", A),
        f"pilot-fleet-ops-agent-{B}": (f"pilot-fleet-ops-agent-{B}", B),
        f"pilot-fleet-ops-agent-{F}": (f"pilot-fleet-ops-agent-{F}", F),
    }


def test_the_tunnel_leads_to_the_zone_of_the_rendezvous() -> None:
    config = parse(spread(None, None, None, rendezvous=B))
    assert f"--zone={B} " in outputs.from_config(config)["dashboardTunnel"]


def test_the_table_says_what_is_lost_with_each_zone() -> None:
    assert outputs.from_config(parse(THREE))["zones"] == {
        A: "2 VMs, lost with it: 3,000 of 9,500 agents (32%) and the rendezvous",
        B: "1 VM, lost with it: 5,000 of 9,500 agents (53%)",
        F: "1 VM, lost with it: 1,500 of 9,500 agents (16%)",
    }
    assert outputs.from_config(parse(seed()))["zones"] == {
        A: "4 VMs, lost with it: 9,500 of 9,500 agents (100%) and the rendezvous"
    }
    # A zone that nobody is in is not there.
    assert outputs.from_config(parse(spread(B, B, B, rendezvous=F)))["zones"] == {
        B: "3 VMs, lost with it: 9,500 of 9,500 agents (100%)",
        F: "1 VM, lost with it: 0 of 9,500 agents (0%) and the rendezvous",
    }


def of_zones(values: dict[str, Any]) -> list[str]:
    return [text for text in parse(values).warnings() if "maxZoneShare" in text]


def test_a_zone_that_holds_more_than_the_fleet_can_spare_is_a_warning() -> None:
    assert of_zones(THREE) == of_zones(seed()) == []
    assert of_zones(THREE | {"maxZoneShare": "0.53"}) == []
    (text,) = of_zones(THREE | {"maxZoneShare": "0.5"})
    assert text == (
        "us-central1-b holds 5,000 of 9,500 agents (52.6%), more than pilot-fleet:maxZoneShare "
        "(50.0%): put agents on VMs in another zone of us-central1"
    )
    both = of_zones(THREE | {"maxZoneShare": "0.3"})
    assert [text.split()[0] for text in both] == [A, B]
    # Exactly as much as it can spare.
    half = spread(B, B, None)
    half["swarm"] = [
        vm | {"agents": count} for vm, count in zip(half["swarm"], (2, 2, 4), strict=True)
    ]
    assert of_zones(half | {"maxZoneShare": "0.5"}) == []


@pytest.mark.parametrize("value", ["0", "1.01", "50%", "-0.5", "1e-1", "0.5.5", "half", True])
def test_a_share_that_is_none(value: Any) -> None:
    found = problems(changed(maxZoneShare=value))
    assert list(found) == ["pilot-fleet:maxZoneShare"]
    assert "above 0" in found["pilot-fleet:maxZoneShare"]


@pytest.mark.parametrize("value", ["", "1", "1.0", "0.5", "0.05"])
def test_a_share(value: str) -> None:
    assert parse(changed(maxZoneShare=value)).max_zone_share == float(value or 1)


@pytest.mark.parametrize(
    ("values", "path", "says"),
    [
        (spread("us-east1-b", None, None), "swarm[0].zone", "us-east1-b is not in us-central1"),
        (
            spread(None, None, None, rendezvous="europe-west1-b"),
            "rendezvous.zone",
            "europe-west1-b is not in us-central1, the region of the fleet and its subnet",
        ),
        (spread(None, "b", None), "swarm[1].zone", "'b' is not a zone of Google's"),
        (spread(None, "us-central1", None), "swarm[1].zone", "'us-central1' is not a zone"),
        (spread("us-central11-b", None, None), "swarm[0].zone", "not in us-central1, the region"),
    ],
)
def test_a_zone_that_is_refused(values: dict[str, Any], path: str, says: str) -> None:
    found = problems(values)
    assert list(found) == [f"pilot-fleet:{path}"]
    assert says in found[f"pilot-fleet:{path}"]


@pytest.mark.parametrize("zone", [7, ["us-central1-b"], True])
def test_a_zone_that_is_no_text(zone: Any) -> None:
    found = problems(spread(None, zone, None))
    assert "must be text" in found["pilot-fleet:swarm[1].zone"]


def test_of_a_fleet_without_a_zone_no_line_is_blamed() -> None:
    assert list(problems(spread(B, None, None, zone="mars"))) == ["pilot-fleet:zone"]
    assert list(problems(spread(None, None, None, zone=""))) == ["pilot-fleet:zone"]
