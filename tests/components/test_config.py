"""The configuration as a whole: all problems at once, and properties of the values."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from components.config_checks import MAX_CONFIGURATION_BYTES
from tests.components.fleet import ROOT, changed, parse, problems, seed, swarm

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown key", changed(colour="red"), "pilot-fleet:colour", "unknown key"),
    ("misspelt key", changed(basePrt=1), "pilot-fleet:basePrt", "did you mean basePort?"),
    ("text for a number", changed(agentMb="ten"), "pilot-fleet:agentMb", "a whole number"),
    ("a fraction", changed(agentMb=2.5), "pilot-fleet:agentMb", "a whole number"),
    ("number for a flag", changed(nat=1), "pilot-fleet:nat", "true or false"),
    ("map for a list", changed(swarm={"a": 1}), "pilot-fleet:swarm", "must be a list"),
    ("text for a list", changed(swarm="swarm-1"), "pilot-fleet:swarm", "must be a list"),
    ("list for a map", changed(roll=[1]), "pilot-fleet:roll", "must be a map"),
    ("a VM that is none", changed(swarm=["x"]), "pilot-fleet:swarm[0]", "must be a map"),
    ("window", changed(window=0), "pilot-fleet:window", "out of range"),
    ("no swarm", changed(swarm=[]), "pilot-fleet:swarm", "is empty"),
    ("no swarm at all", changed(swarm=None), "pilot-fleet:swarm", "is empty"),
    ("no zone", changed(zone=None), "pilot-fleet:zone", "is missing"),
    ("a region for a zone", changed(zone="us-central1"), "pilot-fleet:zone", "is not a zone"),
    ("an empty rendezvous", changed(rendezvous={}), "pilot-fleet:rendezvous", "is empty"),
    ("no rendezvous", changed(rendezvous=None), "pilot-fleet:rendezvous", "is missing"),
    (
        "overlapping ports",
        changed(basePort=8000),
        "pilot-fleet:basePort",
        "9000 (the registry's), 9001",
    ),
    ("ports that reach", changed(basePort=2000), "pilot-fleet:basePort", "3000 (the dashboard's)"),
    ("system ports", changed(basePort=80), "pilot-fleet:basePort", "out of range"),
    *(
        (f"the zone {zone}", changed(zone=zone), "pilot-fleet:zone", "is not a zone of Google's")
        for zone in ("mars-north1-z", "us-central1-z", "us-middle1-a", "eu-west1-b", "us-east0-b")
    ),
    ("no agent at all", swarm(agents=0), "pilot-fleet:swarm", "has no agent at all"),
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


def test_the_seeds_fleet() -> None:
    config = parse(seed())
    assert [(vm.name, vm.machine.name, vm.agents) for vm in config.swarm] == [
        ("swarm-1", "e2-standard-16", 3000),
        ("swarm-2", "n2d-highcpu-128", 5000),
        ("swarm-3", "e2-standard-8", 1500),
    ]
    assert [vm.environment for vm in config.swarm] == [{}, {}, {"GOGC": "50"}]
    assert (config.rendezvous.name, config.zone) == ("pilot-rendezvous", "us-central1-a")
    assert config.registry == "10.10.0.2:9000"
    assert config.agents == 9500
    # Upstream keeps 60 % of the memory on swarm-2 (local ports bind before it) and about 50 %.
    assert [round(vm.fit.headroom, 2) for vm in config.swarm] == [0.50, 0.56, 0.48]


def test_defaults_are_those_of_the_project_file() -> None:
    declared = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    defaults = {key: item["default"] for key, item in declared.items() if "default" in item}
    assert parse(seed() | defaults) == parse(seed())
    unknown = problems(seed() | {"no": 1})["pilot-fleet:no"]
    assert unknown == f"unknown key: the keys here are {', '.join(sorted(declared))}"
    assert all(item["description"] and item["type"] for item in declared.values())


def test_a_project_with_a_domain_before_its_id_is_not_supported() -> None:
    (problem,) = problems(seed(), "example.com:project-1").items()
    assert problem[0] == "gcp:project"
    assert "a project with a domain before its id, which is not supported" in problem[1]
    assert "is not a project id" in problems(seed(), "example.com:p")["gcp:project"]


@pytest.mark.parametrize("letter", ["x", "<", "ß", '"'])
def test_more_configuration_than_pulumi_can_hand_over_is_refused(letter: str) -> None:
    """Counted as it travels: JSON in JSON, in Go's way of writing it."""
    weight = {"x": 1, "<": 7, "ß": 2, '"': 4}[letter]
    most = MAX_CONFIGURATION_BYTES - 1000
    assert parse(swarm(env={"A": letter * (most // weight)}))
    found = problems(swarm(env={"A": letter * (MAX_CONFIGURATION_BYTES // weight)}))
    assert "Pulumi passes all of it to the program in" in found["pilot-fleet:swarm"]
    # The engine passes the list as text of the same length.
    long = swarm(env={"A": letter * (MAX_CONFIGURATION_BYTES // weight)})
    as_text = json.dumps(long["swarm"], separators=(",", ":"), ensure_ascii=False)
    as_text = as_text.replace("<", "\\u003c")
    assert problems(long | {"swarm": as_text}) == found


def test_all_problems_at_once() -> None:
    values = changed(
        zone="mars",
        colour="red",
        agentMb="ten",
        subnetCidr="10.0.0.1/8",
        swarm=[
            {"name": "Upper", "machineType": "e2-standard-8", "agents": -1},
            {"name": "b", "machineType": "n9-standard-8", "agents": 1},
            {"name": "b", "machineType": "e2-standard-8", "agents": 99_999},
        ],
    )
    assert list(problems(values, project=None)) == [
        "gcp:project",
        "pilot-fleet:zone",
        "pilot-fleet:agentMb",
        "pilot-fleet:subnetCidr",
        "pilot-fleet:swarm[0].name",
        "pilot-fleet:swarm[0].agents",
        "pilot-fleet:swarm[1].machineType",
        "pilot-fleet:swarm[2].name",
        "pilot-fleet:swarm[2].agents",
        "pilot-fleet:rendezvous.machineType",
        "pilot-fleet:colour",
    ]


def test_the_smallest_swarm_vm_is_the_first_and_the_rendezvous_the_last() -> None:
    agents = {"swarm-1": 30, "swarm-2": 10, "swarm-4": 20, "swarm-3": 20}
    vms = [
        {"name": name, "machineType": "e2-standard-16", "agents": count}
        for name, count in agents.items()
    ]
    names = ["swarm-2", "swarm-3", "swarm-4", "swarm-1", "pilot-rendezvous"]
    expected = {name: place * 120 for place, name in enumerate(names)}
    assert parse(changed(swarm=vms)).script_delays == expected
    assert set(parse(changed(swarm=vms, programStagger=0)).script_delays.values()) == {0}
    assert problems(changed(programStagger=-1)).keys() == {"pilot-fleet:programStagger"}


def test_tight_settings_are_warnings() -> None:
    incident = swarm(machineType="e2-standard-8", agents=2000, activeConnections=800)
    (first, *_), fit = parse(incident).warnings(), parse(incident).swarm[0].fit
    assert fit.headroom < 0.40
    # The rendezvous of one small VM has room; only the VM is reported.
    assert first.startswith("swarm-1 (e2-standard-8) keeps 22% headroom for 2,000 agents")
    metal = parse(swarm(machineType="h4d-standard-192", agents=1)).warnings()
    assert "swarm-1 (h4d-standard-192) is stopped and started again by Google's host" in metal[0]
    assert not any("host maintenance" in warning for warning in parse(seed()).warnings())
    quick = parse(changed(roll={"watchSeconds": 19})).warnings()
    assert any("roll.watchSeconds is 19" in warning for warning in quick)
    enough = parse(changed(roll={"watchSeconds": 20})).warnings()
    assert not any("roll.watchSeconds" in warning for warning in enough)
    shared = changed(serviceAccount="vms@project-1.iam.gserviceaccount.com")
    assert any("copies of the registry stay" in warning for warning in parse(shared).warnings())
    assert not any("copies of the registry" in warning for warning in parse(seed()).warnings())
    public = changed(rendezvous=seed()["rendezvous"] | {"public": True})
    assert any("rendezvous.public" in warning for warning in parse(public).warnings())
    assert not any(
        "rendezvous.public" in warning
        for warning in parse(public | {"registryRanges": ["203.0.113.0/24"]}).warnings()
    )
