"""Updates that are not possible, and VMs that an update stops or makes."""

from __future__ import annotations

from dataclasses import replace

import pulumi
import pytest

from components.config import FleetConfig
from components.config_parse import parse_fleet
from components.last_update import (
    LastUpdate,
    disks_below_image,
    from_resources,
    moving_vms,
    needed_images,
    needed_machine_types,
    require_possible,
    shrinking_disks,
    stopping_vms,
    vms_with_new_account,
)
from components.vm import boot_device
from components.zone_types import NeededMachineType
from tests.components.fleet import changed

NEW = LastUpdate(boot_gb={}, disk_gb={}, devices={})
VMS = ("pilot-rendezvous", "swarm-1", "swarm-2", "swarm-3")
THERE = LastUpdate(
    boot_gb=dict.fromkeys(VMS, 20),
    disk_gb={"pilot-rendezvous-state": 20} | {f"swarm-{n}-state": 10 for n in (1, 2, 3)},
    devices=dict.fromkeys(VMS, "persistent-disk-0"),
)


def config(rendezvous: dict[str, object] | None = None, **first: object) -> FleetConfig:
    """The seed's fleet with keys of the rendezvous and of its first swarm VM changed."""
    values = changed()
    values["rendezvous"] |= rendezvous or {}
    values["swarm"][0] |= first
    return parse_fleet(values, project="project-1")


def test_disks_of_the_same_size_or_larger_or_new_are_no_problem() -> None:
    assert shrinking_disks(config(), THERE) == []
    assert shrinking_disks(config(bootDiskGb=30, diskGb=11), THERE) == []
    assert shrinking_disks(config({"bootDiskGb": 10, "diskGb": 10}, bootDiskGb=10), NEW) == []


def test_every_disk_that_would_be_smaller_is_named() -> None:
    larger = LastUpdate(
        boot_gb=THERE.boot_gb, disk_gb={"swarm-1-state": 100}, devices=THERE.devices
    )
    found = shrinking_disks(config({"bootDiskGb": 19}, bootDiskGb=10), larger)
    assert [problem.path for problem in found] == [
        "pilot-fleet:rendezvous.bootDiskGb",
        "pilot-fleet:swarm[0].diskGb",
        "pilot-fleet:swarm[0].bootDiskGb",
    ]
    assert "10 is less than the 100 GB of the disk swarm-1-state" in found[1].message
    with pytest.raises(
        pulumi.RunError, match=r"rendezvous\.bootDiskGb: 19 is less(.|\n)*swarm\[0\]"
    ):
        require_possible(config({"bootDiskGb": 19}, bootDiskGb=10), larger, {})


def test_a_vm_that_is_made_again_may_have_a_smaller_boot_disk() -> None:
    image = "corp-images/golden"
    assert shrinking_disks(config(bootDiskGb=10, image=image), THERE) == []
    made = LastUpdate(
        boot_gb=THERE.boot_gb, disk_gb={}, devices={**THERE.devices, "swarm-1": boot_device(image)}
    )
    (problem,) = shrinking_disks(config(bootDiskGb=10, image=image), made)
    assert problem.path == "pilot-fleet:swarm[0].bootDiskGb"


def test_a_boot_disk_that_is_made_has_room_for_its_image() -> None:
    sizes = {"debian-cloud/debian-12": 21, "corp-images/golden": 40}
    new = disks_below_image(config(bootDiskGb=21), NEW, sizes)
    assert [problem.path for problem in new] == [
        "pilot-fleet:rendezvous.bootDiskGb",
        "pilot-fleet:swarm[1].bootDiskGb",
        "pilot-fleet:swarm[2].bootDiskGb",
    ]
    # The fleet's image is for new disks: it has grown beyond those that are there.
    assert disks_below_image(config(), THERE, sizes) == []
    (again,) = disks_below_image(config(image="corp-images/golden"), THERE, sizes)
    assert str(again) == (
        "pilot-fleet:swarm[0].bootDiskGb: 20 is less than the 40 GB of the image corp-images/golden"
    )
    assert disks_below_image(config(bootDiskGb=40, image="corp-images/golden"), THERE, sizes) == []
    assert disks_below_image(config(), NEW, {}) == []


RUNNING = LastUpdate(
    boot_gb={},
    disk_gb={},
    devices=THERE.devices,
    machine_types={
        "pilot-rendezvous": "n2-standard-4",
        "swarm-1": "e2-standard-16",
        "swarm-2": "n2d-highcpu-128",
        "swarm-3": "e2-standard-8",
    },
    accounts={
        vm: f"pilot-fleet{'-rendezvous' if vm == 'pilot-rendezvous' else ''}"
        "@project-1.iam.gserviceaccount.com"
        for vm in VMS
    },
)


