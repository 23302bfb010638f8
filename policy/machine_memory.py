"""Memory of the Google machine types that a fleet is likely to use.

Source: the machine family pages of Google's Compute Engine documentation (November 2026). Missing
types (with accelerators, or newer) are named in the policy's configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_TO_32: Final = (2, 4, 8, 16, 32)
_TO_80: Final = (*_TO_32, 48, 64, 80)
_TO_96: Final = (*_TO_80, 96)
_C2D: Final = (*_TO_32, 56, 112)
_C3: Final = (4, 8, 22, 44, 88, 176)
_C3D: Final = (4, 8, 16, 30, 60, 90, 180, 360)
_C4: Final = (2, 4, 8, 16, 24, 32, 48, 96, 144, 192, 288)
_C4A: Final = (1, *_TO_32, 48, 64, 72)
_C4D: Final = (*_TO_32, 48, 64, 96, 192, 384)
_N1: Final = (2, 4, 8, 16, 32, 64, 96)
_N2: Final = (*_TO_96, 128)
_N4A: Final = (1, *_TO_32, 48, 64)

# series and shape: (GB of memory per vCPU, vCPUs that are sold)
_SHAPES: Final[Mapping[str, tuple[float, tuple[int, ...]]]] = {
    "c2-standard": (4, (4, 8, 16, 30, 60)),
    "c2d-highcpu": (2, _C2D),
    "c2d-highmem": (8, _C2D),
    "c2d-standard": (4, _C2D),
    "c3-highcpu": (2, _C3),
    "c3-highmem": (8, _C3),
    "c3-standard": (4, _C3),
    # 59 GB per 30 vCPUs; the smaller ones are in _SINGLE.
    "c3d-highcpu": (59 / 30, _C3D[3:]),
    "c3d-highmem": (8, _C3D),
    "c3d-standard": (4, _C3D),
    "c4-highcpu": (2, _C4),
    "c4-highmem": (7.75, _C4),
    "c4-standard": (3.75, _C4),
    "c4a-highcpu": (2, _C4A),
    "c4a-highmem": (8, _C4A),
    "c4a-standard": (4, _C4A),
    "c4d-highcpu": (1.875, _C4D),
    "c4d-highmem": (7.875, _C4D),
    "c4d-standard": (3.875, _C4D),
    "e2-highcpu": (1, _TO_32),
    "e2-highmem": (8, (2, 4, 8, 16)),
    "e2-standard": (4, _TO_32),
    "h3-standard": (4, (88,)),
    "h4d-highmem": (7.75, (192,)),
    "h4d-standard": (3.75, (192,)),
    "n1-highcpu": (0.9, _N1),
    "n1-highmem": (6.5, _N1),
    "n1-standard": (3.75, (1, *_N1)),
    "n2-highcpu": (1, _TO_96),
    "n2-highmem": (8, _TO_96),
    "n2-standard": (4, _N2),
    "n2d-highcpu": (1, (*_N2, 224)),
    "n2d-highmem": (8, _TO_96),
    "n2d-standard": (4, (*_N2, 224)),
    "n4-highcpu": (2, _TO_80),
    "n4-highmem": (8, _TO_80),
    "n4-standard": (4, _TO_80),
    "n4a-highcpu": (2, _N4A),
    "n4a-highmem": (8, _N4A),
    "n4a-standard": (4, _N4A),
    "n4d-highcpu": (2, _TO_96),
    "n4d-highmem": (8, _TO_96),
    "n4d-standard": (4, _TO_96),
    "t2a-standard": (4, (1, *_TO_32, 48)),
    "t2d-standard": (4, (1, *_TO_32, 48, 60)),
}
# The fewest vCPUs with which it is also sold with local SSDs (`-lssd`) and the same memory.
_WITH_SSD: Final[Mapping[str, int]] = {
    "c3-standard": 1,
    "c3d-highmem": 8,
    "c3d-standard": 8,
    "c4-highmem": 4,
    "c4-standard": 4,
    "c4a-highcpu": 4,
    "c4a-highmem": 4,
    "c4a-standard": 4,
    "c4d-highmem": 8,
    "c4d-standard": 8,
    "h4d-highmem": 1,
}
_SINGLE: Final[Mapping[str, float]] = {
    "c3-highcpu-192-metal": 512,
    "c3-highmem-192-metal": 1536,
    "c3-standard-192-metal": 768,
    "c3d-highcpu-16": 32,
    "c3d-highcpu-4": 8,
    "c3d-highcpu-8": 16,
    "c4-highmem-288-lssd-metal": 2232,
    "c4-highmem-288-metal": 2232,
    "c4-standard-288-lssd-metal": 1080,
    "c4-standard-288-metal": 1080,
    # Without a hypervisor these have more than as VMs.
    "c4d-highcpu-384-metal": 768,
    "c4d-highmem-384-metal": 3072,
    "c4d-standard-384-metal": 1536,
    "e2-medium": 4,
    "e2-micro": 1,
    "e2-small": 2,
    "f1-micro": 0.6,
    "g1-small": 1.7,
    "m1-megamem-96": 1433,
    "m1-ultramem-160": 3844,
    "m1-ultramem-40": 961,
    "m1-ultramem-80": 1922,
    "m2-hypermem-416": 8832,
    "m2-megamem-416": 5888,
    "m2-ultramem-208": 5888,
    "m2-ultramem-416": 11776,
    "m3-megamem-128": 1952,
    "m3-megamem-64": 976,
    "m3-ultramem-128": 3904,
    "m3-ultramem-32": 976,
    "m3-ultramem-64": 1952,
    # 128 vCPUs of this shape do not come with 8 GB each.
    "n2-highmem-128": 864,
    "z3-highmem-14-standardlssd": 112,
    "z3-highmem-16-highlssd": 128,
    "z3-highmem-176-standardlssd": 1406,
    "z3-highmem-192-highlssd-metal": 1536,
    "z3-highmem-22-highlssd": 176,
    "z3-highmem-22-standardlssd": 176,
    "z3-highmem-32-highlssd": 256,
    "z3-highmem-44-highlssd": 352,
    "z3-highmem-44-standardlssd": 352,
    "z3-highmem-8-highlssd": 64,
    "z3-highmem-88-highlssd": 704,
    "z3-highmem-88-standardlssd": 704,
}


@dataclass(frozen=True, kw_only=True)
class _Custom:
    """Custom types of a series: at most `most_gb` in all; `extended`: sold as `-ext` too."""

    sizes: frozenset[int]
    min_gb_per_vcpu: float
    max_gb_per_vcpu: float
    most_gb: int
    extended: bool


def _custom(
    sizes: set[int], gb: tuple[float, float], most_gb: int, *, extended: bool = True
) -> _Custom:
    return _Custom(
        sizes=frozenset(sizes),
        min_gb_per_vcpu=gb[0],
        max_gb_per_vcpu=gb[1],
        most_gb=most_gb,
        extended=extended,
    )


def _pairs(most: int) -> set[int]:
    return set(range(2, most + 1, 2))


_CUSTOM_FAMILIES: Final[Mapping[str, _Custom]] = {
    "e2": _custom(_pairs(32), (0.5, 8), 128, extended=False),
    "n1": _custom({1} | _pairs(96), (0.9, 6.5), 624),
    # In pairs up to 32, in fours above.
    "n2": _custom(_pairs(32) | set(range(36, 129, 4)), (0.5, 8), 864),
    "n2d": _custom({2, 4, 8, 16, 32, 48, 64, 80, 96}, (0.5, 8), 768),
    "n4": _custom(_pairs(80), (2, 8), 640),
    "n4a": _custom({1} | _pairs(64), (0.5, 8), 512),
    "n4d": _custom(_pairs(96), (0.5, 8), 768),
}
# Sizes of E2 whose vCPUs are shared: most GB, and half of it at least.
_CUSTOM_SHARED: Final[Mapping[str, int]] = {"micro": 2, "small": 4, "medium": 8}
_NAMED: Final = re.compile(r"([a-z]\d[a-z]?-[a-z]+)-(\d{1,3})(-lssd)?")
_CUSTOM: Final = re.compile(
    r"(?:(?P<family>[a-z]\d[a-z]?)-)?custom-(?:(?P<vcpus>[1-9]\d{0,2})|(?P<size>micro|small|medium))"
    r"-(?P<mb>[1-9]\d{0,8})(?P<extended>-ext)?"
)
_STEP_MB: Final = 256


def memory_gb(machine_type: str, known: Mapping[str, Mapping[str, float]]) -> float | None:
    """RAM in GB (of 1024 MiB) of a machine type's name or URL; `None` for an unknown or unsold one.

    `known` overrides the table: `{"m3-ultramem-32": {"memoryGb": 976}}`.
    """
    name = machine_type.rpartition("/")[2]
    if name in known:
        return float(known[name]["memoryGb"])
    if custom := _CUSTOM.fullmatch(name):
        return _custom_gb(custom)
    if name in _SINGLE:
        return _SINGLE[name]
    match = _NAMED.fullmatch(name)
    return _named_gb(match[1], match[2], ssd=bool(match[3])) if match else None


def _named_gb(shape: str, size: str, *, ssd: bool) -> float | None:
    """Memory in GB of a size of a shape; `None` for a size that is not sold."""
    vcpus = int(size)
    ratio, sizes = _SHAPES.get(shape, (0, ()))
    if vcpus not in sizes or str(vcpus) != size:
        return None
    if ssd and vcpus < _WITH_SSD.get(shape, math.inf):
        return None
    memory = vcpus * ratio
    # Only N1 comes in fractions of a GB; the others are rounded down to whole ones.
    return memory if shape.startswith("n1-") else float(math.floor(memory))


def _custom_gb(custom: re.Match[str]) -> float | None:
    """Memory in GB of a custom type; `None` for one that is not sold."""
    family = custom["family"] or "n1"
    sold = _CUSTOM_FAMILIES.get(family)
    if sold is None or int(custom["mb"]) % _STEP_MB:
        return None
    if custom["size"]:
        if family != "e2":
            return None
        most = float(_CUSTOM_SHARED[custom["size"]])
        least = most / 2
    else:
        vcpus = int(custom["vcpus"])
        if vcpus not in sold.sizes:
            return None
        least, most = vcpus * sold.min_gb_per_vcpu, vcpus * sold.max_gb_per_vcpu
    if custom["extended"]:
        if not sold.extended:
            return None
        most = math.inf
    memory = int(custom["mb"]) / 1024
    return memory if least <= memory <= min(most, sold.most_gb) else None
