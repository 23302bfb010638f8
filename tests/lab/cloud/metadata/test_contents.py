"""The metadata tree: values by path, their written forms, and what an ETag covers."""

from dataclasses import replace
from typing import Any

import pytest

from lab.cloud.metadata import contents
from lab.cloud.metadata.contents import GuestFacts, Node, find, tree
from lab.machines.driver import Machine, Nic

NUMBER = "123456789012"
ACCOUNT = "fleet@p1.iam.gserviceaccount.com"
INSTANCE: dict[str, Any] = {
    "id": "1000000000000000042",
    "name": "vm",
    "description": "a test",
    "cpuPlatform": "Unknown CPU Platform",
    "zone": "https://www.googleapis.com/compute/v1/projects/p1/zones/us-central1-a",
    "machineType": "projects/p1/zones/us-central1-a/machineTypes/e2-custom-2-1024",
    "metadata": {"items": [{"key": "pilot-spec", "value": "{}"}, {"key": "Own", "value": "1\n"}]},
    "tags": {"items": ["a", "b"]},
    "scheduling": {
        "automaticRestart": True,
        "onHostMaintenance": "MIGRATE",
        "preemptible": False,
    },
    "disks": [
        {"deviceName": "boot", "index": 0, "interface": "SCSI", "mode": "READ_WRITE", "boot": True},
        {"deviceName": "data", "index": 1, "interface": "SCSI", "mode": "READ_ONLY", "boot": False},
    ],
    "networkInterfaces": [
        {
            "network": "projects/p1/global/networks/net",
            "accessConfigs": [{"natIP": "203.0.113.1", "type": "ONE_TO_ONE_NAT"}],
            "aliasIpRanges": [{"ipCidrRange": "10.10.9.0/28"}],
        }
    ],
    "serviceAccounts": [{"email": ACCOUNT, "scopes": ["https://scope/a", "https://scope/b"]}],
}
MACHINE = Machine(
    path="projects/p1/zones/us-central1-a/instances/vm",
    id=1000000000000000042,
    hostname="vm.c.p1.internal",
    vcpus=2,
    memory_mb=1024,
    disks=(),
    nics=(
        Nic(
            address="10.10.0.2",
            cidr="10.10.0.0/20",
            gateway="10.10.0.1",
            mac="42:01:0a:0a:00:02",
            external="203.0.113.1",
        ),
    ),
)
FACTS = GuestFacts(
    instance=INSTANCE,
    machine=MACHINE,
    project_number=NUMBER,
    project={"both": "project", "common": "yes"},
    zonal={"both": "zonal", "near": "yes"},
    image="projects/debian-cloud/global/images/debian-12-bookworm-v20261110",
    licenses=["77"],
    disk_types={"boot": "pd-balanced", "data": "pd-standard"},
    guest={"ns/status": "up", "hostkeys/ssh-rsa": "AAAA"},
)
NIC = (
    "access-configs/\ndns-servers\nforwarded-ips/\ngateway\nip\nip-aliases/\nmac\nmtu\n"
    "network\nsubnetmask\ntarget-instance-ips/\n"
)
SCOPES = "https://scope/a\nhttps://scope/b\n"


def at(path: str, facts: GuestFacts = FACTS) -> Node | None:
    return find(tree(facts), [part for part in path.split("/") if part])


def text(path: str, *, recursive: bool = False, facts: GuestFacts = FACTS) -> str:
    node = at(path, facts)
    assert node is not None, path
    return contents.write(node, recursive=recursive, as_json=False)


