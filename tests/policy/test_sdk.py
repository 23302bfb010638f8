"""The rules against the current SDK: everything that it can express is seen by the policies.

Two surveys read the whole SDK, so that a new release of it with a new way to carry a startup
script fails here. The rest builds inputs with the SDK's own classes and lets the SDK turn them
into what it sends.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pulumi
import pulumi_gcp
import pytest
from pulumi.runtime import mocks
from pulumi_gcp import backupdisasterrecovery, compute, tpu

from policy import exposure, identity
from policy.instance_scripts import GhostsConfig, ghosts, what_runs
from policy.values import UNKNOWN, plain
from tests.policy.planned import nested, planned

SDK = Path(pulumi_gcp.__file__).parent
# Words of Google's documentation for programs that a VM runs when it starts.
_BOOT = re.compile(r"start-?\s?up[\s-]scripts?|shutdown[\s-]script|user-data|cloud-init", re.I)
# Where the words stand in a docstring and the property still is no script itself.
_HOLDS_METADATA = {"metadata", "instance_metadata"}
_METADATA = re.compile(r"^(instance_?)?metadatas?$", re.I)


def camel(name: str) -> str:
    """A Python name of the SDK as the engine gets it."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def properties(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, docstring) of every property of every class in a module of the SDK."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            text = ast.get_docstring(node)
            if text and node.name not in {"__init__", "get"}:
                yield node.name, text


@pytest.mark.engine  # reads all of the SDK, which changes with its pin only
def test_every_property_that_the_sdk_calls_a_startup_script_is_refused() -> None:
    seen = {}
    for file in SDK.rglob("*.py"):
        source = file.read_text("utf-8")
        if file.name == "outputs.py" or file.name.startswith("get_") or not _BOOT.search(source):
            continue
        for name, text in properties(ast.parse(source)):
            if _BOOT.search(text):
                seen[name] = f"{file.parent.name}: {text}"
    assert "metadata_startup_script" in seen, "the survey finds nothing any more"
    missed = {
        name: text
        for name, text in seen.items()
        if name not in _HOLDS_METADATA and not what_runs(camel(name))
    }
    assert not missed


def nested_types(annotation: Any) -> Iterator[type]:
    """Input types inside an annotation such as `Input[Sequence[Input[XArgs]]]`."""
    if inspect.isclass(annotation) and getattr(annotation, "_pulumi_input_type", False):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from nested_types(argument)


def metadata_paths(kind: type, seen: frozenset[type] = frozenset()) -> Iterator[tuple[str, ...]]:
    """Paths of metadata-like maps of strings in an input type, and the paths above them."""
    for name, annotation in pulumi._types.input_type_types(kind).items():
        if _METADATA.search(name) and "Mapping[str" in str(annotation):
            yield (name,)
        elif _METADATA.search(name) and "MetadataArgs" in str(annotation):
            yield (name, "items")
        for inner in nested_types(annotation):
            if inner not in seen:
                for path in metadata_paths(inner, seen | {inner}):
                    yield (name, *path)


def resource_inputs(service: str) -> Iterator[type]:
    """The input types of all resources of a service."""
    for file in (SDK / service).glob("*.py"):
        if not file.name.startswith(("_", "get_")):
            module = importlib.import_module(f"pulumi_gcp.{service}.{file.stem}")
            for name, kind in inspect.getmembers(module, inspect.isclass):
                if name.endswith("Args") and kind.__module__ == module.__name__:
                    yield kind


