"""The rendezvous changes zone, also while the zone that it leaves is dead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random

from tests.vm.fleet import CLOUD, RENDEZVOUS, Fleet, Measured
from tests.vm.lost_registry import newest_in_bucket
from tests.vm.update import Look, Looks, Told, problems, restarts

# Those of the region in which no swarm VM is.
ZONES = ("us-central1-b", "us-central1-c", "us-central1-f")
# Prints how many agents were started with the registry $1 and have their socket, so are registered.
_REGISTERED = r"""
for p in $(pgrep -x pilot-daemon); do
  tr '\0' '\n' <"/proc/$p/environ" | grep -qx "PILOT_AGENT_REGISTRY=$1" || continue
  [ -S "$(tr '\0' '\n' <"/proc/$p/cmdline" | sed -n '/^-socket$/{n;p}')" ] && echo "$p"
done 2>/dev/null | wc -l
"""


def zone_changes(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """`rendezvous.zone` names another zone: the registry is there with all IDs, the agents
    restart, a window's worth at a time, and the old VM is gone."""
    old = fleet.rendezvous_zone
    newest_in_bucket(fleet)
    told = _moved(fleet, chance, fleet.identities())
    assert fleet.api.call("GET", _instance(old)).status == 404, "the old VM is still there"
    _let_go(fleet, old)
    return told


def zone_dies(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """The same after the rendezvous' power was cut, in a zone for which Google does not answer: the
    fleet is whole without it. The next `up` deletes the old VM once the zone answers."""
    old = fleet.rendezvous_zone
    newest_in_bucket(fleet)
    known = fleet.identities()
    fleet.cut(RENDEZVOUS)
    cut = time.time()
    fleet.api.do("POST", f"/lab/zones/{old}", {"away": True})
    try:
        told = _moved(fleet, chance, known, cut=cut)
    finally:
        fleet.api.do("POST", f"/lab/zones/{old}", {"away": False})
    assert fleet.api.call("GET", _instance(old)).status == 200, "the old VM is gone"
    before = fleet.processes(vm)
    start = time.monotonic()
    fleet.up()
    cleaned = time.monotonic() - start
    assert fleet.api.call("GET", _instance(old)).status == 404, "the old VM is still there"
    assert fleet.processes(vm) == before, "agents were touched"
    _let_go(fleet, old)
    return told | {"next_up_s": round(cleaned, 1)}


def _moved(
    fleet: Fleet,
    chance: Random,
    known: dict[str, tuple[int, str]],
    *,
    cut: float | None = None,
) -> Measured:
    """Move the rendezvous, and wait until the fleet is whole, with all IDs that are `known`. `cut`:
    when the old one lost its power, in seconds since the epoch."""
    new = chance.choice([zone for zone in ZONES if zone != fleet.rendezvous_zone])
    total, window = sum(fleet.wanted.values()), fleet.declared(next(iter(fleet.wanted)))["window"]
    looks = Looks(fleet, list(fleet.wanted))
    start = time.time()
    leaving_out, sentences = fleet.project.dead_zones()
    assert len(sentences) == (cut is not None), sentences
    fleet.move(new, *leaving_out)
    done = time.time()
    status = fleet.until_status(RENDEZVOUS, lambda told: told["phase"] == "serving", "serving")
    assert status["registry"]["restored"], status["registry"]
    assert not status["registry"]["started_empty"]
    for each in fleet.wanted:
        registry = fleet.declared(each)["registry"]
        # The count is in a file: the condition is quoted once more.
        fleet.run(each, f"cat >/run/registered <<'END'\n{_REGISTERED}END")
        there = f'[ "$(sh /run/registered {registry})" = {fleet.wanted[each]} ]'
        fleet.until_there(each, there, f"its agents are registered at {registry}")
    whole = time.time()
    moment = time.monotonic()
    for each in fleet.wanted:
        fleet.whole(each)
        fleet.heard_since(moment, each)
    taken = looks.taken()
    # Those that are started before the new registry is there fail, and are started again.
    again = sum(each.count for each in restarts(taken))
    assert again >= total, f"{again} restarts of {total} agents"
    found = problems(taken, wanted=fleet.wanted, window=window, told=Told(agents=again))
    # The VM that has the registry is not looked at.
    found = [each for each in found if not each.startswith("the registry said nothing")]
    assert not found, "\n".join(found)
    assert fleet.identities() == known, "node IDs changed"
    began = time.time() - fleet.dashboard.get("/api/stats")["uptime_secs"]
    return {
        "agents": total,
        "restarts": again,
        "up_s": round(done - start, 1),
        "serving_s": round(began - start, 1),
        "whole_s": round(whole - start, 1),
        "most_down_on_a_vm": _most_down(fleet, taken),
    } | ({} if cut is None else {"without_registry_s": round(began - cut, 1)})


def _most_down(fleet: Fleet, taken: Sequence[Look]) -> int:
    return max(fleet.wanted[look.vm] - len(look.ready) for look in taken)


def _instance(zone: str) -> str:
    return f"/compute/v1/projects/{CLOUD}/zones/{zone}/instances/{RENDEZVOUS}"


def _let_go(fleet: Fleet, zone: str) -> None:
    """docs/PRODUCTION.md, "Zones": the old disk and address go, and the zone is free again."""
    project = f"/compute/v1/projects/{CLOUD}"
    suffix = "" if _is_first(fleet, zone) else f"-{zone}"
    region = zone.rpartition("-")[0]
    fleet.api.do("DELETE", f"{project}/zones/{zone}/disks/{RENDEZVOUS}-state{suffix}")
    address = f"pilot-fleet-registry-internal{suffix}"
    fleet.api.do("DELETE", f"{project}/regions/{region}/addresses/{address}")
    gone = fleet.project.pulumi("refresh", "-s", fleet.project.stack, "--yes")
    assert gone.code == 0, gone.text


def _is_first(fleet: Fleet, zone: str) -> bool:
    """Whether the rendezvous' disk in a zone has a plain name."""
    disk = f"/compute/v1/projects/{CLOUD}/zones/{zone}/disks/{RENDEZVOUS}-state"
    return fleet.api.call("GET", disk).status == 200
