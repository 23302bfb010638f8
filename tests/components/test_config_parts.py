"""Keys of the configuration that are no VM's: wrong values are named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.components.fleet import changed, parse, problems, seed

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "no value for a list",
        changed(monitoring={"enabled": True, "channels": None}),
        "pilot-fleet:monitoring.channels",
        "has no value: leave the key out, or fill it",
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
        "the rendezvous' default account",
        changed(
            rendezvous=seed()["rendezvous"]
            | {"serviceAccount": "123-compute@developer.gserviceaccount.com"}
        ),
        "pilot-fleet:rendezvous.serviceAccount",
        "a default account",
    ),
    (
        "one account for swarm and copies",
        changed(
            rendezvous=seed()["rendezvous"]
            | {"serviceAccount": "vms@project-1.iam.gserviceaccount.com"},
            serviceAccount="vms@project-1.iam.gserviceaccount.com",
        ),
        "pilot-fleet:rendezvous.serviceAccount",
        "is also the swarm's account",
    ),
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
    ("no bucket", changed(bucket="Not A Bucket"), "pilot-fleet:bucket", "a bucket's name"),
    ("no account", changed(serviceAccount="me"), "pilot-fleet:serviceAccount", "address"),
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
        "order includes look",
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
def test_wrong_values_are_named(values: dict[str, Any], path: str, message: str) -> None:
    found = problems(values)
    assert path in found, found
    assert message in found[path]


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
def test_values_that_google_accepts_are_accepted(values: dict[str, Any]) -> None:
    assert parse(changed(**values))
