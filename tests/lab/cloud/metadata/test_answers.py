"""The metadata server as a guest sees it: headers, forms, refusals, tokens."""

import base64
import json
from collections.abc import Callable

import pytest

from lab.cloud.metadata.server import serve_metadata
from lab.cloud.server import Serving
from tests.lab.cloud.client import ZONE, Client, vm
from tests.lab.cloud.guest import (
    ACCOUNT,
    FLAVOR,
    PATH,
    ROOT,
    Guest,
    set_project,
    set_zone,
)


def test_an_answer_says_whose_it_is(guest: Guest) -> None:
    answer = guest.get("instance/name")
    assert answer.data == b"vm"
    assert answer.headers["metadata-flavor"] == "Google"
    assert answer.headers["server"] == "Metadata Server for VM"
    assert answer.headers["content-type"] == "application/text"
    assert len(answer.headers["etag"]) == 16


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Metadata-Flavor": "google"},
        {"Metadata-Flavor": "Other"},
        {"Metadata-Flavor": "Google", "X-Forwarded-For": "10.0.0.1"},
    ],
)
def test_a_request_that_a_browser_could_make_is_refused(
    guest: Guest, headers: dict[str, str]
) -> None:
    for method, path in (("GET", "instance/name"), ("PUT", "instance/guest-attributes/a/b")):
        answer = guest.call(method, path, headers=headers)
        assert answer.status == 403
        assert b"does not have permission to get URL" in answer.data
    assert guest.call("GET", "instance/guest-attributes/a/b").status == 404


def test_the_root_is_seen_by_everyone(guest: Guest) -> None:
    answer = guest.call("GET", "/", headers={})
    assert (answer.status, answer.data) == (200, b"computeMetadata/\n")
    assert answer.headers["metadata-flavor"] == "Google"
    assert guest.call("GET", "/", headers={"X-Forwarded-For": "1.2.3.4"}).status == 403
    assert guest.get("/computeMetadata/").data == b"v1/\n"
    assert guest.call("GET", "/computeMetadata/", headers={}).status == 403
    assert guest.text("") == "instance/\noslogin/\nproject/\nuniverse/\n"


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("instance/nothing", 404, b"was not found on this server"),
        ("instance/name/", 404, b"without the slash"),
        ("instance/attributes/spec/", 404, b"was not found"),
        ("instance/tags/", 404, b"was not found"),
        ("/other", 404, b"was not found"),
        ("/computeMetadata/v2/", 404, b"was not found"),
        ("instance/?alt=json", 400, b"malformed or illegal request"),
        ("instance/?alt=text", 400, b"malformed or illegal request"),
        ("instance/?wait_for_change=true", 400, b"malformed or illegal request"),
        ("instance/name?alt=xml", 400, b"json or text"),
        ("instance/service-accounts/default/token/", 404, b"was not found"),
        ("instance/service-accounts/nobody@x/token", 404, b"was not found"),
        ("instance/service-accounts/default/identity", 400, b"non-empty audience"),
    ],
)
def test_a_refusal(guest: Guest, path: str, status: int, said: bytes) -> None:
    answer = guest.call("GET", path)
    assert answer.status == status
    assert said in answer.data
    assert answer.headers["content-type"] == "text/html; charset=UTF-8"
    assert answer.headers["metadata-flavor"] == "Google"
    assert "etag" not in answer.headers


def test_a_path_in_a_refusal_is_no_markup(guest: Guest) -> None:
    answer = guest.call("GET", "instance/<script>")
    assert answer.status == 404
    assert b"<script>" not in answer.data


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_only_guest_attributes_can_be_written(guest: Guest, method: str) -> None:
    assert guest.call(method, "instance/attributes/spec", b"x").status == 405
    assert guest.text("instance/attributes/spec") == "{}"


def test_a_directory_is_asked_for_with_a_slash(guest: Guest) -> None:
    answer = guest.call("GET", "instance/disks?timeout_sec=1%20")
    assert answer.status == 301
    host, port = guest.connection.host, guest.connection.port
    assert (
        answer.headers["location"] == f"http://{host}:{port}{ROOT}instance/disks/?timeout_sec=1%20"
    )
    assert guest.call("GET", "/computeMetadata/v1").headers["location"].endswith(ROOT)
    # Google's runner asks so, and follows redirects; this spares it one.
    assert guest.get("instance/attributes?recursive=true").json["spec"] == "{}"


