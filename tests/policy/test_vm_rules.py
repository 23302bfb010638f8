"""Service accounts, hardening, protection."""

from __future__ import annotations

from typing import Any

import pytest

from policy import endpoints, identity, protection
from policy.values import UNKNOWN, Violation
from tests.policy.planned import INSTANCE, nested, planned, spec, vm, vm_props

TEMPLATE = "gcp:compute/instanceTemplate:InstanceTemplate"
FROM_TEMPLATE = "gcp:compute/instanceFromTemplate:InstanceFromTemplate"
FROM_IMAGE = "gcp:compute/instanceFromMachineImage:InstanceFromMachineImage"
OWN = "pilot-vm@project.iam.gserviceaccount.com"
DEFAULTS = [
    "123456789-compute@developer.gserviceaccount.com",
    "my-project@appspot.gserviceaccount.com",
    "example.com:my-project@appspot.gserviceaccount.com",
    "default",
    "123456789@cloudservices.gserviceaccount.com",
    "projects/p/serviceAccounts/123456789-compute@developer.gserviceaccount.com",
    " 123456789-Compute@developer.gserviceaccount.com ",
    "",
    None,
]


def account_problems(kind: str, props: dict[str, Any], **config: Any) -> list[Violation]:
    settings = identity.AccountConfig(**config)
    return list(identity.default_accounts(planned(kind, props), settings))


@pytest.mark.parametrize("email", DEFAULTS)
@pytest.mark.parametrize("kind", [INSTANCE, TEMPLATE, FROM_TEMPLATE])
def test_default_accounts_are_refused(kind: str, email: Any) -> None:
    block = {"scopes": ["cloud-platform"], "email": email}
    [finding] = account_problems(kind, {"serviceAccount": block})
    assert finding.path == "serviceAccount.email"
    del block["email"]
    assert account_problems(kind, {"serviceAccount": block})


@pytest.mark.parametrize("email", [OWN, UNKNOWN])
def test_an_account_of_its_own_known_or_made_in_the_same_plan(email: Any) -> None:
    for kind in (INSTANCE, TEMPLATE, FROM_TEMPLATE, FROM_IMAGE):
        assert account_problems(kind, {"serviceAccount": {"email": email}}) == []


def test_no_block_is_no_account() -> None:
    assert account_problems(INSTANCE, {}) == []
    assert account_problems(TEMPLATE, {"serviceAccount": None}) == []
    assert account_problems(INSTANCE, {"serviceAccount": UNKNOWN}) == []
    assert account_problems(INSTANCE, {"serviceAccounts": []}) == []


@pytest.mark.parametrize("kind", [FROM_TEMPLATE, FROM_IMAGE])
def test_inherited_accounts_are_not_in_the_plan(kind: str) -> None:
    [finding] = account_problems(kind, {})
    assert "whatever account" in str(finding)


def test_machines_of_other_services() -> None:
    kind = "gcp:container/nodePool:NodePool"
    assert account_problems(kind, nested("nodeConfig.serviceAccount", DEFAULTS[0]))
    assert account_problems(kind, nested("nodeConfig.serviceAccount", OWN)) == []
    kind = "gcp:workbench/instance:Instance"
    assert account_problems(kind, nested("gceSetup.serviceAccounts[].email", DEFAULTS[0]))


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("gcp:appengine/flexibleAppVersion:FlexibleAppVersion", "serviceAccount"),
        ("gcp:cloudfunctions/function:Function", "serviceAccountEmail"),
        ("gcp:cloudfunctionsv2/function:Function", "serviceConfig.serviceAccountEmail"),
        ("gcp:cloudrun/service:Service", "template.spec.serviceAccountName"),
        ("gcp:cloudrunv2/job:Job", "template.template.serviceAccount"),
        ("gcp:cloudrunv2/service:Service", "template.serviceAccount"),
        ("gcp:composer/environment:Environment", "config.nodeConfig.serviceAccount"),
        ("gcp:container/cluster:Cluster", "nodeConfig.serviceAccount"),
        ("gcp:container/nodePool:NodePool", "nodeConfig.serviceAccount"),
        ("gcp:dataflow/flexTemplateJob:FlexTemplateJob", "serviceAccountEmail"),
        ("gcp:dataflow/job:Job", "serviceAccountEmail"),
        ("gcp:dataproc/cluster:Cluster", "clusterConfig.gceClusterConfig.serviceAccount"),
        ("gcp:notebooks/instance:Instance", "serviceAccount"),
        ("gcp:tpu/v2Vm:V2Vm", "serviceAccount.email"),
        ("gcp:workbench/instance:Instance", "gceSetup.serviceAccounts[].email"),
        ("google-native:container/v1:NodePool", "config.serviceAccount"),
        ("google-native:dataproc/v1:Cluster", "config.gceClusterConfig.serviceAccount"),
        ("google-native:notebooks/v2:Instance", "gceSetup.serviceAccounts[].email"),
    ],
)
def test_services_that_take_the_default_account_must_state_another(kind: str, path: str) -> None:
    [finding] = account_problems(kind, {"name": "it"})
    assert "no account is stated" in str(finding)
    assert path in finding.remedy
    assert account_problems(kind, nested(path, OWN)) == []
    assert account_problems(kind, nested(path, UNKNOWN)) == []
    assert (
        account_problems(kind, {path.split(".", maxsplit=1)[0].removesuffix("[]"): UNKNOWN}) == []
    )
    for default in DEFAULTS:
        assert account_problems(kind, nested(path, default)), default
    assert account_problems(kind, {}, ignoreTypes=[kind]) == []