def test_only_stopping_vms_take_turns() -> None:
    assert stopping_vms(config(), RUNNING) == []
    assert stopping_vms(config(agents=10, diskGb=100, env={"GOGC": "50"}), RUNNING) == []
    assert stopping_vms(config({"machineType": "n2-standard-8"}), RUNNING) == ["pilot-rendezvous"]
    assert stopping_vms(config(machineType="e2-standard-32"), RUNNING) == ["swarm-1"]
    assert stopping_vms(config(image="corp-images/golden"), RUNNING) == ["swarm-1"]
    # By agents (1,500, 3,000, 5,000), the rendezvous last.
    everybody = ["swarm-3", "swarm-1", "swarm-2", "pilot-rendezvous"]
    values = changed(serviceAccount="other@project-1.iam.gserviceaccount.com")
    other = parse_fleet(values, project="project-1")
    assert stopping_vms(other, RUNNING) == everybody
    # Nobody is there to be stopped.
    assert stopping_vms(other, NEW) == []
    # Until 2026-11 the rendezvous had the account of all.
    before = replace(RUNNING, accounts=dict.fromkeys(VMS, RUNNING.accounts["swarm-1"]))
    assert stopping_vms(config(), before) == ["pilot-rendezvous"]
    own: dict[str, object] = {"serviceAccount": "own@project-1.iam.gserviceaccount.com"}
    assert stopping_vms(config(own), RUNNING) == ["pilot-rendezvous"]


DEBIAN = "debian-cloud/debian-12"


def test_an_image_is_needed_for_a_boot_disk_that_is_made_or_when_it_is_new() -> None:
    fleets = "pilot-fleet:image"
    assert needed_images(config(), NEW) == {fleets}
    there = replace(THERE, image=DEBIAN)
    assert needed_images(config(), there) == set()
    # A release before this one recorded no image.
    assert needed_images(config(), THERE) == set()
    newer = parse_fleet(changed(image="corp-images/golden"), project="project-1")
    assert needed_images(newer, there) == {fleets}
    # A VM that is new is made of the fleet's, one that is made again of its own.
    without = {name: "x" for name in VMS if name != "swarm-1"}
    assert needed_images(config(), replace(there, devices=without)) == {fleets}
    own, key = "corp-images/golden", "pilot-fleet:swarm[0].image"
    assert needed_images(config(image=own), there) == {key}
    assert needed_images(config(image=own), replace(there, devices=without)) == {key}
    deployed = replace(there, devices={**THERE.devices, "swarm-1": boot_device(own)})
    assert needed_images(config(image=own), deployed) == set()


def need(machine_type: str) -> NeededMachineType:
    return NeededMachineType(vm="swarm-1", zone="us-central1-a", machine_type=machine_type)


def test_a_machine_type_is_needed_where_a_vm_is_made_or_gets_another() -> None:
    everything = needed_machine_types(config(), NEW).values()
    assert {each.vm: each.machine_type for each in everything} == RUNNING.machine_types
    assert needed_machine_types(config(agents=10, env={"GOGC": "50"}), RUNNING) == {}
    key = "pilot-fleet:swarm[0].machineType"
    other = needed_machine_types(config(machineType="e2-standard-32"), RUNNING)
    assert other == {key: need("e2-standard-32")}
    again = needed_machine_types(config(image="corp-images/golden"), RUNNING)
    assert again == {key: need("e2-standard-16")}
    # In the VM's zone, not in the fleet's.
    elsewhere = needed_machine_types(config(zone="us-central1-f"), NEW)[key]
    assert elsewhere.zone == "us-central1-f"


def test_an_account_is_another_where_a_vm_that_is_there_has_not_got_it() -> None:
    values = changed(serviceAccount="other@project-1.iam.gserviceaccount.com")
    other = parse_fleet(values, project="project-1")
    account = values["serviceAccount"]
    everybody = ["swarm-3", "swarm-1", "swarm-2", "pilot-rendezvous"]
    assert vms_with_new_account(other, RUNNING, account) == everybody
    assert vms_with_new_account(other, NEW, account) == []
    assert vms_with_new_account(config(), RUNNING, None) == []
    has = {**RUNNING.accounts, "swarm-3": account}
    assert vms_with_new_account(other, replace(RUNNING, accounts=has), account)[0] == "swarm-1"
    own = "own@project-1.iam.gserviceaccount.com"
    both = config({"serviceAccount": own})
    assert vms_with_new_account(both, RUNNING, own) == ["pilot-rendezvous"]


