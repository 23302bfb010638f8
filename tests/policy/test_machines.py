"""The policies' machine types, and that they agree with the program's, which they do not share."""

from __future__ import annotations

import pytest

from components import machines
from policy.machines import memory_gb


@pytest.mark.parametrize("machine", machines.TABLE.values(), ids=lambda machine: machine.name)
def test_policies_and_program_give_a_type_the_same_memory(machine: machines.MachineType) -> None:
    gb = memory_gb(machine.name, {})
    assert gb is not None
    assert int(gb * 1024) == machine.memory_mb


@pytest.mark.parametrize(
    "name",
    [
        "e2-custom-2-1024",
        "e2-custom-32-131072",
        "e2-custom-micro-2048",
        "e2-custom-medium-8192",
        "custom-1-6656",
        "n1-custom-96-638976",
        "n2-custom-128-884736-ext",
        "n2d-custom-96-786432-ext",
        "n4-custom-80-655360",
        "n4a-custom-1-8192",
    ],
)
def test_custom_types_that_are_sold(name: str) -> None:
    assert memory_gb(name, {}) == int(name.removesuffix("-ext").rpartition("-")[2]) / 1024


@pytest.mark.parametrize(
    "name",
    [
        "e2-custom-2-9999872",
        "e2-custom-2-16640",  # more than 8 GB a vCPU
        "e2-custom-2-102400-ext",  # E2 has no extended memory
        "e2-custom-3-8192",
        "e2-custom-34-65536",
        "e2-custom-0-1024",
        "e2-custom-2-0",
        "e2-custom-micro-2304",
        "n2-custom-micro-1024",
        "n2-custom-1-1024",
        "n2-custom-2-884992-ext",  # more than a series has in all
        "custom-98-102400",
        "c3-custom-4-16384",
    ],
)
def test_custom_types_that_nobody_sells(name: str) -> None:
    assert memory_gb(name, {}) is None


@pytest.mark.parametrize("suffix", ["-lssd", "-standardlssd", "-highlssd", "-metal"])
def test_disks_of_its_own_change_no_memory(suffix: str) -> None:
    assert memory_gb(f"z3-highmem-88{suffix}", {}) == 704
    assert memory_gb(f"z3-highmem-88{suffix}-more", {}) is None
