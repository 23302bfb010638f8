"""Machine types."""

import pytest

from lab.cloud.compute import catalog


@pytest.mark.parametrize(
    ("name", "vcpus", "memory_mb"),
    [
        ("e2-standard-16", 16, 65536),
        ("n2d-highcpu-128", 128, 131072),
        ("e2-standard-8", 8, 32768),
        ("n2-standard-4", 4, 16384),
        ("e2-custom-2-1024", 2, 1024),
        ("custom-1-3840", 1, 3840),
        ("n2-custom-4-65536-ext", 4, 65536),
        ("e2-micro", 2, 1024),
        ("e2-custom-small-2048", 2, 2048),
        ("n1-custom-2-638976-ext", 2, 638_976),
    ],
)
def test_machine_types(name: str, vcpus: int, memory_mb: int) -> None:
    found = catalog.machine_type(name)
    assert found is not None
    assert (found.vcpus, found.memory_mb) == (vcpus, memory_mb)


@pytest.mark.parametrize(
    "name",
    [
        "e2-standard-3",
        "e2-standard-16-lssd",
        "e2-custom-1-1024",
        "e2-custom-3-1024",
        "e2-custom-2-1000",
        "e2-custom-2-768",
        "e2-custom-2-16640",
        "e2-custom-2-16384-ext",
        "n2-custom-34-34816",
        "n2-custom-micro-1024",
        "n2d-custom-6-6144",
        "n1-custom-2-884736-ext",
        "z9-custom-2-1024",
        "",
    ],
)
def test_unknown_machine_types(name: str) -> None:
    assert catalog.machine_type(name) is None
