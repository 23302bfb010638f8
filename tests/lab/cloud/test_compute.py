"""The compute API, as a client sees it: shapes, refusals, states, addresses, disks."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.cloud import catalog
from lab.cloud.compute import MOST_SERIAL, project_number
from lab.cloud.server import Serving, serve
from lab.machines.container import Container
from lab.machines.driver import Disk, MachineError
from lab.machines.places import Places
from lab.machines.qemu import Qemu
from tests.lab.cloud.client import COMPUTE, REGION, ZONE, Client, make_network, vm
from tests.lab.cloud.fake_drivers import PATIENCE, Gated, Recorder

FAMILY = "/compute/v1/projects/debian-cloud/global/images/family/debian-12"
LINK = "https://www.googleapis.com"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def machines(tmp_path: Path, recorder: Recorder) -> Iterator[Client]:
    with serve(tmp_path / "machines", driver=recorder) as serving:
        client = Client(serving.url)
        make_network(client)
        yield client


# Refusals


def test_it_says_what_it_is(client: Client) -> None:
    answer = client.call("GET", COMPUTE)
    assert "local-stand-in-for-Compute-Engine" in answer.headers["server"]


def test_not_found(client: Client) -> None:
    answer = client.call("GET", f"{ZONE}/instances/nobody")
    assert answer.status == 404
    assert answer.json == {
        "error": {
            "code": 404,
            "message": "The resource 'projects/p1/zones/us-central1-a/instances/nobody'"
            " was not found",
            "errors": [
                {
                    "message": "The resource 'projects/p1/zones/us-central1-a/instances/nobody'"
                    " was not found",
                    "domain": "global",
                    "reason": "notFound",
                }
            ],
            "status": "NOT_FOUND",
        }
    }


def test_an_existing_name_is_a_conflict(network: Client) -> None:
    network.do("POST", f"{ZONE}/instances", vm())
    answer = network.call("POST", f"{ZONE}/instances", vm())
    assert (answer.status, answer.reason) == (409, "alreadyExists")
    body = {"name": "net", "autoCreateSubnetworks": False}
    answer = network.call("POST", f"{COMPUTE}/global/networks", body)
    assert (answer.status, answer.reason) == (409, "alreadyExists")


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


@pytest.mark.parametrize("place", ["zones/mars-north1-a", "regions/mars-north1"])
def test_unknown_places_are_refused(client: Client, place: str) -> None:
    answer = client.call("GET", f"{COMPUTE}/{place}")
    assert answer.status == 400
    assert "Unknown" in answer.message


def test_what_is_not_served_is_said_and_logged_loudly(
    client: Client, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.call("POST", f"{COMPUTE}/global/targetPools", {"name": "x"})
    assert (answer.status, answer.reason) == (501, "notImplemented")
    assert f"POST {COMPUTE}/global/targetPools" in answer.message
    assert client.call("GET", "/favicon.ico").status == 404
    assert client.call("GET", "/compute/alpha/projects/p1").status == 501
    assert serving.lab.unknown == [f"POST {COMPUTE}/global/targetPools", "GET /favicon.ico"]
    assert f"NOT SERVED: POST {COMPUTE}/global/targetPools" in caplog.text


def test_a_body_that_is_no_json_is_a_parse_error(client: Client) -> None:
    for body in (b"{", b"[]", b"\xff"):
        answer = client.call("POST", f"{COMPUTE}/global/networks", body)
        assert (answer.status, answer.reason) == (400, "parseError")


# Fingerprints


@pytest.mark.parametrize(
    ("action", "body", "field"),
    [
        ("setMetadata", {"items": [{"key": "a", "value": "b"}]}, "fingerprint"),
        ("setLabels", {"labels": {"a": "b"}}, "labelFingerprint"),
        ("setTags", {"items": ["a"]}, "fingerprint"),
    ],
)
def test_a_stale_fingerprint_is_refused(
    network: Client, action: str, body: dict[str, Any], field: str
) -> None:
    network.do("POST", f"{ZONE}/instances", vm())
    one = f"{ZONE}/instances/vm"

    def fingerprint() -> str:
        current = network.get(one)
        held = {"setMetadata": current["metadata"], "setTags": current["tags"]}
        found: str = held.get(action, current)[field]
        return found

    first = fingerprint()
    network.do("POST", f"{one}/{action}", {**body, field: first})
    assert fingerprint() != first
    answer = network.call("POST", f"{one}/{action}", {**body, field: first})
    assert (answer.status, answer.reason) == (412, "conditionNotMet")
    assert answer.json["error"]["errors"][0]["location"] == "If-Match"
    answer = network.call("POST", f"{one}/{action}", body)
    assert answer.status == 412


def test_project_metadata_is_locked_by_its_fingerprint(client: Client) -> None:
    first = client.get(COMPUTE)["commonInstanceMetadata"]
    assert "items" not in first
    items = [{"key": "startup-script", "value": "#!/bin/bash\n"}]
    change = {"items": items, "fingerprint": first["fingerprint"]}
    client.do("POST", f"{COMPUTE}/setCommonInstanceMetadata", change)
    answer = client.call("POST", f"{COMPUTE}/setCommonInstanceMetadata", change)
    assert (answer.status, answer.reason) == (412, "conditionNotMet")
    assert client.get(COMPUTE)["commonInstanceMetadata"]["items"] == items
    by_number = client.get(f"/compute/v1/projects/{project_number('p1')}")
    assert by_number["name"] == "p1"
    assert client.call("GET", "/compute/v1/projects/123").status == 404


def test_zonal_settings_are_locked_by_their_fingerprint(client: Client) -> None:
    where = f"{ZONE}/instanceSettings"
    held = client.get(where)
    body = {"metadata": {"items": {"a": "b"}}, "fingerprint": held["fingerprint"]}
    client.do("PATCH", where, body)
    assert client.get(where)["metadata"] == {"items": {"a": "b"}}
    assert client.call("PATCH", where, body).status == 412
    other = client.get(f"{COMPUTE}/zones/us-central1-b/instanceSettings")
    assert other["metadata"] == {}


# Instances


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
def test_types_that_are_not_sold_are_refused(network: Client, machine: str) -> None:
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
    serving.lab.compute.set_guest_attribute(path, "ns", "status", "up")
    serving.lab.compute.set_guest_attribute(path, "other", "x", "1")
    item = {"namespace": "ns", "key": "status", "value": "up"}
    assert network.get(f"{where}?queryPath=ns/")["queryValue"] == {"items": [item]}
    assert network.get(f"{where}?queryPath=ns/status")["queryValue"] == {"items": [item]}
    assert len(network.get(f"{where}?queryPath=")["queryValue"]["items"]) == 2
    assert network.get(f"{where}?variableKey=ns/status")["variableValue"] == "up"
    network.do("DELETE", f"{ZONE}/instances/vm")
    network.do("POST", f"{ZONE}/instances", vm())
    assert network.call("GET", f"{where}?queryPath=ns/").status == 404


# Addresses


def test_addresses_are_handed_out_from_the_subnet(network: Client) -> None:
    for name in ("a", "b"):
        network.do("POST", f"{ZONE}/instances", vm(name))
    found = [each["networkInterfaces"][0]["networkIP"] for each in list_of(network, "instances")]
    assert found == ["10.10.0.2", "10.10.0.3"]
    network.do("DELETE", f"{ZONE}/instances/a")
    network.do("POST", f"{ZONE}/instances", vm("c"))
    assert network.get(f"{ZONE}/instances/c")["networkInterfaces"][0]["networkIP"] == "10.10.0.2"


def list_of(client: Client, collection: str) -> list[Any]:
    found: list[Any] = client.get(f"{ZONE}/{collection}").get("items", [])
    return found


def internal(**more: Any) -> dict[str, Any]:
    return {
        "name": "static",
        "addressType": "INTERNAL",
        "subnetwork": "regions/us-central1/subnetworks/sub",
        **more,
    }


def test_a_static_internal_address(network: Client) -> None:
    network.do("POST", f"{REGION}/addresses", internal(address="10.10.0.2"))
    one = f"{REGION}/addresses/static"
    assert network.get(one)["status"] == "RESERVED"
    network.do("POST", f"{ZONE}/instances", vm("other"))
    other = network.get(f"{ZONE}/instances/other")
    assert other["networkInterfaces"][0]["networkIP"] == "10.10.0.3"
    nic = {"subnetwork": "regions/us-central1/subnetworks/sub", "networkIP": "10.10.0.2"}
    network.do("POST", f"{ZONE}/instances", vm(networkInterfaces=[nic]))
    found = network.get(one)
    assert found["status"] == "IN_USE"
    assert found["users"] == [f"{LINK}{ZONE}/instances/vm"]
    refused = network.call("DELETE", one)
    assert (refused.status, refused.reason) == (400, "resourceInUseByAnotherResource")
    code, message = network.failure(
        "POST", f"{ZONE}/instances", vm("third", networkInterfaces=[nic])
    )
    assert code == "IP_IN_USE_BY_ANOTHER_RESOURCE"
    assert "10.10.0.2" in message
    assert network.call("GET", f"{ZONE}/instances/third").status == 404
    code, _ = network.failure(
        "POST", f"{REGION}/addresses", internal(name="again", address="10.10.0.2")
    )
    assert code == "IP_IN_USE_BY_ANOTHER_RESOURCE"


@pytest.mark.parametrize("address", ["10.10.0.0", "10.10.0.1", "10.10.15.254", "10.11.0.2", "x"])
def test_an_address_that_the_subnet_lacks_is_refused(network: Client, address: str) -> None:
    answer = network.call("POST", f"{REGION}/addresses", internal(address=address))
    assert (answer.status, answer.reason) == (400, "invalid")


def test_external_addresses(network: Client) -> None:
    network.do("POST", f"{REGION}/addresses", {"name": "ext", "addressType": "EXTERNAL"})
    address = network.get(f"{REGION}/addresses/ext")["address"]
    assert address == "203.0.113.1"
    nic: dict[str, Any] = {"subnetwork": "regions/us-central1/subnetworks/sub"}
    network.do(
        "POST",
        f"{ZONE}/instances",
        vm(networkInterfaces=[{**nic, "accessConfigs": [{"natIP": address}]}]),
    )
    assert network.get(f"{REGION}/addresses/ext")["status"] == "IN_USE"
    again = vm("b", networkInterfaces=[{**nic, "accessConfigs": [{"natIP": address}]}])
    assert network.failure("POST", f"{ZONE}/instances", again)[0] == "IP_IN_USE_BY_ANOTHER_RESOURCE"
    unknown = vm("c", networkInterfaces=[{**nic, "accessConfigs": [{"natIP": "8.8.8.8"}]}])
    assert network.call("POST", f"{ZONE}/instances", unknown).status == 400
    ephemeral = vm("d", networkInterfaces=[{**nic, "accessConfigs": [{}]}])
    network.do("POST", f"{ZONE}/instances", ephemeral)
    found = network.get(f"{ZONE}/instances/d")["networkInterfaces"][0]["accessConfigs"][0]
    assert found["natIP"] == "203.0.113.2"


def test_a_full_subnet(client: Client) -> None:
    make_network(client, "10.0.0.0/29")
    for name in "abcd":
        client.do("POST", f"{ZONE}/instances", vm(name))
    code, _ = client.failure("POST", f"{ZONE}/instances", vm("e"))
    assert code == "IP_SPACE_EXHAUSTED"


# Networks


def test_subnetworks_must_not_overlap(network: Client) -> None:
    body = {"name": "two", "network": "global/networks/net", "ipCidrRange": "10.10.8.0/24"}
    answer = network.call("POST", f"{REGION}/subnetworks", body)
    assert answer.status == 400
    assert "conflicts with existing subnetwork 'sub'" in answer.message
    answer = network.call("POST", f"{REGION}/subnetworks", {**body, "ipCidrRange": "10.0.0.1/8"})
    assert "valid IPv4 CIDR" in answer.message


def test_what_is_in_use_is_not_deleted(network: Client) -> None:
    network.do("POST", f"{ZONE}/instances", vm())
    for path, user in (
        (f"{COMPUTE}/global/networks/net", "subnetworks/sub"),
        (f"{REGION}/subnetworks/sub", "instances/vm"),
        (f"{ZONE}/disks/vm", "instances/vm"),
    ):
        answer = network.call("DELETE", path)
        assert (answer.status, answer.reason) == (400, "resourceInUseByAnotherResource")
        assert "is already being used by" in answer.message
        assert user in answer.message or path.endswith("net")


def test_a_subnetwork_is_locked_by_its_fingerprint(network: Client) -> None:
    one = f"{REGION}/subnetworks/sub"
    held = network.get(one)["fingerprint"]
    change = {"privateIpGoogleAccess": True, "fingerprint": held}
    network.do("PATCH", one, change)
    assert network.get(one)["privateIpGoogleAccess"] is True
    assert network.call("PATCH", one, change).status == 412
    refused = network.call("PATCH", one, {"ipCidrRange": "10.0.0.0/8"})
    assert "cannot be changed" in refused.message


def test_auto_mode_is_said_to_be_missing(client: Client) -> None:
    answer = client.call("POST", f"{COMPUTE}/global/networks", {"name": "auto"})
    assert answer.status == 501
    assert "declare the subnetworks" in answer.message


def test_firewalls_and_routers_change_in_place(network: Client) -> None:
    rule = {
        "name": "rule",
        "network": "global/networks/net",
        "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}],
    }
    network.do("POST", f"{COMPUTE}/global/firewalls", rule)
    one = f"{COMPUTE}/global/firewalls/rule"
    assert network.get(one)["sourceRanges"] == ["0.0.0.0/0"]
    network.do("PATCH", one, {"sourceRanges": ["10.0.0.0/8"]})
    assert network.get(one)["sourceRanges"] == ["10.0.0.0/8"]
    body = {"name": "r", "network": "global/networks/net"}
    network.do("POST", f"{REGION}/routers", body)
    network.do("PATCH", f"{REGION}/routers/r", {"nats": [{"name": "nat"}]})
    assert network.get(f"{REGION}/routers/r")["nats"] == [{"name": "nat"}]
    network.do("DELETE", f"{REGION}/routers/r")
    network.do("DELETE", one)


# Disks and images


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
    assert machines.call("POST", f"{one}/detachDisk?deviceName=state").status == 400


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


def test_templates(network: Client) -> None:
    where = f"{COMPUTE}/global/instanceTemplates"
    properties = {**vm(), "machineType": "e2-standard-2"}
    del properties["name"]
    network.do("POST", where, {"name": "t", "properties": properties})
    assert [each["name"] for each in network.get(where)["items"]] == ["t"]
    assert network.get(f"{where}/t")["properties"]["metadata"]["fingerprint"]
    source = f"{ZONE}/instances?sourceInstanceTemplate=global/instanceTemplates/t"
    network.do("POST", source, {"name": "from-template"})
    assert network.get(f"{ZONE}/instances/from-template")["status"] == "RUNNING"
    network.do("DELETE", f"{where}/t")


# What is there without being declared


def test_the_catalog(client: Client) -> None:
    kind = client.get(f"{ZONE}/machineTypes/n2d-highcpu-128")
    assert (kind["guestCpus"], kind["memoryMb"]) == (128, 131072)
    assert client.get(f"{ZONE}/machineTypes/e2-custom-2-1024")["memoryMb"] == 1024
    assert client.call("GET", f"{ZONE}/machineTypes/e2-none").status == 404
    families = client.get(f"{ZONE}/machineTypes?filter=name=e2-standard-*")["items"]
    assert len(families) == 5
    assert client.get(ZONE)["region"].endswith("/regions/us-central1")
    assert "us-central1-a" in [each["name"] for each in client.get(f"{COMPUTE}/zones")["items"]]
    assert client.get(REGION)["status"] == "UP"
    assert client.get(f"{ZONE}/diskTypes/pd-ssd")["name"] == "pd-ssd"


def test_operations_are_pruned(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.cloud.operations.KEPT", 5)
    for number in range(8):
        client.do("POST", f"{ZONE}/disks", {"name": f"d{number}", "sizeGb": 1})
    assert len(client.get(f"{ZONE}/operations")["items"]) == 5


def test_a_project_is_known_by_its_number_too(network: Client) -> None:
    network.do("POST", f"{ZONE}/instances", vm())
    path = ZONE.replace("/p1/", f"/{project_number('p1')}/")
    assert network.get(f"{path}/instances/vm") == network.get(f"{ZONE}/instances/vm")


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELD_NAMES = """name disks networkInterfaces metadata tags labels machineType scheduling
serviceAccounts shieldedInstanceConfig sizeGb sourceImage subnetwork network ipCidrRange allowed
address addressType items fingerprint resourcePolicies routingConfig snapshotSchedulePolicy"""
FIELDS = st.sampled_from(FIELD_NAMES.split())
COLLECTIONS = st.sampled_from(
    [
        f"{ZONE}/instances",
        f"{ZONE}/disks",
        f"{REGION}/addresses",
        f"{REGION}/subnetworks",
        f"{REGION}/resourcePolicies",
        f"{REGION}/routers",
        f"{COMPUTE}/global/networks",
        f"{COMPUTE}/global/firewalls",
        f"{COMPUTE}/setCommonInstanceMetadata",
    ]
)


@pytest.fixture(scope="module")
def battered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serve(tmp_path_factory.mktemp("battered")) as serving:
        client = Client(serving.url)
        make_network(client)
        yield client


@given(path=COLLECTIONS, more=st.dictionaries(FIELDS, JSON, max_size=4), whole=st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_body_is_an_internal_error(
    battered: Client, path: str, more: dict[str, Any], whole: bool
) -> None:
    answer = battered.call("POST", path, {**(vm() if whole else {"name": "x"}), **more})
    assert answer.status < 500 or answer.reason == "notImplemented", answer
    if answer.status == 200:
        error = battered.wait(answer.json).get("error", {"errors": [{"code": ""}]})
        assert error["errors"][0]["code"] != "INTERNAL_ERROR"
    # And it still answers what it holds.
    for collection in ("instances", "disks", "addresses", "subnetworks"):
        battered.get(f"{COMPUTE}/aggregated/{collection}")
    for name in [each["name"] for each in list_of(battered, "instances")]:
        battered.do("DELETE", f"{ZONE}/instances/{name}")


def test_null_elements_of_lists_are_dropped(network: Client) -> None:
    # The older provider sends them: [null, {"key": …}], and fails on one that comes back.
    body = vm(
        metadata={"items": [None, {"key": "a", "value": "b"}]},
        scheduling={"automaticRestart": True, "nodeAffinities": [None]},
    )
    network.do("POST", f"{ZONE}/instances", body)
    found = network.get(f"{ZONE}/instances/vm")
    assert found["metadata"]["items"] == [{"key": "a", "value": "b"}]
    assert found["scheduling"]["nodeAffinities"] == []


def test_an_image_may_go_while_a_disk_was_made_from_it(client: Client) -> None:
    images = f"{COMPUTE}/global/images"
    client.do("POST", images, {"name": "mine", "family": "own"})
    source = "projects/p1/global/images/family/own"
    client.do("POST", f"{ZONE}/disks", {"name": "d", "sourceImage": source})
    client.do("DELETE", f"{images}/mine")
    assert client.call("GET", f"{images}/family/own").status == 404


# Snapshots


def test_a_disk_is_made_of_a_snapshot_under_the_name_of_the_one_before(
    machines: Client, recorder: Recorder
) -> None:
    """The way to another type of disk; what is on it is the driver's to keep."""
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


