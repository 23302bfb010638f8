"""What Compute Engine has without anyone declaring it: zones, machine types, disk types, images."""

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

DEFAULT_DISK_GB: Final = 500  # what Google makes of a disk without size, type and image


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
}
# GiB of memory a vCPU, and the sizes in vCPUs (Google's machine families resource guide); the
# few types that leave the rule stand below.
_SINGLE: Final = (
    MachineType(name="e2-micro", vcpus=2, memory_mb=1024),
    MachineType(name="e2-small", vcpus=2, memory_mb=2048),
    MachineType(name="e2-medium", vcpus=2, memory_mb=4096),
    MachineType(name="f1-micro", vcpus=1, memory_mb=614),
    MachineType(name="g1-small", vcpus=1, memory_mb=1740),
    MachineType(name="n2-highmem-128", vcpus=128, memory_mb=884_736),
)

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

_CUSTOM = re.compile(r"(?:(?:e2|n1|n2|n2d|n4)-)?custom-(\d{1,3})-(\d{1,7})(?:-ext)?")


def machine_type(name: str) -> MachineType | None:
    """Return a predefined or custom type (`e2-custom-2-1024`: vCPUs, MiB), None if unknown."""
    if name in MACHINE_TYPES:
        return MACHINE_TYPES[name]
    match = _CUSTOM.fullmatch(name)
    if match is None:
        return None
    vcpus, memory_mb = int(match[1]), int(match[2])
    # Google's rule for custom types: memory in steps of 256 MiB, an even number of vCPUs or one.
    if vcpus < 1 or (vcpus > 1 and vcpus % 2) or memory_mb < 256 or memory_mb % 256:
        return None
    return MachineType(name=name, vcpus=vcpus, memory_mb=memory_mb)


def region_of(zone: str) -> str | None:
    """Return the region of a zone that exists here, else None."""
    region, _, letter = zone.rpartition("-")
    return region if letter in ZONES.get(region, ()) else None


def zones() -> list[str]:
    """Return the names of all zones, sorted."""
    return sorted(f"{region}-{letter}" for region, letters in ZONES.items() for letter in letters)
