"""Whether the fleet's VMs are in one region, and not too many agents in one zone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .fits import agents_of
from .spec import PlannedVm, fleet_vms, parse_spec
from .values import Resource, Violation


@dataclass(frozen=True, kw_only=True)
class ZonesConfig:
    """Settings of `zones-can-be-lost`."""

    # The share of the fleet's agents that one zone may hold; 1 is no bound.
    maxZoneShare: float = 1  # noqa: N815


def losing_a_zone(
    resources: Sequence[Resource], config: ZonesConfig
) -> Iterator[tuple[Resource | None, Violation]]:
    """(resource at fault, finding) pairs; with the fleet as a whole, no resource.

    A template has no zone, and a zone may not be known yet: such a VM is in none.
    """
    vms = list(fleet_vms(resources))
    placed = [(vm, zone) for vm in vms if (zone := _zone(vm))]
    rendezvous = {_region(zone) for vm, zone in placed if vm.role == "rendezvous"}
    # Registry and agents share one subnet, which belongs to the rendezvous' region.
    if len(rendezvous) == 1:
        (region,) = rendezvous
        for vm, zone in placed:
            if _region(zone) != region:
                yield vm.resource, _elsewhere(vm, zone, region)
    if len(placed) == len(vms):
        yield from ((None, finding) for finding in _crowded(placed, config))


def _elsewhere(vm: PlannedVm, zone: str, region: str) -> Violation:
    return Violation(
        path=f"{vm.path}.zone" if vm.path else "zone",
        problem=f"{zone} is not in {region}, where the rendezvous is: the fleet has one subnet, in "
        "one region",
        remedy=f"Choose a zone of {region}",
    )


def _crowded(placed: Sequence[tuple[PlannedVm, str]], config: ZonesConfig) -> Iterator[Violation]:
    """Zones with a larger share of the agents than the site allows; none while one VM's are
    unknown."""
    by_zone: dict[str, int] = {}
    for vm, zone in placed:
        if vm.role == "rendezvous":
            continue
        agents = agents_of(parse_spec(vm.metadata.get("pilot-spec")))
        if agents is None:
            return
        by_zone[zone] = by_zone.get(zone, 0) + agents
    total = sum(by_zone.values())
    for zone, agents in by_zone.items():
        if agents > config.maxZoneShare * total:
            yield Violation(
                path="",
                problem=f"{zone} holds {agents} of {total} agents, and maxZoneShare allows "
                f"{config.maxZoneShare:g} of them",
                remedy="Put agents on VMs in another zone",
            )


def _zone(vm: PlannedVm) -> str:
    """The zone's name; "" where there is none or it is not known."""
    zone = vm.block.get("zone")
    return zone.rpartition("/")[2] if isinstance(zone, str) else ""


def _region(zone: str) -> str:
    return zone.rpartition("-")[0]
