"""Long polls of the metadata server, and the maintenance events that they wait for."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.cloud.compute import maintenance
from lab.cloud.metadata.answers import GoneError, Metadata
from lab.cloud.metadata.server import MetadataServing
from lab.cloud.server import Serving
from tests.lab.cloud.client import ZONE, Client
from tests.lab.cloud.guest import (
    FLAVOR,
    PATH,
    PATIENCE,
    ROOT,
    WAIT,
    Guest,
    Looks,
    poll,
    set_metadata,
    set_project,
    set_zone,
)


def simulate(cloud: Client, **_: str) -> None:
    cloud.do("POST", f"{ZONE}/instances/vm/simulateMaintenanceEvent")


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
    # The first request of the guest agent of 2021, with its two slashes.
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


def test_no_answer_is_made_once_the_client_has_left(serving: Serving, cloud: Client) -> None:
    del cloud
    headers = {"metadata-flavor": "Google"}
    with pytest.raises(GoneError):
        Metadata(serving.lab.store).answer(
            PATH, "GET", f"{ROOT}instance/name?{WAIT}", headers, gone=lambda: True
        )


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
