"""Changes that stop VMs, carried out: the real engine, a real provider, a local API.

What is stopped and started is what the API's driver was told, in its order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.server import Serving, serve
from lab.machines.driver import Machine, MachineError
from tests.components.fleet import changed
from tests.engine.project import Project
from tests.engine.test_update import CLOUD, FLEET, call, delete, instances, make_account
from tests.lab.cloud.fake_drivers import Recorder

pytestmark = pytest.mark.engine

ZONE = f"projects/{CLOUD}/zones/us-central1-a"
ORDER = ("swarm-3", "swarm-1", "swarm-2", "pilot-rendezvous")
"""By agents: 1,500, 3,000, 5,000, and then the rendezvous."""


@dataclass
class Machines(Recorder):
    """Keeps the order of stops and starts; refuses the next starts of `sold_out`, once each, and
    all of `never`."""

    sold_out: set[str] = field(default_factory=set)
    never: set[str] = field(default_factory=set)

    def start(self, machine: Machine) -> None:
        super().start(machine)
        name = machine.path.rsplit("/", 1)[-1]
        if name in self.sold_out | self.never:
            self.sold_out.discard(name)
            message = f"ZONE_RESOURCE_POOL_EXHAUSTED: no room for {name}"
            raise MachineError(message)

    def moves(self) -> list[str]:
        """The stops and starts since the last question."""
        found = [each for each in self.calls if each.startswith(("stop ", "start "))]
        self.calls.clear()
        return found


@pytest.fixture
def machines() -> Machines:
    return Machines()


@pytest.fixture
def cloud(tmp_path: Path, machines: Machines) -> Iterator[Serving]:
    with serve(tmp_path / "cloud", driver=machines) as serving:
        yield serving


@pytest.fixture
def project(tmp_path: Path, pulumi_env: dict[str, str], cloud: Serving) -> Project:
    made = Project(folder=tmp_path / "fleet", environment=pulumi_env, extra=cloud.settings())
    made.configure(changed(**FLEET))
    return made


def deployed(project: Project, machines: Machines) -> dict[str, Any]:
    """The seed's fleet, made; its configuration."""
    made = project.up("--skip-preview", policies=False).no_traceback()
    assert made.code == 0, made.text
    # Nobody waits for another VM of a new fleet.
    assert sorted(machines.moves()) == sorted(f"start {name}" for name in ORDER)
    return copy.deepcopy(changed(**FLEET))


def one_by_one(*names: str) -> list[str]:
    return [f"{move} {name}" for name in names for move in ("stop", "start")]


def test_vms_are_stopped_one_by_one_and_named_in_the_plan(
    project: Project, machines: Machines, cloud: Serving
) -> None:
    values = deployed(project, machines)
    before = {name: vm["id"] for name, vm in instances(cloud).items()}
    assert project.steps() == {}

    # Another account stops all four, another machine type one of them; a spec stops none.
    values["serviceAccount"] = f"other@{CLOUD}.iam.gserviceaccount.com"
    make_account(cloud, values["serviceAccount"])
    values["swarm"][0] |= {"machineType": "e2-standard-32"}
    values["swarm"][1] |= {"env": {"GOGC": "75"}}
    project.configure(values)
    plan = project.preview(policies=False).no_traceback()
    assert plan.code == 0, plan.text
    for name in ORDER:
        assert f"`pulumi up` stops {name} and starts it again" in plan.text
    assert (
        "stops swarm-1 and starts it again, to change machineType and serviceAccount" in plan.text
    )
    assert "~  swarm-1           us-central1-a  e2-standard-16 → e2-standard-32  3,000" in plan.text
    assert "\n       swarm-3           us-central1-a  e2-standard-8 " in plan.text
    assert machines.moves() == []
    done = project.up(policies=False).no_traceback()
    assert done.code == 0, done.text
    assert machines.moves() == one_by_one(*ORDER)
    after = instances(cloud)
    assert {name: vm["id"] for name, vm in after.items()} == before
    assert {vm["status"] for vm in after.values()} == {"RUNNING"}

    # What does not stop a VM names none.
    values["swarm"][0] |= {"agents": 2900}
    project.configure(values)
    quiet = project.preview(policies=False)
    assert "`pulumi up` stops" not in quiet.text, quiet.text
    assert project.up("--skip-preview", policies=False).code == 0
    assert machines.moves() == []

    # One that is made anew takes no other with it.
    instance = "pilot:fleet:SwarmVm$gcp:compute/instance:Instance::swarm-3-vm"
    urn = f"urn:pulumi:{project.stack}::pilot-fleet::{instance}"
    assert set(project.steps("--replace", urn)) == {"swarm-3-vm"}


