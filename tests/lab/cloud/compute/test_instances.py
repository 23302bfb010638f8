"""Instances as a client of the API sees them: requests, states, actions."""

import threading
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.compute import catalog
from lab.cloud.compute.instances_api import MOST_SERIAL
from lab.cloud.server import Serving, serve
from tests.lab.cloud.client import COMPUTE, LINK, ZONE, Client, make_network, vm
from tests.lab.cloud.fake_drivers import PATIENCE, Gated, Recorder
from tests.lab.cloud.guest import publish


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Not-A-Name"}, "resource.name"),
        ({"name": None}, "resource.name"),
        ({"machineType": "zones/us-central1-a/machineTypes/e2-huge"}, "does not exist"),
        ({"machineType": None}, "resource.machineType"),
        ({"disks": []}, "boot disk"),
        ({"networkInterfaces": []}, "networkInterfaces"),
        ({"networkInterfaces": [{"subnetwork": "regions/us-central1/subnetworks/x"}]}, "cannot be"),
        ({"metadata": {"items": [{"key": "a b", "value": ""}]}}, "metadata.items[0].key"),
        (
            {"metadata": {"items": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]}},
            "Duplicate metadata key",
        ),
        ({"labels": {"Upper": "x"}}, "Invalid label"),
    ],
)
def test_a_bad_instance_is_refused(network: Client, change: Any, said: str) -> None:
    answer = network.call("POST", f"{ZONE}/instances", vm(**change) | change)
    assert answer.status == 400
    assert answer.reason in ("invalid", "required")
    assert said in answer.message
    assert "items" not in network.get(f"{ZONE}/instances")
    assert "items" not in network.get(f"{ZONE}/disks")


def test_metadata_has_limits(network: Client) -> None:
    item = {"key": "a", "value": "x" * 262145}
    answer = network.call("POST", f"{ZONE}/instances", vm(metadata={"items": [item]}))
    assert answer.status == 413
    assert "maximum size 262144 character(s); actual size 262145" in answer.message
    items = [{"key": f"k{n}", "value": "x" * 200_000} for n in range(3)]
    answer = network.call("POST", f"{ZONE}/instances", vm(metadata={"items": items}))
    assert "at most 524288 are allowed in total" in answer.message


def test_an_instance_is_answered_completely(network: Client) -> None:
    network.do("POST", f"{ZONE}/instances", vm(labels={"a": "b"}, tags={"items": ["t"]}))
    found = network.get(f"{ZONE}/instances/vm?view=FULL")
    assert found["status"] == "RUNNING"
    assert found["scheduling"] == {
        "onHostMaintenance": "MIGRATE",
        "automaticRestart": True,
        "preemptible": False,
        "provisioningModel": "STANDARD",
    }
    assert found["shieldedInstanceConfig"] == {
        "enableSecureBoot": False,
        "enableVtpm": True,
        "enableIntegrityMonitoring": True,
    }
    assert found["labels"] == {"a": "b"}
    assert found["tags"]["items"] == ["t"]
    for part in (found, found["tags"], found["metadata"], found["networkInterfaces"][0]):
        assert part["fingerprint"]
    for field in ("id", "labelFingerprint", "cpuPlatform", "creationTimestamp", "selfLink"):
        assert found[field], field
    assert found["machineType"].endswith("/zones/us-central1-a/machineTypes/e2-standard-2")
    nic = found["networkInterfaces"][0]
    assert nic["network"] == f"{LINK}{COMPUTE}/global/networks/net"
    assert (nic["name"], nic["networkIP"]) == ("nic0", "10.10.0.2")
    assert "accessConfigs" not in nic
    assert network.get("/compute/beta/projects/p1/zones/us-central1-a/instances/vm") == found


