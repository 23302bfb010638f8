"""A registry that is lost with its disk, and the copies in the bucket."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from lab.standin.state import sealed
from startup.node.rendezvous import bucket_copies, registry_copies, registry_file
from startup.node.rendezvous.bucket_copies import usable
from startup.node.rendezvous.copies_bucket import Place, StoredCopy
from startup.node.rendezvous.next_node import SKIPPED
from startup.node.rendezvous.registry_copies import Copy, named, surplus
from tests.lab.standin.client import Client, Identity
from tests.startup.node.rendezvous.fleet import Fleet
from tests.startup.node.rendezvous.registry import NOW, snapshot

AGENTS = [Identity(owner=f"agent-{number}@x.invalid") for number in range(30)]
PLACE = Place(endpoint="", bucket="box", vm="vm")


def stored(name: str) -> StoredCopy:
    copy = named(name, 10)
    assert copy is not None
    return StoredCopy(copy=copy, generation=1, bucket="box", vm="vm", sha256="ab" * 32, cleaned="")


def register(fleet: Fleet, count: int, first: int = 0) -> dict[str, int]:
    """Agents that keep their keys."""
    with Client(("127.0.0.1", fleet.ports[0])) as client:
        agents = AGENTS[first : first + count]
        return {each.key: int(client.ask(each.register())["node_id"]) for each in agents}


def test_which_copies_are_this_registrys() -> None:
    first, second, third = (stored(f"20261130T11000{n}Z-5.json") for n in range(3))
    # The VM's clock was set back before.
    after = replace(second, cleaned="id-1", generation=2)
    assert usable([first, second], PLACE, None) == [first, second]
    # A new disk does not know that the registry was set aside by order; the newest copy does.
    assert usable([first, after, third], PLACE, None) == [after]
    assert usable([first, second], PLACE, "id-1") == []
    others = [replace(first, vm="x"), replace(first, bucket="x"), replace(first, sha256="")]
    assert usable(others, PLACE, None) == []


def copy_at(seconds: float, keys: int = 100, size: int = 10) -> Copy:
    return Copy(name=f"{int(seconds):010}-{keys}", time=seconds, size=size, keys=keys)


def test_their_bytes_are_bounded_and_a_registry_that_shrank_pushes_none_out() -> None:
    large = [copy_at(NOW + 86400 * number, size=1 << 29) for number in range(14)]
    kept = len(large) - len(surplus(large, bucket_copies.MOST_BYTES))
    assert kept * (1 << 29) == bucket_copies.MOST_BYTES
    whole, small = copy_at(NOW, keys=100), [copy_at(NOW + 86400 + n, keys=3) for n in range(99)]
    assert whole not in surplus([whole, *small], bucket_copies.MOST_BYTES)


def lost(fleet: Fleet) -> None:
    """A new VM with an empty disk."""
    fleet.unit.end()
    for folder in (fleet.paths.registry, fleet.paths.node_state):
        shutil.rmtree(folder)
    for name in ("rendezvous-run.json", "rendezvous-answered", "store.json"):
        (fleet.paths.run / name).unlink(missing_ok=True)
    fleet.paths.registry.mkdir()
    (fleet.paths.registry / "rate-limit-whitelist.json").write_text("[]")
    fleet.it = fleet.service()


def kept_in_the_bucket(fleet: Fleet, keys: int) -> None:
    fleet.it.keeper.save()
    fleet.until(
        lambda: any(each[0].copy.keys == keys for each in fleet.bucket.held.values()),
        f"a copy of {keys} keys in the bucket",
    )


def serve_with(fleet: Fleet, agents: int) -> dict[str, int]:
    fleet.until(fleet.serving, "serving")
    ids = register(fleet, agents)
    kept_in_the_bucket(fleet, agents)
    return ids


def waiting(fleet: Fleet) -> str:
    """What it says while it waits, a while later."""
    fleet.until(lambda: fleet.it.phase() == "failed", "that it waits")
    for _ in range(20):
        fleet.round()
    assert fleet.unit.starts == 0 or fleet.unit.child is None
    assert fleet.it.last_error is not None
    return fleet.it.last_error.text


def test_a_new_fleet_starts_empty_and_says_so(fleet: Fleet) -> None:
    console = fleet.paths.at("/dev/console")
    console.parent.mkdir()
    console.touch()
    fleet.until(fleet.serving, "serving")
    assert fleet.status()["registry"]["started_empty"] is True
    why = "THE REGISTRY MAY START EMPTY: there is no copy of it on the disk or in the bucket"
    assert why in fleet.said
    assert console.read_bytes() == f"pilot: {why}\r\n".encode()
    # Until there is a file.
    permit = registry_copies.empty_permit(fleet.paths)
    assert permit.exists()
    fleet.it.keeper.save()
    fleet.round()
    assert not permit.exists()


def test_an_empty_disk_gets_the_newest_copy_and_no_id_is_given_twice(fleet: Fleet) -> None:
    ids = serve_with(fleet, 20)
    told = fleet.status()["registry"]["bucket"]
    assert (told["copies"], told["error"]) == (len(fleet.bucket.held), "")
    assert told["newest"]
    # Registered after the last copy: lost with the disk.
    (late,) = register(fleet, 1, first=20).values()
    lost(fleet)
    fleet.until(fleet.serving, "serving from the bucket")
    assert register(fleet, 20) == ids
    told = fleet.status()["registry"]
    assert told["restored"] in fleet.bucket.held
    assert told["started_empty"] is False
    (new,) = register(fleet, 1, first=29).values()
    assert new > late + SKIPPED - 100
    assert new not in ids.values()


def test_a_bucket_that_is_away_is_waited_for(fleet: Fleet) -> None:
    ids = serve_with(fleet, 5)
    lost(fleet)
    fleet.bucket.away = "gs://box: timed out"
    assert "gs://box: timed out. It is not started empty" in waiting(fleet)
    fleet.bucket.away = ""
    fleet.until(fleet.serving, "serving from the bucket")
    assert register(fleet, 5) == ids


def test_a_bucket_that_is_away_holds_up_nothing_where_the_disk_has_a_copy(fleet: Fleet) -> None:
    ids = serve_with(fleet, 5)
    fleet.bucket.away = "gs://box: timed out"
    fleet.unit.end()
    (fleet.paths.registry / registry_file.NAME).write_bytes(b"{")
    fleet.it = fleet.service()
    fleet.until(fleet.serving, "serving from the disk's copy")
    assert register(fleet, 5) == ids
    register(fleet, 1, first=5)
    fleet.it.keeper.save()
    fleet.until(
        lambda: bool(fleet.status()["registry"]["bucket"]["error"]), "that it is not stored"
    )
    assert fleet.serving()


def test_the_newest_copy_is_the_one_stored_last_whatever_the_vms_clock_said(fleet: Fleet) -> None:
    serve_with(fleet, 5)
    for name, (each, content) in list(fleet.bucket.held.items()):
        ahead = named(f"2099{name[4:]}", each.copy.size)
        assert ahead is not None
        del fleet.bucket.held[name]
        fleet.bucket.held[ahead.name] = (replace(each, copy=ahead), content)
    ids = register(fleet, 9)
    kept_in_the_bucket(fleet, 9)
    lost(fleet)
    fleet.until(fleet.serving, "serving from the bucket")
    assert register(fleet, 9) == ids
    assert fleet.status()["registry"]["restored"].endswith("-9.json")


@pytest.mark.parametrize("harm", ["truncated", "of another fleet", "no copies", "on the disk"])
def test_only_bad_copies_are_no_reason_to_start_empty_but_an_order_is(
    fleet: Fleet, harm: str
) -> None:
    serve_with(fleet, 5)
    for name, (each, content) in fleet.bucket.held.items():
        if harm == "truncated":
            fleet.bucket.held[name] = (each, content[:-20])
        else:
            fleet.bucket.held[name] = (replace(each, vm="another"), content)
    if harm == "no copies":
        fleet.bucket.held.clear()
        fleet.bucket.strange = 1
    spoilt = [each.name for each in registry_copies.copies(fleet.paths)]
    lost(fleet)
    if harm == "on the disk":
        fleet.bucket.held.clear()
        folder = registry_copies.copies_folder(fleet.paths)
        for name in spoilt:
            (folder / name).write_bytes(b"{")
    assert "no good copy of this VM's registry" in waiting(fleet)
    fleet.follower.order(restart="r1", clean=True)
    fleet.until(fleet.serving, "an empty registry")
    told = fleet.status()["registry"]
    assert (told["started_empty"], told["total"]) == (True, 0)
    assert any("THE REGISTRY MAY START EMPTY: as ordered" in line for line in fleet.said)


def test_a_copy_that_is_newer_but_smaller_or_bad_is_passed_over(fleet: Fleet) -> None:
    ids = serve_with(fleet, 9)
    good = next(reversed(fleet.bucket.held.values()))
    fleet.bucket.store("20990101T000000Z-2.json", snapshot(2), "")
    # One that is bad, and says that the good one is small.
    name = "20990101T000001Z-9999.json"
    fleet.bucket.store(name, good[1], "")
    each, content = fleet.bucket.held[name]
    fleet.bucket.held[name] = (each, content[:-1])
    lost(fleet)
    fleet.until(fleet.serving, "serving from the bucket")
    assert register(fleet, 9) == ids


def test_what_an_order_set_aside_does_not_come_back_from_the_bucket(fleet: Fleet) -> None:
    serve_with(fleet, 9)
    fleet.follower.order(restart="r1", clean=True)
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "an empty registry")
    fleet.follower.order()
    # Lost before there is a copy of the new one: it may be empty, as ordered.
    fleet.unit.end()
    shutil.rmtree(fleet.paths.registry / "copies")
    (fleet.paths.registry / registry_file.NAME).unlink(missing_ok=True)
    fleet.it = fleet.service()
    fleet.until(fleet.serving, "an empty registry again")
    assert fleet.health().total == 0
    ids = register(fleet, 3)
    kept_in_the_bucket(fleet, 3)
    lost(fleet)
    fleet.until(fleet.serving, "serving from the bucket")
    assert register(fleet, 3) == ids
    assert registry_copies.cleaned_by(fleet.paths) == "r1"


def test_a_file_that_goes_bad_while_systemd_starts_it_again(fleet: Fleet) -> None:
    """No copy is on the disk any more: `store` refuses, and pilot-node fetches one meanwhile."""
    ids = serve_with(fleet, 5)
    shutil.rmtree(fleet.paths.registry / "copies")
    (fleet.paths.registry / registry_file.NAME).write_bytes(b"{")
    fleet.unit.kill()
    fleet.until(lambda: fleet.unit.refusals > 0, "a start that is refused")
    fleet.until(fleet.serving, "serving from the bucket")
    assert register(fleet, 5) == ids


def test_copies_are_stored_again_after_a_crash_that_healed_itself(fleet: Fleet) -> None:
    """While systemd starts it again a copy may be searched for; that must end with the start."""
    ids = serve_with(fleet, 5)
    fleet.it.keeper.registry.bucket.search()
    fleet.round()
    register(fleet, 3, first=5)
    fleet.now += 400
    kept_in_the_bucket(fleet, 8)
    assert register(fleet, 5) == ids


def test_a_registry_of_which_all_was_bad_and_set_aside_does_not_start_empty(fleet: Fleet) -> None:
    """Nothing of it is in the bucket; systemd's own start has renamed what was bad."""
    serve_with(fleet, 5)
    lost(fleet)
    fleet.bucket.held.clear()
    (fleet.paths.registry / f"{registry_file.NAME}.bad-20261130T120000Z").write_bytes(b"{")
    assert "no good copy of this VM's registry" in waiting(fleet)
    lost(fleet)
    folder = registry_copies.copies_folder(fleet.paths)
    (folder / "20261130T120000Z-5.json.bad").write_bytes(b"{")
    assert "no good copy of this VM's registry" in waiting(fleet)