def test_one_that_fails_stops_no_larger_one_and_is_started_again(
    project: Project, machines: Machines, cloud: Serving
) -> None:
    values = deployed(project, machines)
    values["serviceAccount"] = f"other@{CLOUD}.iam.gserviceaccount.com"
    make_account(cloud, values["serviceAccount"])
    project.configure(values)
    machines.sold_out = {"swarm-3"}
    failed = project.up(policies=False).no_traceback()
    assert failed.code != 0
    assert "swarm-3 was stopped for a change that failed: it is started again" in failed.text
    assert machines.moves() == [*one_by_one("swarm-3"), "start swarm-3"]
    assert {vm["status"] for vm in instances(cloud).values()} == {"RUNNING"}
    # The rest follows with the next one.
    again = project.up(policies=False).no_traceback()
    assert again.code == 0, again.text
    assert machines.moves() == one_by_one(*ORDER[1:])
    assert project.steps() == {}


def test_a_vm_that_is_off_is_a_change(project: Project, machines: Machines, cloud: Serving) -> None:
    deployed(project, machines)
    call(cloud, f"{ZONE}/instances/swarm-1/stop", {})
    assert machines.moves() == ["stop swarm-1"]
    assert project.steps() == {"swarm-1-vm": "update"}
    plan = project.preview(policies=False)
    assert "`pulumi up` stops" not in plan.text, plan.text
    done = project.up(policies=False)
    assert done.code == 0, done.text
    assert machines.moves() == ["start swarm-1"]
    assert instances(cloud)["swarm-1"]["status"] == "RUNNING"
    assert project.steps() == {}


def test_a_vm_that_cannot_be_started_holds_up_no_other(
    project: Project, machines: Machines, cloud: Serving
) -> None:
    """A zone without room for the smallest VM, and the rendezvous' VM is gone."""
    values = deployed(project, machines)
    call(cloud, f"{ZONE}/instances/swarm-3/stop", {})
    delete(cloud, f"{ZONE}/instances/pilot-rendezvous")
    machines.moves()
    machines.never = {"swarm-3"}
    values["swarm"][0] |= {"agents": 2900}
    project.configure(values)
    done = project.up("--continue-on-error", policies=False).no_traceback()
    assert done.code != 0
    assert "no room for swarm-3" in done.text
    assert "--continue-on-error" in done.text
    there = instances(cloud)
    assert there["pilot-rendezvous"]["status"] == "RUNNING"
    items = {each["key"]: each["value"] for each in there["swarm-1"]["metadata"]["items"]}
    assert '"agents":2900' in items["pilot-spec"]
    machines.never = set()
    again = project.up(policies=False).no_traceback()
    assert again.code == 0, again.text
    assert {vm["status"] for vm in instances(cloud).values()} == {"RUNNING"}


def test_a_machine_type_that_the_zone_has_not_stops_deletes_and_makes_nothing(
    project: Project, machines: Machines, cloud: Serving
) -> None:
    """Of a VM that gets another type, of one that is made again, and of a new one."""
    values = deployed(project, machines)
    call(cloud, "projects/corp-images/global/images", {"name": "golden-1", "family": "golden"})
    before = {name: vm["id"] for name, vm in instances(cloud).items()}
    # Sold, but not in the zones of this cloud.
    unsold = {"machineType": "m1-megamem-96"}
    values["swarm"][0] |= unsold
    values["swarm"][1] |= unsold | {"image": "corp-images/golden"}
    values["swarm"].append(unsold | {"name": "swarm-4", "agents": 10})
    project.configure(values)
    for answer in (project.preview(policies=False), project.up("--skip-preview", policies=False)):
        answer.no_traceback()
        assert answer.code != 0
        for index, vm in ((0, "swarm-1"), (1, "swarm-2"), (3, "swarm-4")):
            assert (
                f"pilot-fleet:swarm[{index}].machineType: us-central1-a has no machine type "
                f"m1-megamem-96, so {vm} cannot be one. Nothing was changed" in answer.text
            ), answer.text
    assert machines.moves() == []
    assert {name: vm["id"] for name, vm in instances(cloud).items()} == before
    assert "swarm-4-state" not in {disk["name"] for disk in call(cloud, f"{ZONE}/disks")["items"]}


