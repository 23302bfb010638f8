"""The counter of node IDs in a registry that is put back."""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from lab.standin.state import read_snapshot, sealed
from startup.node.rendezvous.next_node import MOST, SKIPPED, raised
from startup.node.rendezvous.registry_file import BadRegistryError, Check, UnknownVersionError
from tests.startup.node.rendezvous.registry import NOW, sealed_after, snapshot, unsealed


def unsealed_of(**fields: object) -> bytes:
    return json.dumps({"nodes": {}, **fields}).encode()


def test_a_sealed_file_is_edited_in_one_number_and_sealed_again() -> None:
    before = snapshot(5)
    after = raised(before)
    state = read_snapshot(after, started=NOW)
    assert state.next_node == 6 + SKIPPED
    check = Check()
    check.feed(after)
    assert check.result() is not None
    old, new = (json.loads(each) for each in (before, after))
    assert new.pop("next_node") == old.pop("next_node") + SKIPPED
    assert new.pop("checksum") != old.pop("checksum")
    assert new == old
    # All bytes but those of the two are the same.
    assert before.split(b"next_node")[0] == after.split(b"next_node")[0]
    assert before.split(b'"next_net"')[1].split(b'"checksum"')[0] in after


def test_an_unsealed_file_gets_no_seal() -> None:
    before = unsealed(95, gone=80)
    assert raised(before) == before.replace(b'"next_node":96,', b'"next_node":1000096,')


@pytest.mark.parametrize(
    ("content", "highest"),
    [
        # A counter that is behind its ids, in each place in which there is one.
        (unsealed_of(next_node=3, nodes={"70": {"id": 70, "public_key": "k"}}), 70),
        (unsealed_of(next_node=3, nodes={"1": {"id": 71, "public_key": "k"}}), 71),
        (unsealed_of(next_node=3, nodes={"72": {"public_key": "k"}}), 72),
        (unsealed_of(next_node=3, pub_key_idx={"k": 73, "99": 2}), 73),
        (unsealed_of(next_node=74, pub_key_idx={"k": 2}), 74),
        (unsealed_of(), 0),
        (b'{"next_node":1,"nodes":null,"pub_key_idx":null}', 1),
        # What a node says of itself is no counter.
        (
            unsealed_of(
                nodes={"1": {"id": 1, "tags": {"next_node": 900, "id": 901}, "x": '"next_node":9'}},
                next_node=75,
            ),
            75,
        ),
        (b' {"next_node" : 4 ,\n "nodes": {} } ', 4),
        # Go takes the last of two.
        (b'{"next_node":9,"next_node":4,"nodes":{}}', 4),
    ],
)
def test_the_highest_id_counts(content: bytes, highest: int) -> None:
    after = json.loads(raised(content))
    assert after["next_node"] == highest + SKIPPED
    assert {**after, "next_node": 0} == {**json.loads(content), "next_node": 0}


@pytest.mark.parametrize(
    "content",
    [
        b'{"next_node":1,"nodes":[1,2]}',
        b'{"next_node":1,"pub_key_idx":["a"]}',
        b'{"next_node":1,"nodes":[[1,2,3]]}',
        b'{"next_node":true,"nodes":{}}',
    ],
)
def test_what_is_no_registry_is_refused(content: bytes) -> None:
    with pytest.raises(BadRegistryError):
        raised(content)


def test_every_restore_raises_it_again() -> None:
    assert json.loads(raised(raised(sealed_after(5, 3))))["next_node"] == 6 + 2 * SKIPPED


def test_an_unknown_format_is_not_edited() -> None:
    newer = sealed(b'{"version":2,"next_node":5,"nodes":{}}')
    with pytest.raises(UnknownVersionError, match="version 2"):
        raised(newer)


@pytest.mark.parametrize(
    "content",
    [
        unsealed_of(next_node="5"),
        unsealed_of(next_node=5, nodes=7),
        unsealed_of(next_node=MOST - SKIPPED + 1),
        b'{"next_node":5',
        b'{"next_node":5 "nodes":{}}',
        b"[]",
        b"",
        b"[" * 100_000,
    ],
)
def test_a_file_of_another_shape_is_bad(content: bytes) -> None:
    with pytest.raises(BadRegistryError):
        raised(content)


def test_a_large_registry_takes_seconds() -> None:
    content = snapshot(50_000)
    began = time.process_time()
    after = raised(content)
    print(f"{len(content) / 1e6:.0f} MB in {time.process_time() - began:.1f} s")
    body, _, seal = after.rpartition(b',"checksum":"')
    assert hashlib.sha256(body + b"}").hexdigest() == seal[:64].decode()
