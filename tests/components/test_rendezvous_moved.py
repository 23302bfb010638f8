"""The whole program under mocks while the rendezvous moves: what waits for it, what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.config import RendezvousConfig, SwarmVmConfig
from components.last_update import LastUpdate
from tests.components.fleet import Recorder, changed, parse, run_program

A, B = "us-central1-a", "us-central1-b"
MOVED = f"pilot-rendezvous-vm-{B}"
SWARM = ("swarm-3", "swarm-1", "swarm-2")  # as they take turns


def last_update() -> LastUpdate:
    """The seed's fleet, all of it in zone A."""
    config = parse(changed())
    vms: list[RendezvousConfig | SwarmVmConfig] = [config.rendezvous, *config.swarm]
    return LastUpdate(
        boot_gb={},
        disk_gb={},
        devices={vm.name: "" for vm in vms},
        machine_types={vm.name: vm.machine.name for vm in vms},
        zones={vm.name: A for vm in vms},
        disk_zones={f"{vm.name}-state": A for vm in vms},
        addresses={"pilot-fleet-registry-internal": "10.10.0.2"},
        instance_zones={vm.name: frozenset({A}) for vm in vms},
        image=config.image,
    )


def moving(*, protect: bool = True, stopping: tuple[str, ...] = ()) -> Recorder:
    """An update that moves the rendezvous to zone B, and stops some swarm VMs."""
    values, last = changed(protect=protect), last_update()
    values["rendezvous"] |= {"zone": B}
    machine_types = {name: "e2-micro" if name in stopping else old
                     for name, old in last.machine_types.items()}  # fmt: skip
    return run_program(values, last=replace(last, machine_types=machine_types))


def vms_before(fleet: Recorder, vm: str) -> set[str]:
    """The VMs that must be done before this one."""
    return {name for name in fleet.waits_for[vm] if "-vm" in name}


def test_every_swarm_vm_waits_for_the_moved_rendezvous() -> None:
    """Also one that the update stops: its agents are told the new address while it restarts."""
    fleet = moving()
    assert vms_before(fleet, MOVED) == set()
    for name in SWARM:
        assert vms_before(fleet, f"{name}-vm") == {MOVED}
    # One after the other, and the first of them after the rendezvous.
    fleet = moving(stopping=SWARM)
    assert vms_before(fleet, MOVED) == set()
    assert vms_before(fleet, "swarm-3-vm") == {MOVED}
    assert vms_before(fleet, "swarm-1-vm") == {"swarm-3-vm"}
    assert vms_before(fleet, "swarm-2-vm") == {"swarm-1-vm"}
    # Those that run on do not wait for one that stops.
    fleet = moving(stopping=("swarm-1",))
    assert all(vms_before(fleet, f"{name}-vm") == {MOVED} for name in SWARM)


def test_without_a_move_nothing_waits_for_the_rendezvous() -> None:
    fleet = run_program(changed(), last=last_update())
    assert all(vms_before(fleet, f"{name}-vm") == set() for name in SWARM)


@pytest.mark.parametrize("protect", [True, False])
def test_what_is_left_behind_follows_protect(protect: bool) -> None:
    fleet = moving(protect=protect)
    old, new = "pilot-rendezvous-disk", f"pilot-rendezvous-disk-{B}"
    disks = fleet.of("compute/disk:Disk")
    assert {name: disks[name]["zone"] for name in (old, new)} == {old: A, new: B}
    addresses = {name for name in fleet.of("compute/address:Address") if "internal" in name}
    assert len(addresses) == 2, addresses
    for name in {old, new} | addresses:
        assert (name in fleet.protected) is protect, name
