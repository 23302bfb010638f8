"""What must not happen, on a fleet of containers: a few rounds of each row of `rows`.

The campaign (`make campaign`) makes the full counts of the same rounds.
"""

from collections.abc import Iterator
from random import Random

import pytest

from tests.vm.conftest import Boot
from tests.vm.fleet import Fleet
from tests.vm.rows import CONTAINER, Row

pytestmark = pytest.mark.engine

WANTED = {"swarm-1": 100, "swarm-2": 100, "swarm-3": 100}


@pytest.fixture(scope="module")
def fleet(booted: Boot) -> Iterator[Fleet]:
    with booted("container", WANTED, 240) as made:
        yield made


@pytest.mark.parametrize("row", [row for row in CONTAINER if row.short], ids=lambda row: row.name)
def test_it_does_not_happen(fleet: Fleet, row: Row) -> None:
    chance = Random(row.name)
    for _ in range(row.short):
        print(row.name, row.round(fleet, "swarm-1", chance))
