"""A rendezvous that changes zone: names, addresses, what stays behind, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pulumi
import pytest

from components.config import FleetConfig
from components.config_parse import parse_fleet
from components.google_rest import NotLookedUpError
from components.last_update import (
    LastUpdate,
    from_resources,
    rendezvous_moves,
    shrinking_disks,
)
from components.outputs import fit_changes, from_config
from components.rendezvous_zone import copies_problems, problems, warnings, zone_resources
from components.vm import KeptDisk
from tests.components.fleet import changed

A, B, C = (f"us-central1-{letter}" for letter in "abc")
NEW = LastUpdate(boot_gb={}, disk_gb={}, devices={})
FIRST = replace(
    NEW,
    zones={"pilot-rendezvous": A},
    disk_zones={"pilot-rendezvous-state": A, "swarm-1-state": A},
    addresses={"pilot-fleet-registry-internal": "10.10.0.2"},
    instance_zones={"pilot-rendezvous": frozenset({A})},
)
SECOND = replace(
    FIRST,
    disk_zones={**FIRST.disk_zones, f"pilot-rendezvous-state-{B}": B},
    addresses={**FIRST.addresses, f"pilot-fleet-registry-internal-{B}": "10.10.15.252"},
    instance_zones={"pilot-rendezvous": frozenset({B})},
    left_zones=frozenset({A}),
)


def config(zone: str | None = None, **rendezvous: object) -> FleetConfig:
    values = changed()
    values["rendezvous"] |= {"zone": zone} if zone else {}
    values["rendezvous"] |= rendezvous
    return parse_fleet(values, project="project-1")


def test_the_first_zone_has_plain_names_whichever_it_is() -> None:
    for zone in (None, A, C):
        found = zone_resources(config(zone), NEW)
        assert (found.suffix, found.kept_disks, found.kept_addresses) == ("", (), ())
        assert not problems(config(zone), NEW)
        assert not warnings(config(zone), NEW)
    assert zone_resources(config(), FIRST).suffix == ""
    assert not problems(config(), FIRST)
    assert not warnings(config(), FIRST)


def test_another_zone_has_resources_of_its_own_and_the_old_ones_stay() -> None:
    moved = config(B)
    found = zone_resources(moved, FIRST)
    assert found.suffix == f"-{B}"
    assert found.kept_disks == (KeptDisk(suffix="", zone=A),)
    assert found.kept_addresses == ("pilot-fleet-registry-internal",)
    assert problems(moved, FIRST) == []
    (warning,) = warnings(moved, FIRST)
    assert f"moves to {B}: a new VM with the address 10.10.15.252 takes the newest" in warning
    # Once it is there: the same, and nothing moves.
    assert zone_resources(moved, SECOND) == found
    assert not problems(moved, SECOND)
    assert not warnings(moved, SECOND)


def test_a_third_zone_keeps_what_both_left() -> None:
    found = zone_resources(config(C), SECOND)
    assert found.suffix == f"-{C}"
    assert found.kept_disks == (KeptDisk(suffix="", zone=A), KeptDisk(suffix=f"-{B}", zone=B))
    assert len(found.kept_addresses) == 2
    assert problems(config(C), SECOND) == []


def test_what_was_let_go_is_not_kept() -> None:
    gone = replace(
        SECOND,
        disk_zones={f"pilot-rendezvous-state-{B}": B},
        addresses={f"pilot-fleet-registry-internal-{B}": "10.10.15.252"},
    )
    found = zone_resources(config(B), gone)
    assert (found.suffix, found.kept_disks, found.kept_addresses) == (f"-{B}", (), ())
    # And its zone is free again.
    back = zone_resources(config(A), gone)
    assert back.suffix == f"-{A}"
    assert back.kept_disks == (KeptDisk(suffix=f"-{B}", zone=B),)
    assert problems(config(A), gone) == []


def test_no_way_back_to_a_disk_that_is_out_of_date() -> None:
    (problem,) = problems(config(), SECOND)
    assert problem.path == "pilot-fleet:rendezvous.zone"
    assert f"{A} still has the disk pilot-rendezvous-state from before" in problem.message


def test_an_address_belongs_to_its_zone() -> None:
    assert config().rendezvous.address == "10.10.0.2"
    assert config(A).rendezvous.address == "10.10.0.2"
    others = {config(zone).rendezvous.address for zone in (B, C, "us-central1-f")}
    assert others == {"10.10.15.252", "10.10.15.251", "10.10.15.248"}
    (taken,) = problems(config(B, address="10.10.0.2"), FIRST)
    assert taken.path == "pilot-fleet:rendezvous.address"
    assert "10.10.0.2 stays with pilot-fleet-registry-internal" in taken.message
    # Another address in the same zone; so has a fleet whose zone was named before it had one.
    (other,) = problems(config(address="10.10.0.9"), FIRST)
    assert "name `address: 10.10.0.2`" in other.message
    named = replace(FIRST, disk_zones={"pilot-rendezvous-state": B}, instance_zones={}, zones={})
    (other,) = problems(config(B), named)
    assert "name `address: 10.10.0.2`" in other.message
    assert zone_resources(config(B), named).suffix == ""


def test_an_old_vm_that_could_not_be_deleted_says_nothing() -> None:
    instance = "gcp:compute/instance:Instance"
    old = {"name": "pilot-rendezvous", "zone": A, "machineType": "old"}
    new = {"name": "pilot-rendezvous", "zone": B, "machineType": "new"}
    for order in ([old, new], [new, old]):
        found = from_resources([(instance, each) for each in order], left_zones=frozenset({A}))
        assert found.machine_types == {"pilot-rendezvous": "new"}


def test_the_fleet_s_own_zone_moves_the_rendezvous_as_its_line_does() -> None:
    values = changed(zone=B)
    for vm in values["swarm"]:
        vm["zone"] = A
    moved = parse_fleet(values, project="project-1")
    # The first address is the kept one's: the fleet's zone is the new one, so it would be given.
    (problem,) = problems(moved, FIRST)
    assert "name another one that is free" in problem.message


def test_an_update_that_failed_half_way_can_be_repeated_and_taken_back() -> None:
    """The old VM is there. The new disk and address may be, and the outputs may say so."""
    disk = {"disk_zones": SECOND.disk_zones, "addresses": SECOND.addresses}
    for last in (
        replace(FIRST, left_zones=frozenset({A})),
        replace(FIRST, **disk),  # type: ignore[arg-type]
        replace(FIRST, **disk, left_zones=frozenset({A})),  # type: ignore[arg-type]
    ):
        assert not problems(config(B), last)
        assert rendezvous_moves(config(B).rendezvous, last)
        assert zone_resources(config(B), last).suffix == f"-{B}"
        assert not problems(config(), last)
        assert not rendezvous_moves(config().rendezvous, last)
    # Both VMs are there: the old one's zone did not answer.
    both = replace(SECOND, instance_zones={"pilot-rendezvous": frozenset({A, B})})
    assert not problems(config(B), both)
    assert not rendezvous_moves(config(B).rendezvous, both)
    assert len(problems(config(), both)) == 1


def test_a_disk_that_was_lost_after_a_move_keeps_its_name() -> None:
    lost = replace(
        SECOND,
        disk_zones={},
        left_zones=frozenset(),
        addresses={f"pilot-fleet-registry-internal-{B}": "10.10.15.252"},
    )
    assert zone_resources(config(B), lost).suffix == f"-{B}"
    assert not problems(config(B), lost)


def test_no_move_without_copies_in_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "info", said.append)
    monkeypatch.setattr(pulumi.log, "warn", said.append)

    def none(bucket: str) -> str:
        raise NotLookedUpError("nobody answers")

    def found(newest: str, zone: str = B, *, dry_run: bool = False) -> list[str]:
        return copies_problems(config(zone), FIRST, lambda _: newest, dry_run=dry_run)

    (problem,) = found("")
    assert "has no copy of the registry, so it would be empty in us-central1-b" in problem
    assert found("", dry_run=True) == [problem]
    assert found("", A) == []
    assert found("registry/20261130T120000Z-9500.json") == []
    assert said.pop().endswith("registry/20261130T120000Z-9500.json")
    (problem,) = copies_problems(config(B), FIRST, none, dry_run=False)
    assert problem.endswith("cannot be seen: nobody answers. Nothing was changed")
    assert copies_problems(config(B), FIRST, none, dry_run=True) == []
    assert said.pop().endswith("nobody answers")


def recorded(*disks: tuple[str, str, int], left: frozenset[str]) -> LastUpdate:
    """The state with these disks of the rendezvous, each name, zone and GB, and its VM in B."""
    instance, disk = "gcp:compute/instance:Instance", "gcp:compute/disk:Disk"
    vm = {"name": "pilot-rendezvous", "zone": B, "machineType": "n2-standard-4"}
    found = [(disk, {"name": name, "zone": zone, "size": gb}) for name, zone, gb in disks]
    return from_resources([(instance, vm), *found], left_zones=left)


def test_after_a_move_only_the_disk_of_its_zone_counts() -> None:
    """The old disk is recorded as well. It tells neither the zone of the VM nor its disk's size."""
    plain, other = ("pilot-rendezvous-state", A, 40), (f"pilot-rendezvous-state-{B}", B, 20)
    for disks in ((plain, other), (other, plain)):
        last = recorded(*disks, left=frozenset({A}))
        assert last.zones == {"pilot-rendezvous": B}
        assert shrinking_disks(config(B, diskGb=20), last) == []
        (problem,) = shrinking_disks(config(B, diskGb=15), last)
        assert f"less than the 20 GB of the disk pilot-rendezvous-state-{B}" in problem.message
        table = fit_changes(config(B), replace(last, fits=from_config(config(B))["vms"]))
        assert "→" not in next(line for line in table.splitlines() if "pilot-rendezvous" in line)
