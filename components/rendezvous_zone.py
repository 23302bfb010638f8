"""A rendezvous that changes zone: what is made there, what stays behind, and what forbids it.

VM, disk and addresses of another zone are resources of their own, with the zone in their names;
those of the first zone have plain names. The old disk and addresses stay, protected: the disk has
the registry as it was. docs/PRODUCTION.md says how they are let go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pulumi

from components.config import PROJECT_NAME, STATE_DISK_SUFFIX, FleetConfig
from components.config_reader import Problem
from components.google_rest import (
    NO_CREDENTIALS,
    Google,
    GoogleError,
    NotLookedUpError,
    no_credentials,
)
from components.last_update import LastUpdate, rendezvous_moves
from components.vm import KeptDisk

_INTERNAL = "-registry-internal"
_EXTERNAL = "-registry-external"


@dataclass(frozen=True, kw_only=True)
class ZoneResources:
    """The rendezvous' resources that are another's in each zone."""

    suffix: str
    """Ends the names of those in the present zone."""
    kept_disks: tuple[KeptDisk, ...] = ()
    kept_addresses: tuple[str, ...] = ()


def zone_resources(config: FleetConfig, last: LastUpdate) -> ZoneResources:
    """What the configuration's zone needs, and what earlier ones left behind."""
    zone = config.rendezvous.zone
    disks = _disks(config, last)
    here = [suffix for suffix, its in disks.items() if its == zone]
    # A disk that was lost is not recorded; its address is.
    is_others = bool(disks) or any(name.endswith(f"-{zone}") for name in last.addresses)
    suffix = here[0] if here else f"-{zone}" if is_others else ""
    return ZoneResources(
        suffix=suffix,
        kept_disks=tuple(
            KeptDisk(suffix=other, zone=its) for other, its in disks.items() if other != suffix
        ),
        kept_addresses=tuple(
            name
            for name in last.addresses
            for kind in (_INTERNAL, _EXTERNAL)
            if kind in name and name.rpartition(kind)[2] != suffix
        ),
    )


def left_zones(config: FleetConfig, last: LastUpdate) -> list[str]:
    """Zones with a disk that the rendezvous left behind."""
    return sorted({kept.zone for kept in zone_resources(config, last).kept_disks})


def problems(config: FleetConfig, last: LastUpdate) -> list[Problem]:
    """Why the rendezvous cannot be in the configuration's zone, at its address."""
    rendezvous, found = config.rendezvous, list[Problem]()
    there = last.instance_zones.get(rendezvous.name, frozenset())
    kept = [s for s, zone in _disks(config, last).items() if zone == rendezvous.zone]
    # A VM of an update that failed is there, and the only one.
    if rendezvous.zone in last.left_zones and there != {rendezvous.zone} and kept:
        disk = f"{rendezvous.name}{STATE_DISK_SUFFIX}{kept[0]}"
        found.append(
            Problem(
                path=f"{PROJECT_NAME}:rendezvous.zone",
                message=(
                    f"{rendezvous.zone} still has the disk {disk} from before the rendezvous left "
                    "it, with the registry as it was then. Choose a third zone, or let the disk go "
                    'first (docs/PRODUCTION.md, "Zones")'
                ),
            )
        )
    suffix = zone_resources(config, last).suffix
    for name, address in last.addresses.items():
        if _INTERNAL not in name:
            continue
        is_ours = name.rpartition(_INTERNAL)[2] == suffix
        if is_ours == (address == rendezvous.address):
            continue
        message = (
            f"{address} stays with {name}, the address that it had in another zone: name another "
            "one that is free, near the end of the subnet"
        )
        if is_ours:
            message = (
                f"the rendezvous has {address} in {rendezvous.zone}, and cannot get another one "
                f"there: name `address: {address}`"
            )
        found.append(Problem(path=f"{PROJECT_NAME}:rendezvous.address", message=message))
    return found


def copies_problems(
    config: FleetConfig, last: LastUpdate, look: Callable[[str], str], *, dry_run: bool
) -> list[str]:
    """Why the new VM of a rendezvous that moves would find no registry. `look` gives the newest
    copy in a bucket, "" where there is none."""
    if not rendezvous_moves(config.rendezvous, last):
        return []
    path = f"{PROJECT_NAME}:rendezvous.zone"
    try:
        newest = look(config.bucket)
    except NotLookedUpError as error:
        message = f"{path}: the registry's copies in {config.bucket} cannot be seen: {error}"
        if dry_run:
            pulumi.log.warn(message)
            return []
        return [f"{message}. Nothing was changed"]
    if newest:
        pulumi.log.info(f"the newest copy of the registry in the bucket is {newest}")
        return []
    missing = (
        f"{path}: {config.bucket} has no copy of the registry, so it would be empty in "
        f"{config.rendezvous.zone}. Keep the zone until `gcloud storage ls "
        f"gs://{config.bucket}/registry/` shows one "
        '(docs/PRODUCTION.md, "Zones"). Nothing was changed'
    )
    return [missing]


def newest_copy(bucket: str) -> str:
    """The newest copy of the registry in the bucket, by the bucket's clock; "" where there is none.
    Raises NotLookedUpError."""
    if no_credentials():
        raise NotLookedUpError(NO_CREDENTIALS)
    try:
        listed = Google("storage").get(f"b/{bucket}/o?prefix=registry/")
    except GoogleError as error:
        raise NotLookedUpError(str(error)) from None
    items = sorted(listed.get("items", ()), key=lambda each: int(each["generation"]))
    return str(items[-1]["name"]) if items else ""


def warnings(config: FleetConfig, last: LastUpdate) -> list[str]:
    """What an update does that moves the rendezvous."""
    rendezvous = config.rendezvous
    if not rendezvous_moves(rendezvous, last):
        return []
    text = (
        f"the rendezvous moves to {rendezvous.zone}: a new VM with the address "
        f"{rendezvous.address} takes the newest good copy of the registry from the fleet's bucket. "
        "All agents restart with that address, a window's worth at a time on each VM, and keep "
        "their identities. The old VM goes last; its disk and addresses stay "
        '(docs/PRODUCTION.md, "Zones")'
    )
    return [text]


def _disks(config: FleetConfig, last: LastUpdate) -> dict[str, str]:
    """Suffix -> zone of the recorded state disks of the rendezvous."""
    plain = f"{config.rendezvous.name}{STATE_DISK_SUFFIX}"
    return {
        name.removeprefix(plain): zone
        for name, zone in last.disk_zones.items()
        if name in {plain, f"{plain}-{zone}"}
    }
