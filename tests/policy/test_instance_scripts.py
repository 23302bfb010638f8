"""Every way to hide a startup script that we could think of, and values that are no scripts.

Inputs of types that the toolchain's provider lacks are made with the classes of the current SDK
in test_sdk.py; here they are written out.
"""

from __future__ import annotations

from typing import Any

import pytest

from policy.instance_scripts import GhostsConfig, ghosts
from policy.values import UNKNOWN, Violation
from tests.ghosts import TABLE
from tests.policy.planned import INSTANCE, SCRIPT, nested, owner, planned

COMPUTE = "gcp:compute/"
KEYS = [row.key for row in TABLE if row.says]


def found(kind: str, props: dict[str, Any], **config: Any) -> list[Violation]:
    return list(ghosts(planned(kind, props), GhostsConfig(**config)))


def refused(kind: str, props: dict[str, Any], **config: Any) -> list[str]:
    return [one.path for one in found(kind, props, **config) if not one.unjudged]


def unjudged(kind: str, props: dict[str, Any], **config: Any) -> list[str]:
    return [one.path for one in found(kind, props, **config) if one.unjudged]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["echo", "", UNKNOWN], ids=["known", "empty", "unknown"])
def test_a_script_key_is_refused_with_any_value(key: str, value: Any) -> None:
    assert len(refused(INSTANCE, {"metadata": {"pilot-role": "swarm", key: value}})) == 1


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


def test_the_one_item_is_exempt_and_no_other() -> None:
    assert list(ghosts(owner(), GhostsConfig())) == []
    assert list(ghosts(owner(UNKNOWN), GhostsConfig())) == []
    for key in KEYS[1:]:
        [finding] = ghosts(owner(key=key), GhostsConfig())
        assert finding.path == "key"
        assert not finding.unjudged
    assert list(ghosts(owner("TRUE", key="enable-oslogin"), GhostsConfig())) == []
    wrong = planned("gcp:compute/future:Future", {"key": "startup-script", "value": SCRIPT})
    assert [finding.path for finding in ghosts(wrong, GhostsConfig())] == ["key"]


def test_the_name_of_an_item_that_is_not_known() -> None:
    [finding] = ghosts(owner(key=UNKNOWN), GhostsConfig())
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


def test_unknown_values_outside_metadata_hide_nothing() -> None:
    assert found("gcp:storage/bucketObject:BucketObject", {"metadata": UNKNOWN}) == []
    assert found("gcp:storage/bucketObject:BucketObject", {"customMetadata": UNKNOWN}) == []
    properties = {"properties": UNKNOWN}
    assert unjudged("google-native:compute/v1:InstanceTemplate", properties) == ["properties"]


def test_every_setting_changes_the_findings() -> None:
    more = {"metadata": {"Run-Me": "x"}}
    assert found(INSTANCE, more) == []
    assert refused(INSTANCE, more, extraKeys=["run-me"])
    script = {"metadataStartupScript": "x"}
    assert found(INSTANCE, script, ignoreTypes=[INSTANCE]) == []
    assert found(INSTANCE, script, otherClouds=["gcp"]) == []
    assert found(INSTANCE, script, allowed=["it"]) == []


def test_the_message_says_where_and_what_to_do() -> None:
    [finding] = found(INSTANCE, {"metadata": {"startup-script": "x"}})
    assert 'metadata["startup-script"]: ' in str(finding)
    assert "a value that runs at every boot in place of the project's" in str(finding)
    assert "Take it out" in str(finding)
    assert "projectMetadataItem" in str(finding)
    assert "If this is not the fleet's and the script is wanted" in str(finding)
    [finding] = found(INSTANCE, {"metadata": {"startup-script": UNKNOWN}})
    assert "an unknown value" in str(finding)
