"""A lab with the instance `vm`, its metadata server, and connections from it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.cloud.metadata.server import MetadataServing, serve_metadata
from lab.cloud.server import Serving
from tests.lab.cloud.client import ZONE, Client, vm
from tests.lab.cloud.guest import ACCOUNT, PATH, Guest, Looks, metadata


@pytest.fixture
def cloud(network: Client) -> Client:
    """A lab with the instance `vm`."""
    account = {"email": ACCOUNT, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
    body = vm(
        metadata=metadata(enable_guest_attributes="TRUE", spec="{}"),
        tags={"items": ["web", "db"]},
        serviceAccounts=[account],
    )
    network.do("POST", f"{ZONE}/instances", body)
    return network


@pytest.fixture
def served(serving: Serving, cloud: Client) -> Iterator[MetadataServing]:
    del cloud
    with serve_metadata(serving.lab, PATH, ("127.0.0.1", 0)) as started:
        yield started


@pytest.fixture
def connect(served: MetadataServing) -> Iterator[Callable[[], Guest]]:
    guests: list[Guest] = []

    def new() -> Guest:
        guests.append(Guest(served.address))
        return guests[-1]

    yield new
    for each in guests:
        each.connection.close()


@pytest.fixture
def guest(connect: Callable[[], Guest]) -> Guest:
    return connect()


@pytest.fixture
def looks(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(serving.lab.store, monkeypatch)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as started:
        yield started
