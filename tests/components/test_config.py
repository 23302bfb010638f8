"""Configuration: what works is accepted, what is wrong is named, all of it at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from components.config import CONFIGURATION_MOST, FleetConfig
from components.reading import ConfigError
from tests.components.fleet import ROOT, changed, seed
from tests.startup.node.desired.test_spec import GO, NO_GO


def parse(values: dict[str, Any], project: str | None = "project-1") -> FleetConfig:
    return FleetConfig.parse(values, project=project)


def problems(values: dict[str, Any], project: str | None = "project-1") -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(values, project)
    return {problem.path: problem.message for problem in caught.value.problems}


def swarm(**values: Any) -> dict[str, Any]:
    """The seed's fleet with one VM, some of whose keys are changed."""
    return changed(
        swarm=[{"name": "swarm-1", "machineType": "e2-standard-16", "agents": 3000} | values]
    )


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


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown key", changed(colour="red"), "pilot-fleet:colour", "unknown key"),
    ("misspelt key", changed(basePrt=1), "pilot-fleet:basePrt", "did you mean basePort?"),
    ("unknown key of a VM", swarm(agent=1), "pilot-fleet:swarm[0].agent", "did you mean agents?"),
    ("text for a number", changed(agentMb="ten"), "pilot-fleet:agentMb", "a whole number"),
    ("a fraction", changed(agentMb=2.5), "pilot-fleet:agentMb", "a whole number"),
    ("true for a number", swarm(agents=True), "pilot-fleet:swarm[0].agents", "not true"),
    ("text for agents", swarm(agents="12"), "pilot-fleet:swarm[0].agents", "the text '12'"),
    ("number for a flag", changed(nat=1), "pilot-fleet:nat", "true or false"),
    ("map for a list", changed(swarm={"a": 1}), "pilot-fleet:swarm", "must be a list"),
    ("text for a list", changed(swarm="swarm-1"), "pilot-fleet:swarm", "must be a list"),
    ("list for a map", changed(roll=[1]), "pilot-fleet:roll", "must be a map"),
    ("a VM that is none", changed(swarm=["x"]), "pilot-fleet:swarm[0]", "must be a map"),
    ("negative", swarm(agents=-1), "pilot-fleet:swarm[0].agents", "out of range"),
    ("absurd", swarm(agents=10**30), "pilot-fleet:swarm[0].agents", "out of range"),
    ("window", changed(window=0), "pilot-fleet:window", "out of range"),
    ("no agents", swarm(agents=None), "pilot-fleet:swarm[0].agents", "is missing"),
    ("no machine", swarm(machineType=None), "pilot-fleet:swarm[0].machineType", "is missing"),
    ("no swarm", changed(swarm=[]), "pilot-fleet:swarm", "is empty"),
    ("no swarm at all", changed(swarm=None), "pilot-fleet:swarm", "is empty"),
    *(
        (f"no value for {key}", swarm(**{key: None}), f"pilot-fleet:swarm[0].{key}", "has no value")
        for key in ("env", "release")
    ),
    (
        "no value for a list",
        changed(monitoring={"enabled": True, "channels": None}),
        "pilot-fleet:monitoring.channels",
        "has no value: leave the key out, or fill it",
    ),
    ("no zone", changed(zone=None), "pilot-fleet:zone", "is missing"),
    ("a region for a zone", changed(zone="us-central1"), "pilot-fleet:zone", "is not a zone"),
    ("no release", changed(release=None), "pilot-fleet:release", "is missing"),
    ("an empty release", changed(release={}), "pilot-fleet:release", "is empty"),
    ("an empty rendezvous", changed(rendezvous={}), "pilot-fleet:rendezvous", "is empty"),
    ("an empty canary", swarm(release={}), "pilot-fleet:swarm[0].release", "is empty"),
    ("no rendezvous", changed(rendezvous=None), "pilot-fleet:rendezvous", "is missing"),
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
    ("loopback", changed(subnetCidr="127.0.0.0/8"), "pilot-fleet:subnetCidr", "a subnet can have"),
    ("link", changed(subnetCidr="169.254.0.0/16"), "pilot-fleet:subnetCidr", "a subnet can have"),
    ("multicast", changed(subnetCidr="224.0.0.0/8"), "pilot-fleet:subnetCidr", "a subnet can"),
    (
        "a token in the clear",
        changed(endpoints={"storage": "http://8.8.8.8"}),
        "pilot-fleet:endpoints.storage",
        "over https",
    ),
    (
        "a port that is none",
        changed(endpoints={"storage": "https://example.com:99999"}),
        "pilot-fleet:endpoints.storage",
        "over https",
    ),
    (
        "the default account",
        changed(serviceAccount="123-compute@developer.gserviceaccount.com"),
        "pilot-fleet:serviceAccount",
        "a default account",
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
        "overlapping ports",
        changed(basePort=8000),
        "pilot-fleet:basePort",
        "9000 (the registry's), 9001",
    ),
    ("ports that reach", changed(basePort=2000), "pilot-fleet:basePort", "3000 (the dashboard's)"),
    ("system ports", changed(basePort=80), "pilot-fleet:basePort", "out of range"),
    ("bad range", changed(subnetCidr="10.10.0.0/33"), "pilot-fleet:subnetCidr", "IPv4 range"),
    ("host bits", changed(subnetCidr="10.10.0.1/20"), "pilot-fleet:subnetCidr", "IPv4 range"),
    ("IPv6", changed(subnetCidr="fd00::/64"), "pilot-fleet:subnetCidr", "IPv4 range"),
    ("tiny subnet", changed(subnetCidr="10.0.0.0/30"), "pilot-fleet:subnetCidr", "IPv4 range"),
    (
        "too many VMs",
        changed(
            subnetCidr="10.0.0.0/29",
            swarm=[
                {"name": f"s{i}", "machineType": "e2-standard-8", "agents": 1} for i in range(4)
            ],
        ),
        "pilot-fleet:subnetCidr",
        "room for 4 VMs, the fleet has 5",
    ),
    (
        "bad registry range",
        changed(registryRanges=["10.0.0.0/8", "everyone"]),
        "pilot-fleet:registryRanges[1]",
        "is not an IPv4 range",
    ),
    (
        "a script on a VM of the fleet",
        changed(allowedScripts=["builder", "swarm-1"]),
        "pilot-fleet:allowedScripts",
        "swarm-1 is a VM of the fleet",
    ),
    (
        "no name",
        changed(allowedScripts=["zones/z/instances/x"]),
        "pilot-fleet:allowedScripts[0]",
        "is not the name of a VM",
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
    ("no bucket", changed(bucket="Not A Bucket"), "pilot-fleet:bucket", "a bucket's name"),
    ("no account", changed(serviceAccount="me"), "pilot-fleet:serviceAccount", "address"),
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
    *(
        (f"the bucket {name}", changed(bucket=name), "pilot-fleet:bucket", why)
        for name, why in (
            ("google-fleet", "begins with goog"),
            ("goog-fleet", "begins with goog"),
            ("my-google-fleet", "contains google"),
            ("my-g00gle-fleet", "contains google"),
            ("my.googie", "contains google"),
            ("10.0.0.1", "looks like an IP address"),
            ("999.1.1.1", "looks like an IP address"),
            ("a..b", "has a dot beside"),
            ("a.-b", "has a dot beside"),
            ("a-.b", "has a dot beside"),
            ("ab", "is not a bucket's name"),
            ("a" * 64, "is not a bucket's name"),
            ("-ab", "is not a bucket's name"),
            ("ab.", "is not a bucket's name"),
        )
    ),
    *(
        (f"the zone {zone}", changed(zone=zone), "pilot-fleet:zone", "is not a zone of Google's")
        for zone in ("mars-north1-z", "us-central1-z", "us-middle1-a", "eu-west1-b", "us-east0-b")
    ),
    *(
        (
            f"a subnet over {cidr}",
            changed(subnetCidr=cidr),
            "pilot-fleet:subnetCidr",
            why,
        )
        for cidr, why in (
            (
                "35.235.240.0/20",
                "overlaps 35.235.240.0/20, from which people reach VMs through IAP",
            ),
            ("35.235.241.0/24", "through IAP"),
            ("35.235.0.0/16", "through IAP"),
            ("35.191.0.0/20", "checks the health"),
            ("130.211.0.0/24", "checks the health"),
            ("35.199.192.0/24", "Cloud DNS"),
            ("199.36.153.0/24", "Google's APIs"),
        )
    ),
    ("no agent at all", swarm(agents=0), "pilot-fleet:swarm", "has no agent at all"),
    *(
        (
            f"the role {role}",
            changed(access={"order": ["group:a@example.com"], "role": role}),
            "pilot-fleet:access.role",
            "is not a custom role",
        )
        for role in ("roles/owner", "roles/editor", "roles/compute.instanceAdmin.v1", "owner")
    ),
    (
        "endpoint with a path",
        changed(endpoints={"storage": "http://127.0.0.1:1/storage/v1"}),
        "pilot-fleet:endpoints.storage",
        "URL without a path",
    ),
    (
        "a misspelt key of monitoring",
        changed(monitoring={"enable": True}),
        "pilot-fleet:monitoring.enable",
        "did you mean enabled?",
    ),
    (
        "a channel that is none",
        changed(monitoring={"enabled": True, "channels": ["a@example.com", "#ops"]}),
        "pilot-fleet:monitoring.channels[1]",
        "'#ops' is not an e-mail address, a topic",
    ),
    (
        "a channel twice",
        changed(monitoring={"enabled": True, "channels": ["a@example.com", "a@example.com"]}),
        "pilot-fleet:monitoring.channels[1]",
        "is there already",
    ),
    (
        "channels that nobody uses",
        changed(monitoring={"channels": ["a@example.com"]}),
        "pilot-fleet:monitoring.enabled",
        "has no effect",
    ),
    (
        "a percentage",
        changed(monitoring={"enabled": True, "online": 95}),
        "pilot-fleet:monitoring.online",
        "95 is out of range: above 0, at most 1",
    ),
    (
        "true for a fraction",
        changed(monitoring={"enabled": True, "online": True}),
        "pilot-fleet:monitoring.online",
        "must be a number",
    ),
    (
        "everybody",
        changed(access={"look": ["allUsers"]}),
        "pilot-fleet:access.look[0]",
        "is not a member such as",
    ),
    (
        "an address without its kind",
        changed(access={"order": ["a@example.com"]}),
        "pilot-fleet:access.order[0]",
        "is not a member such as",
    ),
    (
        "who orders looks",
        changed(access={"look": ["group:a@example.com"], "order": ["group:a@example.com"]}),
        "pilot-fleet:access.order[0]",
        "who may order may look",
    ),
    (
        "a role for nobody",
        changed(access={"role": "projects/project-1/roles/operator"}),
        "pilot-fleet:access.role",
        "while order is empty",
    ),
]


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [case[1:] for case in WRONG],
    ids=[case[0] for case in WRONG],
)
def test_what_is_wrong_is_named(values: dict[str, Any], path: str, message: str) -> None:
    found = problems(values)
    assert path in found, found
    assert message in found[path]


