"""This checkout's lab, served or not, in a folder of its own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from lab.cloud.server import serve
from lab.fleet import checkout, cloud
from lab.machines.driver import Driver
from tests.lab.cloud.client import Client
from tests.lab.fleet.fleet import make_vms

Served = Callable[..., AbstractContextManager[Client]]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a lab that is not served: nothing listens at its API."""
    folder = tmp_path / ".lab"
    folder.mkdir()
    monkeypatch.setattr(checkout, "STATE", folder)
    monkeypatch.setattr(cloud, "API", "http://127.0.0.1:9")
    monkeypatch.delenv("LAB_DRIVER", raising=False)
    # The contexts of whoever runs the tests are no test's.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


@pytest.fixture
def serving(state: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    """Serves this checkout's lab, with VMs of the fleet in it, by a driver or by none."""

    @contextmanager
    def serve_with(*names: str, driver: Driver | None = None) -> Iterator[Client]:
        with serve(state, driver=driver) as lab:
            monkeypatch.setattr(cloud, "API", lab.url)
            client = Client(lab.url)
            make_vms(client, *names)
            yield client

    return serve_with


@pytest.fixture
def served(serving: Served) -> Iterator[Client]:
    """This checkout's lab, with two of the fleet's VMs in it."""
    with serving("swarm-1", "swarm-2") as client:
        yield client
