"""The metadata server as a guest sees it: headers, refusals, long polls, guest attributes."""

import base64
import json
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest

from lab.cloud import maintenance
from lab.cloud.metadata import MetadataServers, MetadataServing, serve_metadata
from lab.cloud.metadata_answers import MOST_GUEST_TOTAL, MOST_GUEST_VALUE, GoneError, Metadata
from lab.cloud.server import Serving
from lab.cloud.store import Store
from lab.machines.driver import Machine
from tests.lab.cloud.client import COMPUTE, ZONE, Answer, Client, vm
from tests.lab.cloud.test_official_client import AT, build

with warnings.catch_warnings():
    # On import it announces when it will drop this Python, which is Debian 12's.
    warnings.simplefilter("ignore", FutureWarning)
    from google.api_core import exceptions
    from google.cloud import compute_v1

PATIENCE = 30.0  # seconds after which what a test waits for is broken
ROOT = "/computeMetadata/v1/"
PATH = "projects/p1/zones/us-central1-a/instances/vm"
ACCOUNT = "fleet@p1.iam.gserviceaccount.com"
FLAVOR = {"Metadata-Flavor": "Google"}
WAIT = "wait_for_change=true&timeout_sec=600"


class Guest:
    """What a VM sends to its metadata server, on one connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.connection = HTTPConnection(*address, timeout=PATIENCE)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        target = path if path.startswith("/") else ROOT + path
        sent = FLAVOR if headers is None else headers
        self.connection.request(method, target, body=body, headers=sent)
        response = self.connection.getresponse()
        data = response.read()
        kept = {key.lower(): value for key, value in response.getheaders()}
        parsed = json.loads(data) if kept.get("content-type") == "application/json" else None
        return Answer(status=response.status, headers=kept, data=data, json=parsed)

    def get(self, path: str) -> Answer:
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer

    def text(self, path: str) -> str:
        return self.get(path).data.decode()


def metadata(**given: str) -> dict[str, Any]:
    return {"items": [{"key": key.replace("_", "-"), "value": each} for key, each in given.items()]}


@pytest.fixture
def cloud(network: Client) -> Client:
    """A lab with the instance `vm`."""
    account = {"email": ACCOUNT, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
    body = vm(
        metadata=metadata(enable_guest_attributes="TRUE", spec="{}"),
        tags={"items": ["web", "db"]},
        serviceAccounts=[account],
    )
    network.do("POST", f"{ZONE}/instances", body)
    return network


@pytest.fixture
def served(serving: Serving, cloud: Client) -> Iterator[MetadataServing]:
    del cloud
    with serve_metadata(serving.lab, PATH, ("127.0.0.1", 0)) as started:
        yield started


@pytest.fixture
def connect(served: MetadataServing) -> Iterator[Callable[[], Guest]]:
    guests: list[Guest] = []

    def new() -> Guest:
        guests.append(Guest(served.address))
        return guests[-1]

    yield new
    for each in guests:
        each.connection.close()


@pytest.fixture
def guest(connect: Callable[[], Guest]) -> Guest:
    return connect()


class Looks:
    """Counts how often long polls went to wait."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self.count = 0
        self._wait = store.wait
        monkeypatch.setattr(store, "wait", self._counted)

    def _counted(self, after: int, timeout: float) -> int:
        with self._changed:
            self.count += 1
            self._changed.notify_all()
        return self._wait(after, timeout)

    def reach(self, number: int) -> None:
        """Wait until there were that many."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= number, PATIENCE)


@pytest.fixture
def looks(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(serving.lab.store, monkeypatch)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as started:
        yield started


def set_metadata(cloud: Client, **given: str) -> None:
    held = cloud.get(f"{ZONE}/instances/vm")["metadata"]["fingerprint"]
    body = {"fingerprint": held, **metadata(**given)}
    cloud.do("POST", f"{ZONE}/instances/vm/setMetadata", body)


def set_project(cloud: Client, **given: str) -> None:
    held = cloud.get(COMPUTE)["commonInstanceMetadata"]["fingerprint"]
    body = {"fingerprint": held, **metadata(**given)}
    cloud.do("POST", f"{COMPUTE}/setCommonInstanceMetadata", body)


def set_zone(cloud: Client, **given: str) -> None:
    held = cloud.get(f"{ZONE}/instanceSettings")["fingerprint"]
    body = {"fingerprint": held, "metadata": {"items": given}}
    cloud.do("PATCH", f"{ZONE}/instanceSettings", body)


def simulate(cloud: Client, **_: str) -> None:
    cloud.do("POST", f"{ZONE}/instances/vm/simulateMaintenanceEvent")


# Headers, forms, refusals


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


# Custom metadata


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


# Long polls


def poll(pool: ThreadPoolExecutor, guest: Guest, path: str) -> "Future[Answer]":
    return pool.submit(guest.get, path)


@pytest.mark.parametrize(
    ("path", "change", "seen"),
    [
        ("instance/attributes/spec", set_metadata, b"new"),
        ("instance/attributes/?recursive=true", set_metadata, b'{"spec":"new"}'),
        ("?recursive=true&alt=json", set_metadata, b'"spec":"new"'),
        ("project/attributes/?recursive=true", set_project, b'{"spec":"new"}'),
        ("project/attributes/?recursive=true", set_zone, b'{"spec":"new"}'),
        ("?recursive=true", set_project, b'"spec":"new"'),
        ("instance/maintenance-event", simulate, b"MIGRATE_ON_HOST_MAINTENANCE"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_long_poll_ends_when_the_api_changes_something(
    cloud: Client,
    guest: Guest,
    pool: ThreadPoolExecutor,
    looks: Looks,
    path: str,
    change: Callable[..., None],
    seen: bytes,
    known: bool,
) -> None:
    before = guest.get(path).headers["etag"]
    sign = "&" if "?" in path else "?"
    waiting = poll(pool, guest, f"{path}{sign}{WAIT}{f'&last_etag={before}' if known else ''}")
    looks.reach(1)
    assert not waiting.done()
    change(cloud, spec="new")
    answer = waiting.result(PATIENCE)
    assert seen in answer.data
    assert answer.headers["etag"] != before


def test_a_change_elsewhere_does_not_end_a_long_poll(
    cloud: Client, guest: Guest, pool: ThreadPoolExecutor, looks: Looks
) -> None:
    waiting = poll(pool, guest, f"instance/attributes/?recursive=true&{WAIT}")
    looks.reach(1)
    before = looks.count
    set_project(cloud, spec="common")
    looks.reach(before + 1)
    assert not waiting.done()
    set_metadata(cloud, spec="mine")
    assert waiting.result(PATIENCE).json == {"spec": "mine"}


def test_a_status_that_a_guest_publishes_does_not_end_its_agents_long_poll(
    cloud: Client,
    guest: Guest,
    connect: Callable[[], Guest],
    pool: ThreadPoolExecutor,
    looks: Looks,
) -> None:
    agent = poll(pool, connect(), f"?recursive=true&alt=json&{WAIT}")
    own = poll(pool, connect(), f"instance/guest-attributes/?recursive=true&{WAIT}")
    looks.reach(2)
    guest.call("PUT", "instance/guest-attributes/ns/status", b"up")
    assert own.result(PATIENCE).json == {"ns": {"status": "up"}}
    assert not agent.done()
    set_metadata(cloud, spec="new")
    assert agent.result(PATIENCE).json["instance"]["attributes"] == {"spec": "new"}


def test_a_long_poll_with_another_etag_is_answered_at_once(guest: Guest, looks: Looks) -> None:
    # What the guest agent of 2021 asks first, two slashes and all.
    answer = guest.get(f"{ROOT}/?recursive=true&alt=json&{WAIT}&last_etag=NONE")
    assert answer.json["instance"]["attributes"]["spec"] == "{}"
    assert looks.count == 0


def test_a_long_poll_ends_at_its_timeout_with_what_is_there(guest: Guest, looks: Looks) -> None:
    tag = guest.get("instance/name").headers["etag"]
    query = f"wait_for_change=true&last_etag={tag}&timeout_sec=1"
    answer = guest.get(f"instance/name?{query}")
    assert (answer.data, answer.headers["etag"]) == (b"vm", tag)
    looks.reach(1)
    assert guest.get("instance/name?wait_for_change=true&timeout_sec=0").data == b"vm"


def test_a_key_that_goes_away_while_it_is_waited_for_is_not_found(
    cloud: Client, guest: Guest, pool: ThreadPoolExecutor, looks: Looks
) -> None:
    waiting = pool.submit(guest.call, "GET", f"instance/attributes/spec?{WAIT}")
    looks.reach(1)
    set_metadata(cloud)
    assert waiting.result(PATIENCE).status == 404


def test_many_long_polls_end_with_one_change(
    cloud: Client, connect: Callable[[], Guest], pool: ThreadPoolExecutor, looks: Looks
) -> None:
    polls = [poll(pool, connect(), f"project/attributes/?recursive=true&{WAIT}") for _ in range(20)]
    looks.reach(20)
    set_project(cloud, go="1")
    assert [each.result(PATIENCE).json for each in polls] == [{"go": "1"}] * 20


@pytest.mark.engine  # waits for real timers
def test_a_client_that_leaves_is_not_waited_for(
    served: MetadataServing, guest: Guest, looks: Looks
) -> None:
    guest.connection.request("GET", f"{ROOT}instance/name?{WAIT}", headers=FLAVOR)
    looks.reach(1)
    guest.connection.close()
    idle = threading.Thread(target=served._server.wait_until_idle, daemon=True)
    idle.start()
    idle.join(PATIENCE)
    assert not idle.is_alive()


def test_an_answer_for_nobody_is_not_made(serving: Serving, cloud: Client) -> None:
    del cloud
    headers = {"metadata-flavor": "Google"}
    with pytest.raises(GoneError):
        Metadata(serving.lab.store).answer(
            PATH, "GET", f"{ROOT}instance/name?{WAIT}", headers, gone=lambda: True
        )


# Maintenance


def test_a_maintenance_event_ends_by_itself(
    cloud: Client, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "NOTICE_SECONDS", 1.0)
    path = f"instance/maintenance-event?{WAIT}"
    tag = guest.get("instance/maintenance-event").headers["etag"]
    simulate(cloud)
    begun = guest.get(f"{path}&last_etag={tag}")
    assert begun.data == b"MIGRATE_ON_HOST_MAINTENANCE"
    assert guest.get(f"{path}&last_etag={begun.headers['etag']}").data == b"NONE"


def test_a_maintenance_event_needs_a_running_machine(cloud: Client, guest: Guest) -> None:
    cloud.do("POST", f"{ZONE}/instances/vm/stop")
    answer = cloud.call("POST", f"{ZONE}/instances/vm/simulateMaintenanceEvent")
    assert (answer.status, answer.reason) == (400, "resourceNotReady")
    assert cloud.call("POST", f"{ZONE}/instances/no/simulateMaintenanceEvent").status == 404
    assert guest.text("instance/maintenance-event") == "NONE"


# Guest attributes


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


# Tokens


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
    assert storage.call("POST", "/storage/v1/b?project=p1", {"name": "bucket"}).status == 200
    assert Client(cloud.url, token=None).call("GET", "/storage/v1/b/bucket").status == 401


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


# Being there, being away


def test_away_is_not_absent(
    served: MetadataServing, guest: Guest, connect: Callable[[], Guest]
) -> None:
    assert guest.text("instance/name") == "vm"
    served.away()
    served.away()
    with pytest.raises((HTTPException, OSError)):
        guest.text("instance/name")
    with pytest.raises(ConnectionRefusedError):
        connect().text("instance/name")
    served.back()
    served.back()
    assert connect().text("instance/name") == "vm"
    assert connect().call("GET", "instance/attributes/nothing").status == 404


def test_being_away_cuts_long_polls(
    served: MetadataServing, guest: Guest, pool: ThreadPoolExecutor, looks: Looks
) -> None:
    waiting = poll(pool, guest, f"instance/name?{WAIT}")
    looks.reach(1)
    served.away()
    with pytest.raises((HTTPException, OSError)):
        waiting.result(PATIENCE)


def test_unavailable_is_said(
    served: MetadataServing, guest: Guest, connect: Callable[[], Guest]
) -> None:
    served.away(unavailable=True)
    answer = guest.call("GET", "instance/name")
    assert answer.status == 503
    assert b"temporarily unavailable" in answer.data
    served.away()
    with pytest.raises(ConnectionRefusedError):
        connect().text("instance/name")
    served.back()
    assert connect().text("instance/name") == "vm"


def test_closing_leaves_nothing(serving: Serving, cloud: Client) -> None:
    del cloud
    served = serve_metadata(serving.lab, PATH, ("127.0.0.1", 0))
    guest = Guest(served.address)
    assert guest.text("instance/name") == "vm"
    served.close()
    served.close()
    served.back()
    guest.connection.close()
    names = {each.name for each in threading.enumerate()}
    assert f"metadata {served.address[1]}" not in names
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(served.address)
        again.listen()


def test_a_bound_socket_and_a_peers_address(serving: Serving, cloud: Client) -> None:
    cloud.do("POST", f"{ZONE}/instances", vm("other"))
    owners = {"127.0.0.1": PATH, "127.0.0.2": PATH.replace("/vm", "/other")}
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = listener.getsockname()
    names = {}
    with serve_metadata(serving.lab, owners.get, listener):
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            guest = Guest(address)
            guest.connection.source_address = (source, 0)  # type: ignore[attr-defined]
            answer = guest.call("GET", "instance/name")
            names[source] = (answer.status, answer.data[:5])
            guest.connection.close()
    assert names["127.0.0.1"] == (200, b"vm")
    assert names["127.0.0.2"] == (200, b"other")
    assert names["127.0.0.3"][0] == 404


def test_a_socket_that_was_handed_over_comes_back_too(serving: Serving, cloud: Client) -> None:
    del cloud
    listener = socket.socket()  # without SO_REUSEADDR: old connections keep its port for a minute
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        address = first.getsockname()
    listener.bind(address)
    with serve_metadata(serving.lab, PATH, listener) as served:
        guest = Guest(address)
        assert guest.text("instance/name") == "vm"
        served.away()
        guest.connection.close()
        served.back()
        assert guest.text("instance/name") == "vm"
        guest.connection.close()


def test_a_port_that_is_taken_is_an_error(serving: Serving, served: MetadataServing) -> None:
    with pytest.raises(OSError, match="in use"):
        serve_metadata(serving.lab, PATH, served.address)


def machine(path: str) -> Machine:
    return Machine(path=path, id=1, hostname="h", vcpus=1, memory_mb=256, disks=(), nics=())


def test_servers_are_there_before_the_lab_and_serve_with_it(
    serving: Serving, cloud: Client
) -> None:
    del cloud
    servers = MetadataServers()
    early = servers.endpoint(machine(PATH))
    assert servers.endpoint(machine(PATH)) == early
    guest = Guest(early)
    with pytest.raises(ConnectionRefusedError):
        guest.text("instance/name")
    guest.connection.close()
    servers.attach(serving.lab)
    assert guest.text("instance/name") == "vm"
    late = servers.endpoint(machine(PATH.replace("/vm", "/later")))
    other = Guest(late)
    assert other.call("GET", "instance/name").status == 503  # no such instance (yet)
    servers.of(PATH).away()
    assert servers.endpoint(machine(PATH)) == early
    guest.connection.close()
    with pytest.raises(ConnectionRefusedError):
        guest.text("instance/name")
    servers.close()
    servers.close()
    for each in (guest, other):
        each.connection.close()
    with pytest.raises(ConnectionRefusedError):
        other.text("instance/name")
    unused = MetadataServers()
    unused.endpoint(machine(PATH))
    unused.close()
