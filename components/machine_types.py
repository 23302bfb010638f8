"""Machine types of Compute Engine by name: vCPUs, memory, and properties of their series.

The table holds the general-purpose, compute-, memory- and storage-optimised types (source: Google's
machine family documentation, read November 2026; memory in Google's GB, which are GiB). Accelerator
types are left out on purpose. Custom types are read from their names. The stack file declares any
other type with `memoryGb` and `vcpus`, unless Google cannot sell that name (`unsold`). Properties
of a series (Arm, disks, live migration) hold for types outside the table too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

MIB_PER_GIB = 1024


@dataclass(frozen=True, kw_only=True)
class MachineType:
    """A machine type: `vcpus` (count, as Google bills them) and `memory_mb` (MiB)."""

    name: str
    vcpus: int
    memory_mb: int

    @property
    def family(self) -> str:
        """The series that vCPU quotas are counted in: `n2d` of `n2d-highcpu-128`."""
        series = self.name.split("-", 1)[0]
        return {"custom": "n1", "f1": "n1", "g1": "n1"}.get(series, series)

    @property
    def arm(self) -> bool:
        """Whether it has Arm processors."""
        return _ARM_SERIES.fullmatch(self.family) is not None

    @property
    def hyperdisk(self) -> bool:
        """Whether it boots from Hyperdisk only and takes no Persistent Disk."""
        return self._metal or self.family in _HYPERDISK_SERIES

    @property
    def migrates(self) -> bool:
        """Whether Google moves it to another host while it runs. Others are stopped and started."""
        if self._metal or _NOT_MIGRATED_SERIES.fullmatch(self.family):
            return False
        most = _MOST_VCPUS_MIGRATED.get(self.family)
        if most is None:
            return True
        return self.vcpus <= next(n for suffix, n in most.items() if self.name.endswith(suffix))

    @property
    def _metal(self) -> bool:
        return self.name.endswith("-metal")


# (series and class, GiB per vCPU, vCPU counts): where memory is a plain multiple.
_BY_RATIO: tuple[tuple[str, float, tuple[int, ...]], ...] = (
    ("e2-standard", 4, (2, 4, 8, 16, 32)),
    ("e2-highmem", 8, (2, 4, 8, 16)),
    ("e2-highcpu", 1, (2, 4, 8, 16, 32)),
    ("n1-standard", 3.75, (1, 2, 4, 8, 16, 32, 64, 96)),
    ("n1-highmem", 6.5, (2, 4, 8, 16, 32, 64, 96)),
    ("n1-highcpu", 0.9, (2, 4, 8, 16, 32, 64, 96)),
    ("n2-standard", 4, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)),
    ("n2-highmem", 8, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    ("n2-highcpu", 1, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    ("n2d-standard", 4, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 224)),
    ("n2d-highmem", 8, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    ("n2d-highcpu", 1, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 224)),
    ("n4-standard", 4, (2, 4, 8, 16, 32, 48, 64, 80)),
    ("n4-highmem", 8, (2, 4, 8, 16, 32, 48, 64, 80)),
    ("n4-highcpu", 2, (2, 4, 8, 16, 32, 48, 64, 80)),
    ("n4d-standard", 4, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    ("n4d-highmem", 8, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    ("n4d-highcpu", 2, (2, 4, 8, 16, 32, 48, 64, 80, 96)),
    ("t2d-standard", 4, (1, 2, 4, 8, 16, 32, 48, 60)),
    ("c2-standard", 4, (4, 8, 16, 30, 60)),
    ("c2d-standard", 4, (2, 4, 8, 16, 32, 56, 112)),
    ("c2d-highmem", 8, (2, 4, 8, 16, 32, 56, 112)),
    ("c2d-highcpu", 2, (2, 4, 8, 16, 32, 56, 112)),
    ("c3-standard", 4, (4, 8, 22, 44, 88, 176)),
    ("c3-highmem", 8, (4, 8, 22, 44, 88, 176)),
    ("c3-highcpu", 2, (4, 8, 22, 44, 88, 176)),
    ("c3d-standard", 4, (4, 8, 16, 30, 60, 90, 180, 360)),
    ("c3d-highmem", 8, (4, 8, 16, 30, 60, 90, 180, 360)),
    ("c4-highcpu", 2, (2, 4, 8, 16, 24, 32, 48, 96, 144, 192, 288)),
    ("t2a-standard", 4, (1, 2, 4, 8, 16, 32, 48)),
    ("c4a-standard", 4, (1, 2, 4, 8, 16, 32, 48, 64, 72)),
    ("c4a-highmem", 8, (1, 2, 4, 8, 16, 32, 48, 64, 72)),
    ("c4a-highcpu", 2, (1, 2, 4, 8, 16, 32, 48, 64, 72)),
    ("n4a-standard", 4, (1, 2, 4, 8, 16, 32, 48, 64)),
    ("n4a-highmem", 8, (1, 2, 4, 8, 16, 32, 48, 64)),
    ("n4a-highcpu", 2, (1, 2, 4, 8, 16, 32, 48, 64)),
    ("h3-standard", 4, (88,)),
)

# (series and class, {vCPUs: GiB}): where it is not.
_BY_SIZE: tuple[tuple[str, Mapping[int, float]], ...] = (
    ("n2-highmem", {128: 864}),
    ("c3d-highcpu", {4: 8, 8: 16, 16: 32, 30: 59, 60: 118, 90: 177, 180: 354, 360: 708}),
    (
        "c4-standard",
        {2: 7, 4: 15, 8: 30, 16: 60, 24: 90, 32: 120, 48: 180, 96: 360, 144: 540, 192: 720}
        | {288: 1080},
    ),
    (
        "c4-highmem",
        {2: 15, 4: 31, 8: 62, 16: 124, 24: 186, 32: 248, 48: 372, 96: 744, 144: 1116, 192: 1488}
        | {288: 2232},
    ),
    (
        "c4d-standard",
        {2: 7, 4: 15, 8: 31, 16: 62, 32: 124, 48: 186, 64: 248, 96: 372, 192: 744, 384: 1488},
    ),
    (
        "c4d-highcpu",
        {2: 3, 4: 7, 8: 15, 16: 30, 32: 60, 48: 90, 64: 120, 96: 180, 192: 360, 384: 720},
    ),
    (
        "c4d-highmem",
        {2: 15, 4: 31, 8: 63, 16: 126, 32: 252, 48: 378, 64: 504, 96: 756, 192: 1512, 384: 3024},
    ),
    ("m1-ultramem", {40: 961, 80: 1922, 160: 3844}),
    ("m1-megamem", {96: 1433}),
    ("m2-ultramem", {208: 5888, 416: 11776}),
    ("m2-megamem", {416: 5888}),
    ("m2-hypermem", {416: 8832}),
    ("m3-ultramem", {32: 976, 64: 1952, 128: 3904}),
    ("m3-megamem", {64: 976, 128: 1952}),
    ("h4d-standard", {192: 720}),
    ("h4d-highmem", {192: 1488}),
)

# class: the fewest vCPUs with which it is also sold as `-lssd`, with local SSDs.
_LOCAL_SSD_FROM: Mapping[str, int] = {
    "c3-standard": 4,
    "c3d-standard": 8,
    "c3d-highmem": 8,
    "c4-standard": 4,
    "c4-highmem": 4,
    "c4a-standard": 4,
    "c4a-highmem": 4,
    "c4a-highcpu": 4,
    "c4d-standard": 8,
    "c4d-highmem": 8,
    "h4d-highmem": 192,
}

# name -> (vCPUs, GiB): sold in one size only.
_SINGLE: Mapping[str, tuple[int, float]] = {
    "c3-highcpu-192-metal": (192, 512),
    "c3-highmem-192-metal": (192, 1536),
    "c3-standard-192-metal": (192, 768),
    "c4-highmem-288-lssd-metal": (288, 2232),
    "c4-highmem-288-metal": (288, 2232),
    "c4-standard-288-lssd-metal": (288, 1080),
    "c4-standard-288-metal": (288, 1080),
    "c4d-highcpu-384-metal": (384, 768),
    "c4d-highmem-384-metal": (384, 3072),
    "c4d-standard-384-metal": (384, 1536),
    "z3-highmem-14-standardlssd": (14, 112),
    "z3-highmem-22-standardlssd": (22, 176),
    "z3-highmem-44-standardlssd": (44, 352),
    "z3-highmem-88-standardlssd": (88, 704),
    "z3-highmem-176-standardlssd": (176, 1406),
    "z3-highmem-8-highlssd": (8, 64),
    "z3-highmem-16-highlssd": (16, 128),
    "z3-highmem-22-highlssd": (22, 176),
    "z3-highmem-32-highlssd": (32, 256),
    "z3-highmem-44-highlssd": (44, 352),
    "z3-highmem-88-highlssd": (88, 704),
    "z3-highmem-192-highlssd-metal": (192, 1536),
}

# name -> (vCPUs that the guest sees, GiB)
_SHARED_CORE: dict[str, tuple[int, float]] = {
    "e2-micro": (2, 1),
    "e2-small": (2, 2),
    "e2-medium": (2, 4),
    "f1-micro": (1, 0.6),
    "g1-small": (1, 1.7),
}

# Google's disk documentation: the fourth generation takes no Persistent Disk, nor does bare metal.
_HYPERDISK_SERIES = frozenset(
    {"n4", "n4a", "n4d", "c4", "c4a", "c4d", "c4n", "h4d", "m4", "m4n", "x4", "z4d", "z4m"}
    | {"a4", "a4x", "a5x", "g4"}
)
# In Google's names of series, an `a` behind the number is Arm (T2A, C4A, N4A). A4X and A5X have Arm
# processors beside their accelerators.
_ARM_SERIES = re.compile(r"[a-z][0-9]+a|a[0-9]+x")
# Not migrated (Google's page on host maintenance): GPUs, TPUs, H4D, bare metal, and types with much
# Titanium SSD. H3 is migrated.
_NOT_MIGRATED_SERIES = re.compile(r"a[0-9]+[a-z]*|g[2-9][0-9]*[a-z]*|ct[0-9]+[a-z]*|tpu.*|h4d")
# Series and ending of the name: the most vCPUs with at most 18,000 GiB (Z3) or 42,000 GiB (Z4D,
# Z4M) of Titanium SSD. Z3 without an ending has 36,000. Of Z4M's 168,000 at 192 vCPUs, that is 48.
_MOST_VCPUS_MIGRATED: Mapping[str, Mapping[str, int]] = {
    "z3": {"-standardlssd": 88, "-highlssd": 44, "": 0},
    "z4d": {"-standardlssd": 192, "-highlssd": 96, "": 96},
    "z4m": {"": 48},
}
# Google adds no more types to these series: a type that is not in the table is not sold.
_COMPLETE_SERIES = frozenset(
    {"e2", "n1", "n2", "n2d", "t2a", "t2d", "c2", "c2d", "m1", "m2", "f1", "g1"}
)
_LOCAL_SSD = re.compile(r"-(?:standard|high)?lssd$")
_CUSTOM = re.compile(
    r"(?:(?P<series>[a-z]+[0-9]+[a-z]*)-)?custom-(?P<size>[1-9][0-9]{0,3}|micro|small|medium)"
    r"-(?P<mb>[1-9][0-9]{0,8})(?P<extended>-ext)?"
)
# Google sells custom memory in steps of 256 MiB.
_CUSTOM_STEP_MB = 256


@dataclass(frozen=True, kw_only=True)
class _CustomSeries:
    """Custom types of a series."""

    vcpus: tuple[int, ...]
    # Least and most GiB per vCPU, without extended memory.
    gib: tuple[float, float]
    # Most GiB in all.
    most_gib: int
    # Whether it has extended memory (`-ext`).
    extended: bool = True


def _even(most: int) -> tuple[int, ...]:
    return tuple(range(2, most + 1, 2))


# Source: Google's documentation of custom machine types, and its samples for these limits.
_CUSTOM_SERIES: Mapping[str, _CustomSeries] = {
    "e2": _CustomSeries(vcpus=_even(32), gib=(0.5, 8), most_gib=128, extended=False),
    "n1": _CustomSeries(vcpus=(1, *_even(96)), gib=(0.9, 6.5), most_gib=624),
    "n2": _CustomSeries(vcpus=(*_even(32), *range(36, 129, 4)), gib=(0.5, 8), most_gib=864),
    "n2d": _CustomSeries(vcpus=(2, 4, 8, 16, 32, 48, 64, 80, 96), gib=(0.5, 8), most_gib=768),
    "n4": _CustomSeries(vcpus=_even(80), gib=(2, 8), most_gib=640),
    "n4d": _CustomSeries(vcpus=_even(96), gib=(0.5, 8), most_gib=768),
    "n4a": _CustomSeries(vcpus=(1, *_even(64)), gib=(0.5, 8), most_gib=512),
}
# GiB of E2's shared-core custom types: from, to. Their guests see two vCPUs.
_CUSTOM_SHARED: Mapping[str, tuple[float, float]] = {
    "micro": (1, 2),
    "small": (2, 4),
    "medium": (4, 8),
}


def _predefined() -> Iterator[MachineType]:
    for prefix, ratio, sizes in _BY_RATIO:
        for vcpus in sizes:
            yield from _sold(prefix, vcpus, vcpus * ratio)
    for prefix, by_size in _BY_SIZE:
        for vcpus, gib in by_size.items():
            yield from _sold(prefix, vcpus, gib)
    for name, (vcpus, gib) in (_SHARED_CORE | dict(_SINGLE)).items():
        yield _machine(name, vcpus, gib)


def _sold(prefix: str, vcpus: int, gib: float) -> Iterator[MachineType]:
    yield _machine(f"{prefix}-{vcpus}", vcpus, gib)
    if vcpus >= _LOCAL_SSD_FROM.get(prefix, 10_000):
        yield _machine(f"{prefix}-{vcpus}-lssd", vcpus, gib)


def _machine(name: str, vcpus: int, gib: float) -> MachineType:
    return MachineType(name=name, vcpus=vcpus, memory_mb=int(gib * MIB_PER_GIB))


TABLE: dict[str, MachineType] = {machine.name: machine for machine in _predefined()}
_FAMILIES = frozenset(machine.family for machine in TABLE.values())


def look_up(name: str) -> MachineType | None:
    """The machine type called `name`, or None where neither table nor name gives its size."""
    predefined = TABLE.get(name)
    if predefined is not None:
        return predefined
    match = _CUSTOM.fullmatch(name)
    if match is None or _custom_problem(match):
        return None
    vcpus = int(match["size"]) if match["size"].isdigit() else 2
    return MachineType(name=name, vcpus=vcpus, memory_mb=int(match["mb"]))


def unsold(name: str) -> str:
    """Why Google sells no machine type called `name`; "" where it does or it is not known."""
    family = MachineType(name=name, vcpus=0, memory_mb=0).family
    if name in TABLE or family not in _FAMILIES:
        return ""
    if match := _CUSTOM.fullmatch(name):
        return _custom_problem(match)
    if "custom" in name.split("-"):
        return "custom types are called SERIES-custom-VCPUS-MB"
    without = _LOCAL_SSD.sub("", name)
    if without != name and without in TABLE:
        return f"Google sells {without} without local SSDs only"
    if family in _COMPLETE_SERIES:
        return f"Google sells no such type of {family.upper()}"
    return ""


def _custom_problem(match: re.Match[str]) -> str:
    """Why Google does not sell the custom type in `match`, or ""."""
    series, size, memory_mb = match["series"] or "n1", match["size"], int(match["mb"])
    if series not in _CUSTOM_SERIES:
        return f"{series.upper()} has no custom types"
    sold = _CUSTOM_SERIES[series]
    if size.isdigit():
        if int(size) not in sold.vcpus:
            return f"{series.upper()} has no custom type of {size} vCPUs"
        low, high = (int(size) * gib for gib in sold.gib)
    elif series == "e2":
        low, high = _CUSTOM_SHARED[size]
    else:
        return "only E2 shares the cores of its custom types"
    if match["extended"] and not sold.extended:
        return f"{series.upper()} has no extended memory"
    # The minimum is rounded up to a step.
    least = ceil(low * MIB_PER_GIB / _CUSTOM_STEP_MB) * _CUSTOM_STEP_MB
    most = int((sold.most_gib if match["extended"] else min(high, sold.most_gib)) * MIB_PER_GIB)
    if memory_mb % _CUSTOM_STEP_MB or not least <= memory_mb <= most:
        return (
            f"of {series.upper()} with {size} vCPUs Google sells {least:,} to {most:,} MB in steps "
            f"of {_CUSTOM_STEP_MB}"
        )
    return ""
