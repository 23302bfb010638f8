"""Memory of Google's machine types, as far as a fleet is likely to use them.

From the machine family pages of Google's Compute Engine documentation (2026). A type that is not
here (most of those with GPUs and accelerators) is named in the policy's configuration.
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
    # 59 GB for each 30 vCPUs from 30 on; the smaller ones stand below.
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
    "n4a": (64, {"standard": 4, "highmem": 8, "highcpu": 2}),
    "n4d": (96, {"standard": 4, "highmem": 8, "highcpu": 2}),
    "t2a": (48, {"standard": 4}),
    "t2d": (60, {"standard": 4}),
    "z3": (192, {"highmem": 8}),
}
_SINGLE: Final[Mapping[str, float]] = {
    "c3d-highcpu-16": 32,
    "c3d-highcpu-4": 8,
    "c3d-highcpu-8": 16,
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
}
# family: (most vCPUs, most GB a vCPU, most GB in all of extended memory; 0: it has none)
_CUSTOM_FAMILIES: Final[Mapping[str, tuple[int, float, int]]] = {
    "e2": (32, 8, 0),
    "n1": (96, 6.5, 624),
    "n2": (128, 8, 864),
    "n2d": (96, 8, 768),
    "n4": (80, 8, 640),
    "n4a": (64, 8, 512),
    "n4d": (96, 8, 768),
}
# Sizes of E2 whose vCPUs are shared: most GB.
_CUSTOM_SHARED: Final[Mapping[str, int]] = {"micro": 2, "small": 4, "medium": 8}
_NAMED: Final = re.compile(r"([a-z]\d[a-z]?)-(standard|highmem|highcpu)-(\d{1,3})")
# The same machine with disks of its own, or without a hypervisor, has the same memory.
_VARIANT: Final = re.compile(r"-(?:(?:standard|high)?lssd|metal)$")
_CUSTOM: Final = re.compile(
    r"(?:(?P<family>[a-z]\d[a-z]?)-)?custom-(?:(?P<vcpus>\d{1,3})|(?P<size>micro|small|medium))"
    r"-(?P<mb>\d{1,9})(?P<extended>-ext)?"
)


def memory_gb(machine_type: str, known: Mapping[str, Mapping[str, float]]) -> float | None:
    """RAM in GB (of 1024 MiB) of a machine type's name or URL; `None` for one not known here.

    `known` adds to the table and goes before it: `{"m3-ultramem-32": {"memoryGb": 976}}`.
    """
    name = machine_type.rpartition("/")[2]
    if name in known:
        return float(known[name]["memoryGb"])
    if custom := _CUSTOM.fullmatch(name):
        return _custom_gb(custom)
    name = _VARIANT.sub("", name)
    if name in _SINGLE:
        return _SINGLE[name]
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


def _custom_gb(custom: re.Match[str]) -> float | None:
    """Memory in GB of a custom type; `None` for one that its series does not come in."""
    family = custom["family"] or "n1"
    if family not in _CUSTOM_FAMILIES:
        return None
    most_vcpus, most_a_vcpu, most_extended = _CUSTOM_FAMILIES[family]
    if custom["size"]:
        vcpus, most = 2, float(_CUSTOM_SHARED[custom["size"]] if family == "e2" else 0)
    else:
        vcpus = int(custom["vcpus"])
        most = vcpus * most_a_vcpu
    if custom["extended"]:
        most = most_extended
    # vCPUs come in pairs; a single one is sold by two series.
    paired = vcpus % 2 == 0 or (vcpus == 1 and family in {"n1", "n4a"})
    memory = int(custom["mb"]) / 1024
    return memory if paired and 0 < vcpus <= most_vcpus and 0 < memory <= most else None
