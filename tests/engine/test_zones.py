"""A fleet in two zones, carried out: nothing differs afterwards, and no VM is moved."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab.cloud.server import Serving
from tests.components.fleet import changed
from tests.engine.project import Project
from tests.engine.test_update import CLOUD, FLEET, call, cloud, delete, project
from tests.lab.cloud.client import Client

__all__ = ["cloud", "project"]

pytestmark = pytest.mark.engine

ZONE, OTHER = "us-central1-a", "us-central1-b"
# With an account of its own the rendezvous stores copies in the bucket.
ACCOUNT = f"rv@{CLOUD}.iam.gserviceaccount.com"


def fleet(*zones: str | None, **more: Any) -> dict[str, Any]:
    """The seed's fleet with a zone for each swarm VM; None: that line names none."""
    values = changed(**FLEET, **more)
    for vm, zone in zip(values["swarm"], zones, strict=True):
        if zone:
            vm["zone"] = zone
    return values


def names(cloud: Serving, zone: str, kind: str) -> set[str]:
    listed = call(cloud, f"projects/{CLOUD}/zones/{zone}/{kind}")
    return {each["name"] for each in listed.get("items", [])}


def test_a_fleet_in_two_zones(project: Project, cloud: Serving) -> None:
    project.configure(fleet(None, OTHER, None, maxZoneShare="0.5"))
    made = project.up().no_traceback()
    assert made.code == 0, made.text
    assert "us-central1-b holds 5,000 of 9,500 agents (52.6%)" in made.text
    assert "1 VM, lost with it: 5,000 of 9,500 agents (53%)" in made.text
    assert names(cloud, OTHER, "instances") == {"swarm-2"}
    assert "swarm-2-state" in names(cloud, OTHER, "disks")
    assert project.steps("--refresh") == {}

    # A VM of another name may be in any zone; one that is there keeps its own.
    for zones, path in (
        ((None, None, None), "swarm[1].zone"),
        ((OTHER, OTHER, None), "swarm[0].zone"),
    ):
        project.configure(fleet(*zones))
        for refused in (project.preview().no_traceback(), project.up().no_traceback()):
            assert refused.code != 0
            assert f"pilot-fleet:{path}: swarm-" in refused.text
            assert "no update moves a VM" in refused.text
    values = fleet(None, OTHER, None)
    values["swarm"].append({"name": "swarm-4", "machineType": "e2-standard-8", "agents": 1})
    values["swarm"][-1]["zone"] = "us-central1-f"
    project.configure(values)
    steps = project.steps()
    assert {name for name, step in steps.items() if step == "create"} >= {
        "swarm-4-vm",
        "swarm-4-disk",
    }
    assert set(steps.values()) <= {"create", "update"}


def test_the_rendezvous_moves_while_its_zone_is_dead(project: Project, cloud: Serving) -> None:
    def configure(zone: str) -> None:
        # swarm-3 is in the zone that dies.
        values = fleet(OTHER, "us-central1-f", None)
        values["rendezvous"] |= {"zone": zone, "serviceAccount": ACCOUNT}
        project.configure(values)

    def registry(zone: str, name: str) -> str:
        vm = call(cloud, f"projects/{CLOUD}/zones/{zone}/instances/{name}")
        items = {each["key"]: each["value"] for each in vm["metadata"]["items"]}
        return str(json.loads(items["pilot-spec"])["registry"])

    configure(ZONE)
    made = project.up("--skip-preview").no_traceback()
    assert made.code == 0, made.text
    assert project.dead_zones() == ([], [])
    client = Client(cloud.url)
    (bucket,) = client.get(f"/storage/v1/b?project={CLOUD}")["items"]
    client.upload(bucket["name"], "registry/20261130T120000Z-9500.json", b"{}")

    client.do("POST", f"/lab/zones/{ZONE}", {"away": True})
    configure(OTHER)
    leaving_out, (sentence,) = project.dead_zones()
    assert "everything there stays as it is (pilot-rendezvous, swarm-3; " in sentence
    planned = project.preview(*leaving_out).no_traceback()
    assert planned.code == 0, planned.text
    moved = project.up("--skip-preview", *leaving_out).no_traceback()
    assert moved.code == 0, moved.text
    assert names(cloud, OTHER, "instances") == {"pilot-rendezvous", "swarm-1"}
    for zone, name in ((OTHER, "swarm-1"), ("us-central1-f", "swarm-2")):
        assert registry(zone, name) == "10.10.15.252:9000"
    # Another one, while it is dead, changes nothing.
    leaving_out, (again,) = project.dead_zones()
    assert again == sentence
    assert project.steps("--refresh", *leaving_out) == {}

    # When it is back.
    client.do("POST", f"/lab/zones/{ZONE}", {"away": False})
    assert names(cloud, ZONE, "instances") == {"pilot-rendezvous", "swarm-3"}
    assert registry(ZONE, "swarm-3") == "10.10.0.2:9000"
    assert project.dead_zones() == ([], [])
    done = project.up("--skip-preview").no_traceback()
    assert done.code == 0, done.text
    assert names(cloud, ZONE, "instances") == {"swarm-3"}
    assert "pilot-rendezvous-state" in names(cloud, ZONE, "disks")
    assert registry(ZONE, "swarm-3") == "10.10.15.252:9000"
    assert project.steps("--refresh") == {}


