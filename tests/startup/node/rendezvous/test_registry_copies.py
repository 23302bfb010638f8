"""Copies of the registry's file: which are taken, which stay, and which are put back."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.standin.state import read_snapshot
from startup.node.machine.paths import Paths
from startup.node.rendezvous import registry_copies, registry_file
from startup.node.rendezvous.next_node import SKIPPED, raised
from startup.node.rendezvous.registry_copies import Copy
from startup.node.rendezvous.registry_file import BadRegistryError
from tests.lab.standin.client import Identity, standin, wait_for, whitelist
from tests.startup.node.rendezvous.registry import NOW, put, said, snapshot, unsealed


def test_without_a_file_there_is_nothing_wrong(paths: Paths) -> None:
    assert registry_file.examine(paths.registry / registry_file.NAME) is None
    assert registry_copies.prepare(paths, NOW, print) == registry_copies.Start(empty=True)


def test_a_drained_fleet_is_no_registry_that_started_empty(paths: Paths) -> None:
    """With the binary that leaves its file unsealed: 80 of 95 agents drained for a while, and then
    the file is truncated. The newest copy is put back, not the one before the drain."""
    put(paths, unsealed(95))
    assert registry_copies.take_copy(paths, NOW) is not None
    put(paths, unsealed(96, gone=80), at=NOW + 400)
    newest = registry_copies.take_copy(paths, NOW + 400)
    assert newest is not None
    assert newest.keys == 96
    assert registry_copies.best(registry_copies.copies(paths))[0] == newest
    path = put(paths, unsealed(96, gone=80)[:5000], at=NOW + 500)
    start = registry_copies.prepare(paths, NOW + 500, print)
    assert (start.restored, start.nodes, start.keys) == (newest.name, 16, 96)
    assert json.loads(path.read_bytes())["next_node"] == 97 + SKIPPED


def test_a_fifo_a_folder_or_a_link_is_set_aside(paths: Paths) -> None:
    path = paths.registry / registry_file.NAME
    for make in (os.mkfifo, os.mkdir, lambda p: Path(p).symlink_to("/etc/passwd")):
        make(path)
        lines: list[str] = []
        assert registry_copies.prepare(paths, NOW, said(lines)).set_aside
        assert not os.path.lexists(path)


@pytest.mark.parametrize(
    ("nodes", "rounds"),
    # 9,500 agents' file had 45 MB, with what a fleet's life adds; of nodes alone it takes these.
    [(60, 300), pytest.param(150_000, 30, marks=pytest.mark.engine)],
    ids=["small", "45 MB"],
)
def test_no_start_from_a_file_that_is_not_whole(paths: Paths, nodes: int, rounds: int) -> None:
    """The file cut off anywhere (two of three rounds), zeros to its end, a bit turned, all zeros,
    deleted: never started from, kept aside as it was, and the newest of the good copies is there
    instead."""
    older, good, newest = (snapshot(nodes, requests=number) for number in (1, 2, 3))
    assert nodes < 1000 or 40e6 < len(newest) < 50e6
    for number, content in enumerate((older, good)):
        put(paths, content, at=NOW + number)
        registry_copies.take_copy(paths, NOW + number)
    newest_copy = registry_copies.copies(paths)[-1].name
    chance = random.Random(20)
    for number in range(rounds):
        at = chance.randrange(len(newest))
        bad = {
            0: newest[:at],
            1: newest[:at] + bytes(len(newest) - at),
            2: newest[:at] + bytes([newest[at] ^ 1 << chance.randrange(8)]) + newest[at + 1 :],
            3: bytes(len(newest)),
            4: None,
        }[number % 5 if number >= rounds * 2 // 3 else 0]
        path = paths.registry / registry_file.NAME
        if bad is None:
            path.unlink()
        else:
            put(paths, bad)
        start = registry_copies.prepare(paths, NOW + 9 + number, lambda _: None)
        assert (start.restored, start.nodes) == (newest_copy, nodes), f"at {at}"
        assert path.read_bytes() == raised(good)
        if bad is None:
            assert not start.set_aside
        else:
            assert (paths.registry / start.set_aside).read_bytes() == bad
    assert len(registry_copies.set_aside_names(paths)) == registry_copies.BAD_FILES


def test_the_newest_good_copy_is_put_back(paths: Paths) -> None:
    for number in range(1, 4):
        put(paths, snapshot(5, requests=number), at=NOW + number)
        registry_copies.take_copy(paths, NOW + number)
    put(paths, b"{", at=NOW + 9)
    names = [copy.name for copy in registry_copies.copies(paths)]
    # A disk that lies: the newest copy is not what it was.
    spoilt = paths.registry / "copies" / names[-1]
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    lines: list[str] = []
    start = registry_copies.prepare(paths, NOW + 10, said(lines))
    assert start.restored == names[-2]
    path = paths.registry / registry_file.NAME
    assert read_snapshot(path.read_bytes(), started=NOW).total_requests == 2
    assert (paths.registry / start.set_aside).read_bytes() == b"{"
    assert f"copy {names[-1]}" in "\n".join(lines)


class Unreadable(io.FileIO):
    """A file one of whose blocks the disk does not give."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """The files that it is called with cannot be read from then on."""
    spoilt: set[tuple[int, int]] = set()
    real = os.fdopen

    def fdopen(handle: int, *args: Any, **named: Any) -> Any:
        found = os.fstat(handle)
        if args[:1] == ("rb",) and (found.st_dev, found.st_ino) in spoilt:
            return Unreadable(handle)
        return real(handle, *args, **named)

    monkeypatch.setattr(os, "fdopen", fdopen)

    def add(path: Path) -> None:
        found = path.stat()
        spoilt.add((found.st_dev, found.st_ino))

    return add


def test_a_block_that_cannot_be_read_is_that_of_a_bad_file(
    paths: Paths, spoil: Callable[[Path], None]
) -> None:
    for number in range(1, 4):
        path = put(paths, snapshot(5, requests=number), at=NOW + number)
        registry_copies.take_copy(paths, NOW + number)
    names = [copy.name for copy in registry_copies.copies(paths)]
    spoil(path)
    spoil(paths.registry / "copies" / names[-1])
    with pytest.raises(BadRegistryError, match="Input/output error"):
        registry_file.examine(path)
    start = registry_copies.prepare(paths, NOW + 10, print)
    assert start.restored == names[-2]
    assert "Input/output error" in start.why
    assert (paths.registry / start.set_aside).exists()
    assert read_snapshot(path.read_bytes(), started=NOW).total_requests == 2
    assert [copy.name for copy in registry_copies.copies(paths)] == names[:-1]


def lose(paths: Paths) -> None:
    """The registry's file is gone, and a good copy of it is there."""
    put(paths, snapshot(5))
    registry_copies.take_copy(paths, NOW)
    (paths.registry / registry_file.NAME).unlink()


