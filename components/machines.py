"""Machine types of Compute Engine: vCPUs and memory, by name.

The table holds the general-purpose, compute- and memory-optimised types that an agent fleet would
run on (source: Google's machine family documentation, read November 2026; memory in Google's GB,
which are GiB). Accelerator types are left out on purpose. Custom types are read from their names.
Anything else is declared in the stack file with `memoryGb` and `vcpus`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MIB_PER_GIB = 1024


@dataclass(frozen=True, kw_only=True)
class MachineType:
    """A machine type: `vcpus` (count, as Google bills them) and `memory_mb` (MiB)."""

    name: str
    vcpus: int
    memory_mb: int
    arm: bool = False

    @property
    def family(self) -> str:
        """The series that vCPU quotas are counted in: `n2d` of `n2d-highcpu-128`."""
        series = self.name.split("-", 1)[0]
        return {"custom": "n1", "f1": "n1", "g1": "n1"}.get(series, series)

    @property
    def hyperdisk(self) -> bool:
        """Whether this series boots from Hyperdisk only and takes no Persistent Disk."""
        return self.family in _HYPERDISK_SERIES


# (series and class, GiB a vCPU, vCPU counts): where memory is a plain multiple.
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
)

# name -> (vCPUs that the guest sees, GiB)
_SHARED_CORE: dict[str, tuple[int, float]] = {
    "e2-micro": (2, 1),
    "e2-small": (2, 2),
    "e2-medium": (2, 4),
    "f1-micro": (1, 0.6),
    "g1-small": (1, 1.7),
}

# Series of the fourth generation take no Persistent Disk (Google's disk documentation).
_HYPERDISK_SERIES = frozenset({"n4", "n4a", "n4d", "c4", "c4a", "c4d"})
_ARM_SERIES = frozenset({"t2a", "c4a", "n4a"})
_LOCAL_SSD_SUFFIX = re.compile(r"-(lssd|standardlssd|highlssd)$")
_CUSTOM = re.compile(
    r"(?:(?P<series>e2|n1|n2|n2d|n4|n4d|n4a)-)?custom-(?P<vcpus>[1-9]\d{0,2}|micro|small|medium)"
    r"-(?P<mb>[1-9]\d{1,6})(?:-ext)?"
)
# Google sells custom memory in steps of 256 MiB.
_CUSTOM_STEP_MB = 256


@dataclass(frozen=True, kw_only=True)
class _CustomSeries:
    """What a series sells: vCPUs in even numbers up to `most_vcpus`, `gib` a vCPU (from, to)."""

    most_vcpus: int
    gib: tuple[float, float]
    extended: bool = False


# Source: Google's documentation of custom machine types. With `-ext` a series that has extended
# memory sells up to `_EXTENDED_MB` in all.
_CUSTOM_SERIES: Mapping[str, _CustomSeries] = {
    "e2": _CustomSeries(most_vcpus=32, gib=(0.5, 8)),
    "n1": _CustomSeries(most_vcpus=96, gib=(0.9, 6.5), extended=True),
    "n2": _CustomSeries(most_vcpus=128, gib=(0.5, 8), extended=True),
    "n2d": _CustomSeries(most_vcpus=96, gib=(0.5, 8), extended=True),
    "n4": _CustomSeries(most_vcpus=80, gib=(2, 8), extended=True),
    "n4d": _CustomSeries(most_vcpus=96, gib=(0.5, 8), extended=True),
    "n4a": _CustomSeries(most_vcpus=64, gib=(0.5, 8), extended=True),
}
_EXTENDED_MB = 864 * MIB_PER_GIB
# GiB of E2's shared-core custom types: from, to.
_CUSTOM_SHARED: Mapping[str, tuple[float, float]] = {
    "micro": (1, 2),
    "small": (2, 4),
    "medium": (4, 8),
}


def _predefined() -> Iterator[MachineType]:
    for prefix, ratio, sizes in _BY_RATIO:
        for vcpus in sizes:
            yield _machine(f"{prefix}-{vcpus}", vcpus, vcpus * ratio)
    for prefix, by_size in _BY_SIZE:
        for vcpus, gib in by_size.items():
            yield _machine(f"{prefix}-{vcpus}", vcpus, gib)
    for name, (vcpus, gib) in _SHARED_CORE.items():
        yield _machine(name, vcpus, gib)


def _machine(name: str, vcpus: int, gib: float) -> MachineType:
    return MachineType(
        name=name,
        vcpus=vcpus,
        memory_mb=int(gib * MIB_PER_GIB),
        arm=name.split("-", 1)[0] in _ARM_SERIES,
    )


TABLE: dict[str, MachineType] = {machine.name: machine for machine in _predefined()}


def look_up(name: str) -> MachineType | None:
    """The machine type called `name`, or None where neither the table nor the name tells."""
    predefined = TABLE.get(_LOCAL_SSD_SUFFIX.sub("", name))
    if predefined is not None:
        return MachineType(
            name=name,
            vcpus=predefined.vcpus,
            memory_mb=predefined.memory_mb,
            arm=predefined.arm,
        )
    return _custom(name)


def _custom(name: str) -> MachineType | None:
    match = _CUSTOM.fullmatch(name)
    if match is None:
        return None
    series, size, memory_mb = match["series"] or "n1", match["vcpus"], int(match["mb"])
    # Shared-core custom types exist in E2 only; their guests see two vCPUs.
    shared = not size.isdigit()
    if (shared and series != "e2") or memory_mb % _CUSTOM_STEP_MB:
        return None
    vcpus = 2 if shared else int(size)
    if not _is_sold(series, size, vcpus, memory_mb, extended=name.endswith("-ext")):
        return None
    return MachineType(name=name, vcpus=vcpus, memory_mb=memory_mb, arm=series in _ARM_SERIES)


def _is_sold(series: str, size: str, vcpus: int, memory_mb: int, *, extended: bool) -> bool:
    sold = _CUSTOM_SERIES[series]
    low, high = _CUSTOM_SHARED.get(size, (vcpus * sold.gib[0], vcpus * sold.gib[1]))
    if extended:
        if not sold.extended:
            return False
        high = _EXTENDED_MB / MIB_PER_GIB
    even = vcpus % 2 == 0 or (vcpus == 1 and series in {"n1", "n4a"})
    return even and vcpus <= sold.most_vcpus and low <= memory_mb / MIB_PER_GIB <= high
