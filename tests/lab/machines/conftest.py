"""The image, built once for all, and a lab of two machines with a driver."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.machines import processes
from lab.machines.container import lab_name
from lab.machines.host import ensure_packages, missing_packages, no_containers
from lab.machines.image import ImageError, default_cache, ensure_image
from lab.machines.qemu import Qemu
from tests.lab.machines.prepared import fake_image


@pytest.fixture(scope="session")
def programs() -> Callable[[str], None]:
    """Have what a driver needs, or skip with the reason."""

    def ensure(driver: str) -> None:
        root = os.geteuid() == 0
        if driver == "container" and (why := no_containers()):
            pytest.skip(why)
        missing = missing_packages(driver, root=root)
        if missing and not root:
            pytest.skip(f"the {driver} driver needs {', '.join(missing)}")
        ensure_packages(driver)

    return ensure


@pytest.fixture(scope="session")
def image_cache(programs: Callable[[str], None]) -> Path:
    """The folder with the image, which is built if need be; workers wait for one build."""
    programs("qemu")  # what builds the image is any driver's
    cache = default_cache()
    try:
        ensure_image(cache)
    except ImageError as error:
        if os.geteuid() == 0:
            raise
        pytest.skip(f"no image without root on this machine: {error}")
    return cache


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """What the lab in `tmp_path` leaves on the machine makes its test fail."""
    yield
    assert leftovers(tmp_path) == set()


def leftovers(state: Path) -> set[str]:
    """Processes, mounts, namespaces, loop devices and cgroups of the lab in `state` that stay.

    What was told to go takes a moment: the kernel first writes a disk's dirty pages, behind
    whatever else this machine writes.
    """
    processes.until(lambda: not _of(state), 120, 0.2)
    return _of(state)


def _of(state: Path) -> set[str]:
    name = lab_name(state)
    mounts = Path("/proc/mounts").read_text().splitlines()
    found = {f"mount {line}" for line in mounts if str(state) in line or name in line}
    found |= {f"namespace {each}" for each in Path("/run/netns").glob(f"{name}*")}
    # Another lab's may go while one looks: Path.glob raises then, os.walk goes on.
    for each in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            file = each.read_text().strip()
            if str(state) in file and not _others_mount(f"/dev/{each.parts[3]}", file, state):
                found |= {f"loop {each}: {file}"}
    for folder, below, _ in os.walk("/sys/fs/cgroup"):
        found |= {f"cgroup {folder}/{name}"} if name in below else set()
    return found | {f"process {each}" for each in processes.having(str(state))}


def _others_mount(device: str, file: str, state: Path) -> bool:
    """Whether the image on a loop device is mounted by somebody: another lab, since of this one no
    process is left (docs/GOTCHAS.md: `mount -o loop` takes the device that an image has)."""
    if not file.startswith(str(state / "images")):
        return False
    for each in Path("/proc").glob("[0-9]*/mountinfo"):
        with suppress(OSError):
            if f" {device} " in each.read_text():
                return True
    return False


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    cached = fake_image(tmp_path / "cache")
    monkeypatch.setattr("lab.machines.qemu.ensure_image", lambda _: cached)
    monkeypatch.setattr("lab.machines.container.ensure_image", lambda _: cached)
    return Qemu(tmp_path / "state, of mine", metadata_endpoint=lambda _: ("127.0.0.1", 1))
