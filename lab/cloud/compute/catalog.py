"""What Compute Engine offers: zones, machine types, disk types, images."""

import re
from dataclasses import dataclass
from typing import Final

ZONES: Final[dict[str, tuple[str, ...]]] = {
    "us-central1": ("a", "b", "c", "f"),
    "us-east1": ("b", "c", "d"),
    "us-east4": ("a", "b", "c"),
    "us-west1": ("a", "b", "c"),
    "europe-west1": ("b", "c", "d"),
    "europe-west3": ("a", "b", "c"),
    "europe-west4": ("a", "b", "c"),
    "asia-northeast1": ("a", "b", "c"),
    "asia-southeast1": ("a", "b", "c"),
}
"""The regions that exist here and the letters of their zones: a part of Google's."""

DISK_TYPES: Final = ("pd-standard", "pd-balanced", "pd-ssd", "pd-extreme", "hyperdisk-balanced")

IMAGES: Final = (("debian-cloud", "debian-12-bookworm-v20261110", "debian-12"),)
"""(project, image, family) of the images that are there from the start."""

DEFAULT_DISK_GB: Final = 500  # a disk without size, type and image, on Google


@dataclass(frozen=True, kw_only=True)
class MachineType:
    """A machine type: `memory_mb` in MiB."""

    name: str
    vcpus: int
    memory_mb: int


_SERIES: Final[dict[str, tuple[float, tuple[int, ...]]]] = {
    "e2-standard": (4, (2, 4, 8, 16, 32)),
    "e2-highmem": (8, (2, 4, 8, 16)),
    "e2-highcpu": (1, (2, 4, 8, 16, 32)),
    "n1-standard": (3.75, (1, 2, 4, 8, 16, 32, 64, 96)),
    "n1-highmem": (6.5, (2, 4, 8, 16, 32, 64, 96)),
    "n1-highcpu": (0.9, (2, 4, 8, 16, 32, 64, 96)),
    "n2-standard": (4, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)),
    "n2-highmem": (8, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    "n2-highcpu": (1, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    "n2d-standard": (4, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 224)),
    "n2d-highmem": (8, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    "n2d-highcpu": (1, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 224)),
    "n4-standard": (4, (2, 4, 8, 16, 32, 48, 64, 80)),
    "n4-highmem": (8, (2, 4, 8, 16, 32, 48, 64, 80)),
    "n4-highcpu": (2, (2, 4, 8, 16, 32, 48, 64, 80)),
    "c4-highcpu": (2, (2, 4, 8, 16, 24, 32, 48, 96, 144, 192, 288)),
    "t2d-standard": (4, (1, 2, 4, 8, 16, 32, 48, 60)),
    "c2-standard": (4, (4, 8, 16, 30, 60)),
    "c2d-standard": (4, (2, 4, 8, 16, 32, 56, 112)),
    "c2d-highmem": (8, (2, 4, 8, 16, 32, 56, 112)),
    "c2d-highcpu": (2, (2, 4, 8, 16, 32, 56, 112)),
    "c3-standard": (4, (4, 8, 22, 44, 88, 176)),
    "c3-highmem": (8, (4, 8, 22, 44, 88, 176)),
    "c3-highcpu": (2, (4, 8, 22, 44, 88, 176)),
    "c3d-standard": (4, (4, 8, 16, 30, 60, 90, 180, 360)),
    "c3d-highmem": (8, (4, 8, 16, 30, 60, 90, 180, 360)),
    "c3d-highcpu": (2, (4, 8, 16, 30, 60, 90, 180, 360)),
    "h3-standard": (4, (88,)),
    "g2-standard": (4, (4, 8, 12, 16, 24, 32, 48, 96)),
}
# GiB of memory per vCPU, and the sizes in vCPUs (Google's machine families resource guide); the
# few types that leave the rule stand below.
_SINGLE: Final = (
    MachineType(name="e2-micro", vcpus=2, memory_mb=1024),
    MachineType(name="e2-small", vcpus=2, memory_mb=2048),
    MachineType(name="e2-medium", vcpus=2, memory_mb=4096),
    MachineType(name="f1-micro", vcpus=1, memory_mb=614),
    MachineType(name="g1-small", vcpus=1, memory_mb=1740),
    MachineType(name="n2-highmem-128", vcpus=128, memory_mb=884_736),
    MachineType(name="a2-highgpu-1g", vcpus=12, memory_mb=87_040),
    MachineType(name="a3-highgpu-1g", vcpus=26, memory_mb=239_616),
    MachineType(name="c3-standard-192-metal", vcpus=192, memory_mb=786_432),
    MachineType(name="c3-standard-8-lssd", vcpus=8, memory_mb=32_768),
    MachineType(name="ct5lp-hightpu-1t", vcpus=24, memory_mb=49_152),
    MachineType(name="h4d-standard-192", vcpus=192, memory_mb=737_280),
    MachineType(name="z3-highmem-44-highlssd", vcpus=44, memory_mb=360_448),
    MachineType(name="z3-highmem-88-highlssd", vcpus=88, memory_mb=720_896),
    MachineType(name="z3-highmem-88-standardlssd", vcpus=88, memory_mb=720_896),
)

