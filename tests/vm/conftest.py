"""One fleet for all tests of a driver: booting it is what takes the time."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.machines.host import ensure_packages, missing_packages, no_containers
from lab.machines.image import ImageError, default_cache, ensure_image
from tests.components.fleet import ROOT
from tests.vm import update
from tests.vm.fleet import ZONE, Fleet

Boot = Callable[..., AbstractContextManager[Fleet]]


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory, pulumi_env: dict[str, str]) -> Boot:
    """Makes a fleet: driver, agents by swarm VM, seconds that a boot may take, the checkout that it
    is carried out from, and the rendezvous' zone."""

    @contextmanager
    def boot(
        driver: str,
        wanted: dict[str, int],
        patience: float,
        tree: Path = ROOT,
        settings: dict[str, Any] | None = None,
        rendezvous_zone: str = ZONE,
    ) -> Iterator[Fleet]:
        root = os.geteuid() == 0
        if driver == "container" and (why := no_containers()):
            pytest.skip(why)
        if not root and (missing := missing_packages(driver, root=root)):
            pytest.skip(f"the {driver} driver needs {', '.join(missing)}")
        ensure_packages(driver)
        try:
            ensure_image(default_cache())
        except ImageError as error:
            if root:
                raise
            pytest.skip(f"no image without root on this machine: {error}")
        folder: Path = tmp_path_factory.mktemp(driver)
        fleet = Fleet(folder, pulumi_env, driver=driver, patience=patience)
        try:
            fleet.take(tree)
            fleet.settings = dict(settings or {})
            fleet.rendezvous_zone = rendezvous_zone
            fleet.carry_out(wanted)
            yield fleet
        finally:
            assert fleet.end() == set()

    return boot


@pytest.fixture(scope="session")
def commit() -> str:
    """The commit that an update comes from; "" where there is none, and why is printed."""
    try:
        return update.commit_before()
    except update.NoCommitError as error:
        print(f"no commit to come from: {error}")
        return ""


@pytest.fixture(scope="session")
def before(commit: str, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The tree of that commit."""
    if not commit:
        return None
    return update.checked_out(commit, tmp_path_factory.mktemp("before") / "tree")