def test_an_operation_runs_as_long_as_the_driver_works(tmp_path: Path) -> None:
    driver = Gated()
    with serve(tmp_path, driver=driver) as serving:
        client = Client(serving.url)
        make_network(client)
        operation = client.call("POST", f"{ZONE}/instances", vm()).json
        assert driver.started.wait(PATIENCE)
        where = f"{ZONE}/operations/{operation['name']}"
        assert client.get(where)["status"] == "RUNNING"
        assert client.get(f"{ZONE}/instances/vm")["status"] == "STAGING"
        refused = client.call("POST", f"{ZONE}/instances/vm/stop")
        assert (refused.status, refused.reason) == (400, "resourceNotReady")
        metadata = client.get(f"{ZONE}/instances/vm")["metadata"]
        change = {"items": [{"key": "a", "value": "b"}], "fingerprint": metadata["fingerprint"]}
        client.do("POST", f"{ZONE}/instances/vm/setMetadata", change)
        done: list[Any] = []
        waiter = threading.Thread(target=lambda: done.append(client.wait(operation)))
        waiter.start()
        driver.go.set()
        waiter.join(PATIENCE)
        assert (done[0]["status"], done[0]["progress"]) == ("DONE", 100)
        found = client.get(f"{ZONE}/instances/vm")
        assert found["status"] == "RUNNING"
        assert found["metadata"]["items"] == change["items"]
        names = [each["name"] for each in client.get(f"{ZONE}/operations")["items"]]
        assert operation["name"] in names


def test_start_stop_reset(machines: Client, recorder: Recorder) -> None:
    machines.do("POST", f"{ZONE}/instances", vm())
    one = f"{ZONE}/instances/vm"
    machines.do("POST", f"{one}/reset")
    machines.do("POST", f"{one}/start")  # it runs: nothing to do
    machines.do("POST", f"{one}/stop")
    assert machines.get(one)["status"] == "TERMINATED"
    machines.do("POST", f"{one}/stop")
    refused = machines.call("POST", f"{one}/reset")
    assert (refused.status, refused.reason) == (400, "resourceNotReady")
    machines.do("POST", f"{one}/start")
    assert machines.get(one)["status"] == "RUNNING"
    machines.do("DELETE", one)
    assert recorder.calls == [
        "create_disk vm",
        "start vm",
        "reset vm",
        "stop vm",
        "start vm",
        "delete vm",
        "delete_disk vm",
    ]


def test_a_driver_gets_the_whole_machine(machines: Client, recorder: Recorder) -> None:
    machines.do("POST", f"{ZONE}/disks", {"name": "state", "sizeGb": 20})
    body = vm(machineType="zones/us-central1-a/machineTypes/e2-custom-2-1024")
    body["disks"].append({"source": f"{ZONE[12:]}/disks/state", "deviceName": "my-state"})
    body["networkInterfaces"][0]["accessConfigs"] = [{"type": "ONE_TO_ONE_NAT"}]
    machines.do("POST", f"{ZONE}/instances", body)
    machine = recorder.machines["vm"]
    assert machine.path == "projects/p1/zones/us-central1-a/instances/vm"
    assert (machine.vcpus, machine.memory_mb) == (2, 1024)
    assert machine.hostname == "vm.c.p1.internal"
    boot, state = machine.disks
    assert (boot.boot, boot.disk.size_gb) == (True, 10)
    assert boot.disk.image == "projects/debian-cloud/global/images/debian-12-bookworm-v20261110"
    assert (state.device_name, state.boot, state.disk.image) == ("my-state", False, None)
    (nic,) = machine.nics
    assert (nic.address, nic.cidr, nic.gateway) == ("10.10.0.2", "10.10.0.0/20", "10.10.0.1")
    assert (nic.mac, nic.external) == ("42:01:0a:0a:00:02", "203.0.113.1")


def test_an_insert_that_fails_leaves_nothing(machines: Client, recorder: Recorder) -> None:
    recorder.failing = {"start"}
    code, message = machines.failure("POST", f"{ZONE}/instances", vm())
    assert (code, message) == ("INTERNAL_ERROR", "start does not work today")
    assert "items" not in machines.get(f"{ZONE}/instances")
    assert "items" not in machines.get(f"{ZONE}/disks")
    recorder.failing = set()
    machines.do("POST", f"{ZONE}/instances", vm())


