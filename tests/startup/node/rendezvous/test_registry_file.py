"""Which registry files are whole, and what they hold."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from lab.standin.state import sealed
from startup.node.machine.paths import Paths
from startup.node.rendezvous import registry_file
from startup.node.rendezvous.registry_file import BadRegistryError, Check
from tests.startup.node.rendezvous.registry import NOW, put, sealed_after, snapshot, state, unsealed


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
def test_a_whole_file_is_whole_however_it_is_read(size: int) -> None:
    found = state(30)
    found.reap(NOW + 21)
    content = sealed(found.snapshot())
    check = Check()
    for at in range(0, len(content), size):
        check.feed(content[at : at + size])
    assert check.result() == registry_file.Summary(size=len(content), nodes=10, keys=30)


def test_a_registry_without_nodes_is_whole(paths: Paths) -> None:
    found = registry_file.examine(put(paths, snapshot(0)))
    assert found is not None
    assert found.nodes == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (bytes(5000), "zeros"),
        (b"{}", "no snapshot"),
        (b"[]", "no snapshot"),
        (b'{"hello": 1}', "no snapshot"),
        (b'{"version":1,"nodes":{}}', "no checksum"),
        (b'{"version":0,"nodes":{"1"', "no whole JSON"),
        (random.Random(1).randbytes(3000), "no whole JSON"),
        (b"[" * 100_000, "no whole JSON"),
    ],
)
def test_bad_files(paths: Paths, content: bytes, why: str) -> None:
    with pytest.raises(BadRegistryError, match=why):
        registry_file.examine(put(paths, content))


@pytest.mark.parametrize("form", [unsealed, sealed_after])
@pytest.mark.parametrize("gone", [0, 80, 95])
def test_keys_are_counted_and_not_living_nodes(
    paths: Paths, form: Callable[..., bytes], gone: int
) -> None:
    found = registry_file.examine(put(paths, form(95, gone=gone)))
    assert found is not None
    assert (found.nodes, found.keys) == (95 - gone, 95)


def test_without_a_list_of_keys_there_are_those_of_the_nodes(paths: Paths) -> None:
    document = json.loads(unsealed(12))
    del document["pub_key_idx"]
    found = registry_file.examine(put(paths, json.dumps(document).encode()))
    assert found is not None
    assert (found.nodes, found.keys) == (12, 12)


@pytest.mark.parametrize("content", [b'{"version": 0, "next_node": 9, "nodes": {}}\n'])
def test_one_from_before_checksums_is_whole(paths: Paths, content: bytes) -> None:
    assert registry_file.examine(put(paths, content)) is not None


def test_nodes_of_an_unsealed_one_are_counted() -> None:
    document = state(12).snapshot().replace(b'"version":1', b'"version":0', 1)
    assert registry_file.parsed(document).nodes == 12


def test_the_fields_that_are_looked_for_are_written() -> None:
    """The stand-in writes the fields that are counted, as the real rendezvous does."""
    document = json.loads(snapshot(2))
    assert next(iter(document)) == "version"
    assert "public_key" in document["nodes"]["1"]
    assert len(document["pub_key_idx"]) == 2
    assert list(document)[-1] == "checksum"