def test_a_disk_that_cannot_be_written_is_no_bad_copy(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(paths)

    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        registry_copies.prepare(paths, NOW, print)
    assert registry_copies.copies(paths)


def test_a_deleted_file_is_put_back(paths: Paths) -> None:
    put(paths, snapshot(5))
    registry_copies.take_copy(paths, NOW)
    (paths.registry / registry_file.NAME).unlink()
    start = registry_copies.prepare(paths, NOW, print)
    assert start.restored
    assert start.keys == 5


def test_a_bad_file_without_a_copy_is_kept_aside(paths: Paths) -> None:
    put(paths, b"half")
    start = registry_copies.prepare(paths, NOW, print)
    assert (start.restored, start.nodes) == ("", 0)
    assert (paths.registry / start.set_aside).read_bytes() == b"half"


def test_only_a_good_new_file_is_copied(paths: Paths) -> None:
    assert registry_copies.take_copy(paths, NOW) is None
    put(paths, snapshot(3))
    first = registry_copies.take_copy(paths, NOW)
    assert first is not None
    assert first.keys == 3
    assert registry_copies.take_copy(paths, NOW + 300) is None
    put(paths, snapshot(3)[:-5], at=NOW + 301)
    with pytest.raises(BadRegistryError):
        registry_copies.take_copy(paths, NOW + 301)
    put(paths, snapshot(4), at=NOW + 302)
    assert registry_copies.take_copy(paths, NOW + 302) is not None
    assert [copy.keys for copy in registry_copies.copies(paths)] == [3, 4]
    assert not list((paths.registry / "copies").glob(".new-*"))
    # A clock that was set back: the newest is still the last one.
    put(paths, snapshot(5), at=NOW - 9000)
    registry_copies.take_copy(paths, NOW - 9000)
    assert [copy.keys for copy in registry_copies.copies(paths)] == [3, 4, 5]


def test_a_copy_is_durable_before_it_is_one(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, rename, directory, in this order."""
    done: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        done.append("directory" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112
        real_fsync(handle)

    def replace(path: Path, target: Path) -> Path:
        done.append("rename")
        return real_replace(path, target)

    put(paths, snapshot(3))
    registry_copies.prepare(paths, NOW, print)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    registry_copies.take_copy(paths, NOW)
    assert done == ["file", "rename", "directory"]
    (paths.registry / registry_file.NAME).unlink()
    done.clear()
    registry_copies.prepare(paths, NOW, print)
    assert done == ["file", "rename", "directory"]


def at(minutes: float, *, keys: int = 100, size: int = 1000) -> Copy:
    return Copy(name=f"{minutes:012.2f}", time=NOW + minutes * 60, size=size, keys=keys)


def left(found: list[Copy], room: int = 1 << 40) -> list[Copy]:
    gone = registry_copies.surplus(found, room)
    return [copy for copy in found if copy not in gone]


def test_copies_are_thinned_with_age() -> None:
    held: list[Copy] = []
    for number in range(20 * 24 * 12):
        held.append(at(number * 5))
        held = left(held)
    end = held[-1].time
    ages = [end - copy.time for copy in held]
    newest, daily = registry_copies.NEWEST, registry_copies.DAILY
    assert len(held) == newest + daily - 1
    assert ages[-newest:] == [300 * number for number in reversed(range(newest))]
    assert len({int(copy.time // 86400) for copy in held}) == daily
    assert max(ages) > (daily - 2) * 86400


def test_a_registry_that_starts_empty_pushes_no_good_copy_out() -> None:
    held = [at(5 * number, keys=9500) for number in range(6)]
    for number in range(6, 300):
        held.append(at(5 * number, keys=40))
        held = left(held)
    full = [copy for copy in held if copy.keys == 9500]
    assert len(full) == registry_copies.PINNED
    assert registry_copies.best(held)[0] == full[-1]
    # It has grown back: they are copies as any other.
    for number in range(300, 1000):
        held.append(at(5 * number, keys=9000))
        held = left(held)
    assert registry_copies.best(held)[0].keys == 9000


def test_room_is_bounded_and_the_last_good_one_stays() -> None:
    held = [at(number, size=100, keys=9) for number in range(6)] + [at(7, keys=1, size=100)]
    assert [c.time for c in left(held, room=300)] == [c.time for c in held[-3:]]
    assert [copy.keys for copy in left(held, room=10)] == [9, 1]


def test_a_clock_that_jumps_takes_no_copies(paths: Paths) -> None:
    """A year ahead, and back: what was there stays, and what comes is in the order of time."""
    taken = 0

    def take(now: float) -> None:
        nonlocal taken
        taken += 1
        put(paths, snapshot(3, requests=taken), at=now)
        assert registry_copies.take_copy(paths, now) is not None

    for hours in range(15):
        take(NOW + hours * 3600)
    before = registry_copies.copies(paths)
    end = before[-1].time
    take(end + 365 * 86400)
    assert registry_copies.copies(paths)[:-1] == before[-len(registry_copies.copies(paths)) + 1 :]
    for hours in range(1, 15):
        take(end + hours * 3600)
        assert len(registry_copies.copies(paths)) >= min(taken, registry_copies.NEWEST)
    times = [copy.time for copy in registry_copies.copies(paths)]
    assert times[-14:] == [end + hours * 3600 for hours in range(1, 15)]
    # In the order in which they were taken.
    held = [
        read_snapshot(path.read_bytes(), started=NOW).total_requests
        for path in sorted((paths.registry / "copies").iterdir())
    ]
    assert held == sorted(held)


def test_copies_that_cannot_be_changed_are_read_all_the_same(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(paths, snapshot(3))
    registry_copies.take_copy(paths, NOW)

    def refuse(path: Path, mode: int) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    assert registry_copies.prepare(paths, NOW, print).keys == 3


def test_clean_begins_anew_and_keeps_the_old_files(paths: Paths) -> None:
    content = snapshot(5)
    put(paths, content)
    (paths.registry / registry_file.LOG).write_bytes(b"log")
    registry_copies.clean(paths, NOW, print)
    assert registry_copies.prepare(paths, NOW, print) == registry_copies.Start(empty=True)
    assert not (paths.registry / registry_file.NAME).exists()
    assert not (paths.registry / registry_file.LOG).exists()
    (kept,) = (paths.registry / "copies").glob("*.before-clean")
    assert kept.read_bytes() == content
    assert len(registry_copies.set_aside_names(paths)) == 2


def test_copies_that_came_to_harm_are_few(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = paths.registry / "copies"
    for number in range(12):
        put(paths, snapshot(5, requests=number), at=NOW + number)
        registry_copies.take_copy(paths, NOW + number)
        newest = folder / registry_copies.copies(paths)[-1].name
        newest.write_bytes(newest.read_bytes()[:-1])
        (paths.registry / registry_file.NAME).unlink()
        registry_copies.prepare(paths, NOW + number, print)
    bad = sorted(path.name for path in folder.glob("*.bad"))
    assert len(bad) == registry_copies.BAD_FILES
    assert bad[-1].startswith(newest.name)
    # Each kept bad file takes room from good copies.
    rooms: list[int] = []

    def surplus(_: object, room: int) -> list[Copy]:
        rooms.append(room)
        return []

    monkeypatch.setattr(registry_copies, "surplus", surplus)
    put(paths, snapshot(5), at=NOW + 100)
    registry_copies.take_copy(paths, NOW + 100)
    for path in folder.glob("*.bad"):
        path.unlink()
    put(paths, snapshot(5), at=NOW + 200)
    registry_copies.take_copy(paths, NOW + 200)
    assert rooms[1] - rooms[0] > 4 * len(snapshot(5))


def test_the_rest_of_an_interrupted_restore_is_removed(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(paths)

    def cut(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as power:
        power.setattr(Path, "replace", cut)
        power.setattr(Path, "unlink", cut)
        with pytest.raises(SystemExit):
            registry_copies.prepare(paths, NOW, print)
    assert len(list(paths.registry.glob(".registry.json.*"))) == 1
    assert registry_copies.prepare(paths, NOW, print).restored
    assert not list(paths.registry.glob(".registry.json.*"))


def cleaned(paths: Paths) -> list[int]:
    """The keys of what is kept from before the store was set aside, oldest first."""
    found = sorted((paths.registry / "copies").glob("*.before-clean"))
    return [int(path.name.partition("-")[2].partition(".")[0]) for path in found]


def test_clean_keeps_the_best_copies_and_the_next_one_does_too(paths: Paths) -> None:
    """A registry that started empty has newer copies, and those are worth less."""

    def take(keys: int, minutes: float) -> None:
        put(paths, snapshot(keys), at=NOW + minutes * 60)
        assert registry_copies.take_copy(paths, NOW + minutes * 60)

    for minutes in range(0, 50, 10):
        take(40, minutes)
    for minutes in range(50, 100, 10):
        take(3 + minutes // 10, minutes)
    registry_copies.clean(paths, NOW + 6000, print)
    assert cleaned(paths) == [40, 40, 40]
    # It has filled again, and is set aside again: the newest best, and the best of before.
    for minutes in range(200, 250, 10):
        take(30, minutes)
    registry_copies.clean(paths, NOW + 15000, print)
    assert cleaned(paths) == [40, 40, 30]
    # Nothing of worth came since: nothing of worth goes.
    for time_ in (400, 500, 600):
        take(1, time_)
        registry_copies.clean(paths, NOW + time_ * 60 + 1, print)
    assert max(cleaned(paths)) == 40
    assert len(cleaned(paths)) == registry_copies.PINNED


def test_a_planted_folder_of_copies_is_not_used(paths: Paths) -> None:
    (paths.registry / "elsewhere").mkdir()
    (paths.registry / "copies").symlink_to("elsewhere")
    put(paths, snapshot(3))
    registry_copies.take_copy(paths, NOW)
    assert (paths.registry / "copies").is_dir()
    assert not (paths.registry / "copies").is_symlink()
    assert not list((paths.registry / "elsewhere").iterdir())


def test_a_full_disk_is_said_and_leaves_nothing(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(paths, snapshot(3))
    registry_copies.prepare(paths, NOW, print)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="make room"):
        registry_copies.take_copy(paths, NOW)
    assert not list((paths.registry / "copies").iterdir())


@pytest.mark.engine
def test_killed_while_it_writes(tmp_path: Path, paths: Paths) -> None:
    """A rendezvous that is killed at any moment while agents register and it saves: what is there
    is whole, or a copy is put back, and whoever registered before the copy keeps the id."""
    chance = random.Random(5)
    whitelist(paths.registry)
    agents = [Identity(owner=f"a{number}@x.invalid") for number in range(40)]
    known: dict[str, object] = {}
    for round_ in range(4):
        with standin(paths.registry) as running:
            with running.client() as client:
                for agent in agents[: 10 * (round_ + 1)]:
                    answer = client.ask(agent.register())
                    assert known.setdefault(agent.key, answer["node_id"]) == answer["node_id"]
            assert running.http("/api/snapshot", "POST").status == 200
            registry_copies.take_copy(paths, time.time())
            for _ in range(chance.randrange(1, 5)):
                running.http("/api/snapshot", "POST")
            running.stop(signal.SIGKILL)
        if round_ % 2:
            path = paths.registry / registry_file.NAME
            content = path.read_bytes()
            path.write_bytes(content[: chance.randrange(len(content))])
        start = registry_copies.prepare(paths, time.time(), print)
        assert bool(start.restored) == bool(round_ % 2)
        assert start.keys == 10 * (round_ + 1)


@pytest.mark.engine
@pytest.mark.parametrize("damage", ["truncated", "zeros", "deleted"])
def test_a_real_start_from_a_restored_copy(paths: Paths, damage: str) -> None:
    whitelist(paths.registry)
    agent = Identity()
    path = paths.registry / registry_file.NAME
    with standin(paths.registry) as running:
        with running.client() as client:
            number = client.ask(agent.register())["node_id"]
        running.http("/api/snapshot", "POST")
        assert registry_copies.take_copy(paths, time.time()) is not None
        running.stop()
    if damage == "deleted":
        path.unlink()
    else:
        half = path.read_bytes()[: path.stat().st_size // 2]
        path.write_bytes(half if damage == "truncated" else half + bytes(len(half)))
    assert registry_copies.prepare(paths, time.time(), print).restored
    with standin(paths.registry) as running:
        wait_for(lambda: running.stats()["total_nodes"] == 1, "the node that was there")
        with running.client() as client:
            assert client.ask(agent.register())["node_id"] == number
