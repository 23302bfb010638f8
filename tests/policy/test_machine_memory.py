"""The policies' machine types, and that they agree with the program's, which they do not share."""

from __future__ import annotations

import itertools

import pytest

from components import machine_types
from policy.machine_memory import memory_gb

SERIES = sorted({machine.family for machine in machine_types.TABLE.values()} | {"n9", "g2", "z4d"})
SHAPES = ("standard", "highmem", "highcpu", "megamem", "ultramem", "hypermem")
ENDINGS = ("", "-lssd", "-standardlssd", "-highlssd", "-metal", "-lssd-metal", "-highlssd-metal")
# All that is sold somewhere, their neighbours, and a few that nobody sells.
SIZES = sorted(
    {
        near
        for machine in machine_types.TABLE.values()
        for near in (machine.vcpus, machine.vcpus + 2)
    }
    | {0, 1, 3, 6, 7, 34, 36, 400}
)


def both(name: str) -> tuple[int | None, int | None]:
    """The memory in MiB that program and policies give a type."""
    found, gb = machine_types.look_up(name), memory_gb(name, {})
    return found.memory_mb if found else None, None if gb is None else int(gb * 1024)


def test_program_and_policies_agree_on_every_type_that_is_sold_and_on_those_that_are_not() -> None:
    names = {*machine_types.TABLE, "e2-micro-lssd", "f1-micro-2", "g1-small-ext"} | {
        f"{series}-{shape}-{size}{ending}"
        for series, shape, size, ending in itertools.product(SERIES, SHAPES, SIZES, ENDINGS)
    }
    assert len(names) > 20_000
    differ = {name: found for name in names if len(set(found := both(name))) > 1}
    assert not differ
    assert all(both(name)[0] for name in machine_types.TABLE)


def test_program_and_policies_agree_on_custom_types() -> None:
    sizes = ("micro", "small", "medium", *map(str, (0, 1, 2, 3, 4, 6, 8, 30, 32, 34, 36, 38)))
    sizes += tuple(map(str, (60, 64, 66, 80, 82, 94, 96, 98, 100, 124, 126, 128, 130)))
    # GB a vCPU and in all at the edges of every series, in MB, and one step beside each.
    most = {vcpus * gb for vcpus in (1, 2, 4, 32, 36, 96, 128) for gb in (0.5, 0.9, 2, 6.5, 8)}
    edges = {int(gb * 1024) // 256 * 256 for gb in most | {1, 2, 4, 8, 512, 624, 640, 768, 864}}
    memory = {mb + step for mb in edges for step in (-256, 0, 256, 100)}
    for series, size, mb, extended in itertools.product(
        ("", "e2-", "n1-", "n2-", "n2d-", "n4-", "n4a-", "n4d-", "c3-", "n9-"),
        sizes,
        memory,
        ("", "-ext"),
    ):
        name = f"{series}custom-{size}-{mb}{extended}"
        program, policies = both(name)
        assert program == policies, name


@pytest.mark.parametrize(
    "name",
    [
        "e2-custom-2-1024",
        "e2-custom-32-131072",
        "e2-custom-micro-2048",
        "e2-custom-medium-8192",
        "custom-1-6656",
        "n1-custom-96-638976",
        "n1-custom-2-638976-ext",
        "n2-custom-32-65536",
        "n2-custom-36-65536",
        "n2-custom-128-884736-ext",
        "n2d-custom-8-8192",
        "n2d-custom-96-786432-ext",
        "n4-custom-80-655360",
        "n4a-custom-1-8192",
    ],
)
def test_custom_types_that_are_sold(name: str) -> None:
    mb = int(name.removesuffix("-ext").rpartition("-")[2])
    assert both(name) == (mb, mb)
    assert machine_types.unsold(name) == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("e2-custom-2-9999872", "1,024 to 16,384 MB"),
        ("e2-custom-2-16640", "1,024 to 16,384 MB"),
        ("e2-custom-2-1000", "in steps of 256"),
        ("e2-custom-2-768", "1,024 to 16,384 MB"),
        ("e2-custom-2-102400-ext", "no extended memory"),
        ("e2-custom-3-8192", "no custom type of 3 vCPUs"),
        ("e2-custom-34-65536", "no custom type of 34 vCPUs"),
        ("e2-custom-micro-2304", "1,024 to 2,048 MB"),
        ("n2-custom-micro-1024", "only E2 shares"),
        ("n2-custom-1-1024", "no custom type of 1 vCPUs"),
        ("n2-custom-34-34816", "no custom type of 34 vCPUs"),
        ("n2-custom-38-38912", "no custom type of 38 vCPUs"),
        ("n2d-custom-6-6144", "no custom type of 6 vCPUs"),
        ("n2d-custom-10-10240", "no custom type of 10 vCPUs"),
        ("n2-custom-128-1048576", "65,536 to 884,736 MB"),
        ("n2-custom-2-884992-ext", "1,024 to 884,736 MB"),
        ("n1-custom-2-884736-ext", "2,048 to 638,976 MB"),
        ("custom-2-884736-ext", "2,048 to 638,976 MB"),
        ("n2d-custom-2-884736-ext", "1,024 to 786,432 MB"),
        ("n4-custom-2-884736-ext", "4,096 to 655,360 MB"),
        ("n4a-custom-2-884736-ext", "1,024 to 524,288 MB"),
        ("custom-98-102400", "no custom type of 98 vCPUs"),
        ("c3-custom-4-16384", "C3 has no custom types"),
        ("e2-custom-2", "SERIES-custom-VCPUS-MB"),
        ("e2-custom-0-1024", "SERIES-custom-VCPUS-MB"),
        ("e2-standard-16-lssd", "without local SSDs only"),
        ("e2-medium-lssd", "without local SSDs only"),
        ("n2-standard-8-lssd", "without local SSDs only"),
        ("c3-highcpu-4-lssd", "without local SSDs only"),
        ("c3d-standard-4-lssd", "without local SSDs only"),
        ("c4d-highcpu-8-lssd", "without local SSDs only"),
        ("n4-standard-8-lssd", "without local SSDs only"),
        ("e2-standard-3", "no such type of E2"),
        ("n2d-highmem-128", "no such type of N2D"),
        ("c2-highmem-8", "no such type of C2"),
    ],
)
def test_types_that_nobody_sells(name: str, why: str) -> None:
    assert both(name) == (None, None)
    assert why in machine_types.unsold(name)


@pytest.mark.parametrize("name", ["c4-standard-400", "z3-highmem-90-highlssd", "n9-custom-2-1024"])
def test_types_newer_than_the_tables_are_unknown(name: str) -> None:
    assert both(name) == (None, None)
    assert machine_types.unsold(name) == ""