def test_nodes_of_a_kubernetes_cluster() -> None:
    kind = "gcp:container/cluster:Cluster"
    assert account_problems(kind, {"removeDefaultNodePool": True, "initialNodeCount": 1}) == []
    pools: list[Any] = [{"nodeConfig": {"serviceAccount": OWN}}, {"nodeConfig": {}}]
    [finding] = account_problems(kind, {"nodePools": pools})
    assert "nodePools[]" in finding.path
    assert account_problems(kind, {"nodePools": pools[:1]}) == []
    defaults = nested("autoProvisioningDefaults.serviceAccount", OWN)
    auto: dict[str, Any] = {"enableAutopilot": True}
    [finding] = account_problems(kind, auto)
    assert "autoProvisioningDefaults" in finding.path
    assert account_problems(kind, auto | {"clusterAutoscaling": defaults}) == []
    scaled: dict[str, Any] = {"removeDefaultNodePool": True}
    assert account_problems(kind, scaled | {"clusterAutoscaling": {"enabled": True}})
    good = scaled | {"clusterAutoscaling": {"enabled": True} | defaults}
    assert account_problems(kind, good) == []


@pytest.mark.parametrize("package", ["google-native", "google", "google-beta"])
def test_other_packages_of_the_same_cloud(package: str) -> None:
    kind = f"{package}:compute/v1:Instance"
    assert account_problems(kind, {"serviceAccounts": [{"email": DEFAULTS[0]}]})
    assert account_problems(kind, {"serviceAccounts": [{"email": OWN}]}) == []
    assert account_problems("aws:ec2/instance:Instance", {"serviceAccount": "default"}) == []


def test_a_default_account_as_a_member_of_a_role_runs_nothing() -> None:
    props = {"member": f"serviceAccount:{DEFAULTS[0]}", "role": "roles/viewer"}
    assert account_problems("gcp:projects/iAMMember:IAMMember", props) == []


def test_account_settings() -> None:
    props = {"serviceAccount": {"email": OWN}}
    assert account_problems(INSTANCE, props, refuse=[OWN])
    props = {"serviceAccount": {"email": "default"}}
    assert account_problems(INSTANCE, props, ignoreTypes=[INSTANCE]) == []


def endpoint_problems(url: Any, **config: Any) -> list[str]:
    resource = vm(spec(endpoints={"storage": url}))
    return [
        str(one) for one in endpoints.not_googles(resource, endpoints.EndpointsConfig(**config))
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://storage.googleapis.com",
        "https://storage.googleapis.com:443",
        "https://storage-psc.p.googleapis.com",
    ],
)
def test_tokens_may_go_to_google(url: str) -> None:
    assert endpoint_problems(url) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://storage.googleapis.com",
        "https://storage.googleapis.com/",
        "https://storage.googleapis.com:",
        "https://-x.googleapis.com",
        "https://x-.googleapis.com",
        "https://a_b.googleapis.com",
        f"https://{'a' * 64}.googleapis.com",
        f"https://{'a.' * 120}googleapis.com",
        "http://169.254.169.1:8480",
        "https://storage.googleapis.com.evil.example",
        "https://evilgoogleapis.com",
        "https://googleapis.com.",
        "https://storage.googleapis.com@evil.example",
        "https://evil.example/.googleapis.com",
        "https://evil.example#.googleapis.com",
        "https://evil.example\\.googleapis.com",
        "https://storage.googleapis.com\n",
        "https://storage.googleapis.com:8443",
        "",
        None,
        7,
        ["https://storage.googleapis.com"],
    ],
)
def test_tokens_go_nowhere_else(url: Any) -> None:
    [text] = endpoint_problems(url)
    assert "endpoints.storage" in text
    assert "token" in text


