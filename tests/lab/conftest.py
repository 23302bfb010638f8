"""A lab in this process, and a client for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cloud.server import Serving, serve
from tests.lab.cloud.client import Client, make_network


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with serve(tmp_path / "state") as started:
        yield started


@pytest.fixture
def client(serving: Serving) -> Client:
    return Client(serving.url)


@pytest.fixture
def network(client: Client) -> Client:
    """A client for a lab that has the network `net` with the subnetwork `sub`."""
    make_network(client)
    return client