# These cannot be migrated: accelerators, no hypervisor, or too much local storage.
_NOT_MIGRATED: Final = re.compile(
    r"(?:a[2-9]|g[2-9]|ct[0-9]|h4d)[a-z]*-.*|.*-metal|z3-.*-(?:88|176)-highlssd"
    r"|z3-.*-176-standardlssd"
)
_MIGRATED_ONLY: Final = re.compile(r"e2-.*|z3-.*")


def host_maintenance(name: str) -> tuple[str, ...]:
    """Return what `onHostMaintenance` of a machine type may be, the usual one first."""
    if _NOT_MIGRATED.fullmatch(name):
        return ("TERMINATE",)
    return ("MIGRATE",) if _MIGRATED_ONLY.fullmatch(name) else ("MIGRATE", "TERMINATE")


_HYPERDISK_ONLY: Final = re.compile(r"(?:[nc]4|h4)[a-z]?-.*|.*-metal")


def takes(machine: str, disk_type: str) -> bool:
    """Tell whether a disk of that type can be attached to a machine type."""
    hyperdisk = disk_type.startswith("hyperdisk-")
    if _HYPERDISK_ONLY.fullmatch(machine):
        return hyperdisk
    return not (hyperdisk and machine.startswith("e2-"))


MACHINE_TYPES: Final[dict[str, MachineType]] = {
    each.name: each
    for each in (
        *(
            MachineType(name=f"{series}-{n}", vcpus=n, memory_mb=round(n * gib * 1024))
            for series, (gib, sizes) in _SERIES.items()
            for n in sizes
        ),
        *_SINGLE,
    )
}

_CUSTOM = re.compile(r"(?:(e2|n1|n2|n2d|n4)-)?custom-(\d{1,3})-(\d{1,7})(-ext)?")
_SHARED: Final[dict[str, tuple[float, float]]] = {
    "micro": (1, 2),
    "small": (2, 4),
    "medium": (4, 8),
}
_CUSTOM_SHARED = re.compile(r"e2-custom-(micro|small|medium)-(\d{1,7})")
# Numbers of vCPUs, GiB per vCPU (from, to), GiB in all, GiB of extended memory (0: none).
_CUSTOM_SERIES: Final[dict[str, tuple[tuple[int, ...], float, float, int, int]]] = {
    "e2": (tuple(range(2, 33, 2)), 0.5, 8, 128, 0),
    "n1": ((1, *range(2, 97, 2)), 0.9, 6.5, 624, 624),
    "n2": ((*range(2, 33, 2), *range(36, 129, 4)), 0.5, 8, 864, 864),
    "n2d": ((2, 4, 8, 16, 32, 48, 64, 80, 96), 0.5, 8, 768, 768),
    "n4": (tuple(range(2, 81, 2)), 2, 8, 640, 640),
}


def machine_type(name: str) -> MachineType | None:
    """Return a predefined or custom type (`e2-custom-2-1024`: vCPUs, MiB), None if unknown."""
    if name in MACHINE_TYPES:
        return MACHINE_TYPES[name]
    if shared := _CUSTOM_SHARED.fullmatch(name):
        least, most = _SHARED[shared[1]]
        vcpus, memory_mb = 2, int(shared[2])
    elif match := _CUSTOM.fullmatch(name):
        sizes, low, high, total, extended = _CUSTOM_SERIES[match[1] or "n1"]
        vcpus, memory_mb = int(match[2]), int(match[3])
        if vcpus not in sizes:
            return None
        least, most = vcpus * low, min(vcpus * high, total)
        if match[4]:
            most = extended
    else:
        return None
    if memory_mb % 256 or not least <= memory_mb / 1024 <= most:
        return None
    return MachineType(name=name, vcpus=vcpus, memory_mb=memory_mb)


def region_of(zone: str) -> str | None:
    """Return the region of a zone that exists here, else None."""
    region, _, letter = zone.rpartition("-")
    return region if letter in ZONES.get(region, ()) else None


def zones() -> list[str]:
    """Return the names of all zones, sorted."""
    return sorted(f"{region}-{letter}" for region, letters in ZONES.items() for letter in letters)