def test_a_stop_that_fails_leaves_it_running(machines: Client, recorder: Recorder) -> None:
    machines.do("POST", f"{ZONE}/instances", vm())
    recorder.failing = {"stop"}
    machines.failure("POST", f"{ZONE}/instances/vm/stop")
    assert machines.get(f"{ZONE}/instances/vm")["status"] == "RUNNING"


def test_the_machine_type_changes_only_while_it_is_off(network: Client) -> None:
    network.do("POST", f"{ZONE}/instances", vm())
    one = f"{ZONE}/instances/vm"
    change = {"machineType": "zones/us-central1-a/machineTypes/e2-standard-4"}
    answer = network.call("POST", f"{one}/setMachineType", change)
    assert (answer.status, answer.reason) == (400, "resourceNotReady")
    network.do("POST", f"{one}/stop")
    network.do("POST", f"{one}/setMachineType", change)
    assert network.get(one)["machineType"].endswith("/e2-standard-4")


@pytest.mark.parametrize(
    ("machine", "possible"),
    [
        ("e2-standard-2", {"MIGRATE"}),
        ("n2-standard-2", {"MIGRATE", "TERMINATE"}),
        ("h3-standard-88", {"MIGRATE", "TERMINATE"}),
        ("z3-highmem-88-standardlssd", {"MIGRATE"}),
        ("z3-highmem-88-highlssd", {"TERMINATE"}),
        ("h4d-standard-192", {"TERMINATE"}),
        ("a2-highgpu-1g", {"TERMINATE"}),
        ("g2-standard-4", {"TERMINATE"}),
        ("ct5lp-hightpu-1t", {"TERMINATE"}),
        ("c3-standard-192-metal", {"TERMINATE"}),
    ],
)
def test_host_maintenance_is_what_the_machine_type_can(
    network: Client, machine: str, possible: set[str]
) -> None:
    for index, way in enumerate(("MIGRATE", "TERMINATE")):
        body = vm(f"vm-{index}", machineType=f"zones/us-central1-a/machineTypes/{machine}")
        if catalog.takes(machine, "hyperdisk-balanced"):
            body["disks"][0]["initializeParams"]["diskType"] = (
                "zones/us-central1-a/diskTypes/hyperdisk-balanced"
            )
        answer = network.call(
            "POST", f"{ZONE}/instances", body | {"scheduling": {"onHostMaintenance": way}}
        )
        assert (answer.status < 300) == (way in possible), answer
        if way not in possible:
            assert (answer.status, answer.reason) == (400, "invalid")
            assert "onHostMaintenance" in answer.message
            network.do("POST", f"{ZONE}/instances", body)
            change = {"onHostMaintenance": way}
            one = f"{ZONE}/instances/vm-{index}"
            assert network.call("POST", f"{one}/setScheduling", change).status == 400


@pytest.mark.parametrize("machine", ["e2-standard-16-lssd", "n2d-custom-6-6144", "n9-standard-2"])
def test_machine_types_that_are_not_sold_are_refused(network: Client, machine: str) -> None:
    kind = {"machineType": f"zones/us-central1-a/machineTypes/{machine}"}
    assert network.call("POST", f"{ZONE}/instances", vm(**kind)).status == 400
    network.do("POST", f"{ZONE}/instances", vm())
    network.do("POST", f"{ZONE}/instances/vm/stop")
    answer = network.call("POST", f"{ZONE}/instances/vm/setMachineType", kind)
    assert (answer.status, answer.reason) == (400, "invalid")
    assert network.call("GET", f"{ZONE}/machineTypes/{machine}").status == 404