@pytest.mark.parametrize(
    ("path", "kind", "data"),
    [
        ("instance/tags", "application/json", b'["db","web"]'),
        ("instance/tags?alt=text", "application/text", b"db\nweb\n"),
        ("instance/name?alt=json", "application/json", b'"vm"'),
        ("instance/name?recursive=true", "application/text", b"vm"),
        (
            "instance/scheduling/?recursive=true&alt=text",
            "application/text",
            b"automatic-restart TRUE\non-host-maintenance MIGRATE\npreemptible FALSE\n",
        ),
        (
            "instance/scheduling/?recursive=True",
            "application/json",
            b'{"automaticRestart":"TRUE","onHostMaintenance":"MIGRATE","preemptible":"FALSE"}',
        ),
        ("instance/network-interfaces/0/ip", "application/text", b"10.10.0.2"),
        ("instance/network-interfaces/0/mac", "application/text", b"42:01:0a:0a:00:02"),
        ("instance/hostname", "application/text", b"vm.c.p1.internal"),
        (
            "instance/image",
            "application/text",
            b"projects/debian-cloud/global/images/debian-12-bookworm-v20261110",
        ),
        ("//instance//name", "application/text", b"vm"),
    ],
)
def test_a_form(guest: Guest, path: str, kind: str, data: bytes) -> None:
    answer = guest.get(path if not path.startswith("//") else ROOT + path)
    assert (answer.headers["content-type"], answer.data) == (kind, data)


def test_one_connection_serves_many_requests(guest: Guest) -> None:
    guest.text("instance/name")
    first = guest.connection.sock
    assert first is not None
    assert guest.call("GET", "nothing").status == 404
    assert guest.call("HEAD", "instance/name").data == b""
    assert guest.call("PUT", "instance/guest-attributes/ns/a", b"x").status == 200
    assert guest.text("instance/guest-attributes/ns/a") == "x"
    assert guest.connection.sock is first


def test_a_proxys_form_of_a_request_is_understood(guest: Guest) -> None:
    assert guest.get(f"/{ROOT}instance/id".replace("//", "/")).status == 200
    guest.connection.request("GET", f"http://169.254.169.254{ROOT}instance/name", headers=FLAVOR)
    response = guest.connection.getresponse()
    assert response.read() == b"vm"


def test_instance_project_and_zone(cloud: Client, guest: Guest) -> None:
    set_project(cloud, both="project", spec="common", far="1")
    set_zone(cloud, both="zonal", near="1")
    assert guest.get("project/attributes/?recursive=true").json == {
        "both": "zonal",
        "far": "1",
        "near": "1",
        "spec": "common",
    }
    assert guest.text("instance/attributes/spec") == "{}"
    assert guest.call("GET", "instance/attributes/both").status == 404
    set_zone(cloud)
    assert guest.text("project/attributes/both") == "project"
    assert guest.call("GET", "project/attributes/near").status == 404


def test_a_token(cloud: Client, guest: Guest) -> None:
    path = "instance/service-accounts/default/token"
    token = guest.get(path).json
    assert set(token) == {"access_token", "expires_in", "token_type"}
    assert token["token_type"] == "Bearer"
    assert 3300 < token["expires_in"] <= 3600
    assert guest.get(f"instance/service-accounts/{ACCOUNT}/token").json == {
        **token,
        "expires_in": guest.get(path).json["expires_in"],
    }
    assert guest.text(f"{path}?alt=text").splitlines()[0] == f"access_token {token['access_token']}"
    other = guest.get(f"{path}?scopes=https://scope/x").json["access_token"]
    assert other != token["access_token"]
    storage = Client(cloud.url, token=token["access_token"])
    refused = storage.call("POST", "/storage/v1/b?project=p1", {"name": "bucket"})
    assert (refused.status, refused.reason) == (403, "forbidden")
    assert refused.message.startswith(f"{ACCOUNT} does not have storage.buckets.create access")
    assert cloud.call("POST", "/storage/v1/b?project=p1", {"name": "bucket"}).status == 200
    assert Client(cloud.url, token=None).call("GET", "/storage/v1/b/bucket").status == 401
    forged = Client(cloud.url, token=token["access_token"][:-1] + "!")
    assert forged.call("GET", "/storage/v1/b/bucket").status == 401


def test_a_vm_without_service_account_has_no_token(
    network: Client, serving: Serving, connect: Callable[[], Guest]
) -> None:
    network.do("POST", f"{ZONE}/instances", vm("bare"))
    del connect
    with serve_metadata(serving.lab, PATH.replace("/vm", "/bare"), ("127.0.0.1", 0)) as served:
        bare = Guest(served.address)
        assert bare.text("instance/service-accounts/") == ""
        for what in ("token", "identity?audience=x", "email", ""):
            answer = bare.call("GET", f"instance/service-accounts/default/{what}")
            assert answer.status == 404, what
        bare.connection.close()


def test_an_identity(guest: Guest) -> None:
    path = "instance/service-accounts/default/identity?audience=https://me&format=full"
    head, claims, _ = guest.text(path).split(".")
    decoded = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert (decoded["aud"], decoded["email"]) == ("https://me", ACCOUNT)
    assert decoded["google"]["compute_engine"]["instance_name"] == "vm"
    assert head
