"""Disks, images and snapshots as a client of the API sees them."""

import threading
from pathlib import Path

from lab.cloud.server import serve
from lab.machines.driver import Disk
from tests.lab.cloud.client import COMPUTE, LINK, REGION, ZONE, Client, list_of, make_network, vm
from tests.lab.cloud.fake_drivers import PATIENCE, Recorder

FAMILY = "/compute/v1/projects/debian-cloud/global/images/family/debian-12"


def test_a_disk_carries_the_name_of_its_image_not_of_the_family(network: Client) -> None:
    first = network.get(FAMILY)
    network.do("POST", f"{ZONE}/instances", vm())
    assert network.get(f"{ZONE}/disks/vm")["sourceImage"] == first["selfLink"]
    images = "/compute/v1/projects/debian-cloud/global/images"
    newer = {"name": "debian-12-bookworm-v20270101", "family": "debian-12"}
    network.do("POST", images, newer)
    assert network.get(FAMILY)["name"] == newer["name"]
    assert network.get(f"{ZONE}/disks/vm")["sourceImage"] == first["selfLink"]
    network.do("POST", f"{ZONE}/instances", vm("later"))
    assert network.get(f"{ZONE}/disks/later")["sourceImage"].endswith(newer["name"])
    network.do("DELETE", f"{images}/{newer['name']}")
    assert network.get(FAMILY) == first


def test_an_unknown_image_is_not_found(network: Client) -> None:
    body = vm()
    body["disks"][0]["initializeParams"]["sourceImage"] = "projects/x/global/images/family/none"
    answer = network.call("POST", f"{ZONE}/instances", body)
    assert answer.status == 404
    assert "projects/x/global/images/family/none" in answer.message


def test_an_image_may_go_while_a_disk_was_made_from_it(client: Client) -> None:
    images = f"{COMPUTE}/global/images"
    client.do("POST", images, {"name": "mine", "family": "own"})
    source = "projects/p1/global/images/family/own"
    client.do("POST", f"{ZONE}/disks", {"name": "d", "sourceImage": source})
    client.do("DELETE", f"{images}/mine")
    assert client.call("GET", f"{images}/family/own").status == 404


def test_disks_outlive_the_instance_unless_told_otherwise(
    machines: Client, recorder: Recorder
) -> None:
    machines.do("POST", f"{ZONE}/disks", {"name": "state", "sizeGb": 20})
    body = vm()
    body["disks"].append({"source": "zones/us-central1-a/disks/state", "deviceName": "state"})
    machines.do("POST", f"{ZONE}/instances", body)
    assert machines.get(f"{ZONE}/disks/state")["users"] == [f"{LINK}{ZONE}/instances/vm"]
    refused = machines.call("DELETE", f"{ZONE}/disks/state")
    assert refused.reason == "resourceInUseByAnotherResource"
    second = vm("second")
    second["disks"].append({"source": "zones/us-central1-a/disks/state"})
    code, _ = machines.failure("POST", f"{ZONE}/instances", second)
    assert code == "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE"
    machines.do("DELETE", f"{ZONE}/instances/vm")
    assert [each["name"] for each in list_of(machines, "disks")] == ["state"]
    machines.do("DELETE", f"{ZONE}/disks/state")
    assert recorder.calls[-1] == "delete_disk state"


def test_attach_and_detach(machines: Client, recorder: Recorder) -> None:
    machines.do("POST", f"{ZONE}/disks", {"name": "state", "sizeGb": "20"})
    machines.do("POST", f"{ZONE}/instances", vm())
    one = f"{ZONE}/instances/vm"
    source = {"source": "zones/us-central1-a/disks/state", "deviceName": "state"}
    machines.do("POST", f"{one}/attachDisk", source)
    assert [each.device_name for each in recorder.machines["vm"].disks] == [
        "persistent-disk-0",
        "state",
    ]
    machines.do("POST", f"{one}/setDiskAutoDelete?deviceName=state&autoDelete=true")
    assert machines.get(one)["disks"][1]["autoDelete"] is True
    machines.do("POST", f"{one}/detachDisk?deviceName=state")
    assert len(recorder.machines["vm"].disks) == 1
    assert "users" not in machines.get(f"{ZONE}/disks/state")
    again = machines.call("POST", f"{one}/detachDisk?deviceName=state")
    assert again.status == 400
    assert again.message.endswith("No attached disk found with device name.")


def test_an_unknown_type_of_disk_is_refused(network: Client) -> None:
    zone = ZONE.removeprefix("/compute/v1/")
    body = {"name": "state", "sizeGb": "20", "type": f"{zone}/diskTypes/pd-golden"}
    answer = network.call("POST", f"{ZONE}/disks", body)
    assert answer.status == 400
    assert answer.message.endswith("The referenced resource does not exist.")


