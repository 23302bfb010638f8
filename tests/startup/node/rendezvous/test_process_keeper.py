"""Planned stops and starts of the process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from startup.node.desired.orders import Orders
from startup.node.rendezvous import registry_copies
from startup.node.setup import units
from tests.startup.node.rendezvous.fleet import Fleet, free_ports


def test_it_is_started_and_known_again(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "a rendezvous that serves")
    fleet.register(4)
    before = fleet.pid()
    fleet.it = fleet.service()
    fleet.until(fleet.serving, "the same one, by another pilot-node")
    assert (fleet.pid(), fleet.unit.starts) == (before, 1)
    fleet.it.registry.copy()
    fleet.it.observer.health = fleet.health()
    found = fleet.status()
    assert found["registry"]["total"] == 4
    assert found["release"]["sha256"] == fleet.good
    assert found["phase"] == "serving"


def test_another_order_of_its_unit_takes_nobody_offline(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = units.unit_files

    def without(lines: str) -> Callable[..., dict[str, str]]:
        return lambda *given: {
            path: re.sub(rf"^(?:{lines})=.*\n", "", text, flags=re.MULTILINE)
            for path, text in real(*given).items()
        }

    monkeypatch.setattr(units, "unit_files", without("Before|SyslogIdentifier"))
    fleet.until(fleet.serving, "serving")
    monkeypatch.setattr(units, "unit_files", real)
    for _ in range(5):
        fleet.round()
    assert not [line for line in fleet.said if "another unit" in line]
    monkeypatch.setattr(units, "unit_files", without("UMask"))
    fleet.until(lambda: "another unit" in "".join(fleet.said), "that it is another unit")


def test_only_root_may_read_the_record_of_its_run(fleet: Fleet) -> None:
    """A hash of its tokens is in it."""
    fleet.until(fleet.serving, "serving")
    assert (fleet.paths.run / "rendezvous-run.json").stat().st_mode & 0o777 == 0o600


def test_hold_saves_and_stops_and_going_on_starts(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    fleet.follower.order(hold=True)
    fleet.until(lambda: fleet.it.phase() == "held", "held")
    assert registry_copies.copies(fleet.paths)[-1].keys == 5
    fleet.round()
    assert fleet.unit.starts == 1
    fleet.follower.order()
    fleet.until(fleet.serving, "serving again")
    assert fleet.health().total == 5


def test_a_restart_is_once_and_saves_first(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    fleet.follower.order(restart="r1")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    assert fleet.health().total == 5
    assert registry_copies.copies(fleet.paths)[-1].keys == 5
    for _ in range(5):
        fleet.round()
    # Its object is gone: nothing is ordered, and nothing changes.
    fleet.follower.standing = replace(fleet.follower.standing, orders=Orders())
    for _ in range(5):
        fleet.round()
    assert fleet.unit.starts == 2


def test_clean_is_an_empty_registry_once(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    fleet.follower.order(restart="r1", clean=True)
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    assert fleet.health().total == 0
    assert (fleet.paths.registry / "rate-limit-whitelist.json").exists()
    fleet.register(2)
    fleet.unit.stop()
    fleet.it = fleet.service()
    fleet.until(lambda: fleet.unit.starts == 3 and fleet.serving(), "a third start")
    assert fleet.health().total == 2
    assert list((fleet.paths.registry / "copies").glob("*.before-clean"))


def test_only_a_change_of_its_run_restarts_it(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.follower.declare(agents=60)
    for _ in range(40):
        fleet.round()
    assert fleet.unit.starts == 1
    fleet.follower.declare(environment={"GOGC": "50"})
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "another environment")
    (port,) = free_ports(1)
    fleet.follower.declare(dashboard_port=port)
    fleet.until(lambda: fleet.unit.starts == 3 and fleet.serving(), "another port")


def test_orders_are_obeyed_on_a_disk_that_refuses(
    fleet: Fleet, refusing: Callable[[], None]
) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    refusing()
    fleet.follower.order(restart="r1")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    assert fleet.health().total == 5
    fleet.follower.order(restart="r1", hold=True)
    fleet.until(lambda: fleet.it.phase() == "held", "held")
    assert "No space left on device" in "\n".join(fleet.said)