def test_every_endpoint_is_judged_and_a_list_is_none() -> None:
    both = vm(spec(endpoints={"storage": "https://storage.googleapis.com", "other": "http://x"}))
    [finding] = endpoints.not_googles(both, endpoints.EndpointsConfig())
    assert finding.path.endswith("endpoints.other")
    odd = vm(spec(endpoints=["https://storage.googleapis.com"]))
    assert list(endpoints.not_googles(odd, endpoints.EndpointsConfig()))
    for document in (spec(), UNKNOWN, "{", None):
        assert list(endpoints.not_googles(vm(document), endpoints.EndpointsConfig())) == []


def test_endpoint_settings() -> None:
    url = "http://169.254.169.1:8480"
    assert endpoint_problems(url, allowed=[url]) == []
    assert endpoint_problems(url, exemptStacks=["swarm"]) == []
    assert endpoint_problems(url + "0", allowed=[url], exemptStacks=["lab"])


def hardening_problems(props: dict[str, Any], **config: Any) -> list[str]:
    settings = identity.HardeningConfig(**config)
    return [finding.path for finding in identity.hardening(planned(INSTANCE, props), settings)]


def test_a_hardened_vm_passes() -> None:
    assert hardening_problems(vm_props(spec())) == []
    assert hardening_problems({"machineType": "e2-small", "metadata": {"a": "b"}}) == []


@pytest.mark.parametrize("stated", [False, None])
def test_shielded_vm_is_stated_in_full(stated: Any) -> None:
    props = vm_props(spec())
    props["shieldedInstanceConfig"]["enableSecureBoot"] = stated
    assert hardening_problems(props) == ["shieldedInstanceConfig.enableSecureBoot"]
    del props["shieldedInstanceConfig"]
    assert len(hardening_problems(props)) == 3
    assert hardening_problems(props, shieldedVm=False) == []
    props["shieldedInstanceConfig"] = UNKNOWN
    assert hardening_problems(props) == []


@pytest.mark.parametrize(
    ("stated", "fine"),
    [("TRUE", True), ("true", True), (UNKNOWN, True), ("FALSE", False), ("", False), (None, False)],
)
def test_os_login(stated: Any, fine: bool) -> None:
    props = vm_props(spec())
    props["metadata"]["enable-oslogin"] = stated
    assert hardening_problems(props) == ([] if fine else ['metadata["enable-oslogin"]'])
    assert hardening_problems(props, osLogin=False) == []


@pytest.mark.parametrize("key", ["accessConfigs", "ipv6AccessConfigs"])
def test_a_swarm_vm_has_no_public_address(key: str) -> None:
    props = vm_props(spec())
    values: list[Any] = [[{}], [{"natIp": UNKNOWN}], UNKNOWN]
    for value in values:
        props["networkInterfaces"] = [{"network": "fleet", key: value}]
        assert hardening_problems(props) == [f"networkInterfaces[0].{key}"]
    assert hardening_problems(props, publicRoles=["swarm"]) == []
    props["metadata"]["pilot-role"] = UNKNOWN
    assert hardening_problems(props)
    props["metadata"]["pilot-role"] = "rendezvous"
    assert hardening_problems(props) == []
    props = vm_props(spec())
    props["networkInterfaces"] = [{"network": "fleet", key: []}]
    assert hardening_problems(props) == []


@pytest.mark.parametrize("kind", protection.STATEFUL)
def test_stateful_resources_are_protected(kind: str) -> None:
    bare, safe = planned(kind, {}, "data"), planned(kind, {}, "data", protect=True)
    [finding] = protection.unprotected(bare, protection.ProtectionConfig())
    assert "data holds state" in str(finding)
    assert list(protection.unprotected(safe, protection.ProtectionConfig())) == []


def test_others_need_not_be() -> None:
    assert list(protection.unprotected(vm(spec()), protection.ProtectionConfig())) == []


@pytest.mark.parametrize(
    ("setting", "value", "other"),
    [
        ("exemptStacks", ["swarm"], ["lab"]),
        ("exemptNames", ["data"], ["other"]),
        ("types", [], ["gcp:compute/disk:Disk"]),
    ],
)
def test_protection_settings(setting: str, value: list[str], other: list[str]) -> None:
    disk = planned("gcp:compute/disk:Disk", {}, "data")
    config = protection.ProtectionConfig
    assert list(protection.unprotected(disk, config(**{setting: value}))) == []
    assert list(protection.unprotected(disk, config(**{setting: other})))
