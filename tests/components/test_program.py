"""The whole program under mocks: the seed's declaration, and the effect of every key."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pulumi
import pytest
import yaml

from components import outputs
from components.config_parse import parse_fleet
from components.config_reader import ConfigError
from tests.components.fleet import ROOT, Recorder, changed, run_program, seed

INSTANCE = "compute/instance:Instance"


@pytest.fixture(scope="module")
def fleet() -> Recorder:
    return run_program(seed())


def test_the_vms_of_the_seed(fleet: Recorder) -> None:
    vms = fleet.of(INSTANCE)
    assert {(vm["name"], vm["machineType"], vm["zone"]) for vm in vms.values()} == {
        ("pilot-rendezvous", "n2-standard-4", "us-central1-a"),
        ("swarm-1", "e2-standard-16", "us-central1-a"),
        ("swarm-2", "n2d-highcpu-128", "us-central1-a"),
        ("swarm-3", "e2-standard-8", "us-central1-a"),
    }
    agents = {name: fleet.spec(name)["agents"] for name in ("swarm-1", "swarm-2", "swarm-3")}
    assert agents == {"swarm-1": 3000, "swarm-2": 5000, "swarm-3": 1500}
    assert fleet.spec("swarm-3")["environment"] == {"GOGC": "50"}
    assert fleet.spec("pilot-rendezvous")["agents"] == 9500


def test_every_vm_has_its_required_properties(fleet: Recorder) -> None:
    for vm in fleet.of(INSTANCE).values():
        assert set(vm["metadata"]) == {
            "enable-guest-attributes",
            "enable-oslogin",
            "pilot-role",
            "pilot-spec",
        }
        assert vm["metadata"]["enable-oslogin"] == "TRUE"
        account = "pilot-fleet-rendezvous" if "rendezvous" in vm["name"] else "pilot-fleet"
        assert vm["serviceAccount"]["email"] == f"{account}@project.iam.gserviceaccount.com"
        assert all(vm["shieldedInstanceConfig"].values())
        assert vm["scheduling"]["onHostMaintenance"] == "MIGRATE"
        assert vm["allowStoppingForUpdate"] is True
        assert vm["labels"]["pilot-fleet"] == "test"
        assert [disk["deviceName"] for disk in vm["attachedDisks"]] == ["pilot-state"]
        # No VM is reachable from the internet unless the configuration says so.
        assert not vm["networkInterfaces"][0].get("accessConfigs")
        assert "metadataStartupScript" not in vm


def test_the_spec_is_the_contract(fleet: Recorder) -> None:
    """docs/CONTRACT.md, field by field."""
    item = fleet.of("compute/projectMetadataItem:ProjectMetadataItem")
    (script,) = [inputs["value"] for inputs in item.values()]
    common = {
        "bucket": "project-1-pilot-fleet",
        "endpoints": {"storage": "https://storage.googleapis.com"},
        "schema": 1,
    }
    sha256 = hashlib.sha256(script.encode()).hexdigest()
    swarm = fleet.spec("swarm-1")
    rendezvous = fleet.spec("pilot-rendezvous")
    for name, release in (
        ("daemon", swarm.pop("release")),
        ("rendezvous", rendezvous.pop("release")),
    ):
        assert release.pop("version") == "1.18.0"
        assert set(release) == {name}
        binary = ROOT / f"artifacts/1.18.0/pilot-{name}"
        assert (release[name] is not None) == binary.is_file()
    assert swarm == common | {
        "agents": 3000,
        "basePort": 10000,
        "beacon": "10.10.0.2:9001",
        "environment": {},
        "memory": {"activeConnections": 300, "agentMb": 10, "connectionMb": 4, "reserveMb": 3000},
        "name": "swarm-1",
        "registry": "10.10.0.2:9000",
        "role": "swarm",
        "roll": {"auto": True, "batch": 500, "watchSeconds": 60},
        # swarm-3 is the smallest, then comes this one.
        "script": {"sha256": sha256, "afterSeconds": 120},
        "window": 15,
    }
    assert rendezvous == common | {
        "agents": 9500,
        "environment": {},
        "memory": {"reserveMb": 3000},
        "name": "pilot-rendezvous",
        "ports": {"beacon": 9001, "dashboard": 3000, "registry": 9000},
        "role": "rendezvous",
        "script": {"sha256": sha256, "afterSeconds": 360},
        "subnet": "10.10.0.0/20",
        "uploadCopies": True,
    }


def test_firewall_rules_by_port_and_source(fleet: Recorder) -> None:
    rules = {
        rule["name"]: (
            rule["allows"][0]["protocol"],
            rule["allows"][0]["ports"],
            rule["sourceRanges"],
            rule["targetTags"],
        )
        for rule in fleet.of("compute/firewall:Firewall").values()
    }
    iap, subnet = ["35.235.240.0/20"], ["10.10.0.0/20"]
    assert rules == {
        "pilot-fleet-registry": ("tcp", ["9000"], subnet, ["pilot-rendezvous"]),
        "pilot-fleet-beacon": ("udp", ["9001"], subnet, ["pilot-rendezvous"]),
        "pilot-fleet-agents": ("udp", ["10001-15000"], subnet, ["pilot-swarm"]),
        "pilot-fleet-dashboard": ("tcp", ["3000"], iap, ["pilot-rendezvous"]),
        "pilot-fleet-ssh": ("tcp", ["22"], iap, ["pilot-rendezvous", "pilot-swarm"]),
    }
    subnetwork = fleet.of("compute/subnetwork:Subnetwork")["pilot-fleet-subnet"]
    assert subnetwork["privateIpGoogleAccess"] is True
    assert not fleet.of("compute/routerNat:RouterNat")


def test_snapshots_of_the_rendezvous(fleet: Recorder) -> None:
    policies = fleet.of("compute/resourcePolicy:ResourcePolicy")
    days = {
        name: inputs["snapshotSchedulePolicy"]["retentionPolicy"]["maxRetentionDays"]
        for name, inputs in policies.items()
    }
    assert days == {"pilot-rendezvous-hourly": 2, "pilot-rendezvous-daily": 14}
    attached = fleet.of("compute/diskResourcePolicyAttachment:DiskResourcePolicyAttachment")
    assert {inputs["disk"] for inputs in attached.values()} == {"pilot-rendezvous-state"}


def test_an_account_is_made_with_the_least_it_needs(fleet: Recorder) -> None:
    roles = {inputs["role"] for inputs in fleet.of("projects/iAMMember:IAMMember").values()}
    assert roles == {"roles/logging.logWriter", "roles/monitoring.metricWriter"}
    assert granted(fleet) == {
        ("pilot-fleet@project", "roles/storage.objectViewer", ""),
        ("pilot-fleet-rendezvous@project", "roles/storage.objectViewer", ""),
        ("pilot-fleet-rendezvous@project", "roles/storage.objectUser", COPIES),
    }


COPIES = 'resource.name.startsWith("projects/_/buckets/project-1-pilot-fleet/objects/registry/")'
VMS = "vms@project-1.iam.gserviceaccount.com"
OWN = "rendezvous@project-1.iam.gserviceaccount.com"


def granted(fleet: Recorder) -> set[tuple[str, str, str]]:
    """Account, role and condition of each binding on the bucket."""
    return {
        (
            each["member"].partition(":")[2].removesuffix(".iam.gserviceaccount.com"),
            each["role"],
            (each.get("condition") or {}).get("expression", ""),
        )
        for each in fleet.of("storage/bucketIAMMember:BucketIAMMember").values()
    }


def accounts_of(fleet: Recorder) -> dict[str, str]:
    vms = fleet.of("compute/instance:Instance").values()
    return {vm["name"]: vm["serviceAccount"]["email"] for vm in vms}


def test_accounts_that_exist_are_used_and_the_swarms_never_writes() -> None:
    given = run_program(rendezvous(serviceAccount=OWN) | {"serviceAccount": VMS})
    assert not given.of("serviceaccount/account:Account")
    assert not given.of("projects/iAMMember:IAMMember")
    assert granted(given) == {
        ("vms@project-1", "roles/storage.objectViewer", ""),
        ("rendezvous@project-1", "roles/storage.objectViewer", ""),
        ("rendezvous@project-1", "roles/storage.objectUser", COPIES),
    }
    accounts = accounts_of(given)
    assert accounts.pop("pilot-rendezvous") == OWN
    assert set(accounts.values()) == {VMS}
    assert given.spec("pilot-rendezvous")["uploadCopies"] is True


def test_one_account_for_all_keeps_the_copies_on_the_vm() -> None:
    shared = run_program(changed(serviceAccount=VMS))
    assert not shared.of("serviceaccount/account:Account")
    assert granted(shared) == {("vms@project-1", "roles/storage.objectViewer", "")}
    assert set(accounts_of(shared).values()) == {VMS}
    assert shared.spec("pilot-rendezvous")["uploadCopies"] is False


def rendezvous(**values: Any) -> dict[str, Any]:
    return changed(rendezvous=seed()["rendezvous"] | values)


def first(**values: Any) -> dict[str, Any]:
    one, *rest = seed()["swarm"]
    return changed(swarm=[one | values, *rest])


RELEASE = {"version": "2.0.0", "daemon": "Makefile", "rendezvous": "README.md"}
# One change for every key that a stack file can have.
CHANGES: dict[str, dict[str, Any]] = {
    "zone": changed(zone="europe-west1-b"),
    "agentMb": changed(agentMb=8),
    "reserveMb": changed(reserveMb=4000),
    "basePort": changed(basePort=20_000),
    "window": changed(window=7),
    "programStagger": changed(programStagger=0),
    "roll": changed(roll={"batch": 5, "watchSeconds": 5, "auto": False}),
    "subnetCidr": changed(subnetCidr="10.20.0.0/22"),
    "registryRanges": changed(registryRanges=["203.0.113.0/24"]),
    "nat": changed(nat=True),
    "image": changed(image="debian-cloud/debian-13"),
    "bucket": changed(bucket="another-bucket"),
    "serviceAccount": changed(serviceAccount="vms@project-1.iam.gserviceaccount.com"),
    "protect": changed(protect=False),
    "snapshots": changed(snapshots={"hourlyDays": 1, "dailyDays": 1}),
    "endpoints": changed(endpoints={"storage": "http://10.0.0.1:4443"}),
    "endpoints.secrets": changed(
        endpoints={"secrets": "http://10.0.0.1:4443"}, tokens={"admin": ""}
    ),
    "tokens": changed(tokens={"dashboard": "0123456789abcdef"}),
    "monitoring.enabled": changed(monitoring={"enabled": True}),
    "monitoring.agent": changed(monitoring={"agent": True}),
    "monitoring.channels": changed(monitoring={"enabled": True, "channels": ["a@example.com"]}),
    "monitoring.online": changed(monitoring={"enabled": True, "online": 0.5}),
    "access.look": changed(access={"look": ["group:a@example.com"]}),
    "access.order": changed(access={"order": ["group:a@example.com"]}),
    "access.role": changed(
        access={"order": ["group:a@example.com"], "role": "projects/p-12345/roles/x_y"}
    ),
    "release": changed(release=RELEASE),
    "rendezvous.zone": rendezvous(zone="us-central1-b"),
    "rendezvous.name": rendezvous(name="another"),
    "rendezvous.machineType": rendezvous(machineType="n2-standard-8"),
    "rendezvous.address": rendezvous(address="10.10.0.9"),
    "rendezvous.public": rendezvous(public=True),
    "rendezvous.serviceAccount": rendezvous(serviceAccount=OWN),
    "rendezvous.diskGb": rendezvous(diskGb=50),
    "rendezvous.bootDiskGb": rendezvous(bootDiskGb=50),
    "rendezvous.image": rendezvous(image="debian-cloud/debian-13"),
    "release.sha256": changed(release=seed()["release"] | {"sha256": {"rendezvous": "0" * 64}}),
    "swarm": changed(swarm=seed()["swarm"][:2]),
    "swarm.zone": first(zone="us-central1-b"),
    "swarm.name": first(name="another"),
    "swarm.machineType": first(machineType="e2-standard-32"),
    "swarm.agents": first(agents=2999),
    "swarm.env": first(env={"GOMAXPROCS": "2"}),
    "swarm.release": first(release={"version": "2.0.0", "daemon": "Makefile"}),
    "swarm.agentMb": first(agentMb=9),
    "swarm.reserveMb": first(reserveMb=4000),
    "swarm.activeConnections": first(activeConnections=299),
    "swarm.diskGb": first(diskGb=11),
    "swarm.bootDiskGb": first(bootDiskGb=21),
    "swarm.image": first(image="debian-cloud/debian-13"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_changes_the_declaration(key: str, fleet: Recorder) -> None:
    other = run_program(CHANGES[key])
    if key == "protect":
        # Protection is an option of resources, which mocks do not see; the engine's tests do.
        assert other.of("storage/bucket:Bucket")["pilot-fleet-bucket"]["forceDestroy"] is True
        return
    assert other.resources != fleet.resources


def test_the_changes_above_name_every_key() -> None:
    config = parse_fleet(seed(), project="project-1")
    assert config.swarm
    declared = set(yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"])
    # allowedScripts lets pass (tests/engine/test_preview.py), maxZoneShare warns (test_zones.py).
    assert declared == {key.split(".")[0] for key in CHANGES} | {"allowedScripts", "maxZoneShare"}


def test_a_machine_type_that_the_table_does_not_know_declares_its_size() -> None:
    # memoryGb and vcpus change capacity, which shows in the outputs and in no resource.
    with pytest.raises(pulumi.RunError, match="give memoryGb and vcpus"):
        run_program(first(machineType="n9-standard-16"))
    assert run_program(first(machineType="n9-standard-16", memoryGb=64, vcpus=16)).resources


def test_wrong_configuration_ends_in_a_sentence() -> None:
    with pytest.raises(pulumi.RunError) as caught:
        run_program(changed(zone="mars", swarm=[]))
    assert "has 2 problems" in str(caught.value)
    assert "pilot-fleet:zone: 'mars' is not a zone" in str(caught.value)
    assert "pilot-fleet:swarm: is empty" in str(caught.value)


def test_a_binary_that_is_not_built_stops_an_update() -> None:
    missing = changed(release=RELEASE | {"daemon": "artifacts/none/pilot-daemon"})
    assert run_program(missing, preview=True).spec("swarm-1")["release"]["daemon"] is None
    with pytest.raises(pulumi.RunError, match="not built: artifacts/none/pilot-daemon"):
        run_program(missing, preview=False)


def test_binaries_are_named_by_their_content() -> None:
    fleet = run_program(
        first(release={"version": "2.0.0", "daemon": "Pulumi.yaml"}) | {"release": RELEASE}
    )
    names = {inputs["name"] for inputs in fleet.of("storage/bucketObject:BucketObject").values()}
    digests = {
        file: hashlib.sha256((ROOT / file).read_bytes()).hexdigest()
        for file in ("Makefile", "README.md", "Pulumi.yaml")
    }
    assert names == {
        f"releases/{digests['Makefile']}/pilot-daemon",
        f"releases/{digests['README.md']}/pilot-rendezvous",
        f"releases/{digests['Pulumi.yaml']}/pilot-daemon",
    }
    canary = fleet.spec("swarm-1")["release"]
    assert canary["version"] == "2.0.0"
    assert canary["daemon"]["sha256"] == digests["Pulumi.yaml"]
    assert fleet.spec("swarm-2")["release"]["daemon"]["sha256"] == digests["Makefile"]


def test_a_binary_is_the_one_that_is_expected() -> None:
    digest = hashlib.sha256((ROOT / "Makefile").read_bytes()).hexdigest()
    run_program(changed(release=RELEASE | {"sha256": {"daemon": digest}}))
    with pytest.raises(pulumi.RunError, match="Makefile is not the pilot-daemon of release 2"):
        run_program(changed(release=RELEASE | {"sha256": {"daemon": "0" * 64}}))
    with pytest.raises(pulumi.RunError, match=r"components .* Is a directory"):
        run_program(changed(release=RELEASE | {"daemon": "components"}))


def test_a_plan_without_the_file_is_the_plan_of_an_update() -> None:
    absent = RELEASE | {"daemon": "artifacts/none/pilot-daemon", "sha256": {"daemon": "0" * 64}}
    plan = run_program(changed(release=absent))
    assert plan.spec("swarm-1")["release"]["daemon"]["sha256"] == "0" * 64
    names = {inputs["name"] for inputs in plan.of("storage/bucketObject:BucketObject").values()}
    assert f"releases/{'0' * 64}/pilot-daemon" in names


def test_machine_types_without_persistent_disk_get_hyperdisk() -> None:
    disks = run_program(first(machineType="n4-standard-16")).of("compute/disk:Disk")
    assert disks["swarm-1-disk"]["type"] == "hyperdisk-balanced"
    assert disks["swarm-2-disk"]["type"] == "pd-balanced"


@pytest.mark.parametrize("stack", ["prod.eu", "Prod", "x" * 64])
def test_a_stack_name_that_google_refuses_as_a_label(stack: str) -> None:
    with pytest.raises(pulumi.RunError, match="pulumi stack rename"):
        outputs.stack_label(stack)


def test_the_same_input_gives_the_same_bytes(fleet: Recorder) -> None:
    again = run_program(seed())
    for type_ in (INSTANCE, "compute/projectMetadataItem:ProjectMetadataItem"):
        assert again.of(type_) == fleet.of(type_)


def test_tokens_are_secrets_that_the_rendezvous_alone_may_read() -> None:
    found = run_program(changed(tokens={"admin": "", "dashboard": "0123456789abcdef"}))
    secrets = found.of("secretmanager/secret:Secret")
    assert {one["secretId"] for one in secrets.values()} == {
        "pilot-fleet-admin-token",
        "pilot-fleet-dashboard-token",
    }
    for one in secrets.values():
        assert one["replication"] == {"userManaged": {"replicas": [{"location": "us-central1"}]}}
    (version,) = found.of("secretmanager/secretVersion:SecretVersion").values()
    # Wrapped: a secret to the engine, which encrypts it in the state.
    assert isinstance(version["secretData"], dict)
    assert version["secretData"]["value"] == "0123456789abcdef"
    readers = found.of("secretmanager/secretIamMember:SecretIamMember").values()
    account = "serviceAccount:pilot-fleet-rendezvous@project.iam.gserviceaccount.com"
    assert [(one["role"], one["member"]) for one in readers] == [
        ("roles/secretmanager.secretAccessor", account)
    ] * 2
    spec = found.spec("pilot-rendezvous")
    assert spec["secrets"] == {
        what: f"projects/project-1/secrets/pilot-fleet-{what}-token/versions/latest"
        for what in ("admin", "dashboard")
    }
    assert spec["endpoints"]["secrets"] == "https://secretmanager.googleapis.com"
    assert "secrets" not in found.spec("swarm-1")["endpoints"]
    # Nowhere but in the version.
    rest = [value for key, value in found.resources.items() if "Version" not in key[0]]
    assert "0123456789abcdef" not in json.dumps(rest, default=str)


def test_without_tokens_no_secret_is_declared(fleet: Recorder) -> None:
    assert not [key for key in fleet.resources if "secretmanager" in key[0]]
    assert "secrets" not in fleet.spec("pilot-rendezvous")


@pytest.mark.parametrize(
    ("tokens", "path", "why"),
    [
        ({"admin": "short-token"}, "tokens.admin", "is no token"),
        ({"admin": 1234567890123456}, "tokens.admin", "must be text"),
        ({"dashboard": "with a space in it"}, "tokens.dashboard", "is no token"),
        ({"other": "0123456789abcdef"}, "tokens.other", "unknown key"),
    ],
)
def test_a_bad_token_is_refused_and_not_shown(tokens: dict[str, Any], path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as found:
        parse_fleet(changed(tokens=tokens), project="project-1")
    text = str(found.value)
    assert f"pilot-fleet:{path}" in text
    assert not any(str(value) in text for value in tokens.values())
