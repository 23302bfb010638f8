"""The copies in the bucket, at the lab's Cloud Storage, with the accounts' rights."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.cloud import tokens
from lab.cloud.server import Serving, serve
from startup.node.machine.retry import FinalError, TemporaryError
from startup.node.rendezvous.copies_bucket import PREFIX, CopiesBucket, Place
from tests.lab.cloud.client import Client
from tests.startup.node.rendezvous.registry import snapshot

B = "/storage/v1/b"
SWARM, OWN = "vms@p1.iam.gserviceaccount.com", "rendezvous@p1.iam.gserviceaccount.com"
NAMES = [f"20261130T11{minute:02}00Z-5.json" for minute in range(3)]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Serving]:
    """With the fleet's bucket as the program declares it."""
    with serve(tmp_path / "state") as serving:
        operator = Client(serving.url)
        body = {"name": "box", "versioning": {"enabled": True}}
        assert operator.call("POST", f"{B}?project=p1", body).status == 200
        start = f'resource.name.startsWith("projects/_/buckets/box/objects/{PREFIX}")'
        members = [f"serviceAccount:{each}" for each in (SWARM, OWN)]
        writer = {
            "role": "roles/storage.objectUser",
            "members": members[1:],
            "condition": {"title": "registry", "expression": start},
        }
        policy = [{"role": "roles/storage.objectViewer", "members": members}, writer]
        assert operator.call("PUT", f"{B}/box/iam", {"bindings": policy}).status == 200
        yield serving


def bucket(cloud: Serving, email: str = OWN, **changes: str) -> CopiesBucket:
    place = replace(Place(endpoint=cloud.url, bucket="box", vm="pilot-rendezvous"), **changes)
    return CopiesBucket(place=lambda: place, token=lambda: tokens.make(cloud.lab.store, email, 60))


def fetched(box: CopiesBucket, name: str) -> bytes:
    out = io.BytesIO()
    box.fetch(next(each for each in box.copies()[0] if each.copy.name == name), out)
    return out.getvalue()


def test_a_copy_is_stored_listed_fetched_and_removed_for_good(cloud: Serving) -> None:
    box, content = bucket(cloud), snapshot(5)
    assert box.copies() == ([], 0)
    # The order is the bucket's own, not that of the names.
    stored = NAMES[::-1]
    for name in stored:
        box.store(name, content, "id-1")
    # An attempt whose answer got lost.
    box.store(NAMES[0], snapshot(4), "")
    found, others = box.copies()
    assert ([each.copy.name for each in found], others) == (stored, 0)
    assert {(each.copy.keys, each.copy.size, each.cleaned) for each in found} == {
        (5, len(content), "id-1")
    }
    assert all(each.is_of(box.place()) for each in found)
    assert fetched(box, NAMES[0]) == content
    for each in (*found[:2], found[0]):
        box.remove(each)
    assert [each.copy.name for each in box.copies()[0]] == stored[2:]
    versions = Client(cloud.url).get(f"{B}/box/o?versions=true")["items"]
    assert [each["name"] for each in versions] == [PREFIX + stored[2]]


def test_a_copy_says_whose_it_is(cloud: Serving) -> None:
    other = bucket(cloud, vm="another")
    other.store(NAMES[0], snapshot(5), "")
    Client(cloud.url).upload("box", PREFIX + NAMES[1], snapshot(5))
    Client(cloud.url).upload("box", PREFIX + "notes.txt", b"x")
    box = bucket(cloud)
    found, others = box.copies()
    assert ([each.copy.name for each in found], others) == (NAMES[:2], 1)
    assert not any(each.is_of(box.place()) for each in found)


def test_bytes_that_are_not_those_that_were_stored(cloud: Serving) -> None:
    box, content = bucket(cloud), snapshot(5)
    box.store(NAMES[0], content, "")
    (stored,) = box.copies()[0]
    # Somebody's tool wrote the object again, shorter, and kept its words.
    operator = Client(cloud.url)
    operator.upload("box", PREFIX + NAMES[0], content[:-9])
    about = {"bucket": "box", "vm": "pilot-rendezvous", "sha256": stored.sha256}
    path = f"{B}/box/o/{PREFIX.replace('/', '%2F')}{NAMES[0]}"
    assert operator.call("PATCH", path, {"metadata": about}).status == 200
    with pytest.raises(FinalError, match="not those that its sha256 is of"):
        fetched(box, NAMES[0])


def test_the_swarms_account_writes_no_copies(cloud: Serving) -> None:
    bucket(cloud).store(NAMES[0], snapshot(5), "")
    swarm = bucket(cloud, SWARM)
    assert len(swarm.copies()[0]) == 1
    with pytest.raises(TemporaryError, match="403 Forbidden: the VM's service account may not"):
        swarm.store(NAMES[1], snapshot(5), "")
    with pytest.raises(TemporaryError, match="403"):
        swarm.remove(swarm.copies()[0][0])


def test_a_bucket_that_is_not_there_or_away(cloud: Serving) -> None:
    with pytest.raises(TemporaryError, match="there is no such bucket"):
        bucket(cloud, bucket="none").copies()
    with pytest.raises(TemporaryError, match=r"127\.0\.0\.1:9"):
        bucket(cloud, endpoint="http://127.0.0.1:9").copies()