def test_a_project_with_a_domain_before_its_id_is_not_supported() -> None:
    (problem,) = problems(seed(), "example.com:project-1").items()
    assert problem[0] == "gcp:project"
    assert "a project with a domain before its id, which is not supported" in problem[1]
    assert "is not a project id" in problems(seed(), "example.com:p")["gcp:project"]


@pytest.mark.parametrize(
    "values",
    [
        *({"zone": zone} for zone in ("us-central1-f", "europe-southwest1-a", "me-west1-b")),
        *({"zone": zone} for zone in ("northamerica-northeast2-c", "asia-southeast3-a")),
        *({"zone": zone} for zone in ("africa-south1-a", "us-west8-a", "europe-west12-c")),
        *({"bucket": name} for name in ("fleet.example.com", "a_b", "123", "g-oogle", "1.2.3")),
        *({"image": image} for image in ("debian-cloud/debian-13", "project-1/golden")),
        *({"image": image} for image in ("ubuntu-os-cloud/ubuntu-2404-lts-amd64",)),
        *({"image": image} for image in ("ubuntu-os-cloud/ubuntu-minimal-2510-amd64",)),
        *({"image": image} for image in ("rhel-cloud/rhel-10", "suse-cloud/sles-16")),
        # A custom image, whatever its family is called; a typo is for the look-up.
        *({"image": image} for image in ("project-1/debian-11", "debian-cloud/debian-21")),
        {"image": "debian-cloud/debian-12-bookworm-v20261110"},
        *({"subnetCidr": cidr} for cidr in ("192.168.0.0/24", "100.64.0.0/20", "172.20.0.0/16")),
        {"access": {"order": ["group:a@example.com"], "role": "organizations/1/roles/operator"}},
    ],
    ids=str,
)
def test_what_google_takes_is_accepted(values: dict[str, Any]) -> None:
    assert parse(changed(**values))


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