def tag(path: str, facts: GuestFacts, *, recursive: bool = True) -> str:
    node = at(path, facts)
    assert node is not None, path
    return contents.etag(node, recursive)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "instance/\noslogin/\nproject/\nuniverse/\n"),
        ("project", "attributes/\nnumeric-project-id\nproject-id\n"),
        ("project/project-id", "p1"),
        ("project/numeric-project-id", NUMBER),
        ("project/attributes", "both\ncommon\nnear\n"),
        ("project/attributes/both", "zonal"),
        ("project/attributes/common", "yes"),
        ("universe/universe-domain", "googleapis.com"),
        ("instance/attributes", "Own\npilot-spec\n"),
        ("instance/attributes/pilot-spec", "{}"),
        ("instance/attributes/Own", "1\n"),
        ("instance/cpu-platform", "Unknown CPU Platform"),
        ("instance/description", "a test"),
        ("instance/disks", "0/\n1/\n"),
        ("instance/disks/0", "device-name\nindex\ninterface\nmode\ntype\n"),
        ("instance/disks/0/device-name", "boot"),
        ("instance/disks/0/type", "PERSISTENT-BALANCED"),
        ("instance/disks/1/index", "1"),
        ("instance/disks/1/mode", "READ_ONLY"),
        ("instance/disks/1/type", "PERSISTENT"),
        ("instance/guest-attributes", "hostkeys/\nns/\n"),
        ("instance/guest-attributes/ns", "status\n"),
        ("instance/guest-attributes/ns/status", "up"),
        ("instance/hostname", "vm.c.p1.internal"),
        ("instance/id", "1000000000000000042"),
        ("instance/image", FACTS.image),
        ("instance/licenses", "0/\n"),
        ("instance/licenses/0/id", "77"),
        ("instance/machine-type", f"projects/{NUMBER}/machineTypes/e2-custom-2-1024"),
        ("instance/maintenance-event", "NONE"),
        ("instance/name", "vm"),
        ("instance/network-interfaces", "0/\n"),
        (
            "instance/network-interfaces/0",
            NIC,
        ),
        ("instance/network-interfaces/0/access-configs/0/external-ip", "203.0.113.1"),
        ("instance/network-interfaces/0/access-configs/0/type", "ONE_TO_ONE_NAT"),
        ("instance/network-interfaces/0/dns-servers", "169.254.169.254\n"),
        ("instance/network-interfaces/0/forwarded-ips", ""),
        ("instance/network-interfaces/0/gateway", "10.10.0.1"),
        ("instance/network-interfaces/0/ip", "10.10.0.2"),
        ("instance/network-interfaces/0/ip-aliases", "0\n"),
        ("instance/network-interfaces/0/ip-aliases/0", "10.10.9.0/28"),
        ("instance/network-interfaces/0/mac", "42:01:0a:0a:00:02"),
        ("instance/network-interfaces/0/mtu", "1460"),
        ("instance/network-interfaces/0/network", f"projects/{NUMBER}/networks/net"),
        ("instance/network-interfaces/0/subnetmask", "255.255.240.0"),
        ("instance/network-interfaces/0/target-instance-ips", ""),
        ("instance/preempted", "FALSE"),
        ("instance/remaining-cpu-time", "-1"),
        ("instance/scheduling", "automatic-restart\non-host-maintenance\npreemptible\n"),
        ("instance/scheduling/automatic-restart", "TRUE"),
        ("instance/scheduling/on-host-maintenance", "MIGRATE"),
        ("instance/scheduling/preemptible", "FALSE"),
        ("instance/service-accounts", f"default/\n{ACCOUNT}/\n"),
        ("instance/service-accounts/default", "aliases\nemail\nidentity\nscopes\ntoken\n"),
        ("instance/service-accounts/default/aliases", "default\n"),
        ("instance/service-accounts/default/email", ACCOUNT),
        (f"instance/service-accounts/{ACCOUNT}/scopes", SCOPES),
        ("instance/tags", "a\nb\n"),
        ("instance/virtual-clock/drift-token", "0"),
        ("instance/zone", f"projects/{NUMBER}/zones/us-central1-a"),
    ],
)
def test_a_path(path: str, expected: str) -> None:
    assert text(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "nothing",
        "instance/nothing",
        "instance/name/more",
        "instance/disks/2",
        "instance/disks/-1",
        "instance/disks/00",
        "instance/disks/first",
        "instance/tags/0",
        "instance/attributes/own",
        "instance/guest-attributes/ns/other",
        "instance/service-accounts/nobody/email",
    ],
)
def test_paths_that_are_not_there(path: str) -> None:
    assert at(path) is None


def test_a_recursive_answer_is_json_in_googles_shape() -> None:
    value = contents.as_value(tree(FACTS))
    account = {
        "aliases": ["default"],
        "email": ACCOUNT,
        "scopes": ["https://scope/a", "https://scope/b"],
    }
    assert value["project"] == {
        "attributes": {"both": "zonal", "common": "yes", "near": "yes"},
        "numericProjectId": int(NUMBER),
        "projectId": "p1",
    }
    instance = value["instance"]
    assert instance["attributes"] == {"Own": "1\n", "pilot-spec": "{}"}
    assert instance["serviceAccounts"] == {"default": account, ACCOUNT: account}
    assert instance["id"] == 1000000000000000042
    assert instance["networkInterfaces"][0]["accessConfigs"] == [
        {"externalIp": "203.0.113.1", "type": "ONE_TO_ONE_NAT"}
    ]
    assert instance["networkInterfaces"][0]["ipAliases"] == ["10.10.9.0/28"]
    assert instance["disks"][0]["deviceName"] == "boot"
    assert instance["virtualClock"] == {"driftToken": "0"}
    assert instance["licenses"] == [{"id": "77"}]
    assert instance["guestAttributes"] == {}
    assert instance["remainingCpuTime"] == -1
    assert contents.as_value(at("instance/guest-attributes") or "")["ns"] == {"status": "up"}


