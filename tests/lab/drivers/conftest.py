"""The image, built once for all, and a lab of two machines with a driver."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.drivers.container import lab_name
from lab.drivers.host import ensure_packages, missing_packages
from lab.drivers.processes import having
from lab.image import default_cache, ensure_image


@pytest.fixture(scope="session")
def image_cache() -> Path:
    """The folder with the image, which is built if need be; workers wait for one build."""
    cache = default_cache()
    ensure_image(cache)
    return cache


@pytest.fixture(scope="session")
def programs() -> Callable[[str], None]:
    """Have what a driver needs, or skip with the reason."""

    def ensure(driver: str) -> None:
        root = os.geteuid() == 0
        if driver == "container" and not root:
            pytest.skip("containers need root")
        missing = missing_packages(driver, root=root)
        if missing and not root:
            pytest.skip(f"the {driver} driver needs {', '.join(missing)}")
        ensure_packages(driver)

    return ensure


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """What the lab in `tmp_path` leaves on the machine makes its test fail."""
    yield
    assert leftovers(tmp_path) == set()


def leftovers(state: Path) -> set[str]:
    """Processes, mounts, namespaces, loop devices and cgroups of the lab in `state`."""
    name = lab_name(state)
    mounts = Path("/proc/mounts").read_text().splitlines()
    found = {f"mount {line}" for line in mounts if str(state) in line or name in line}
    found |= {f"namespace {each}" for each in Path("/run/netns").glob(f"{name}*")}
    # Another lab's may go while one looks: Path.glob raises then, os.walk goes on.
    for each in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            file = each.read_text().strip()
            found |= {f"loop {each}: {file}"} if str(state) in file else set()
    for folder, below, _ in os.walk("/sys/fs/cgroup"):
        found |= {f"cgroup {folder}/{name}"} if name in below else set()
    return found | {f"process {each}" for each in having(str(state))}
