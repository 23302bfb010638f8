"""The store: what is written is read again, never half of it, and what is broken is not read."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from lab.standin import store
from lab.standin.log import Log
from lab.standin.state import CorruptSnapshotError, Node, State, read_snapshot, sealed
from tests.lab.standin.client import Identity, Standin, standin, wait_for, whitelist

KEYS = [Identity().key for _ in range(20)]


def filled(count: int) -> State:
    state = State(started=1_700_000_000)
    for number in range(1, count + 1):
        state.add(
            Node(
                id=number,
                # Any 32 bytes are a key here.
                key=KEYS[number - 1] if number <= len(KEYS) else f"{number:042}A=",
                owner=f'agent-{number}"\\ü@example.com',
                address=f"10.10.0.2:{10000 + number}",
                version="1.18.0",
                created=1_700_000_000,
                last_seen=1_700_000_000 + number,
            )
        )
    return state


def test_a_state_comes_back() -> None:
    state = filled(5)
    state.reap(1_700_000_002)
    state.total_requests = 77
    again = read_snapshot(sealed(state.snapshot()), started=1)
    assert (again.ids, again.next_node, again.total_requests) == (state.ids, 6, 77)
    assert again.snapshot() != b""
    assert list(again.nodes) == [2, 3, 4, 5]
    for number, node in state.nodes.items():
        for name in ("key", "owner", "address", "version", "created", "last_seen", "hostname"):
            assert getattr(again.nodes[number], name) == getattr(node, name)


def test_changed_nodes_are_written_anew() -> None:
    state = filled(1)
    state.snapshot()
    state.nodes[1].seen(address="10.10.0.9:1", version="2", hostname="h", now=1_700_000_500)
    node = json.loads(sealed(state.snapshot()))["nodes"]["1"]
    assert (node["real_addr"], node["version"], node["hostname"]) == ("10.10.0.9:1", "2", "h")
    assert node["last_seen"] == "2023-11-14T22:21:40Z"


def test_the_fields_are_the_real_ones() -> None:
    document = json.loads(sealed(filled(2).snapshot()))
    assert list(document) == [
        *("version", "next_node", "next_net", "nodes", "networks", "pub_key_idx"),
        *("total_requests", "start_time", "checksum"),
    ]
    assert document["nodes"]["1"]["public_key"] == KEYS[0]
    assert document["networks"]["0"]["members"] == [1, 2]


def test_every_truncation_and_many_damages_are_noticed() -> None:
    content = sealed(filled(3).snapshot())
    for end in range(len(content)):
        with pytest.raises(CorruptSnapshotError):
            read_snapshot(content[:end], started=1)
    chance = random.Random(7)
    for _ in range(300):
        damaged = bytearray(content)
        at = chance.randrange(len(content))
        damaged[at] ^= 1 << chance.randrange(7)
        with pytest.raises(CorruptSnapshotError):
            read_snapshot(bytes(damaged), started=1)
    with pytest.raises(CorruptSnapshotError):
        read_snapshot(content[:200] + bytes(len(content) - 200), started=1)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"nodes": []}, "version None"),
        ({"version": 1}, "no checksum"),
        ({"version": 0, "nodes": []}, "nodes: must be an object"),
        ({"version": 0, "nodes": {"1": 1}}, "nodes.1: must be an object"),
        ({"version": 0, "nodes": {"1": {"id": 0}}}, "nodes.1.id"),
        ({"version": 0, "nodes": {"1": {"id": 1, "public_key": "x"}}}, "nodes.1.public_key"),
        ({"version": 0, "pub_key_idx": {"x": "y"}}, "pub_key_idx"),
        ({"version": 0, "next_node": -1}, "next_node"),
    ],
)
def test_a_store_that_is_no_snapshot_is_refused_with_the_reason(
    document: object, said: str
) -> None:
    with pytest.raises(CorruptSnapshotError, match=said):
        read_snapshot(json.dumps(document).encode(), started=1)


def test_an_old_store_without_checksum_is_read() -> None:
    state = read_snapshot(b'{"version": 0, "next_node": 9}\n', started=1)
    assert (state.next_node, state.nodes) == (9, {})


@pytest.mark.parametrize("broken", ["truncated", "zeros", "empty", "directory"])
def test_a_broken_store_is_logged_and_starts_empty(tmp_path: Path, broken: str) -> None:
    file = tmp_path / "registry.json"
    content = sealed(filled(3).snapshot())
    if broken == "directory":
        file.mkdir()
    else:
        file.write_bytes(
            {"truncated": content[:-40], "zeros": bytes(len(content)), "empty": b""}[broken]
        )
    out = io.StringIO()
    state = store.load(file, Log("info", "text", out), started=5)
    assert (state.nodes, state.ids) == ({}, {})
    assert "level=ERROR" in out.getvalue()
    assert "starting EMPTY" in out.getvalue()


def test_a_failed_save_leaves_the_old_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "registry.json"
    store.save(file, filled(1).snapshot())
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(file, filled(3).snapshot())
    assert file.read_bytes() == before


def test_a_store_that_is_written_over_may_be_cut_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "registry.json"
    store.save(file, filled(1).snapshot())
    pieces: list[int] = []

    def gone(_: int) -> None:
        pieces.append(file.stat().st_size)
        if len(pieces) == 3:
            raise OSError(5, "no power")

    monkeypatch.setattr(os, "fsync", gone)
    with pytest.raises(OSError, match="no power"):
        store.save(file, filled(1).snapshot(padding=8), in_place=True)
    assert pieces == [1 << 16, 2 << 16, 3 << 16]
    with pytest.raises(CorruptSnapshotError):
        read_snapshot(file.read_bytes(), started=1)


def test_a_padded_store_holds_the_same(tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    assert store.save(file, filled(3).snapshot(padding=2), in_place=True) > 2 << 20
    found = read_snapshot(file.read_bytes(), started=1)
    assert (list(found.nodes), found.ids) == (list(filled(3).nodes), filled(3).ids)


def test_a_reader_during_a_save_finds_the_old_store_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    documents = [filled(count).snapshot() for count in (2000, 2001)]
    store.save(file, documents[0])
    done = threading.Event()

    def save() -> None:
        for index in range(60):
            store.save(file, documents[index % 2])
        done.set()

    saver = threading.Thread(target=save)
    saver.start()
    found = set()
    while not done.is_set():
        found.add(file.read_bytes())
    saver.join()
    assert found <= {sealed(document) for document in documents}
    assert list(tmp_path.iterdir()) == [file]


def test_the_store_is_on_disk_before_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: order.append("fsync"))
    rename = Path.replace

    def replace(source: Path, target: Path) -> Path:
        order.append("rename")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    store.save(tmp_path / "registry.json", filled(1).snapshot())
    assert order == ["fsync", "rename"]


@pytest.mark.engine  # waits for real timers
def test_it_is_saved_by_itself_when_asked_and_at_the_end(tmp_path: Path, running: Standin) -> None:
    file = tmp_path / "registry.json"

    def nodes() -> int:
        return len(read_snapshot(file.read_bytes(), started=1).nodes) if file.exists() else 0

    with running.client() as client:
        client.ask(Identity(owner="1").register())
        wait_for(lambda: nodes() == 1, "the snapshot of the timer")
        client.ask(Identity(owner="2").register())
        answer = running.http("/api/snapshot", "POST")
        assert answer.json == {"status": "ok", "bytes": file.stat().st_size}
        assert nodes() == 2
        client.ask(Identity(owner="3").register())
        assert running.stop() == 0
    assert nodes() == 3
    assert file.stat().st_mode & 0o777 == 0o600


def test_ids_survive_a_restart_without_a_limit(tmp_path: Path) -> None:
    identities = [Identity(owner=f"o{i}") for i in range(15)]
    whitelist(tmp_path)
    with standin(tmp_path) as running, running.client() as client:
        before = [client.ask(one.register())["node_id"] for one in identities]
        running.stop()
    (tmp_path / "rate-limit-whitelist.json").unlink()
    with standin(tmp_path) as running, running.client() as client:
        assert running.stats()["active_nodes"] == 15
        assert [client.ask(one.register())["node_id"] for one in reversed(identities)] == before[
            ::-1
        ]
        assert client.ask(Identity(owner="new").register())["node_id"] == 16


@pytest.mark.engine  # waits for real timers
def test_killed_while_it_saves_the_store_is_old_or_new_never_torn(tmp_path: Path) -> None:
    """kill -9 at ten moments of snapshots that follow each other; each start reads what is left."""
    file = tmp_path / "registry.json"
    whitelist(tmp_path)
    store.save(file, filled(4000).snapshot())
    chance = random.Random(11)
    sure = 4000
    for attempt in range(10):
        with standin(tmp_path) as running, running.client() as client:
            assert running.stats()["total_nodes"] >= sure
            seen = [0]

            def save(running: Standin = running, seen: list[int] = seen) -> None:
                while True:
                    total = running.stats()["total_nodes"]
                    if running.http("/api/snapshot", "POST").status != 200:
                        return
                    seen.append(total)

            saver = threading.Thread(target=_until_it_dies, args=(save,))
            saver.start()
            for index in range(20):
                client.ask(Identity(owner=f"{attempt}-{index}").register())
            wait_for(lambda seen=seen: len(seen) > 2, "a snapshot")  # type: ignore[misc]
            saver.join(chance.random() * 0.05)
            assert running.stop(signal.SIGKILL) == -signal.SIGKILL
            saver.join()
        sure = max(sure, *seen)
        left = read_snapshot(file.read_bytes(), started=1)
        assert len(left.nodes) >= sure
        sure = len(left.nodes)


def _until_it_dies(act: object) -> None:
    assert callable(act)
    try:
        act()
    except (OSError, ValueError):
        return
    except Exception as error:  # http.client's own
        if type(error).__module__ != "http.client":
            raise