def test_a_recursive_answer_as_text_has_a_line_for_each_value() -> None:
    assert text("instance/disks", recursive=True).splitlines()[:2] == [
        "0/device-name boot",
        "0/index 0",
    ]
    lines = text("instance", recursive=True).splitlines()
    assert "network-interfaces/0/access-configs/0/external-ip 203.0.113.1" in lines
    assert "tags a" in lines
    assert "tags b" in lines
    assert not [line for line in lines if "token" in line and "drift-token" not in line]
    assert not [line for line in lines if line.startswith("guest-attributes")]


def test_the_value_of_a_key_is_written_as_json_where_asked() -> None:
    for path, expected in (
        ("instance/name", '"vm"'),
        ("instance/id", "1000000000000000042"),
        ("instance/tags", '["a","b"]'),
        ("instance/attributes/Own", '"1\\n"'),
    ):
        node = at(path)
        assert node is not None
        assert contents.write(node, recursive=False, as_json=True) == expected


CHANGES: dict[str, GuestFacts] = {
    "instance": replace(FACTS, instance={**INSTANCE, "metadata": {"items": []}}),
    "project": replace(FACTS, project={"both": "project"}),
    "zone": replace(FACTS, zonal={}),
    "maintenance": replace(FACTS, maintenance="MIGRATE_ON_HOST_MAINTENANCE"),
    "guest": replace(FACTS, guest={"ns/status": "down"}),
}


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ("instance", ["", "instance", "instance/attributes"]),
        ("project", ["", "project", "project/attributes"]),
        ("zone", ["", "project", "project/attributes", "project/attributes/both"]),
        ("maintenance", ["", "instance", "instance/maintenance-event"]),
        ("guest", ["instance/guest-attributes", "instance/guest-attributes/ns/status"]),
    ],
)
def test_an_etag_changes_with_what_is_below_its_path_only(change: str, touched: list[str]) -> None:
    paths = [
        "",
        "instance",
        "instance/attributes",
        "instance/disks",
        "instance/maintenance-event",
        "instance/guest-attributes",
        "instance/guest-attributes/ns/status",
        "project",
        "project/attributes",
        "project/attributes/both",
    ]
    changed = [path for path in paths if tag(path, FACTS) != tag(path, CHANGES[change])]
    assert changed == [path for path in paths if path in touched]


def test_equal_facts_have_equal_etags() -> None:
    order = list(reversed(INSTANCE["metadata"]["items"]))
    again = replace(FACTS, instance={**INSTANCE, "metadata": {"items": order}})
    assert tag("", FACTS) == tag("", again)
    assert len(tag("", FACTS)) == 16
    assert tag("instance/attributes", FACTS) != tag("instance/attributes", FACTS, recursive=False)


@pytest.mark.parametrize(
    ("own", "common", "enabled"),
    [
        ({"enable-guest-attributes": "TRUE"}, {}, True),
        ({"enable-guest-attributes": "yes"}, {}, True),
        ({"enable-guest-attributes": "FALSE"}, {"enable-guest-attributes": "TRUE"}, False),
        ({}, {"enable-guest-attributes": "true"}, True),
        ({}, {}, False),
        ({"enable-guest-attributes": ""}, {}, False),
    ],
)
def test_guest_attributes_are_enabled_by_the_instance_else_the_project(
    own: dict[str, str], common: dict[str, str], enabled: bool
) -> None:
    items = [{"key": key, "value": value} for key, value in own.items()]
    instance = {**INSTANCE, "metadata": {"items": items}}
    facts = replace(FACTS, instance=instance, project=common)
    assert facts.guest_attributes_enabled() is enabled


def test_a_vm_without_service_account_has_an_empty_directory() -> None:
    bare = {key: value for key, value in INSTANCE.items() if key != "serviceAccounts"}
    facts = replace(FACTS, instance=bare)
    assert text("instance/service-accounts", facts=facts) == ""
    assert at("instance/service-accounts/default", facts) is None
    assert facts.account("default") is None


def test_the_account_called_default_is_the_projects() -> None:
    accounts = [{"email": "default", "scopes": []}]
    facts = replace(FACTS, instance={**INSTANCE, "serviceAccounts": accounts})
    email = f"{NUMBER}-compute@developer.gserviceaccount.com"
    assert text("instance/service-accounts/default/email", facts=facts) == email
    assert facts.account(email) == {"email": email, "scopes": []}