def test_a_disk_is_not_attached_before_it_is_made(tmp_path: Path) -> None:
    made = threading.Event()

    class Slow(Recorder):
        def create_disk(self, disk: Disk) -> None:
            assert made.wait(PATIENCE)

    with serve(tmp_path, driver=Slow()) as serving:
        client = Client(serving.url)
        make_network(client)
        started = client.call("POST", f"{ZONE}/disks", {"name": "state", "sizeGb": 20}).json
        assert client.get(f"{ZONE}/disks/state")["status"] == "CREATING"
        body = vm()
        body["disks"].append({"source": "zones/us-central1-a/disks/state"})
        refused = client.call("POST", f"{ZONE}/instances", body)
        assert (refused.status, refused.reason) == (400, "resourceNotReady")
        refused = client.call("DELETE", f"{ZONE}/disks/state")
        assert (refused.status, refused.reason) == (400, "resourceNotReady")
        made.set()
        client.wait(started)
        assert client.get(f"{ZONE}/disks/state")["status"] == "READY"


def test_disks_only_grow(machines: Client, recorder: Recorder) -> None:
    machines.do("POST", f"{ZONE}/disks", {"name": "state", "sizeGb": 20})
    machines.do("POST", f"{ZONE}/disks/state/resize", {"sizeGb": "30"})
    assert machines.get(f"{ZONE}/disks/state")["sizeGb"] == "30"
    assert recorder.calls[-1] == "resize_disk state"
    assert machines.call("POST", f"{ZONE}/disks/state/resize", {"sizeGb": "30"}).status == 400


def test_several_resource_policies_on_a_disk(client: Client) -> None:
    client.do("POST", f"{ZONE}/disks", {"name": "state", "sizeGb": 20})
    for name, schedule in (("hourly", "hourlySchedule"), ("daily", "dailySchedule")):
        body = {
            "name": name,
            "snapshotSchedulePolicy": {"schedule": {schedule: {"startTime": "04:00"}}},
        }
        client.do("POST", f"{REGION}/resourcePolicies", body)
        policy = {"resourcePolicies": [f"projects/p1/regions/us-central1/resourcePolicies/{name}"]}
        client.do("POST", f"{ZONE}/disks/state/addResourcePolicies", policy)
    held = client.get(f"{ZONE}/disks/state")["resourcePolicies"]
    assert [each.rsplit("/", 1)[-1] for each in held] == ["hourly", "daily"]
    refused = client.call("DELETE", f"{REGION}/resourcePolicies/daily")
    assert refused.reason == "resourceInUseByAnotherResource"
    unknown = {"resourcePolicies": ["regions/us-central1/resourcePolicies/none"]}
    assert client.call("POST", f"{ZONE}/disks/state/addResourcePolicies", unknown).status == 404
    client.do("POST", f"{ZONE}/disks/state/removeResourcePolicies", policy)
    client.do("DELETE", f"{REGION}/resourcePolicies/daily")


def test_a_disk_is_made_of_a_snapshot_under_the_name_of_the_one_before(
    machines: Client, recorder: Recorder
) -> None:
    """The way to another type of disk. The driver keeps its content."""
    machines.do("POST", f"{ZONE}/disks", {"name": "data", "sizeGb": "10", "type": "pd-balanced"})
    keep = {"name": "data-before"}
    machines.do("POST", f"{ZONE}/disks/data/createSnapshot", keep)
    snapshot = f"{COMPUTE}/global/snapshots/data-before"
    held = machines.get(snapshot)
    assert (held["status"], held["diskSizeGb"]) == ("READY", "10")
    assert held["sourceDisk"].endswith("/disks/data")
    assert machines.call("POST", f"{ZONE}/disks/data/createSnapshot", keep).status == 409
    assert (
        machines.call("POST", f"{ZONE}/disks/none/createSnapshot", keep | {"name": "x"}).status
        == 404
    )
    # It outlives what it was made of.
    machines.do("DELETE", f"{ZONE}/disks/data")
    assert machines.call("GET", f"{ZONE}/disks/data").status == 404
    new = {
        "name": "data",
        "sourceSnapshot": "global/snapshots/data-before",
        "type": f"projects/p1/zones/{ZONE.rsplit('/', 1)[1]}/diskTypes/hyperdisk-balanced",
    }
    small = machines.call("POST", f"{ZONE}/disks", new | {"sizeGb": "9"})
    assert (small.status, "smaller than the snapshot" in small.message) == (400, True)
    missing = machines.call(
        "POST", f"{ZONE}/disks", new | {"sourceSnapshot": "global/snapshots/no"}
    )
    assert missing.status == 404
    machines.do("POST", f"{ZONE}/disks", new)
    made = machines.get(f"{ZONE}/disks/data")
    assert (made["sizeGb"], made["type"].rsplit("/", 1)[1]) == ("10", "hyperdisk-balanced")
    assert made["sourceSnapshot"].endswith("/snapshots/data-before")
    machines.do("DELETE", snapshot)
    assert machines.call("GET", snapshot).status == 404
    assert recorder.calls == [
        "create_disk data",
        "create_snapshot data",
        "delete_disk data",
        "create_disk data",
        "delete_snapshot data-before",
    ]