# Services that start machines; the SDK's other 130 would cost a quarter of a minute to import.
@pytest.mark.parametrize(
    ("service", "among"),
    [
        (
            "compute",
            {
                ("metadata",),
                ("allInstancesConfig", "metadata"),
                ("preservedState", "metadata"),
                ("metadata", "items"),
            },
        ),
        ("container", {("nodeConfig", "metadata"), ("nodePools", "nodeConfig", "metadata")}),
        ("dataproc", {("clusterConfig", "gceClusterConfig", "metadata")}),
        ("hypercomputecluster", set()),
        ("tpu", {("metadata",)}),
        ("workbench", {("gceSetup", "metadata")}),
        ("workstations", {("host", "gceInstance", "instanceMetadata")}),
    ],
)
def test_every_block_of_the_sdk_that_holds_metadata_is_walked(
    service: str, among: set[tuple[str, ...]]
) -> None:
    paths = {path for kind in resource_inputs(service) for path in metadata_paths(kind)}
    assert among <= paths, "the survey does not find what it must"
    kind = f"gcp:{service}/any:Any"
    for path in paths:
        dotted = ".".join(path)
        script = nested(f"{dotted}.startup-script", "x")
        assert any(not one.unjudged for one in ghosts(planned(kind, script), GhostsConfig())), (
            dotted
        )
        for depth in range(1, len(path) + 1):
            unknown = nested(".".join(path[:depth]), UNKNOWN)
            [finding] = ghosts(planned(kind, unknown), GhostsConfig())
            assert finding.unjudged, path[:depth]


class Seen(mocks.Mocks):
    """Keeps the inputs of every resource as the SDK sends them."""

    def __init__(self) -> None:
        self.resources: dict[str, tuple[str, dict[str, Any]]] = {}

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.resources[args.name] = (args.typ, args.inputs)
        return f"{args.name}-id", args.inputs

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], None]:
        return {}, None


def sent(make: Callable[[str], object]) -> tuple[str, dict[str, Any]]:
    """(type token, inputs) of the one resource that `make(NAME)` declares."""
    seen = Seen()
    mocks.set_mocks(seen, preview=False)
    run: Any = mocks.test
    run(lambda: make("it") and None)()
    return seen.resources["it"]


SCRIPT = "#!/bin/sh\necho"
ACCOUNT: Any = {"email": "vm@project.iam.gserviceaccount.com", "scopes": ["cloud-platform"]}
VERSION: Any = {"instance_template": "template"}
DISKS: Any = [{"source_image": "debian-cloud/debian-12"}]


@pytest.mark.parametrize(
    "make",
    [
        lambda name: compute.Instance(
            name,
            machine_type="e2-small",
            boot_disk={"initialize_params": {"image": "debian-12"}},
            network_interfaces=[{"network": "default"}],
            metadata_startup_script=SCRIPT,
        ),
        lambda name: compute.RegionInstanceTemplate(
            name, machine_type="e2-small", disks=DISKS, metadata={"startup-script": SCRIPT}
        ),
        lambda name: compute.RegionInstanceTemplate(
            name,
            machine_type="e2-small",
            disks=DISKS,
            metadata_startup_script=pulumi.Output.secret(SCRIPT),
        ),
        lambda name: compute.InstanceTemplate(
            name,
            machine_type="e2-small",
            disks=DISKS,
            metadata=pulumi.Output.secret({"user-data": "#cloud-config"}),
        ),
        lambda name: compute.InstanceFromTemplate(
            name, source_instance_template="t", metadata_startup_script=SCRIPT
        ),
        lambda name: compute.InstanceFromMachineImage(
            name, source_machine_image="i", metadata={"startup-script-url": "gs://x"}
        ),
        lambda name: compute.InstanceGroupManager(
            name,
            base_instance_name="vm",
            versions=[VERSION],
            all_instances_config={"metadata": {"startup-script": SCRIPT}},
        ),
        lambda name: compute.RegionInstanceGroupManager(
            name,
            base_instance_name="vm",
            versions=[VERSION],
            all_instances_config=compute.RegionInstanceGroupManagerAllInstancesConfigArgs(
                metadata={"shutdown-script": SCRIPT}
            ),
        ),
        lambda name: compute.PerInstanceConfig(
            name,
            instance_group_manager="m",
            preserved_state={"metadata": {"startup-script": SCRIPT}},
        ),
        lambda name: compute.RegionPerInstanceConfig(
            name,
            region_instance_group_manager="m",
            preserved_state={"metadata": {"startup-script": pulumi.Output.secret(SCRIPT)}},
        ),
        lambda name: compute.InstanceSettings(
            name, zone="z", metadata={"items": {"startup-script": SCRIPT}}
        ),
        lambda name: compute.ProjectMetadata(name, metadata={"startup-script": SCRIPT}),
        lambda name: compute.ProjectMetadataItem(name, key="startup-script-url", value="gs://x"),
        lambda name: tpu.V2Vm(
            name, runtime_version="tpu-vm-base", metadata={"startup-script": SCRIPT}
        ),
        lambda name: backupdisasterrecovery.RestoreWorkload(
            name,
            location="l",
            backup_vault_id="v",
            data_source_id="d",
            backup_id="b",
            compute_instance_restore_properties={
                "name": "vm",
                "metadata": {"items": [{"key": "startup-script", "value": SCRIPT}]},
            },
        ),
    ],
)
def test_scripts_that_the_sdk_sends_are_refused(make: Callable[[str], object]) -> None:
    kind, props = sent(make)
    findings = list(ghosts(planned(kind, plain(props)), GhostsConfig()))
    assert findings
    assert not any(finding.unjudged for finding in findings)


