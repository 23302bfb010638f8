"""This checkout's lab, served or not, in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import checkout, cloud
from lab.server import Serving, serve
from tests.demo.fleet import make_vms
from tests.lab.client import Client


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a lab that is not served: nobody listens at its API."""
    folder = tmp_path / ".lab"
    folder.mkdir()
    monkeypatch.setattr(checkout, "STATE", folder)
    monkeypatch.setattr(cloud, "API", "http://127.0.0.1:9")
    monkeypatch.delenv("LAB_DRIVER", raising=False)
    return folder


@pytest.fixture
def served(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """This checkout's lab, with two of the fleet's VMs in it."""
    with serve(state) as serving:
        make_vms(Client(serving.url), "swarm-1", "swarm-2")
        monkeypatch.setattr(cloud, "API", serving.url)
        yield serving
