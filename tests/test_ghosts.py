"""The four sides that look for scripts say the same of every key (tests/ghosts.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from components import guard
from ops import audit
from ops.audit import Bag, Declared, ProjectMetadata
from ops.fleet import Fleet
from ops.registry_counts import RegistryCounts
from policy.instance_scripts import GhostsConfig
from policy.instance_scripts import ghosts as refused
from startup.node.desired import ghost_scripts
from tests.ghosts import PLACE, TABLE, Key
from tests.policy.planned import INSTANCE, planned

ITEM = "gcp:compute/projectMetadataItem:ProjectMetadataItem"
OTHERS_ITEM = "google:index/computeProjectMetadataItem:ComputeProjectMetadataItem"


def ids(key: Key) -> str:
    return f"{key.key!r}={key.value!r}"


def audited(instance: Mapping[str, str], project: Mapping[str, str]) -> list[str]:
    bag = Bag(kind="instance", where="zones/z/instances/builder", metadata=instance)
    found = audit.audit(
        ProjectMetadata(name="p", instances=(), bags=(bag,), metadata=project),
        Fleet(name="test", project="p", time=0, vms=(), registry=RegistryCounts()),
        Declared(),
    ).findings
    return [each.what for each in found if each.rule.startswith("ghost-")]


def of_an_instance(metadata: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """(side, what it says) of an instance with this metadata."""
    props = {"metadata": dict(metadata)}
    yield "program", [each.does for each in guard.ghost_scripts(INSTANCE, props)]
    yield "policy", [each.problem for each in refused(planned(INSTANCE, props), GhostsConfig())]
    yield "audit", audited(metadata, {})
    yield "VM", list(ghost_scripts.ghosts(metadata, {}))


def of_a_project(metadata: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """(side, what it says) of a project with this metadata, item by item."""
    items = [{"key": key, "value": value} for key, value in metadata.items()]
    yield (
        "program",
        [each.does for item in items for each in guard.ghost_scripts(ITEM, item)],
    )
    yield (
        "policy",
        [each.problem for item in items for each in refused(planned(ITEM, item), GhostsConfig())],
    )
    yield "audit", audited({}, metadata)
    yield "VM", list(ghost_scripts.ghosts({}, metadata))


@pytest.mark.parametrize("key", TABLE, ids=ids)
def test_at_an_instance(key: Key) -> None:
    for side, said in of_an_instance({"pilot-role": "swarm", key.key: key.value}):
        assert len(said) == bool(key.says), side
        if side == "VM":
            assert said == [key.key] * bool(key.says)
        else:
            assert all(key.says in each for each in said), (side, said)
            # A shutdown script replaces nothing.
            assert all((PLACE in each) == (key.says == PLACE) for each in said), (side, said)


@pytest.mark.parametrize("key", TABLE, ids=ids)
def test_in_the_project(key: Key) -> None:
    """As at an instance, but for the one item that is the fleet's; nothing is replaced there."""
    is_ghost = bool(key.says) and key.key != "startup-script"
    for side, said in of_a_project({key.key: key.value}):
        assert len(said) == is_ghost, side
        if side == "VM":
            assert said == [f"project/{key.key}"] * is_ghost
        else:
            expected = key.says.replace("in place of", "beside")
            assert all(expected in each and PLACE not in each for each in said), (side, said)


def test_the_projects_item_of_another_package_is_not_the_fleets() -> None:
    props = {"key": "startup-script", "value": "x"}
    assert guard.ghost_scripts(OTHERS_ITEM, props)
    assert list(refused(planned(OTHERS_ITEM, props), GhostsConfig()))


