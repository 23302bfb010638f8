"""The image, built once for all, and a lab of two machines with a driver."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.drivers.host import ensure_packages, missing_packages
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
def nothing_left() -> Iterator[None]:
    """What a test leaves on the machine makes it fail: processes, mounts, namespaces, loops."""
    before = leftovers()
    yield
    after = leftovers()
    assert after <= before, f"left behind: {sorted(after - before)}"


def leftovers() -> set[str]:
    found = {f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines()}
    found |= {f"namespace {each.name}" for each in Path("/run/netns").glob("*")}
    found |= {f"interface {each.name}" for each in Path("/sys/class/net").glob("*")}
    for each in Path("/sys/block").glob("loop*/loop/backing_file"):
        found.add(f"loop {each.read_text().strip()}")
    found |= {f"cgroup {each}" for each in Path("/sys/fs/cgroup").glob("**/lab-*")}
    return found
