"""Capacity: the seed's numbers, and the edges of every limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import capacity, stack_file
from components.machine_types import TABLE, MachineType, look_up
from tests.components.fleet import ROOT, changed, parse, problems


def machine(name: str) -> MachineType:
    found = look_up(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "vcpus", "memory_mb"),
    [
        ("e2-standard-16", 16, 64 * 1024),
        ("n2d-highcpu-128", 128, 128 * 1024),
        ("e2-standard-8", 8, 32 * 1024),
        ("n2-standard-4", 4, 16 * 1024),
        ("n1-standard-1", 1, 3840),
        ("n1-highcpu-2", 2, 1843),
        ("n2-highmem-128", 128, 864 * 1024),
        ("c3-standard-22-lssd", 22, 88 * 1024),
        ("e2-micro", 2, 1024),
        ("e2-custom-2-1024", 2, 1024),
        ("e2-custom-micro-2048", 2, 2048),
        ("n2-custom-8-131072-ext", 8, 131_072),
        ("custom-4-8192", 4, 8192),
    ],
)
def test_machine_types(name: str, vcpus: int, memory_mb: int) -> None:
    found = machine(name)
    assert (found.name, found.vcpus, found.memory_mb, found.arm) == (name, vcpus, memory_mb, False)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "n9-standard-8",
        "e2-standard-3",
        "e2-custom-2-1000",
        "n2-custom-micro-1024",
        "e2-custom-2",
        "E2-standard-8",
        "e2-standard-8 ",
        "e2-custom-0-1024",
        "e2-custom-3-4096",
        "e2-custom-2-16640",
        "e2-custom-2-16640-ext",
        "e2-custom-34-34816",
        "h9-standard-88",
    ],
)
def test_not_a_machine_type(name: str) -> None:
    assert look_up(name) is None


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        *((name, True) for name in ("t2a-standard-4", "c4a-highmem-96-metal", "n4a-custom-1-8192")),
        *((name, True) for name in ("c9a-standard-2", "a4x-highgpu-4g", "a5x-highgpu-4g-metal")),
        *((name, False) for name in ("t2d-standard-4", "n2d-custom-2-4096", "custom-2-4096")),
        *((name, False) for name in ("a2-highgpu-1g", "a3-megagpu-8g", "c4d-standard-384-metal")),
    ],
)
def test_the_series_decides_whether_a_type_is_arm(name: str, arm: bool) -> None:
    assert MachineType(name=name, vcpus=1, memory_mb=1).arm is arm


# Type, GiB of Titanium SSD that Google names for it, and the most with which its series migrates.
TITANIUM = [
    *((f"z3-highmem-{n}-standardlssd", n, gib, 18_000) for n, gib in ((14, 3_000), (22, 6_000))),
    *((f"z3-highmem-{n}-standardlssd", n, gib, 18_000) for n, gib in ((88, 18_000), (176, 36_000))),
    *((f"z3-highmem-{n}-highlssd", n, gib, 18_000) for n, gib in ((8, 3_000), (44, 18_000))),
    *((f"z3-highmem-{n}{end}", n, 36_000, 18_000) for n, end in ((88, "-highlssd"), (88, ""))),
    ("z3-highmem-192-highlssd-metal", 192, 72_000, 18_000),
    *(
        (f"z4d-highmem-{n}-standardlssd", n, gib, 42_000)
        for n, gib in ((16, 3_500), (96, 21_000), (192, 42_000), (384, 84_000))
    ),
    *(
        (f"z4d-highmem-{n}-highlssd", n, gib, 42_000)
        for n, gib in ((8, 3_500), (64, 28_000), (96, 42_000), (192, 84_000))
    ),
    ("z4m-standard-192", 192, 168_000, 42_000),
]


@pytest.mark.parametrize(("name", "vcpus", "gib", "most"), TITANIUM, ids=str)
def test_much_titanium_ssd_cannot_be_migrated(name: str, vcpus: int, gib: int, most: int) -> None:
    assert MachineType(name=name, vcpus=vcpus, memory_mb=1).migrates is (gib <= most)


@pytest.mark.parametrize(
    ("name", "migrates"),
    [
        *((name, False) for name in ("a2-highgpu-1g", "a2-ultragpu-8g", "a3-highgpu-8g-nolssd")),
        *((name, False) for name in ("a4-highgpu-8g", "g2-standard-4", "g4-standard-48")),
        *((name, False) for name in ("ct5lp-hightpu-1t", "ct6e-standard-8t", "tpu7x-standard-4t")),
        *((name, False) for name in ("h4d-standard-192", "h4d-highmem-192-lssd")),
        *((name, False) for name in ("c3-standard-192-metal", "c4-standard-288-lssd-metal")),
        *((name, False) for name in ("x4-megamem-960-metal", "n9-standard-8-metal")),
        *((name, True) for name in ("e2-micro", "e2-custom-2-1024", "n1-standard-1", "g1-small")),
        *(
            (name, True)
            for name in ("f1-micro", "custom-2-4096", "n2d-highcpu-128", "n4-standard-2")
        ),
        *((name, True) for name in ("h3-standard-88", "m3-ultramem-32", "c3-standard-8-lssd")),
    ],
)
def test_types_that_cannot_be_migrated(name: str, migrates: bool) -> None:
    assert MachineType(name=name, vcpus=8, memory_mb=1).migrates is migrates


def test_families_are_what_quotas_count() -> None:
    families = {
        name: machine(name).family for name in ("n2d-highcpu-8", "custom-2-2048", "f1-micro")
    }
    assert families == {"n2d-highcpu-8": "n2d", "custom-2-2048": "n1", "f1-micro": "n1"}
    seed = ("e2-standard-16", "n2d-highcpu-128", "e2-standard-8", "n2-standard-4")
    assert capacity.vcpus_by_family(tuple(machine(name) for name in seed)) == {
        "e2": 24,
        "n2": 4,
        "n2d": 128,
    }
    assert all(found.memory_mb >= 512 and found.vcpus >= 1 for found in TABLE.values())


def test_incident_3_of_the_blog() -> None:
    """2,000 agents on 32 GB fit when idle, and 800 active connections leave too little."""
    fit = capacity.swarm_fit(
        machine("e2-standard-8"), agents=2000, base_port=10_000, active_connections=800
    )
    assert fit.fits >= 2000
    assert 0 < fit.headroom < capacity.WARN_HEADROOM
    assert fit.binds.name == "memory"
    assert fit.binds.demand == 2000 * 10 + 800 * 4


def test_each_limit_can_bind() -> None:
    large = MachineType(name="large", vcpus=416, memory_mb=12_000_000)
    local = capacity.swarm_fit(large, agents=11_483, base_port=10_000)
    assert (local.binds.name, local.fits) == ("local ports", 11_483)
    assert local.headroom >= 0
    assert capacity.swarm_fit(large, agents=11_484, base_port=10_000).headroom < 0
    high = capacity.swarm_fit(large, agents=5_000, base_port=60_000)
    assert (high.binds.name, high.fits) == ("UDP ports", 5_535)
    tasks = capacity.swarm_fit(large, agents=1, base_port=10_000).limits[-1]
    assert (tasks.name, tasks.demand, tasks.fits) == ("tasks", 8, (4_194_304 - 4096) // 8)
    rendezvous = capacity.rendezvous_fit(machine("n2-standard-4"), agents=9500)
    assert (rendezvous.binds.name, rendezvous.fits) == ("registry connections", 12_000)
    assert rendezvous.binds.demand == 38_000


def test_the_fleet_of_fifty_thousand_fits_with_room_in_three_zones() -> None:
    fifty = ROOT / "Pulumi.fifty.yaml"
    fleet = stack_file.parse(fifty.read_text(), fifty.name)
    assert fleet.agents == 50_000
    assert len(fleet.zones) == 3
    # Neither a VM nor a zone is named as tight.
    assert fleet.warnings() == []


def test_what_a_rendezvous_carries_can_be_planned_otherwise() -> None:
    values = changed()
    values["rendezvous"]["connectionsPerGb"] = 2_000
    path = "pilot-fleet:rendezvous.machineType"
    assert "carries 8,000 agents, the fleet has 9,500" in problems(values)[path]
    assert "at least 19 GB of memory" in problems(values)[path]
    values["rendezvous"]["connectionsPerGb"] = 6_000
    assert parse(values).rendezvous.fit.fits == 24_000


def test_fifty_thousand_agents_need_a_rendezvous_of_67_gb() -> None:
    assert capacity.rendezvous_memory_gb(50_000) == 67
    assert capacity.rendezvous_fit(machine("n2-highmem-16"), agents=50_000).headroom >= 0
    assert capacity.rendezvous_fit(machine("n2-standard-16"), agents=50_000).headroom < 0


@given(
    memory_mb=st.integers(300, 2_000_000),
    reserve_mb=st.integers(128, 299),
    agent_mb=st.integers(1, 100),
    connections=st.none() | st.integers(0, 10_000),
)
def test_the_number_that_fits_is_exact(
    memory_mb: int, reserve_mb: int, agent_mb: int, connections: int | None
) -> None:
    def memory(agents: int) -> capacity.VmLimit:
        return capacity.swarm_fit(
            MachineType(name="x", vcpus=1, memory_mb=memory_mb),
            agents=agents,
            base_port=10_000,
            agent_mb=agent_mb,
            reserve_mb=reserve_mb,
            active_connections=connections,
        ).limits[0]

    most = memory(0).fits
    if most >= 0:
        assert memory(most).headroom >= 0
    assert memory(max(most, -1) + 1).headroom < 0
