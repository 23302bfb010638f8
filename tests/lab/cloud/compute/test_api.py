"""The compute API as a client sees it: refusals, fingerprints, projects, operations."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.cloud.compute.project_api import project_number
from lab.cloud.server import Serving, serve
from tests.lab.cloud.client import COMPUTE, REGION, ZONE, Client, list_of, make_network, vm


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


@pytest.mark.parametrize("place", ["zones/mars-north1-a", "regions/mars-north1"])
def test_unknown_places_are_refused(client: Client, place: str) -> None:
    answer = client.call("GET", f"{COMPUTE}/{place}")
    assert answer.status == 400
    assert "Unknown" in answer.message


def test_requests_that_are_not_served_are_answered_and_logged(
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


def test_a_project_is_known_by_its_number_too(network: Client) -> None:
    network.do("POST", f"{ZONE}/instances", vm())
    path = ZONE.replace("/p1/", f"/{project_number('p1')}/")
    assert network.get(f"{path}/instances/vm") == network.get(f"{ZONE}/instances/vm")


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
    monkeypatch.setattr("lab.cloud.compute.operations.KEPT", 5)
    for number in range(8):
        client.do("POST", f"{ZONE}/disks", {"name": f"d{number}", "sizeGb": 1})
    assert len(client.get(f"{ZONE}/operations")["items"]) == 5


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
    # It still answers reads.
    for collection in ("instances", "disks", "addresses", "subnetworks"):
        battered.get(f"{COMPUTE}/aggregated/{collection}")
    for name in [each["name"] for each in list_of(battered, "instances")]:
        battered.do("DELETE", f"{ZONE}/instances/{name}")


def test_a_zone_that_is_away_answers_503_until_it_is_back(client: Client) -> None:
    make_network(client)
    client.do("POST", f"{ZONE}/instances", vm())
    other = f"{COMPUTE}/zones/us-central1-b/instances"
    assert client.call("POST", "/lab/zones/us-central1-a", {"away": "yes"}).status == 400
    assert client.call("POST", "/lab/zones/nowhere", {"away": True}).status == 400
    client.call("POST", "/lab/zones/us-central1-a", {"away": True})
    for method, path in (("GET", f"{ZONE}/instances"), ("DELETE", f"{ZONE}/instances/vm")):
        refused = client.call(method, path)
        assert (refused.status, refused.reason) == (503, "backendError")
    assert client.get(other).get("items") is None
    items = client.get(f"{COMPUTE}/aggregated/instances")["items"]
    assert items["zones/us-central1-a"]["warning"]["code"] == "UNREACHABLE"
    assert items["zones/us-central1-b"]["warning"]["code"] == "NO_RESULTS_ON_PAGE"
    client.call("POST", "/lab/zones/us-central1-a", {"away": False})
    assert len(client.get(f"{ZONE}/instances")["items"]) == 1