def test_a_format_that_is_not_known_is_not_put_back(fleet: Fleet) -> None:
    serve_with(fleet, 5)
    held = fleet.bucket.held
    for name, (_, content) in list(held.items()):
        document = {**json.loads(content), "version": 2}
        del document["checksum"]
        text = json.dumps(document, separators=(",", ":")).encode()
        fleet.bucket.store(name, sealed(text), "")
    lost(fleet)
    assert "its format is version 2" in waiting(fleet)


@pytest.mark.parametrize("there", ["on the disk", "in the bucket"])
def test_a_copy_is_put_back_by_order_once(fleet: Fleet, there: str) -> None:
    ids = serve_with(fleet, 5)
    (first,) = fleet.bucket.held
    register(fleet, 3, first=5)
    fleet.now += 400
    kept_in_the_bucket(fleet, 8)
    if there == "in the bucket":
        (fleet.paths.registry / "copies" / first).unlink()
    fleet.follower.order(restart="r1", restore=first)
    fleet.until(lambda: fleet.unit.starts == 2 and fleet.serving(), "serving again")
    assert fleet.health().total == 5
    assert register(fleet, 5) == ids
    (new,) = register(fleet, 1, first=6).values()
    assert new > SKIPPED
    # What it replaced does not come back by itself.
    kept_in_the_bucket(fleet, 6)
    # As `ops` does when it is carried out.
    fleet.follower.order()
    lost(fleet)
    fleet.until(fleet.serving, "serving from the bucket")
    assert fleet.health().total == 6