def test_the_projects_item_that_the_sdk_sends_is_exempt() -> None:
    kind, props = sent(
        lambda name: compute.ProjectMetadataItem(name, key="startup-script", value=SCRIPT)
    )
    assert list(ghosts(planned(kind, plain(props)), GhostsConfig())) == []


def test_a_template_of_the_sdk_without_a_script_passes() -> None:
    kind, props = sent(
        lambda name: compute.RegionInstanceTemplate(
            name,
            machine_type="e2-small",
            disks=DISKS,
            metadata={"pilot-role": "swarm", "enable-oslogin": "TRUE"},
            service_account=ACCOUNT,
        )
    )
    resource = planned(kind, plain(props))
    assert kind == "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
    assert list(ghosts(resource, GhostsConfig())) == []
    assert list(identity.default_accounts(resource, identity.AccountConfig())) == []


@pytest.mark.parametrize(
    ("sources", "refused"), [(["0.0.0.0/0"], True), (["35.235.240.0/20"], False)]
)
def test_firewall_rules_that_the_sdk_sends(sources: list[str], refused: bool) -> None:
    match: Any = {
        "src_ip_ranges": sources,
        "layer4_configs": [{"ip_protocol": "tcp", "ports": ["22"]}],
    }
    rule: Any = {"priority": 1, "action": "allow", "direction": "INGRESS", "match": match}
    makers: list[Callable[[str], object]] = [
        lambda name: compute.Firewall(
            name,
            network="n",
            allows=[{"protocol": "tcp", "ports": ["22"]}],
            source_ranges=sources,
        ),
        lambda name: compute.NetworkFirewallPolicyRule(
            name,
            firewall_policy="p",
            priority=1,
            action="allow",
            direction="INGRESS",
            match=match,
        ),
        lambda name: compute.RegionNetworkFirewallPolicyRule(
            name,
            firewall_policy="p",
            region="r",
            priority=1,
            action="allow",
            direction="INGRESS",
            match=match,
        ),
        lambda name: compute.FirewallPolicyRule(
            name,
            firewall_policy="p",
            priority=1,
            action="allow",
            direction="INGRESS",
            match=match,
        ),
        lambda name: compute.NetworkFirewallPolicyWithRules(name, rules=[rule]),
    ]
    for make in makers:
        kind, props = sent(make)
        found = list(
            exposure.open_to_the_world(planned(kind, plain(props)), exposure.ExposureConfig())
        )
        assert bool(found) is refused, kind
