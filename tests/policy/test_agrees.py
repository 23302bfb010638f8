"""The policies' arithmetic and the program's, which share nothing: of every fleet they say the
same, VM by VM."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.capacity import CONNECTION_MB, default_connections
from components.config_parse import parse_fleet
from components.config_reader import ConfigError
from policy import fits
from tests.policy.planned import spec, vm

PREFIX = "pilot-fleet:"
# Sizes from 1 GiB to 11.5 TiB, and one whose memory is no whole number of MiB.
MACHINES = (
    "e2-micro",
    "e2-custom-2-1280",
    "n1-highcpu-2",
    "e2-medium",
    "e2-standard-8",
    "n2d-highcpu-128",
    "n2-custom-4-262144-ext",
    "m2-ultramem-416",
)
# A fleet's numbers, mostly about as large as its machines, and some far beyond.
AGENTS = st.integers(0, 300) | st.integers(0, 12_000) | st.integers(0, 70_000)
MEMORY = st.integers(256, 1400) | st.integers(256, 40_000) | st.integers(256, 1_000_000)
VMS = st.fixed_dictionaries(
    {"machineType": st.sampled_from(MACHINES), "agents": AGENTS},
    optional={
        "agentMb": st.integers(2, 20) | st.integers(2, 4096),
        "reserveMb": MEMORY,
        "activeConnections": st.integers(0, 1000) | st.integers(0, 1_000_000),
    },
)


def of_the_program(values: dict[str, Any]) -> set[str]:
    try:
        parse_fleet(values, project="project-1")
    except ConfigError as error:
        return {problem.path.removeprefix(PREFIX).partition(".")[0] for problem in error.problems}
    return set()


def of_the_policies(values: dict[str, Any]) -> set[str]:
    resources = {}
    for index, line in enumerate(values["swarm"]):
        connections = line.get("activeConnections", default_connections(line["agents"]))
        document = spec(
            agents=line["agents"],
            basePort=values["basePort"],
            memory_agentMb=line.get("agentMb", values["agentMb"]),
            memory_reserveMb=line.get("reserveMb", values["reserveMb"]),
            memory_connectionMb=CONNECTION_MB,
            memory_activeConnections=connections,
        )
        name = f"swarm[{index}]"
        resources[name] = vm(document, line["machineType"], name)
    everyone = sum(line["agents"] for line in values["swarm"])
    document = spec("rendezvous", agents=everyone, memory_reserveMb=values["reserveMb"])
    resources["rendezvous"] = vm(document, values["rendezvous"]["machineType"], "rendezvous")
    refused = {
        name
        for name, resource in resources.items()
        if list(fits.vm_fits(resource, fits.VmConfig()))
    }
    found = fits.fleet_fits(list(resources.values()), fits.FitsConfig())
    return refused | {resource.name for resource, _ in found if resource}


@settings(max_examples=600, deadline=None)
@given(
    lines=st.lists(VMS, min_size=1, max_size=3),
    rendezvous=st.sampled_from(MACHINES),
    reserve=MEMORY,
    agent_mb=st.integers(2, 20),
    base_port=st.integers(9001, 65_000),
)
# All that there is, and no agent that could miss it; more than there is; and beside each other.
@example([{"machineType": "e2-micro", "agents": 0}], "e2-standard-8", 1024, 10, 10_000)
@example([{"machineType": "e2-micro", "agents": 0}], "e2-standard-8", 3000, 10, 10_000)
@example([{"machineType": "e2-micro", "agents": 0}], "e2-micro", 1024, 10, 10_000)
# Carried by 1,843.2 MiB, and not by 1,843.
@example([{"machineType": "n2d-highcpu-128", "agents": 1350}], "n1-highcpu-2", 256, 10, 10_000)
def test_of_every_fleet_both_say_the_same(
    lines: list[dict[str, Any]], rendezvous: str, reserve: int, agent_mb: int, base_port: int
) -> None:
    # A fleet without any agent is another rule's.
    lines = [{"machineType": "e2-standard-8", "agents": 1, "reserveMb": 3000}, *lines]
    values: dict[str, Any] = {
        "zone": "us-central1-a",
        "release": {"version": "1", "daemon": "d", "rendezvous": "r"},
        "rendezvous": {"name": "r", "machineType": rendezvous},
        "swarm": [{"name": f"s{index}"} | line for index, line in enumerate(lines)],
        "basePort": base_port,
        "agentMb": agent_mb,
        "reserveMb": reserve,
    }
    assert of_the_program(values) == of_the_policies(values)