@pytest.mark.parametrize("driver", ["container", "qemu"])
def test_a_driver_keeps_what_is_on_a_disk(tmp_path: Path, driver: str) -> None:
    kind: Any = {"container": Container, "qemu": Qemu}[driver]
    # Without what checks that this machine can boot anything.
    made: Any = kind.__new__(kind)
    made._places = Places(tmp_path)
    disk = Disk(path="projects/p1/zones/z/disks/data", size_gb=1, image=None)
    made.create_disk(disk)
    with made._places.disk(disk.path, "raw").open("r+b") as stream:
        stream.seek(512 << 20)
        stream.write(b"identities")
    made.create_snapshot(disk, "projects/p1/global/snapshots/s")
    other = replace(
        disk, path=f"{disk.path}-2", size_gb=2, snapshot="projects/p1/global/snapshots/s"
    )
    made.create_disk(other)
    raw = made._places.disk(other.path, "raw")
    with raw.open("rb") as stream:
        stream.seek(512 << 20)
        assert stream.read(10) == b"identities"
    assert raw.stat().st_size == 2 << 30
    made.delete_snapshot("projects/p1/global/snapshots/s")
    made.delete_snapshot("projects/p1/global/snapshots/s")
    with pytest.raises(MachineError, match="without an image"):
        made.create_snapshot(replace(disk, image="i"), "projects/p1/global/snapshots/t")
