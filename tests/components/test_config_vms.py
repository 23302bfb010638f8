"""A VM's line in the configuration, and its release: wrong values are named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.components.fleet import changed, parse, problems, seed, swarm
from tests.startup.node.desired.test_spec import GO, NO_GO

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown key of a VM", swarm(agent=1), "pilot-fleet:swarm[0].agent", "did you mean agents?"),
    ("true for a number", swarm(agents=True), "pilot-fleet:swarm[0].agents", "not true"),
    ("text for agents", swarm(agents="12"), "pilot-fleet:swarm[0].agents", "the text '12'"),
    ("negative", swarm(agents=-1), "pilot-fleet:swarm[0].agents", "out of range"),
    ("absurd", swarm(agents=10**30), "pilot-fleet:swarm[0].agents", "out of range"),
    ("no agents", swarm(agents=None), "pilot-fleet:swarm[0].agents", "is missing"),
    ("no machine", swarm(machineType=None), "pilot-fleet:swarm[0].machineType", "is missing"),
    *(
        (f"no value for {key}", swarm(**{key: None}), f"pilot-fleet:swarm[0].{key}", "has no value")
        for key in ("env", "release")
    ),
    ("no release", changed(release=None), "pilot-fleet:release", "is missing"),
    ("an empty release", changed(release={}), "pilot-fleet:release", "is empty"),
    ("an empty canary", swarm(release={}), "pilot-fleet:swarm[0].release", "is empty"),
    (
        "version as a number",
        changed(release={"version": 1.18, "daemon": "a", "rendezvous": "b"}),
        "pilot-fleet:release.version",
        "must be text",
    ),
    ("invalid name", swarm(name="Swarm_1"), "pilot-fleet:swarm[0].name", "is not a VM's name"),
    ("long name", swarm(name="a" * 57), "pilot-fleet:swarm[0].name", "56 at most"),
    (
        "duplicate name",
        changed(swarm=[{"name": "a", "machineType": "e2-standard-16", "agents": 1}] * 2),
        "pilot-fleet:swarm[1].name",
        "also the name of pilot-fleet:swarm[0]",
    ),
    (
        "named like the rendezvous",
        swarm(name="pilot-rendezvous"),
        "pilot-fleet:rendezvous.name",
        "also the name of pilot-fleet:swarm[0]",
    ),
    (
        "named like a disk",
        changed(
            swarm=[
                {"name": name, "machineType": "e2-standard-16", "agents": 1}
                for name in ("a", "a-state")
            ]
        ),
        "pilot-fleet:swarm[1].name",
        "would share a name",
    ),
    (
        "unknown machine type",
        swarm(machineType="n9-standard-8"),
        "pilot-fleet:swarm[0].machineType",
        "give memoryGb and vcpus",
    ),
    (
        "unknown machine type, half of what is needed",
        swarm(machineType="n9-standard-8", memoryGb=32),
        "pilot-fleet:swarm[0].machineType",
        "give memoryGb and vcpus",
    ),
    (
        "custom memory that is not sold",
        swarm(machineType="e2-custom-2-1000"),
        "pilot-fleet:swarm[0].machineType",
        "steps of 256",
    ),
    *(
        (
            f"{name} is not sold, whatever is said of it",
            swarm(machineType=name, memoryGb=64, vcpus=16),
            "pilot-fleet:swarm[0].machineType",
            "is not sold",
        )
        for name in ("e2-standard-16-lssd", "c3-highcpu-4-lssd", "n2d-custom-6-65536", "e2-huge")
    ),
    *(
        (
            f"{name} is an Arm machine",
            swarm(machineType=name),
            "pilot-fleet:swarm[0].machineType",
            "Arm",
        )
        for name in ("t2a-standard-16", "n4a-custom-4-16384")
    ),
    *(
        (
            f"{name} is an Arm machine, though nobody knows its size",
            swarm(machineType=name, memoryGb=768, vcpus=96),
            "pilot-fleet:swarm[0].machineType",
            "Arm",
        )
        for name in ("c4a-highmem-96-metal", "c9a-standard-96", "a4x-highgpu-4g")
    ),
    (
        "absurd memory",
        swarm(machineType="x", memoryGb=float("inf"), vcpus=2),
        "pilot-fleet:swarm[0].memoryGb",
        "0.25 to 40,000",
    ),
    (
        "too many agents",
        swarm(machineType="e2-standard-8", agents=3000),
        "pilot-fleet:swarm[0].agents",
        "memory allows 2,862",
    ),
    (
        "too many active connections",
        swarm(agents=1, activeConnections=20_000),
        "pilot-fleet:swarm[0].activeConnections",
        "20,000 do not fit on e2-standard-16: without agents 15,634 would",
    ),
    (
        "custom memory that is too much",
        swarm(machineType="e2-custom-2-9999872"),
        "pilot-fleet:swarm[0].machineType",
        "Google sells 1,024 to 16,384 MB",
    ),
    (
        "another size than it has",
        swarm(memoryGb=256),
        "pilot-fleet:swarm[0].memoryGb",
        "e2-standard-16 has 64, not 256",
    ),
    (
        "a rendezvous that is all reserve",
        changed(rendezvous={"name": "r", "machineType": "e2-small"}),
        "pilot-fleet:rendezvous.machineType",
        "leaves nothing",
    ),
    (
        "a path that leads out",
        changed(release=seed()["release"] | {"daemon": "../../etc/passwd"}),
        "pilot-fleet:release.daemon",
        "leads out of the checkout",
    ),
    (
        "a digest that is none",
        changed(release=seed()["release"] | {"sha256": {"daemon": "abc"}}),
        "pilot-fleet:release.sha256.daemon",
        "a sha256 in hex",
    ),
    (
        "a reserve of more than there is",
        swarm(machineType="e2-micro", agents=1),
        "pilot-fleet:swarm[0].reserveMb",
        "leave nothing of the 1,024 MiB",
    ),
    (
        "more agents than ports",
        swarm(machineType="m2-ultramem-416", agents=60_000, agentMb=2),
        "pilot-fleet:swarm[0].agents",
        "local ports allows 11,483",
    ),
    (
        "too many for the rendezvous",
        changed(
            swarm=[
                {"name": name, "machineType": "n2-highmem-16", "agents": agents}
                for name, agents in (("a", 6_001), ("b", 6_000))
            ]
        ),
        "pilot-fleet:rendezvous.machineType",
        "carries 12,000 agents, the fleet has 12,001: choose one with at least 17 GB",
    ),
    (
        "address outside of the subnet",
        changed(rendezvous=seed()["rendezvous"] | {"address": "10.11.0.9"}),
        "pilot-fleet:rendezvous.address",
        "10.10.0.2 to 10.10.15.253",
    ),
    (
        "Google's own address",
        changed(rendezvous=seed()["rendezvous"] | {"address": "10.10.0.1"}),
        "pilot-fleet:rendezvous.address",
        "10.10.0.2 to",
    ),
    ("unquoted variable", swarm(env={"GOGC": 50}), "pilot-fleet:swarm[0].env.GOGC", "in quotes"),
    (
        "no variable",
        swarm(env={"A B": "1"}),
        "pilot-fleet:swarm[0].env.A B",
        "environment variable",
    ),
    (
        "two lines",
        swarm(env={"A": "1\n2"}),
        "pilot-fleet:swarm[0].env.A",
        "one line of printable text",
    ),
    ("a variable of the VM's", swarm(env={"HOME": "/"}), "pilot-fleet:swarm[0].env.HOME", "itself"),
    ("half", swarm(env={"GOGC": "0.5"}), "pilot-fleet:swarm[0].env.GOGC", "percent as 50"),
    ("processors", swarm(env={"GOMAXPROCS": "0"}), "pilot-fleet:swarm[0].env.GOMAXPROCS", "number"),
    # 64M ends a Go program at its start: "malformed GOMEMLIMIT".
    ("M", swarm(env={"GOMEMLIMIT": "64M"}), "pilot-fleet:swarm[0].env.GOMEMLIMIT", "64MiB"),
    ("no collector", swarm(env={"GOGC": "off"}), "pilot-fleet:swarm[0].env.GOGC", "freed"),
    (
        "a debugger's heap",
        swarm(env={"GODEBUG": "http2client=0,sbrk=1"}),
        "pilot-fleet:swarm[0].env.GODEBUG",
        "'sbrk=1' ends or ruins a program: sbrk must be left out",
    ),
    (
        "canary without a binary",
        swarm(release={"version": "2"}),
        "pilot-fleet:swarm[0].release.daemon",
        "is missing",
    ),
    (
        "canary with a rendezvous",
        swarm(release={"version": "2", "daemon": "d", "rendezvous": "r"}),
        "pilot-fleet:swarm[0].release.rendezvous",
        "unknown key",
    ),
    ("image", changed(image="debian-12"), "pilot-fleet:image", "PROJECT/FAMILY"),
    *(
        (f"the image {image}", changed(image=image), "pilot-fleet:image", "has no Python 3.11")
        for image in (
            "windows-cloud/windows-2022",
            "windows-sql-cloud/sql-std-2022-win-2022",
            "cos-cloud/cos-stable",
            "fedora-coreos-cloud/fedora-coreos-stable",
            "freebsd-org-cloud-dev/freebsd-14-1",
            "debian-cloud/debian-11",
            "debian-cloud/debian-11-bullseye-v20240701",
            "debian-cloud/debian-9",
            "ubuntu-os-cloud/ubuntu-2204-lts",
            "ubuntu-os-cloud/ubuntu-minimal-2004-lts",
            "ubuntu-os-pro-cloud/ubuntu-pro-2204-lts",
            "rhel-cloud/rhel-9",
            "rocky-linux-cloud/rocky-linux-8-optimized-gcp",
            "centos-cloud/centos-7",
            "centos-cloud/centos-stream-9",
            "almalinux-cloud/almalinux-9",
            "suse-cloud/sles-15",
        )
    ),
    (
        "the image of one VM",
        swarm(image="cos-cloud/cos-stable"),
        "pilot-fleet:swarm[0].image",
        "has no Python 3.11",
    ),
    *(
        (f"the image {image}", changed(image=image), "pilot-fleet:image", "is for Arm machines")
        for image in ("debian-cloud/debian-12-arm64", "ubuntu-os-cloud/ubuntu-2404-lts-arm64")
    ),
]


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [case[1:] for case in WRONG],
    ids=[case[0] for case in WRONG],
)
def test_wrong_values_are_named(values: dict[str, Any], path: str, message: str) -> None:
    found = problems(values)
    assert path in found, found
    assert message in found[path]


def test_the_plan_and_a_vm_take_the_same_of_gos_variables() -> None:
    for environment in GO:
        assert parse(swarm(env=environment)).swarm[0].environment == environment
    for name, value, more, problem in NO_GO:
        found = problems(swarm(env={name: value, **more}))
        assert problem in found[f"pilot-fleet:swarm[0].env.{name}"]


def test_a_vm_with_an_image_of_its_own() -> None:
    values = changed(image="corp-images/golden")
    values["swarm"][1]["image"] = "corp-images/canary"
    config = parse(values)
    assert [vm.image for vm in config.swarm] == [None, "corp-images/canary", None]
    assert config.images == {
        "pilot-fleet:image": "corp-images/golden",
        "pilot-fleet:swarm[1].image": "corp-images/canary",
    }
    found = problems(swarm(image="golden"))
    assert "'golden' is not PROJECT/FAMILY" in found["pilot-fleet:swarm[0].image"]


def test_a_number_that_fits_is_accepted_and_one_more_is_not() -> None:
    parse(swarm(machineType="e2-standard-8", agents=2862))
    assert problems(swarm(machineType="e2-standard-8", agents=2863))


def test_a_declared_machine_type_and_a_custom_one() -> None:
    config = parse(swarm(machineType="n9-standard-8", memoryGb=32, vcpus=8, agents=100))
    assert (config.swarm[0].machine.memory_mb, config.swarm[0].machine.vcpus) == (32_768, 8)
    config = parse(swarm(machineType="e2-custom-2-1024", reserveMb=512, agents=30, agentMb=4))
    assert (config.swarm[0].machine.memory_mb, config.swarm[0].machine.vcpus) == (1024, 2)