def test_the_rendezvous_moves_to_another_zone(project: Project, cloud: Serving) -> None:
    def zone(name: str | None, account: str | None = ACCOUNT) -> dict[str, Any]:
        values = fleet(None, None, None)
        values["rendezvous"] |= {"zone": name} if name else {}
        values["rendezvous"] |= {"serviceAccount": account} if account else {}
        return values

    def addresses() -> dict[str, str]:
        listed = call(cloud, f"projects/{CLOUD}/regions/us-central1/addresses")
        return {each["name"]: each["address"] for each in listed.get("items", [])}

    project.configure(zone(None))
    made = project.up("--skip-preview").no_traceback()
    assert made.code == 0, made.text
    first = addresses()

    project.configure(zone(OTHER))
    empty = project.preview().no_traceback()
    assert empty.code != 0
    assert "has no copy of the registry, so it would be empty in us-central1-b" in empty.text
    client = Client(cloud.url)
    (bucket,) = client.get(f"/storage/v1/b?project={CLOUD}")["items"]
    client.upload(bucket["name"], "registry/20261130T120000Z-9500.json", b"{}")
    planned = project.preview().no_traceback()
    assert planned.code == 0, planned.text
    assert "the rendezvous moves to us-central1-b: a new VM with the address" in planned.text
    moved = project.up("--skip-preview").no_traceback()
    assert moved.code == 0, moved.text
    assert names(cloud, OTHER, "instances") == {"pilot-rendezvous"}
    assert names(cloud, OTHER, "disks") >= {f"pilot-rendezvous-state-{OTHER}"}
    # The old VM is gone, its disk and address are not.
    assert names(cloud, ZONE, "instances") == {"swarm-1", "swarm-2", "swarm-3"}
    assert "pilot-rendezvous-state" in names(cloud, ZONE, "disks")
    assert addresses() == first | {f"pilot-fleet-registry-internal-{OTHER}": "10.10.15.252"}
    # The next update changes nothing, and the agents know where the registry is.
    assert project.steps("--refresh") == {}
    (swarm,) = (
        each
        for each in call(cloud, f"projects/{CLOUD}/zones/{ZONE}/instances")["items"]
        if each["name"] == "swarm-1"
    )
    items = {each["key"]: each["value"] for each in swarm["metadata"]["items"]}
    assert json.loads(items["pilot-spec"])["registry"] == "10.10.15.252:9000"

    # Back to a disk with the registry of then: not by a change of one line.
    project.configure(zone(ZONE))
    refused = project.preview().no_traceback()
    assert refused.code != 0
    assert "still has the disk pilot-rendezvous-state from before" in refused.text
    # A third zone is free.
    project.configure(zone("us-central1-f"))
    steps = project.steps()
    assert steps[f"pilot-rendezvous-vm-{OTHER}"] == "delete"
    assert steps["pilot-rendezvous-vm-us-central1-f"] == "create"
    assert not {name for name, step in steps.items() if "state" in name and step == "delete"}

    # docs/PRODUCTION.md: the old disk and its address are let go, and the first zone is free too.
    project.configure(zone(OTHER))
    delete(cloud, f"projects/{CLOUD}/zones/{ZONE}/disks/pilot-rendezvous-state")
    delete(cloud, f"projects/{CLOUD}/regions/us-central1/addresses/pilot-fleet-registry-internal")
    looked = project.pulumi("refresh", "-s", project.stack, "--yes")
    assert looked.code == 0, looked.text
    assert project.steps("--refresh") == {}
    project.configure(zone(ZONE))
    assert project.preview().no_traceback().code == 0