def test_a_format_that_is_not_known_is_put_back_by_order_as_it_is(fleet: Fleet) -> None:
    serve_with(fleet, 5)
    (name,) = fleet.bucket.held
    newer = sealed(b'{"version":2,"next_node":7,"nodes":{}}')
    fleet.bucket.store(name, newer, "")
    registry_copies.copies_folder(fleet.paths)
    (fleet.paths.registry / "copies" / name).write_bytes(newer)
    fleet.unit.end()
    fleet.it = fleet.service()
    registry_copies.put_back_by_order(fleet.paths, name, NOW, fleet.said.append)
    assert (fleet.paths.registry / registry_file.NAME).read_bytes() == newer


def test_a_copy_that_cannot_be_put_back_costs_no_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_with(fleet, 5)
    (name,) = fleet.bucket.held
    fleet.unit.end()
    monkeypatch.setattr(registry_copies, "MOST_PARSED", 10)
    with pytest.raises(registry_file.BadRegistryError, match="too many"):
        registry_copies.put_back_by_order(fleet.paths, name, NOW, fleet.said.append)
    assert (fleet.paths.registry / "copies" / name).exists()
    assert (fleet.paths.registry / registry_file.NAME).exists()
    assert not list(fleet.paths.registry.glob(f".{registry_file.NAME}.*"))


def test_a_copy_that_is_ordered_and_not_there_is_said(fleet: Fleet) -> None:
    serve_with(fleet, 5)
    fleet.follower.order(restart="r1", restore="20200101T000000Z-5.json")
    fleet.until(
        lambda: any("there is no copy 20200101T000000Z-5.json" in line for line in fleet.said),
        "that it is not there",
    )
    # A name may be wrong: the registry goes on meanwhile.
    assert fleet.serving()
    assert fleet.unit.starts == 1
    fleet.follower.order(restart="r2")
    fleet.until(fleet.serving, "serving as before")
    assert fleet.health().total == 5


def test_one_without_the_right_to_write_stores_nothing(fleet: Fleet) -> None:
    fleet.follower.declare(upload_copies=False)
    fleet.until(fleet.serving, "serving")
    register(fleet, 3)
    fleet.it.keeper.save()
    for _ in range(5):
        fleet.round()
    assert fleet.bucket.held == {}
    told = fleet.status()["registry"]
    assert told["copies"] == 1
    assert told["bucket"] == {"copies": None, "newest": None, "error": ""}
