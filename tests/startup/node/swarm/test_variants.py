"""Variants: what they are made of, what is on disk, what is removed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from startup.node.desired.spec import Binary
from startup.node.machine.paths import Place
from startup.node.machine.retry import FinalError
from startup.node.setup.release import path_of
from startup.node.swarm import variants

UNIT = "# why\n[Service]\nUser=pilot\n"


def binary(sha256: str = "ab" * 32) -> Binary:
    return Binary(name="pilot-daemon", object=f"releases/{sha256}/pilot-daemon", sha256=sha256)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(root=tmp_path)
    for sha256 in ("ab" * 32, "cd" * 32):
        path = path_of(binary(sha256), place.opt)
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/true {sha256}\n", encoding="ascii")
    return place


def ensure(place: Place, **changes: Any) -> str:
    about: dict[str, Any] = {
        "binary": binary(),
        "version": "1.18.0",
        "environment": {"A": "1", "B": "2"},
        "unit": UNIT,
        "restart": "",
        **changes,
    }
    return variants.ensure(place, **about)


def test_a_variant_is_complete(place: Place) -> None:
    found = ensure(place)
    folder = place.variants / found
    assert (folder / "pilot-daemon").resolve() == path_of(binary(), place.opt)
    assert (folder / "agent.env").read_text(encoding="utf-8") == 'A="1"\nB="2"\n'
    assert stat.S_IMODE((folder / "agent.env").stat().st_mode) == 0o600
    assert json.loads((folder / "variant.json").read_text(encoding="utf-8"))["version"] == "1.18.0"
    assert variants.about(place, found)["release"] == "ab" * 32
    assert variants.about(place, "0" * 16) == {}


def test_the_same_is_the_same_and_nothing_is_written(place: Place) -> None:
    found = ensure(place)
    before = (place.variants / found / "agent.env").stat()
    # The order of variables, comments and empty lines make no difference.
    unit = "[Service]\n\n# another why\n; and this\nUser=pilot\n"
    assert ensure(place, environment={"B": "2", "A": "1"}, unit=unit) == found
    after = (place.variants / found / "agent.env").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "change",
    [
        {"binary": binary("cd" * 32)},
        {"environment": {"A": "1", "B": "3"}},
        {"environment": {"A": "1"}},
        {"unit": UNIT + "Nice=1\n"},
        {"restart": "2026-11-24"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_makes_another_one(place: Place, change: dict[str, Any]) -> None:
    assert ensure(place) != ensure(place, **change)
    # The name of the version does not: it is the bytes that count.
    assert ensure(place) == ensure(place, version="1.18.0-again")


def test_one_that_was_damaged_is_mended(place: Place) -> None:
    folder = place.variants / ensure(place)
    (folder / "pilot-daemon").unlink()
    (folder / "pilot-daemon").symlink_to("/bin/false")
    (folder / "agent.env").write_text("", encoding="ascii")
    ensure(place)
    assert (folder / "pilot-daemon").resolve() == path_of(binary(), place.opt)
    assert (folder / "agent.env").read_text(encoding="utf-8") == 'A="1"\nB="2"\n'


def test_without_its_binary_there_is_none(place: Place) -> None:
    with pytest.raises(FinalError, match=r"ef/pilot-daemon is not there: release 2\.0"):
        ensure(place, binary=binary("ef" * 32), version="2.0")
    assert not place.variants.exists()


def test_what_an_agent_is_started_with(place: Place) -> None:
    first, second = ensure(place), ensure(place, restart="1")
    variants.choose(place, 10001, first)
    variants.choose(place, 10002, second)
    # What the unit executes and reads.
    for port, found in ((10001, first), (10002, second)):
        chosen = place.chosen / str(port)
        assert (chosen / "agent.env").samefile(place.variants / found / "agent.env")
    variants.choose(place, 10001, second)
    assert variants.read(place) == {10001: second, 10002: second}
    assert sorted(path.name for path in place.chosen.iterdir()) == ["10001", "10002"]
    variants.forget(place, 10001)
    variants.forget(place, 10001)
    assert variants.read(place) == {10002: second}


def test_what_is_no_variant_is_not_known(place: Place) -> None:
    assert variants.read(place) == {}
    place.chosen.mkdir(parents=True)
    (place.chosen / "10001").symlink_to("/etc")
    (place.chosen / ".10002.new").symlink_to("../variants/x")
    (place.chosen / "10003").write_text("", encoding="ascii")
    assert variants.read(place) == {10001: ""}


def test_those_that_nobody_needs_are_removed(place: Place) -> None:
    kept, running, old = (ensure(place, restart=each) for each in "123")
    variants.choose(place, 10001, running)
    variants.prune(place, [kept])
    assert {path.name for path in place.variants.iterdir()} == {kept, running}
    assert not (place.variants / old).exists()
    # The binary that it linked to is the release's, and stays.
    assert path_of(binary(), place.opt).is_file()
    variants.prune(Place(root=place.root / "nowhere"), [])
