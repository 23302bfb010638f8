"""Every way to hide a startup script that we could think of, and what must not be taken for one.

Inputs of types that the toolchain's provider lacks are made with the classes of the current SDK
in test_sdk.py; here they are written out.
"""

from __future__ import annotations

from typing import Any

import pytest

from policy.ghosts import Config, carries_script, ghosts
from policy.values import UNKNOWN, Finding
from tests.policy.planned import INSTANCE, SCRIPT, nested, owner, planned

COMPUTE = "gcp:compute/"
KEYS = [
    "startup-script",
    "startup-script-url",
    "windows-startup-script-ps1",
    "windows-startup-script-cmd",
    "windows-startup-script-bat",
    "windows-startup-script-url",
    "sysprep-specialize-script-ps1",
    "sysprep-specialize-script-cmd",
    "sysprep-specialize-script-bat",
    "sysprep-specialize-script-url",
    "shutdown-script",
    "shutdown-script-url",
    "windows-shutdown-script-ps1",
    "windows-shutdown-script-cmd",
    "windows-shutdown-script-bat",
    "windows-shutdown-script-url",
    "user-data",
    "user-data-encoding",
    "vendor-data",
    "cloud-init",
    "cloud-config",
    "post-startup-script",
    "Startup-Script",
    "STARTUP-SCRIPT",
    " startup-script ",
    "startup-script\n",
]
FINE = [
    "pilot-role",
    "pilot-spec",
    "enable-oslogin",
    "enable-guest-attributes",
    "ssh-keys",
    "serial-port-enable",
    "bitbucketCloudConfig",
    "startupProbe",
    "scriptVariables",
    "bootstrapServers",
    "STARTUP_SCRIPT",
    "google-logging-enabled",
]


def found(kind: str, props: dict[str, Any], **config: Any) -> list[Finding]:
    return list(ghosts(planned(kind, props), Config(**config)))


def refused(kind: str, props: dict[str, Any], **config: Any) -> list[str]:
    return [one.path for one in found(kind, props, **config) if not one.unjudged]


def unjudged(kind: str, props: dict[str, Any], **config: Any) -> list[str]:
    return [one.path for one in found(kind, props, **config) if one.unjudged]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["echo", "", UNKNOWN], ids=["known", "empty", "unknown"])
def test_a_key_of_the_kin_is_refused_whatever_its_value(key: str, value: Any) -> None:
    assert len(refused(INSTANCE, {"metadata": {"pilot-role": "swarm", key: value}})) == 1


@pytest.mark.parametrize("key", FINE)
def test_other_keys_are_not(key: str) -> None:
    assert not carries_script(key)
    assert found(INSTANCE, {"metadata": {key: "echo"}}) == []


def test_absent_is_fine() -> None:
    assert found(INSTANCE, {}) == []
    assert found(INSTANCE, {"metadata": None, "metadataStartupScript": None}) == []
    assert found(INSTANCE, {"metadata": {"startup-script": None}}) == []


@pytest.mark.parametrize(
    ("kind", "props", "path"),
    [
        ("instance:Instance", {"metadataStartupScript": "echo"}, "metadataStartupScript"),
        ("instance:Instance", {"metadataStartupScript": UNKNOWN}, "metadataStartupScript"),
        (
            "instanceFromTemplate:InstanceFromTemplate",
            {"metadata": {"startup-script": "x"}},
            'metadata["startup-script"]',
        ),
        (
            "instanceFromMachineImage:InstanceFromMachineImage",
            {"metadataStartupScript": "x"},
            "metadataStartupScript",
        ),
        (
            "instanceTemplate:InstanceTemplate",
            {"metadata": {"user-data": "x"}},
            'metadata["user-data"]',
        ),
        (
            "regionInstanceTemplate:RegionInstanceTemplate",
            {"metadata": {"startup-script-url": "x"}},
            'metadata["startup-script-url"]',
        ),
        (
            "instanceGroupManager:InstanceGroupManager",
            {"allInstancesConfig": {"metadata": {"startup-script": "x"}}},
            'allInstancesConfig.metadata["startup-script"]',
        ),
        (
            "regionInstanceGroupManager:RegionInstanceGroupManager",
            {"allInstancesConfig": {"metadata": {"startup-script": "x"}}},
            'allInstancesConfig.metadata["startup-script"]',
        ),
        (
            "perInstanceConfig:PerInstanceConfig",
            {"preservedState": {"metadata": {"startup-script": "x"}}},
            'preservedState.metadata["startup-script"]',
        ),
        (
            "regionPerInstanceConfig:RegionPerInstanceConfig",
            {"preservedState": {"metadata": {"startup-script": "x"}}},
            'preservedState.metadata["startup-script"]',
        ),
        (
            "instanceSettings:InstanceSettings",
            {"metadata": {"items": {"startup-script": "x"}}},
            'metadata.items["startup-script"]',
        ),
        (
            "projectMetadata:ProjectMetadata",
            {"metadata": {"startup-script": "x"}},
            'metadata["startup-script"]',
        ),
        ("future:Fleet", {"a": [[{"startup-script": "x"}]]}, 'a[0][0]["startup-script"]'),
        ("future:Fleet", {"partialMetadata": {"user-data": "x"}}, 'partialMetadata["user-data"]'),
        ("future:Fleet", {"items": [{"key": "startup-script", "value": "x"}]}, "items[0].key"),
        ("future:Fleet", {"items": [{"key": "user-data", "values": ["x"]}]}, "items[0].key"),
    ],
)
def test_ways_in(kind: str, props: dict[str, Any], path: str) -> None:
    assert refused(COMPUTE + kind, props) == [path]


