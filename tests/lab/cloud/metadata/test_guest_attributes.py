"""Guest attributes: what a guest writes at its metadata server and a client of the API reads."""

import warnings

import pytest

from lab.cloud.metadata.answers import MOST_GUEST_TOTAL, MOST_GUEST_VALUE
from lab.cloud.server import Serving
from tests.lab.cloud.client import ZONE, Client, vm
from tests.lab.cloud.guest import (
    Guest,
    metadata,
    set_metadata,
    set_project,
)
from tests.lab.cloud.test_official_client import AT, build

with warnings.catch_warnings():
    # On import it announces when it will drop this Python, which is Debian 12's.
    warnings.simplefilter("ignore", FutureWarning)
    from google.api_core import exceptions
    from google.cloud import compute_v1


def test_guest_attributes_are_written_read_and_deleted(guest: Guest) -> None:
    base = "instance/guest-attributes"
    assert guest.text(f"{base}/") == ""
    assert guest.call("PUT", f"{base}/ns/status", b"up \xe2\x9c\x93").status == 200
    assert guest.call("PUT", f"{base}/ns/other", b"").status == 200
    assert guest.text(f"{base}/") == "ns/\n"
    assert guest.text(f"{base}/ns/") == "other\nstatus\n"
    assert guest.text(f"{base}/ns/status") == "up ✓"
    assert guest.get(f"{base}/?recursive=true").json == {"ns": {"other": "", "status": "up ✓"}}
    assert guest.call("DELETE", f"{base}/ns/status").status == 200
    assert guest.call("GET", f"{base}/ns/status").status == 404
    assert guest.call("DELETE", f"{base}/ns/status").status == 404


def test_guest_attributes_are_seen_through_the_official_client(
    serving: Serving, guest: Guest
) -> None:
    client = build(compute_v1.InstancesClient, serving)
    ask = compute_v1.GetGuestAttributesInstanceRequest
    with pytest.raises(exceptions.NotFound, match="'ns/' of type 'Guest Attribute' was not found"):
        client.get_guest_attributes(request=ask(**AT, instance="vm", query_path="ns/"))
    for name, value in (("ns/status", b"up"), ("ns/since", b"noon"), ("other/x", b"\xe2\x9c\x93")):
        assert guest.call("PUT", f"instance/guest-attributes/{name}", value).status == 200
    one = client.get_guest_attributes(request=ask(**AT, instance="vm", variable_key="other/x"))
    assert (one.variable_key, one.variable_value) == ("other/x", "✓")
    found = client.get_guest_attributes(request=ask(**AT, instance="vm", query_path="ns/"))
    assert [(each.namespace, each.key, each.value) for each in found.query_value.items] == [
        ("ns", "since", "noon"),
        ("ns", "status", "up"),
    ]
    guest.call("DELETE", "instance/guest-attributes/ns/status")
    with pytest.raises(exceptions.NotFound):
        client.get_guest_attributes(request=ask(**AT, instance="vm", variable_key="ns/status"))


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("key", b"x", 400),
        ("ns/", b"x", 400),
        ("ns/key/", b"x", 400),
        ("ns/key/more", b"x", 400),
        ("", b"x", 400),
        ("n%20s/key", b"x", 400),
        ("ns/k%2Fey", b"x", 400),
        (f"ns/{'k' * 129}", b"x", 400),
        ("ns/key", b"\xff", 400),
        ("ns/key", b"x" * (MOST_GUEST_VALUE + 1), 413),
        ("ns/key", b"x" * (4 * MOST_GUEST_VALUE + 1), 413),
    ],
)
def test_a_bad_guest_attribute_is_refused(
    guest: Guest, name: str, body: bytes, status: int
) -> None:
    try:
        assert guest.call("PUT", f"instance/guest-attributes/{name}", body).status == status
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # not even read
    guest.connection.close()
    assert guest.text("instance/guest-attributes/") == ""


def test_guest_attributes_have_a_limit_in_total(guest: Guest) -> None:
    base = "instance/guest-attributes/ns"
    assert guest.call("PUT", f"{base}/a", b"x" * MOST_GUEST_VALUE).status == 200
    rest = MOST_GUEST_TOTAL - MOST_GUEST_VALUE - len("ns/a") - len("ns/b")
    assert guest.call("PUT", f"{base}/b", b"x" * (rest + 1)).status == 413
    assert guest.call("PUT", f"{base}/b", b"x" * rest).status == 200
    assert guest.call("PUT", f"{base}/b", b"y" * rest).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_guest_attributes_have_to_be_enabled(cloud: Client, guest: Guest, method: str) -> None:
    set_metadata(cloud)
    answer = guest.call(method, "instance/guest-attributes/ns/key", b"x")
    assert (answer.status, answer.data) == (403, b"Guest attributes endpoint access is disabled.")
    set_project(cloud, enable_guest_attributes="TRUE")
    assert guest.call("PUT", "instance/guest-attributes/ns/key", b"x").status == 200
    set_metadata(cloud, enable_guest_attributes="FALSE")
    assert guest.call("GET", "instance/guest-attributes/ns/key").status == 403


def test_guest_attributes_outlive_a_stop_and_not_the_instance(cloud: Client, guest: Guest) -> None:
    guest.call("PUT", "instance/guest-attributes/ns/key", b"x")
    cloud.do("POST", f"{ZONE}/instances/vm/stop")
    cloud.do("POST", f"{ZONE}/instances/vm/start")
    assert guest.text("instance/guest-attributes/ns/key") == "x"
    cloud.do("DELETE", f"{ZONE}/instances/vm")
    assert guest.call("GET", "instance/name").status == 503
    assert guest.call("PUT", "instance/guest-attributes/ns/key", b"x").status == 503
    cloud.do("POST", f"{ZONE}/instances", vm(metadata=metadata(enable_guest_attributes="TRUE")))
    assert guest.text("instance/guest-attributes/") == ""