@pytest.mark.parametrize("letter", ["x", "<", "ß", '"'])
def test_more_configuration_than_pulumi_can_hand_over_is_refused(letter: str) -> None:
    """Counted as it travels: JSON in JSON, in Go's way of writing it."""
    weight = {"x": 1, "<": 7, "ß": 2, '"': 4}[letter]
    most = CONFIGURATION_MOST - 1000
    assert parse(swarm(env={"A": letter * (most // weight)}))
    found = problems(swarm(env={"A": letter * (CONFIGURATION_MOST // weight)}))
    assert "Pulumi hands all of it to the program in one" in found["pilot-fleet:swarm"]
    # The engine hands over as text what the stack file has as a list: it is as long.
    long = swarm(env={"A": letter * (CONFIGURATION_MOST // weight)})
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


def test_a_number_that_fits_is_accepted_and_one_more_is_not() -> None:
    parse(swarm(machineType="e2-standard-8", agents=2862))
    assert problems(swarm(machineType="e2-standard-8", agents=2863))


def test_a_declared_machine_type_and_a_custom_one() -> None:
    config = parse(swarm(machineType="n9-standard-8", memoryGb=32, vcpus=8, agents=100))
    assert (config.swarm[0].machine.memory_mb, config.swarm[0].machine.vcpus) == (32_768, 8)
    config = parse(swarm(machineType="e2-custom-2-1024", reserveMb=512, agents=30, agentMb=4))
    assert (config.swarm[0].machine.memory_mb, config.swarm[0].machine.vcpus) == (1024, 2)


def test_the_smallest_swarm_vm_is_the_first_and_the_rendezvous_the_last() -> None:
    agents = {"swarm-1": 30, "swarm-2": 10, "swarm-4": 20, "swarm-3": 20}
    vms = [
        {"name": name, "machineType": "e2-standard-16", "agents": count}
        for name, count in agents.items()
    ]
    names = ["swarm-2", "swarm-3", "swarm-4", "swarm-1", "pilot-rendezvous"]
    expected = {name: place * 120 for place, name in enumerate(names)}
    assert parse(changed(swarm=vms)).turns == expected
    assert set(parse(changed(swarm=vms, programStagger=0)).turns.values()) == {0}
    assert problems(changed(programStagger=-1)).keys() == {"pilot-fleet:programStagger"}


def test_what_is_tight_is_a_warning() -> None:
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
    public = changed(rendezvous=seed()["rendezvous"] | {"public": True})
    assert any("rendezvous.public" in warning for warning in parse(public).warnings())
    assert not any(
        "rendezvous.public" in warning
        for warning in parse(public | {"registryRanges": ["203.0.113.0/24"]}).warnings()
    )
