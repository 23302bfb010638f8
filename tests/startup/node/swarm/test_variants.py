"""Variants: what they are made of, what is on disk, what is removed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from startup.node.desired.spec import Binary
from startup.node.machine.paths import Paths
from startup.node.machine.retry import FinalError
from startup.node.setup.release import path_of
from startup.node.swarm import variants

UNIT = "# why\n[Service]\nUser=pilot\n"


def binary(sha256: str = "ab" * 32) -> Binary:
    return Binary(name="pilot-daemon", object=f"releases/{sha256}/pilot-daemon", sha256=sha256)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(root=tmp_path)
    for sha256 in ("ab" * 32, "cd" * 32):
        path = path_of(binary(sha256), paths.opt)
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/true {sha256}\n", encoding="ascii")
    return paths


def ensure(paths: Paths, **changes: Any) -> str:
    about: dict[str, Any] = {
        "binary": binary(),
        "version": "1.18.0",
        "environment": {"A": "1", "B": "2"},
        "unit": UNIT,
        "restart": "",
        **changes,
    }
    return variants.ensure(paths, **about)


def test_a_variant_is_complete(paths: Paths) -> None:
    found = ensure(paths)
    folder = paths.variants / found
    assert (folder / "pilot-daemon").resolve() == path_of(binary(), paths.opt)
    assert (folder / "agent.env").read_text(encoding="utf-8") == 'A="1"\nB="2"\n'
    assert stat.S_IMODE((folder / "agent.env").stat().st_mode) == 0o600
    assert json.loads((folder / "variant.json").read_text(encoding="utf-8"))["version"] == "1.18.0"
    assert variants.about(paths, found)["release"] == "ab" * 32
    assert variants.about(paths, "0" * 16) == {}


def test_the_same_is_the_same_and_nothing_is_written(paths: Paths) -> None:
    found = ensure(paths)
    before = (paths.variants / found / "agent.env").stat()
    # The order of variables, comments and empty lines make no difference.
    unit = "[Service]\n\n# another why\n; and this\nUser=pilot\n"
    assert ensure(paths, environment={"B": "2", "A": "1"}, unit=unit) == found
    after = (paths.variants / found / "agent.env").stat()
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
def test_changes_that_make_another_variant(paths: Paths, change: dict[str, Any]) -> None:
    assert ensure(paths) != ensure(paths, **change)
    # The name of the version does not: it is the bytes that count.
    assert ensure(paths) == ensure(paths, version="1.18.0-again")


def test_one_that_was_damaged_is_mended(paths: Paths) -> None:
    folder = paths.variants / ensure(paths)
    (folder / "pilot-daemon").unlink()
    (folder / "pilot-daemon").symlink_to("/bin/false")
    (folder / "agent.env").write_text("", encoding="ascii")
    ensure(paths)
    assert (folder / "pilot-daemon").resolve() == path_of(binary(), paths.opt)
    assert (folder / "agent.env").read_text(encoding="utf-8") == 'A="1"\nB="2"\n'


def test_without_its_binary_there_is_none(paths: Paths) -> None:
    with pytest.raises(FinalError, match=r"ef/pilot-daemon is not there: release 2\.0"):
        ensure(paths, binary=binary("ef" * 32), version="2.0")
    assert not paths.variants.exists()


def test_the_files_of_a_variant(paths: Paths) -> None:
    first, second = ensure(paths), ensure(paths, restart="1")
    variants.choose(paths, 10001, first)
    variants.choose(paths, 10002, second)
    # What the unit executes and reads.
    for port, found in ((10001, first), (10002, second)):
        chosen = paths.chosen / str(port)
        assert (chosen / "agent.env").samefile(paths.variants / found / "agent.env")
    variants.choose(paths, 10001, second)
    assert variants.read(paths) == {10001: second, 10002: second}
    assert sorted(path.name for path in paths.chosen.iterdir()) == ["10001", "10002"]
    variants.forget(paths, 10001)
    variants.forget(paths, 10001)
    assert variants.read(paths) == {10002: second}


def test_a_bad_link_is_no_variant(paths: Paths) -> None:
    assert variants.read(paths) == {}
    paths.chosen.mkdir(parents=True)
    (paths.chosen / "10001").symlink_to("/etc")
    (paths.chosen / ".10002.new").symlink_to("../variants/x")
    (paths.chosen / "10003").write_text("", encoding="ascii")
    assert variants.read(paths) == {10001: ""}


def test_those_that_nobody_needs_are_removed(paths: Paths) -> None:
    kept, running, old = (ensure(paths, restart=each) for each in "123")
    variants.choose(paths, 10001, running)
    variants.prune(paths, [kept])
    assert {path.name for path in paths.variants.iterdir()} == {kept, running}
    assert not (paths.variants / old).exists()
    # The binary that it linked to is the release's, and stays.
    assert path_of(binary(), paths.opt).is_file()
    variants.prune(Paths(root=paths.root / "nowhere"), [])