IN_A = replace(RUNNING, zones=dict.fromkeys(VMS, "us-central1-a"))


def test_a_vm_that_is_there_keeps_its_zone() -> None:
    assert moving_vms(config(), IN_A) == []
    # A new VM may be in any zone; so may one whose zone was not recorded.
    assert moving_vms(config(zone="us-central1-b"), NEW) == []
    assert moving_vms(config(zone="us-central1-b"), RUNNING) == []
    assert moving_vms(config(name="swarm-9", zone="us-central1-b"), IN_A) == []
    (problem,) = moving_vms(config(zone="us-central1-b"), IN_A)
    assert problem.path == "pilot-fleet:swarm[0].zone"
    assert problem.message == (
        "swarm-1 is in us-central1-a, and no update moves a VM to us-central1-b: a disk cannot "
        "leave its zone, so it would get an empty one and lose the agents' identities. Keep "
        "`zone: us-central1-a`, the fleet's or on the line of each. For agents in us-central1-b, "
        "add a VM of another name there and remove the old one when it is drained "
        '(docs/PRODUCTION.md, "Zones")'
    )
    with pytest.raises(pulumi.RunError, match=r"swarm\[0\]\.zone: swarm-1 is in us-central1-a"):
        require_possible(config(zone="us-central1-b"), IN_A, {})


def test_a_rendezvous_that_moves_is_made_and_stops_nothing() -> None:
    moved = config({"zone": "us-central1-b", "machineType": "n2-standard-8", "bootDiskGb": 10})
    assert moving_vms(moved, IN_A) == []
    assert stopping_vms(moved, IN_A) == []
    assert shrinking_disks(moved, replace(IN_A, boot_gb=THERE.boot_gb)) == []
    assert set(needed_machine_types(moved, IN_A)) == {"pilot-fleet:rendezvous.machineType"}
    assert needed_images(moved, IN_A) == {"pilot-fleet:image"}


def test_another_zone_of_the_fleet_is_one_problem() -> None:
    values = changed(zone="europe-west1-b")
    (problem,) = moving_vms(parse_fleet(values, project="project-1"), IN_A)
    assert problem.path == "pilot-fleet:zone"
    assert problem.message.startswith("swarm-1, swarm-2, swarm-3 are in us-central1-a, and no")


def test_a_line_that_loses_its_zone_is_named_and_not_the_fleets() -> None:
    in_two = replace(IN_A, zones={**IN_A.zones, "swarm-1": "us-central1-b"})
    assert moving_vms(config(zone="us-central1-b"), in_two) == []
    (problem,) = moving_vms(config(), in_two)
    assert problem.path == "pilot-fleet:swarm[0].zone"


def test_the_zones_that_were_recorded() -> None:
    instance, disk = "gcp:compute/instance:Instance", "gcp:compute/disk:Disk"
    link = "https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-b"
    found = from_resources(
        [
            (instance, {"name": "a", "zone": "us-central1-a"}),
            (instance, {"name": "b", "zone": link}),
            (disk, {"name": "b-state", "zone": None}),
            (instance, {"name": "c", "zone": "us-central1-a"}),
            # The VM is made anew beside its disk.
            (disk, {"name": "c-state", "zone": "us-central1-b"}),
            (disk, {"name": "lost-state", "zone": "us-central1-f"}),
        ]
    )
    assert found.zones == {
        "a": "us-central1-a",
        "b": "us-central1-b",
        "c": "us-central1-b",
        "lost": "us-central1-f",
    }


def test_a_part_that_is_not_recorded_is_left_out() -> None:
    instance, disk = "gcp:compute/instance:Instance", "gcp:compute/disk:Disk"
    found = from_resources(
        [
            (instance, {"name": "a"}),
            (instance, {"name": "b", "bootDisk": {"deviceName": "d"}, "serviceAccount": None}),
            (instance, {"name": "c", "bootDisk": {"initializeParams": {"size": None}}}),
            (instance, {"name": "d", "bootDisk": {"initializeParams": {"size": 20.0}}}),
            (disk, {"name": "e", "size": None}),
        ]
    )
    assert (found.boot_gb, found.disk_gb) == ({"d": 20}, {})
    assert found.devices == {"a": "", "b": "d", "c": "", "d": ""}
    assert (found.machine_types, found.accounts, found.zones) == ({}, {}, {})
