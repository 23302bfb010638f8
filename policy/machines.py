"""Memory of Google's machine types, as far as a fleet is likely to use them.

From the machine family pages of Google's Compute Engine documentation (2026). A type that is not
here, or that is irregular (GPU, accelerator and ultra-memory families), is named in the policy's
configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

# family: (most vCPUs, {shape: GB of memory a vCPU})
_FAMILIES: Final[Mapping[str, tuple[int, Mapping[str, float]]]] = {
    "c2": (60, {"standard": 4}),
    "c2d": (112, {"standard": 4, "highmem": 8, "highcpu": 2}),
    "c3": (192, {"standard": 4, "highmem": 8, "highcpu": 2}),
    # 59 GB for each 30 vCPUs from 30 on; a little more below, which errs on the safe side.
    "c3d": (360, {"standard": 4, "highmem": 8, "highcpu": 59 / 30}),
    "c4": (288, {"standard": 3.75, "highmem": 7.75, "highcpu": 2}),
    "c4a": (96, {"standard": 4, "highmem": 8, "highcpu": 2}),
    "c4d": (384, {"standard": 3.875, "highmem": 7.875, "highcpu": 1.875}),
    "e2": (32, {"standard": 4, "highmem": 8, "highcpu": 1}),
    "g2": (96, {"standard": 4}),
    "h3": (88, {"standard": 4}),
    "n1": (96, {"standard": 3.75, "highmem": 6.5, "highcpu": 0.9}),
    "n2": (128, {"standard": 4, "highmem": 8, "highcpu": 1}),
    "n2d": (224, {"standard": 4, "highmem": 8, "highcpu": 1}),
    "n4": (80, {"standard": 4, "highmem": 8, "highcpu": 2}),
    "t2a": (48, {"standard": 4}),
    "t2d": (60, {"standard": 4}),
}
_SINGLE: Final[Mapping[str, float]] = {
    "e2-micro": 1,
    "e2-small": 2,
    "e2-medium": 4,
    "f1-micro": 0.6,
    "g1-small": 1.7,
    # 128 vCPUs of this shape do not come with 8 GB each.
    "n2-highmem-128": 864,
}
_NAMED: Final = re.compile(r"([a-z]\d[a-z]?)-(standard|highmem|highcpu)-(\d{1,3})(-lssd|-metal)?")
_CUSTOM: Final = re.compile(r"(?:[a-z]\d[a-z]?-)?custom-(?:\d+|micro|small|medium)-(\d+)(?:-ext)?")


def memory_gb(machine_type: str, known: Mapping[str, Mapping[str, float]]) -> float | None:
    """RAM in GB (of 1024 MiB) of a machine type's name or URL; `None` for one not known here.

    `known` adds to the table and goes before it: `{"m3-ultramem-32": {"memoryGb": 976}}`.
    """
    name = machine_type.rpartition("/")[2]
    if name in known:
        return float(known[name]["memoryGb"])
    if name in _SINGLE:
        return _SINGLE[name]
    if custom := _CUSTOM.fullmatch(name):
        return int(custom[1]) / 1024
    match = _NAMED.fullmatch(name)
    if not match:
        return None
    family, shape, vcpus = match[1], match[2], int(match[3])
    most, shapes = _FAMILIES.get(family, (0, {}))
    if shape not in shapes or not 0 < vcpus <= most:
        return None
    memory = vcpus * shapes[shape]
    # Only N1 comes in fractions of a GB; the others are rounded down to whole ones.
    return memory if family == "n1" else float(math.floor(memory))
