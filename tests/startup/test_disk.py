"""The state disk: formatted once, never over anything, checked, mounted. Real ext4, real wipefs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.machines.processes import ending
from tests.startup.conftest import Vm


def signatures(image: Path) -> set[str]:
    done = subprocess.run(
        ["wipefs", "--no-act", "--noheadings", "--output", "TYPE", str(image)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def unique_id(image: Path) -> str:
    done = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "UUID", str(image)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_an_empty_disk_is_formatted_once(vm: Vm) -> None:
    image = vm.attach_disk()
    status, output = vm.call("ensure_state_disk")
    assert status == 0, output
    assert "formatting it, once" in output
    assert signatures(image) == {"ext4"}
    mount = f"mount -t ext4 -o nodev,nosuid,errors=remount-ro {image} {vm.root}/var/lib/pilot"
    assert vm.calls("mount") == [mount]
    before = unique_id(image)
    mountinfo = vm.root / "proc/self/mountinfo"
    mounted = mountinfo.read_text(encoding="utf-8")
    mountinfo.write_text("", encoding="utf-8")
    status, output = vm.call("ensure_state_disk")
    assert status == 0, output
    assert output == ""
    assert unique_id(image) == before
    # Mounted already: nothing is looked at.
    mountinfo.write_text(mounted, encoding="utf-8")
    status, output = vm.call("ensure_state_disk")
    assert (status, len(vm.calls("mount"))) == (0, 2)
    assert "is mounted already" in output


def partition_table(image: Path) -> None:
    """A DOS partition table with one entry (sfdisk may not be there)."""
    with image.open("r+b") as stream:
        stream.seek(446)
        stream.write(bytes([0, 0, 2, 0, 0x83, 255, 255, 255, 1, 0, 0, 0, 255, 1, 0, 0]))
        stream.seek(510)
        stream.write(b"\x55\xaa")


@pytest.mark.parametrize("kind", ["ext2", "swap", "dos"])
def test_a_disk_with_anything_else_on_it_is_not_touched(vm: Vm, kind: str) -> None:
    image = vm.attach_disk()
    if kind == "ext2":
        subprocess.run(["mke2fs", "-q", "-t", "ext2", str(image)], check=True)
    elif kind == "swap":
        subprocess.run(["mkswap", str(image)], check=True, capture_output=True)
    else:
        partition_table(image)
    before = image.read_bytes()
    assert signatures(image) == {kind}
    status, output = vm.call("ensure_state_disk")
    assert status == 1, output
    assert f"carries {kind}, not ext4: not touching it" in output
    assert vm.calls("mount") == []
    assert image.read_bytes() == before


def test_a_disk_that_cannot_be_read_is_not_formatted(vm: Vm) -> None:
    vm.attach_disk()
    vm.stub("wipefs", "exit 1")
    vm.stub("mkfs.ext4", "")
    status, _ = vm.call("ensure_state_disk")
    assert status != 0
    assert vm.calls("mkfs.ext4") == []


def test_a_damaged_file_system_is_for_a_person(vm: Vm) -> None:
    image = vm.attach_disk()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with image.open("r+b") as stream:
        # The group descriptors, behind the superblock.
        stream.seek(2048 if image.stat().st_size < 512 << 20 else 4096)
        stream.write(b"\xff" * 4096)
    status, output = vm.call("ensure_state_disk")
    assert status == 1, output
    assert "look at it with e2fsck" in output
    assert vm.calls("mount") == []


def test_a_failed_mount_is_a_failure(vm: Vm) -> None:
    vm.attach_disk()
    vm.stub("mount", "exit 32")
    assert vm.call("ensure_state_disk")[0] == 32
    # Only root gets into the directory where the disk should be.
    assert (vm.root / "var/lib/pilot").stat().st_mode & 0o777 == 0o700


def test_a_disk_that_comes_late_is_waited_for(vm: Vm) -> None:
    process = subprocess.Popen(
        [
            "bash",
            "-c",
            (
                f'source "{vm.script}"; sleep() {{ echo waiting; command sleep "$1"; }}\n'
                "ensure_state_disk"
            ),
        ],
        env=vm.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with ending(process):
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        vm.attach_disk()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert vm.calls("mount")


def test_a_disk_that_never_comes(vm: Vm) -> None:
    status, output = vm.call("ensure_state_disk", PILOT_DEVICE_SECONDS="0")
    assert status == 1
    assert "is the state disk attached as pilot-state?" in output


def lose(image: Path, first: int, count: int) -> None:
    with image.open("r+b") as stream:
        stream.seek(first)
        stream.write(bytes(count))


@pytest.mark.parametrize("lost", [4096, 1 << 20])
def test_a_disk_that_lost_its_beginning_is_not_formatted(vm: Vm, lost: int) -> None:
    """No signature is left, but the first copy of the superblock is: at block 32768."""
    image = vm.attach_disk(200)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", str(image)], check=True)
    if lost > 4096:
        # Everything of the first block group.
        lost = 32768 * 4096
    lose(image, 0, lost)
    assert signatures(image) == set()
    status, output = vm.call("ensure_state_disk")
    assert status == 1, output
    assert "has no signature, but is not blank" in output
    assert f"e2fsck -b 32768 {image}" in output
    assert signatures(image) == set()
    # The advice is good.
    if lost == 4096:
        done = subprocess.run(["e2fsck", "-y", "-b", "32768", str(image)], check=False)
        assert done.returncode == 1
        assert vm.call("ensure_state_disk")[0] == 0


def test_a_disk_whose_blankness_cannot_be_read_is_not_formatted(vm: Vm) -> None:
    vm.attach_disk()
    vm.stub("cmp", "exit 2")
    vm.stub("mkfs.ext4", "")
    status, output = vm.call("ensure_state_disk")
    assert status == 1
    assert "cannot be read" in output
    assert vm.calls("mkfs.ext4") == []


def test_a_disk_of_the_right_size_is_not_resized(vm: Vm) -> None:
    vm.attach_disk()
    vm.stub("resize2fs", "exit 1")
    assert vm.call("ensure_state_disk")[0] == 0
    assert vm.calls("resize2fs") == []


def test_a_larger_disk_is_used_while_it_is_mounted(vm: Vm) -> None:
    image = vm.attach_disk()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with image.open("r+b") as stream:
        stream.truncate(64 << 20)
    vm.stub("resize2fs", "")
    status, output = vm.call("ensure_state_disk")
    assert status == 0, output
    calls = [line.split(" ")[0] for line in vm.log.read_text(encoding="utf-8").splitlines()]
    assert calls == ["mount", "resize2fs"]
    # Where the kernel denies that: unmounted, checked in full, mounted again.
    (vm.root / "proc/self/mountinfo").write_text("", encoding="utf-8")
    vm.log.write_text("", encoding="utf-8")
    vm.stub("resize2fs", f'[ "$(grep -c "^resize2fs" "{vm.log}")" -gt 1 ]')
    status, output = vm.call("ensure_state_disk")
    assert status == 0, output
    calls = [line.split(" ")[0] for line in vm.log.read_text(encoding="utf-8").splitlines()]
    assert calls == ["mount", "resize2fs", "umount", "resize2fs", "mount"]


@pytest.mark.parametrize(
    ("device", "options", "said"),
    [
        ("/dev/sdz", "rw", "is /dev/sdz, not "),
        ("", "ro,errors=remount-ro", "is mounted read-only"),
    ],
)
def test_the_mounted_device_is_the_disk_and_writable(
    vm: Vm, device: str, options: str, said: str
) -> None:
    image = vm.attach_disk()
    vm.mount("/var/lib/pilot", device or str(image), options)
    status, output = vm.call("ensure_state_disk")
    assert status == 1, output
    assert said in output


@pytest.fixture
def mounting(vm: Vm) -> Iterator[Vm]:
    """A VM that mounts for real."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    for name in ("mount", "umount"):
        (vm.bin / name).unlink()
    mountinfo = vm.root / "proc/self/mountinfo"
    mountinfo.unlink()
    mountinfo.symlink_to("/proc/self/mountinfo")
    image = vm.attach_disk()
    probe = vm.root.parent / "probe"
    probe.mkdir()
    spare = vm.root.parent / "spare.img"
    with spare.open("wb") as stream:
        stream.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(spare)], check=True)
    done = subprocess.run(["mount", str(spare), str(probe)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine cannot mount a file: {done.stderr.decode().strip()}")
    subprocess.run(["umount", str(probe)], check=True)
    assert image.exists()
    yield vm
    for name in ("var/lib/pilot", "run/pilot/log"):
        subprocess.run(["umount", str(vm.root / name)], capture_output=True, check=False)


def test_files_survive_and_a_larger_disk_is_used(mounting: Vm) -> None:
    vm = mounting
    state = vm.root / "var/lib/pilot"
    status, output = vm.call("ensure_state_disk")
    assert status == 0, output
    assert state.is_mount()
    assert state.stat().st_mode & 0o777 == 0o755
    (state / "kept").write_text("identity", encoding="utf-8")
    size = os.statvfs(state).f_blocks
    subprocess.run(["umount", str(state)], check=True)
    with (vm.root.parent / "disk.img").open("r+b") as stream:
        stream.truncate(32 << 20)
    status, output = vm.call("ensure_state_disk")
    assert status == 0, output
    assert (state / "kept").read_text(encoding="utf-8") == "identity"
    assert os.statvfs(state).f_blocks > size * 2


def as_an_agent(code: str, run: Path) -> int:
    return subprocess.run(
        ["bash", "-c", code, "bash", str(run)], check=False, user=610, group=610, extra_groups=[]
    ).returncode


def test_an_agent_can_make_nothing_in_run(mounting: Vm) -> None:
    vm = mounting
    (vm.root / "run/pilot").mkdir(parents=True)
    for folder in (vm.root, *vm.root.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    status, output = vm.call("ROLE=swarm; umask 022; ensure_logs; ensure_logs")
    assert status == 0, output
    run = vm.root / "run/pilot"
    assert as_an_agent('cd "$1"', run) == 0
    for code in (': >"$1/guard"', 'mv "$1/log" "$1/other"', ': >"$1/log/10001"', 'ls "$1/log"'):
        assert as_an_agent(f"{{ {code}; }} 2>/dev/null", run) != 0, code