PAIR = {"key": "startup-script", "value": "x"}
META = {"metadata": {"startup-script": "x"}}
SHAPES = [
    # (type, inputs, whether there is a script in it)
    ("google-native:compute/v1:Instance", {"metadata": {"items": [PAIR]}}, True),
    ("google-native:compute/v1:InstanceTemplate", {"properties": META}, True),
    ("google:index/computeInstance:ComputeInstance", {"metadataStartupScript": "x"}, True),
    ("google:index/computeInstance:ComputeInstance", {"metadata_startup_script": "x"}, True),
    ("acme-gcp:compute/instance:Instance", META, True),
    ("acme-gcp:compute/instance:Instance", {"metadata": {"user-data": "x"}}, True),
    ("acme:infra:Vm", {"vm": {"instanceMetadata": {"shutdown-script": "x"}}}, True),
    ("gcp:compute/future:Fleet", {"a": [[{"startup-script": "x"}]]}, True),
    ("gcp:compute/future:Fleet", {"deep": [{"down": [{"it": PAIR}]}]}, True),
    ("gcp:workbench/instance:Instance", {"gceSetup": {"metadata": PAIR}}, True),
    ("gcp:notebooks/instance:Instance", {"postStartupScript": "gs://x"}, True),
    ("gcp:workbench/instance:Instance", {"metadata": {"post-startup-script": "x"}}, True),
    # Not metadata of a VM, so no script.
    ("gcp:storage/bucket:Bucket", {"labels": {"startup-script": "v3"}}, False),
    ("gcp:secretmanager/secret:Secret", {"labels": {"user-data": "yes"}}, False),
    ("gcp:secretmanager/secret:Secret", {"annotations": {"startup-script": "yes"}}, False),
    ("gcp:container/cluster:Cluster", {"resourceLabels": {"user-data": "yes"}}, False),
    ("gcp:storage/bucketObject:BucketObject", {"metadata": {"startup-script": "v3"}}, False),
    ("gcp:storage/bucketObject:BucketObject", {"customMetadata": {"user-data": "v3"}}, False),
    ("google-native:storage/v1:BucketObject", META, False),
    ("google:index/storageBucketObject:StorageBucketObject", META, False),
    (
        "gcp:cloudfunctions/function:Function",
        {"environmentVariables": {"userDataBucket": "b", "startupScript": "x"}},
        False,
    ),
    (
        "gcp:cloudfunctionsv2/function:Function",
        {"serviceConfig": {"environmentVariables": {"startup-script": "x"}}},
        False,
    ),
    (
        "gcp:cloudrunv2/service:Service",
        {"template": {"containers": [{"envs": [{"name": "startup-script", "value": "x"}]}]}},
        False,
    ),
    (
        "gcp:cloudscheduler/job:Job",
        {"httpTarget": {"headers": {"user-data": "x"}, "uri": "https://x"}},
        False,
    ),
    (
        "gcp:compute/uRLMap:URLMap",
        {"headerAction": {"requestHeadersToAdds": [{"headerName": "user-data"}]}},
        False,
    ),
    ("gcp:pubsub/subscription:Subscription", {"attributes": {"user-data": "x"}}, False),
    (
        "gcp:container/nodePool:NodePool",
        {"nodeConfig": {"taints": [PAIR | {"effect": "NO_SCHEDULE"}]}},
        False,
    ),
    (
        "gcp:compute/instance:Instance",
        {"scheduling": {"nodeAffinities": [{"key": "user-data", "operator": "IN", "values": []}]}},
        False,
    ),
    ("gcp:compute/instance:Instance", {"params": {"resourceManagerTags": PAIR}}, False),
    ("gcp:cloudbuild/trigger:Trigger", {"substitutions": {"startup-script": "x"}}, False),
    ("gcp:dataflow/job:Job", {"parameters": {"startup-script": "x"}}, False),
    ("gcp:compute/instance:Instance", {"description": "startup-script"}, False),
    ("gcp:compute/instance:Instance", {"metadata": {"x": "startup-script"}}, False),
    ("gcp:compute/instance:Instance", {"metadata": {"startup-script": None}}, False),
    # Other clouds: not what this fleet's VMs run.
    ("aws:ec2/instance:Instance", {"userData": "x"}, False),
    ("aws:s3/bucketObject:BucketObject", META, False),
    ("azure-native:compute:VirtualMachine", {"userData": "x"}, False),
    ("yandex:index/computeInstance:ComputeInstance", {"metadata": {"user-data": "x"}}, False),
    ("kubernetes:core/v1:ConfigMap", {"data": {"user-data": "x"}}, False),
    ("openstack:compute/instance:Instance", META, False),
    ("pulumi:providers:gcp", {"project": "p"}, False),
]


@pytest.mark.parametrize(("type_", "props", "is_script"), SHAPES)
def test_what_is_metadata(type_: str, props: dict[str, object], is_script: bool) -> None:
    """Program and policies, whatever the package is called."""
    assert bool(guard.ghost_scripts(type_, props)) is is_script, json.dumps(props)
    found = [each for each in refused(planned(type_, props), GhostsConfig()) if not each.unjudged]
    assert bool(found) is is_script, found


ALLOWED = [
    # (type, inputs, allowed when it is named)
    (INSTANCE, {"name": "builder", **META}, True),
    (INSTANCE, {"name": "builder", "labels": {"team": "x"}, **META}, True),
    ("gcp:compute/instanceTemplate:InstanceTemplate", META, True),
    ("google-native:compute/v1:Instance", {"metadata": {"items": [PAIR]}}, True),
    (INSTANCE, {"metadata": {"startup-script": "x", "pilot-role": "swarm"}}, False),
    (INSTANCE, {"metadata": {"startup-script": "x", "pilot-spec": "{}"}}, False),
    (INSTANCE, {"labels": {"pilot-fleet": "swarm"}, **META}, False),
    (
        "google-native:compute/v1:Instance",
        {"metadata": {"items": [PAIR, {"key": "pilot-role", "value": "swarm"}]}},
        False,
    ),
    # These reach the fleet's VMs too.
    (ITEM, {"key": "startup-script-url", "value": "x"}, False),
    ("gcp:compute/projectMetadata:ProjectMetadata", META, False),
    ("gcp:compute/instanceSettings:InstanceSettings", {"metadata": {"items": PAIR}}, False),
]


@pytest.mark.parametrize(("type_", "props", "is_allowed"), ALLOWED)
@pytest.mark.parametrize("name", ["it", "builder"])
def test_what_a_site_may_allow(
    type_: str, props: dict[str, object], is_allowed: bool, name: str
) -> None:
    """By the name in the program or at Google, in program and policies; nothing of the fleet's."""
    is_named = name == "it" or props.get("name") == name
    for allowed, passes in (((), False), (("other",), False), ((name,), is_allowed and is_named)):
        assert guard.is_refused(type_, "it", props, allowed) is not passes
        found = list(refused(planned(type_, props), GhostsConfig(allowed=allowed)))
        assert bool(found) is not passes
        ways_out = {"allowedScripts" in str(each) for each in found}
        assert ways_out <= {is_allowed}
