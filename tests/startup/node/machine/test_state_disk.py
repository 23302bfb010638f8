"""The state disk of a running VM: measured, and grown when it was made larger. Real ext4, real
resize2fs, on an image that the VM's mountinfo calls mounted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from startup.node.machine import state_disk
from startup.node.machine.paths import Paths
from startup.node.machine.state_disk import LARGER, StateDisk, Usage, filesystem_bytes

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 64 MiB with a file system on all of it."""
    path = tmp_path / "disk.img"
    resize(path, 64)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True)
    return path


@pytest.fixture
def paths(tmp_path: Path, image: Path) -> Paths:
    found = Paths(root=tmp_path / "vm")
    found.state.mkdir(parents=True)
    mountinfo = found.at("/proc/self/mountinfo")
    mountinfo.parent.mkdir(parents=True)
    mountinfo.write_text(f"40 1 8:16 / {found.state} rw,nosuid - ext4 {image} rw\n")
    return found


def resize(image: Path, mib: int) -> None:
    with image.open("ab") as stream:
        stream.truncate(mib * MIB)


def filesystem(image: Path) -> int | None:
    return filesystem_bytes(image.read_bytes()[1024:2048])


def settled(state: StateDisk) -> str:
    """A look, and another one once what the first began has ended."""
    said = state.look()
    if state._growing is not None:
        state._growing.wait(60)
        said = state.look()
    return said


def test_a_disk_that_became_larger_is_used_in_full(paths: Paths, image: Path) -> None:
    said: list[str] = []
    state = StateDisk(paths, said.append)
    assert settled(state) == ""
    assert said == []
    assert state.usage.device == 64 * MIB
    # Less than a step is left alone: ext4 may have no use for it.
    resize(image, 64 + LARGER // MIB - 1)
    assert settled(state) == ""
    assert said == []
    assert filesystem(image) == 64 * MIB

    resize(image, 256)
    assert settled(state) == ""
    assert filesystem(image) == 256 * MIB
    assert [line.split(":")[-1].strip() for line in said] == [
        "growing it",
        "the state disk is used in full",
    ]
    assert settled(state) == ""
    assert len(said) == 2
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)


def test_one_that_cannot_be_grown_is_said_and_not_tried_again(
    paths: Paths, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = tmp_path / "tried"
    stub = tmp_path / "bin" / "resize2fs"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\necho x >>{tried}\necho 'resize2fs: no right' >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:/usr/bin:/bin")
    state = StateDisk(paths, lambda _: None)
    resize(image, 128)
    for _ in range(3):
        told = settled(state)
        assert "128 MiB and its file system 64 MiB" in told
        assert "no right" in told
    assert tried.read_text() == "x\n"
    # Made larger again it is tried again.
    resize(image, 256)
    assert "256 MiB" in settled(state)
    assert tried.read_text() == "x\nx\n"


def test_nothing_is_measured_where_nothing_is_mounted(paths: Paths) -> None:
    state = StateDisk(paths, lambda _: None)
    state.look()
    assert state.usage != Usage()
    paths.at("/proc/self/mountinfo").write_text("")
    assert state.look() == ""
    assert state.usage == Usage()


def test_without_ext4_there_is_no_size(image: Path) -> None:
    assert filesystem_bytes(b"") is None
    assert filesystem_bytes(bytes(1024)) is None
    large = image.parent / "large.img"
    resize(large, 20 << 10)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", str(large)], check=True)
    with large.open("rb") as stream:
        stream.seek(state_disk._AT)
        assert filesystem_bytes(stream.read(state_disk._BYTES)) == 20 << 30
