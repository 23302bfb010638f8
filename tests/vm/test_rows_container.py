"""What must not happen, on a fleet of containers: a few rounds of each row of `rows`.

The campaign (`make campaign`) makes the full counts of the same rounds.
"""

from collections.abc import Iterator
from random import Random

import pytest

from tests.conftest import measured
from tests.vm.conftest import Boot
from tests.vm.fleet import Fleet
from tests.vm.moved_registry import ZONES
from tests.vm.rows import CONTAINER, Row

pytestmark = pytest.mark.engine

VMS = ("swarm-1", "swarm-2", "swarm-3")
AGENTS = 100


@pytest.fixture(scope="module")
def fleet(booted: Boot) -> Iterator[Fleet]:
    # A dead zone must not have swarm VMs: they would have no registry until it is back.
    with booted("container", dict.fromkeys(VMS, AGENTS), 240, rendezvous_zone=ZONES[0]) as made:
        yield made


@pytest.mark.parametrize("row", [row for row in CONTAINER if row.short], ids=lambda row: row.name)
def test_it_does_not_happen(fleet: Fleet, row: Row) -> None:
    chance = Random(row.name)
    wanted = dict.fromkeys(VMS, row.few or AGENTS)
    if fleet.wanted != wanted:
        fleet.update(wanted, {})
        for vm in VMS:
            fleet.whole(vm)
    for _ in range(row.short):
        measured(f"{row.name}: {row.round(fleet, 'swarm-1', chance)}")
