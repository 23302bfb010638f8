"""A lab whose driver records its calls."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cloud.server import serve
from tests.lab.cloud.client import Client, make_network
from tests.lab.cloud.fake_drivers import Recorder


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def machines(tmp_path: Path, recorder: Recorder) -> Iterator[Client]:
    with serve(tmp_path / "machines", driver=recorder) as serving:
        client = Client(serving.url)
        make_network(client)
        yield client