ITEM = {"key": "startup-script", "value": "x"}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("container/cluster:Cluster", "nodeConfig.metadata.startup-script", "x"),
        ("container/nodePool:NodePool", "nodeConfig.metadata.user-data", "x"),
        (
            "container/nodePool:NodePool",
            "nodeConfig.linuxNodeConfig.customNodeInit.initScript.gcsUri",
            "gs://x",
        ),
        ("dataproc/cluster:Cluster", "clusterConfig.initializationActions[].script", "gs://x"),
        (
            "dataproc/cluster:Cluster",
            "clusterConfig.gceClusterConfig.metadata.startup-script",
            "x",
        ),
        ("notebooks/instance:Instance", "postStartupScript", "gs://x"),
        ("workbench/instance:Instance", "gceSetup.metadata.post-startup-script", "gs://x"),
        (
            "colab/runtimeTemplate:RuntimeTemplate",
            "softwareConfig.postStartupScriptConfig.postStartupScript",
            "x",
        ),
        ("tpu/v2Vm:V2Vm", "metadata.shutdown-script", "x"),
        (
            "workstations/workstationConfig:WorkstationConfig",
            "host.gceInstance.instanceMetadata.startup-script",
            "x",
        ),
        (
            "hypercomputecluster/cluster:Cluster",
            "orchestrator.slurm.loginNodes.startupScript",
            "x",
        ),
        (
            "backupdisasterrecovery/restoreWorkload:RestoreWorkload",
            "computeInstanceRestoreProperties.metadata.items[]",
            ITEM,
        ),
    ],
)
def test_ways_in_elsewhere(kind: str, path: str, value: Any) -> None:
    assert refused("gcp:" + kind, nested(path, value))


def test_other_providers_of_the_same_cloud() -> None:
    props = {"metadata": {"items": [{"key": "startup-script", "value": "x"}]}}
    assert refused("google-native:compute/v1:Instance", props) == ["metadata.items[0].key"]
    assert refused("google:index/computeInstance:ComputeInstance", {"metadataStartupScript": "x"})
    assert found("aws:ec2/instance:Instance", {"userData": "x"}) == []


def test_the_one_item_is_exempt_and_no_other() -> None:
    assert list(ghosts(owner(), Config())) == []
    assert list(ghosts(owner(UNKNOWN), Config())) == []
    for key in KEYS[1:]:
        [finding] = ghosts(owner(key=key), Config())
        assert finding.path == "key"
        assert not finding.unjudged
    assert list(ghosts(owner("TRUE", key="enable-oslogin"), Config())) == []
    wrong = planned("gcp:compute/future:Future", {"key": "startup-script", "value": SCRIPT})
    assert [finding.path for finding in ghosts(wrong, Config())] == ["key"]


def test_the_name_of_an_item_that_is_not_known() -> None:
    [finding] = ghosts(owner(key=UNKNOWN), Config())
    assert finding.unjudged


@pytest.mark.parametrize(
    ("props", "path"),
    [
        ({"metadata": UNKNOWN}, "metadata"),
        ({"metadata": {"items": UNKNOWN}}, "metadata.items"),
        ({"allInstancesConfig": UNKNOWN}, "allInstancesConfig"),
        ({"preservedState": UNKNOWN}, "preservedState"),
        ({"nodePools": [UNKNOWN]}, "nodePools[0]"),
        ({"nodeConfig": {"metadata": UNKNOWN}}, "nodeConfig.metadata"),
    ],
)
def test_a_wholly_unknown_map_is_not_judged_yet(props: dict[str, Any], path: str) -> None:
    assert refused(INSTANCE, props) == []
    assert unjudged(INSTANCE, props) == [path]


def test_unknown_values_under_good_keys_and_elsewhere_are_fine() -> None:
    props = {"metadata": {"pilot-role": UNKNOWN}, "zone": UNKNOWN, "labels": UNKNOWN}
    assert found(INSTANCE, props) == []


def test_labels_and_annotations_never_run() -> None:
    props = {"labels": {"startup-script": "v3"}, "resourceLabels": {"user-data": "no"}}
    assert found(INSTANCE, props) == []


def test_environment_variables_of_such_a_name_are_no_metadata() -> None:
    props = {"template": {"containers": [{"envs": [{"name": "USER_DATA", "value": "x"}]}]}}
    assert found("gcp:cloudrunv2/service:Service", props) == []


def test_every_setting_changes_what_is_found() -> None:
    container = {"metadata": {"gce-container-declaration": "x"}}
    assert found(INSTANCE, container) == []
    assert refused(INSTANCE, container, extraKeys=["gce-container-declaration"])
    script = {"metadataStartupScript": "x"}
    assert found(INSTANCE, script, ignoreTypes=[INSTANCE]) == []
    assert found(INSTANCE, script, providers=["google"]) == []


def test_the_message_says_where_and_what_to_do() -> None:
    [finding] = found(INSTANCE, {"metadata": {"startup-script": "x"}})
    assert 'metadata["startup-script"]: ' in str(finding)
    assert "a value that a VM runs at boot" in str(finding)
    assert "Take it out" in str(finding)
    assert "projectMetadataItem" in str(finding)
    [finding] = found(INSTANCE, {"metadata": {"startup-script": UNKNOWN}})
    assert "an unknown value" in str(finding)
