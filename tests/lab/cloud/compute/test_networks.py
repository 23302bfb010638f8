"""Networks, firewall rules and addresses as a client of the API sees them."""

from typing import Any

import pytest

from tests.lab.cloud.client import COMPUTE, LINK, REGION, ZONE, Client, list_of, make_network, vm


def test_addresses_are_handed_out_from_the_subnet(network: Client) -> None:
    for name in ("a", "b"):
        network.do("POST", f"{ZONE}/instances", vm(name))
    found = [each["networkInterfaces"][0]["networkIP"] for each in list_of(network, "instances")]
    assert found == ["10.10.0.2", "10.10.0.3"]
    network.do("DELETE", f"{ZONE}/instances/a")
    network.do("POST", f"{ZONE}/instances", vm("c"))
    assert network.get(f"{ZONE}/instances/c")["networkInterfaces"][0]["networkIP"] == "10.10.0.2"


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


def test_subnetworks_must_not_overlap(network: Client) -> None:
    body = {"name": "two", "network": "global/networks/net", "ipCidrRange": "10.10.8.0/24"}
    answer = network.call("POST", f"{REGION}/subnetworks", body)
    assert answer.status == 400
    assert "conflicts with existing subnetwork 'sub'" in answer.message
    answer = network.call("POST", f"{REGION}/subnetworks", {**body, "ipCidrRange": "10.0.0.1/8"})
    assert "valid IPv4 CIDR" in answer.message


def test_resources_in_use_are_not_deleted(network: Client) -> None:
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


def test_auto_mode_is_refused(client: Client) -> None:
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
