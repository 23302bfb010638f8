"""What must not happen, on QEMU guests: rows that need a kernel of their own, a few rounds each."""

from collections.abc import Iterator
from random import Random

import pytest

from tests.vm.conftest import Boot
from tests.vm.fleet import Fleet
from tests.vm.rows import QEMU, Row

pytestmark = pytest.mark.engine

AGENTS = 30


@pytest.fixture(scope="module")
def fleet(booted: Boot) -> Iterator[Fleet]:
    with booted("qemu", {"swarm-1": AGENTS}, 420) as made:
        yield made


@pytest.mark.parametrize("row", QEMU, ids=lambda row: row.name)
def test_it_does_not_happen(fleet: Fleet, row: Row) -> None:
    chance = Random(row.name)
    for _ in range(row.short):
        print(row.name, row.round(fleet, "swarm-1", chance))
