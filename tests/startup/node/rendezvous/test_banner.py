"""The banner comes and goes."""

from __future__ import annotations

from startup.node.rendezvous import registry_copies
from startup.node.rendezvous.access_tokens import Tokens
from tests.startup.node.rendezvous.fleet import Fleet


def test_a_banner_comes_and_goes(fleet: Fleet) -> None:
    fleet.tokens = Tokens(values={"admin": "adm1n"})
    fleet.follower.declare(secrets={"admin": "projects/p/secrets/a/versions/latest"})
    fleet.until(fleet.serving, "serving")
    path = fleet.paths.registry / "banner.txt"
    fleet.follower.order(banner="Maintenance at 9")
    fleet.until(
        lambda: path.exists() and path.read_text().strip() == "Maintenance at 9", "a banner"
    )
    fleet.follower.order()
    fleet.until(lambda: not path.exists() or not path.read_text().strip(), "no banner")


def test_a_maintenance_event_saves_and_is_shown(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(3)
    fleet.follower.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
    fleet.until(lambda: len(registry_copies.copies(fleet.paths)) > 0, "a copy")
    fleet.until((fleet.paths.registry / "banner.txt").exists, "a banner")
    assert registry_copies.copies(fleet.paths)[-1].keys == 3
    fleet.follower.maintenance = "NONE"
    fleet.until(lambda: not (fleet.paths.registry / "banner.txt").exists(), "no banner")


def test_a_directory_for_a_banner_stops_nothing(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "serving")
    fleet.register(5)
    (fleet.paths.registry / "banner.txt").mkdir()
    fleet.follower.order(restart="r1")
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "a second start")
    assert registry_copies.copies(fleet.paths)[-1].keys == 5
    assert "banner.txt" in str(fleet.status()["last_error"])