def test_a_new_fleet_of_a_machine_type_that_the_zone_has_not_makes_nothing(
    project: Project, cloud: Serving
) -> None:
    values = copy.deepcopy(changed(**FLEET))
    values["rendezvous"] |= {"machineType": "m1-megamem-96"}
    project.configure(values)
    for answer in (project.preview(policies=False), project.up("--skip-preview", policies=False)):
        assert answer.no_traceback().code != 0
        assert "rendezvous.machineType: us-central1-a has no machine type" in answer.text
    assert not call(cloud, f"projects/{CLOUD}/global/networks").get("items")


def test_an_account_that_is_not_there_stops_nothing(
    project: Project, machines: Machines, cloud: Serving
) -> None:
    values = deployed(project, machines)
    values["serviceAccount"] = f"vmss@{CLOUD}.iam.gserviceaccount.com"
    project.configure(values)
    for answer in (project.preview(policies=False), project.up("--skip-preview", policies=False)):
        answer.no_traceback()
        assert answer.code != 0
        assert (
            "pilot-fleet:serviceAccount: there is no service account "
            f"{values['serviceAccount']}, so swarm-3, swarm-1, swarm-2, pilot-rendezvous cannot "
            "get it. Nothing was changed" in answer.text
        ), answer.text
    assert machines.moves() == []

    # Nobody can tell: said, and no refusal.
    project.extra = {**cloud.settings(), "gcp:iamCustomEndpoint": "http://127.0.0.1:1/v1/"}
    project.configure(values)
    plan = project.preview(policies=False).no_traceback()
    assert plan.code == 0, plan.text
    assert "serviceAccount: cannot be looked up" in plan.text
    assert "swarm-3 is stopped before Google says so" in plan.text


def test_other_days_of_snapshots_change_nothing_else(project: Project, machines: Machines) -> None:
    values = deployed(project, machines)
    values["snapshots"] = {"hourlyDays": 3, "dailyDays": 15}
    project.configure(values)
    assert {name.rsplit("-", 1)[0] for name in project.steps()} <= {
        "pilot-rendezvous",
        "pilot-rendezvous-hourly",
        "pilot-rendezvous-daily",
    }
    done = project.up(policies=False).no_traceback()
    assert done.code == 0, done.text
    assert project.steps() == {}
    assert machines.moves() == []


def test_a_vm_moves_to_a_series_with_other_disks(
    project: Project, machines: Machines, cloud: Serving
) -> None:
    """docs/PRODUCTION.md, "A VM of another series"."""
    values = deployed(project, machines)
    values["swarm"][0] |= {"machineType": "n4-standard-16"}
    project.configure(values)
    refused = project.preview(policies=False)
    assert refused.code != 0
    assert "swarm-1 is a e2-standard-16 and becomes a n4-standard-16" in refused.text
    assert "do NOT unprotect it" in refused.text
    instance, disk = f"{ZONE}/instances/swarm-1", f"{ZONE}/disks/swarm-1-state"
    call(cloud, f"{instance}/stop", {})
    call(cloud, f"{disk}/createSnapshot", {"name": "swarm-1-move"})
    ready = call(cloud, f"projects/{CLOUD}/global/snapshots/swarm-1-move")
    assert ready["status"] == "READY"
    delete(cloud, instance)
    delete(cloud, disk)
    new = {
        "name": "swarm-1-state",
        "type": f"{ZONE}/diskTypes/hyperdisk-balanced",
        "sourceSnapshot": "global/snapshots/swarm-1-move",
    }
    call(cloud, f"{ZONE}/disks", new)
    before = call(cloud, disk)
    machines.moves()
    plan = project.preview(policies=False)
    if "expected boot_disk.0.initialize_params.0.type" in plan.text:
        # The provider of 2022 makes no such boot disk: the old series' disk, in the same way.
        delete(cloud, disk)
        call(cloud, f"{ZONE}/disks", new | {"type": f"{ZONE}/diskTypes/pd-balanced"})
        before = call(cloud, disk)
        values["swarm"][0] |= {"machineType": "n2-standard-16"}
        project.configure(values)
    assert project.steps() == {"swarm-1-vm": "create", "swarm-1-disk": "update"}
    done = project.up(policies=False).no_traceback()
    assert done.code == 0, done.text
    assert call(cloud, disk)["id"] == before["id"]
    assert machines.moves() == ["start swarm-1"]
    delete(cloud, f"projects/{CLOUD}/global/snapshots/swarm-1-move")
    assert project.steps() == {}
