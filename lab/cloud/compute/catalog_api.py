"""Requests for what Compute Engine offers: zones, regions, machine types, disk types."""

import hashlib
from collections.abc import Callable

from lab.cloud import Json
from lab.cloud.compute import catalog, instances
from lab.cloud.compute.requests import Endpoint, scope_of
from lab.cloud.errors import not_found
from lab.cloud.links import Scope, link
from lab.cloud.web import Request

Page = Callable[[Request, list[tuple[str, Json]], str], Json]
"""Returns a page of a list: takes the request, (name, resource) pairs, and their kind."""


def catalog_endpoints(page: Page) -> list[Endpoint]:
    """Return the endpoints; `page` writes their lists."""
    zone = "/zones/{place}"
    return [
        ("GET", "/zones", lambda r: page(r, _zones(scope_of(r, "global")), "zone")),
        ("GET", zone, lambda r: _zone(scope_of(r, "zones"))),
        ("GET", "/regions", lambda r: page(r, _regions(scope_of(r, "global")), "region")),
        ("GET", "/regions/{place}", lambda r: _region(scope_of(r, "regions"))),
        (
            "GET",
            f"{zone}/machineTypes",
            lambda r: page(r, _machine_types(scope_of(r, "zones")), "machineType"),
        ),
        (
            "GET",
            f"{zone}/machineTypes/{{name}}",
            lambda r: _machine_type(scope_of(r, "zones"), r.params["name"]),
        ),
        (
            "GET",
            f"{zone}/diskTypes",
            lambda r: page(r, _disk_types(scope_of(r, "zones")), "diskType"),
        ),
        (
            "GET",
            f"{zone}/diskTypes/{{name}}",
            lambda r: _disk_type(scope_of(r, "zones"), r.params["name"]),
        ),
    ]


def _identity(text: str) -> str:
    return str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


def _listed(scope: Scope, kind: str, name: str, path: str) -> Json:
    return {
        "kind": f"compute#{kind}",
        "id": _identity(name),
        "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
        "name": name,
        "description": name,
        "selfLink": link(f"projects/{scope.project}/{path}"),
    }


def _zone(scope: Scope) -> Json:
    region = catalog.region_of(scope.place)
    return {
        **_listed(scope, "zone", scope.place, f"zones/{scope.place}"),
        "status": "UP",
        "region": link(f"projects/{scope.project}/regions/{region}"),
        "availableCpuPlatforms": ["Unknown CPU Platform"],
        "supportsPzs": False,
    }


def _zones(scope: Scope) -> list[tuple[str, Json]]:
    return [
        (name, _zone(Scope(project=scope.project, level="zones", place=name)))
        for name in catalog.zones()
    ]


def _region(scope: Scope) -> Json:
    base = f"projects/{scope.project}/zones/{scope.place}-"
    return {
        **_listed(scope, "region", scope.place, f"regions/{scope.place}"),
        "status": "UP",
        "zones": [link(base + letter) for letter in catalog.ZONES[scope.place]],
        # No quota is enforced: the limits are too high to reach and the usage is not counted.
        "quotas": [
            {"metric": metric, "limit": 1e6, "usage": 0.0}
            for metric in ("CPUS", "E2_CPUS", "N2_CPUS", "N2D_CPUS", "DISKS_TOTAL_GB", "INSTANCES")
        ],
    }


def _regions(scope: Scope) -> list[tuple[str, Json]]:
    return [
        (name, _region(Scope(project=scope.project, level="regions", place=name)))
        for name in sorted(catalog.ZONES)
    ]


def _machine_type(scope: Scope, name: str) -> Json:
    found = catalog.machine_type(name)
    if found is None:
        raise not_found(f"{scope.path}/machineTypes/{name}")
    return {
        **_listed(scope, "machineType", name, f"zones/{scope.place}/machineTypes/{name}"),
        "description": f"{found.vcpus} vCPUs, {found.memory_mb / 1024:g} GB RAM",
        "guestCpus": found.vcpus,
        "memoryMb": found.memory_mb,
        "imageSpaceGb": 0,
        "maximumPersistentDisks": instances.MOST_DISKS,
        "maximumPersistentDisksSizeGb": "263168",
        "zone": scope.place,
        "isSharedCpu": name in ("e2-micro", "e2-small", "e2-medium", "f1-micro", "g1-small"),
        "architecture": "X86_64",
    }


def _machine_types(scope: Scope) -> list[tuple[str, Json]]:
    return [(name, _machine_type(scope, name)) for name in sorted(catalog.MACHINE_TYPES)]


def _disk_type(scope: Scope, name: str) -> Json:
    if name not in catalog.DISK_TYPES:
        raise not_found(f"{scope.path}/diskTypes/{name}")
    return {
        **_listed(scope, "diskType", name, f"zones/{scope.place}/diskTypes/{name}"),
        "zone": link(scope.path),
        "validDiskSize": "10GB-65536GB",
        "defaultDiskSizeGb": str(catalog.DEFAULT_DISK_GB),
    }


def _disk_types(scope: Scope) -> list[tuple[str, Json]]:
    return [(name, _disk_type(scope, name)) for name in sorted(catalog.DISK_TYPES)]