def test_a_machine_type_takes_its_own_kinds_of_disks(network: Client) -> None:
    n4 = {"machineType": "zones/us-central1-a/machineTypes/n4-standard-2"}
    answer = network.call("POST", f"{ZONE}/instances", vm(**n4))
    assert answer.status == 400
    assert "pd-standard disk type cannot be used by n4-standard-2" in answer.message
    network.do("POST", f"{ZONE}/instances", vm())
    one = f"{ZONE}/instances/vm"
    network.do("POST", f"{one}/stop")
    assert network.call("POST", f"{one}/setMachineType", n4).status == 400
    hyperdisk = {"name": "h", "sizeGb": 10, "type": f"{ZONE[12:]}/diskTypes/hyperdisk-balanced"}
    network.do("POST", f"{ZONE}/disks", hyperdisk)
    answer = network.call("POST", f"{one}/attachDisk", {"source": f"{ZONE[12:]}/disks/h"})
    assert answer.status == 400
    assert "hyperdisk-balanced disk type cannot be used by e2-standard-2" in answer.message


def test_service_account_scheduling_and_shielding(network: Client) -> None:
    network.do("POST", f"{ZONE}/instances", vm())
    one = f"{ZONE}/instances/vm"
    account = {"email": "a@p1.iam.gserviceaccount.com", "scopes": ["cloud-platform"]}
    assert network.call("POST", f"{one}/setServiceAccount", account).status == 400
    network.do("POST", f"{one}/setScheduling", {"automaticRestart": False})
    network.do("POST", f"{one}/stop")
    network.do("POST", f"{one}/setServiceAccount", account)
    network.do("PATCH", f"{one}/updateShieldedInstanceConfig", {"enableSecureBoot": True})
    found = network.get(one)
    assert found["serviceAccounts"] == [account]
    assert found["scheduling"]["automaticRestart"] is False
    assert found["shieldedInstanceConfig"]["enableSecureBoot"] is True


def test_a_protected_instance_is_not_deleted(network: Client) -> None:
    network.do("POST", f"{ZONE}/instances", vm(deletionProtection=True))
    one = f"{ZONE}/instances/vm"
    answer = network.call("DELETE", one)
    assert (answer.status, answer.reason) == (400, "invalidResourceUsage")
    network.do("POST", f"{one}/setDeletionProtection?deletionProtection=false")
    network.do("DELETE", one)


def test_serial_output_goes_on_where_it_ended(machines: Client, recorder: Recorder) -> None:
    machines.do("POST", f"{ZONE}/instances", vm())
    where = f"{ZONE}/instances/vm/serialPort"
    recorder.console = b"booting\r\n"
    first = machines.get(where)
    assert (first["contents"], first["start"], first["next"]) == ("booting\r\n", "0", "9")
    recorder.console += b"up\r\n"
    assert machines.get(f"{where}?start={first['next']}")["contents"] == "up\r\n"
    assert machines.get(f"{where}?start=-4")["contents"] == "up\r\n"
    recorder.console += b"x" * MOST_SERIAL
    late = machines.get(f"{where}?start=0")
    assert (late["start"], len(late["contents"])) == ("13", MOST_SERIAL)
    assert machines.call("GET", f"{where}?port=2").status == 400


def test_guest_attributes(network: Client, serving: Serving) -> None:
    network.do("POST", f"{ZONE}/instances", vm())
    where = f"{ZONE}/instances/vm/getGuestAttributes"
    absent = network.call("GET", f"{where}?queryPath=ns/")
    assert (absent.status, absent.reason) == (404, "notFound")
    path = "projects/p1/zones/us-central1-a/instances/vm"
    publish(serving.lab.store, path, "ns/status", "up")
    publish(serving.lab.store, path, "other/x", "1")
    item = {"namespace": "ns", "key": "status", "value": "up"}
    assert network.get(f"{where}?queryPath=ns/")["queryValue"] == {"items": [item]}
    assert network.get(f"{where}?queryPath=ns/status")["queryValue"] == {"items": [item]}
    assert len(network.get(f"{where}?queryPath=")["queryValue"]["items"]) == 2
    assert network.get(f"{where}?variableKey=ns/status")["variableValue"] == "up"
    network.do("DELETE", f"{ZONE}/instances/vm")
    network.do("POST", f"{ZONE}/instances", vm())
    assert network.call("GET", f"{where}?queryPath=ns/").status == 404
