"""The program's own refusal of ghost scripts (the policy pack's is tested in tests/policy)."""

from __future__ import annotations

from typing import Any

import pulumi
import pytest

from components import guard
from tests.conftest import run_async

INSTANCE = "gcp:compute/instance:Instance"
TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
GROUP = "gcp:compute/instanceGroupManager:InstanceGroupManager"
SETTINGS = "gcp:compute/instanceSettings:InstanceSettings"
ITEM = "gcp:compute/projectMetadataItem:ProjectMetadataItem"


def args(type_: str, props: dict[str, Any]) -> pulumi.ResourceTransformArgs:
    return pulumi.ResourceTransformArgs(
        custom=True, type_=type_, name="vm", props=props, opts=pulumi.ResourceOptions()
    )


@pytest.mark.parametrize(
    ("type_", "props", "path"),
    [
        (INSTANCE, {"metadataStartupScript": "x"}, "metadataStartupScript"),
        (INSTANCE, {"metadata": {"startup-script": "x"}}, "metadata.startup-script"),
        (INSTANCE, {"metadata": {"startup-script": pulumi.UNKNOWN}}, "metadata.startup-script"),
        (INSTANCE, {"metadata": {"shutdown-script": "x"}}, "shutdown-script runs whenever"),
        (TEMPLATE, {"metadata": {"startup-script": "x"}}, "metadata.startup-script"),
        (
            GROUP,
            {"allInstancesConfig": {"metadata": {"startup-script": "x"}}},
            "allInstancesConfig.metadata.startup-script",
        ),
        (
            SETTINGS,
            {"metadata": {"items": {"startup-script": "x"}}},
            "metadata.items.startup-script",
        ),
        (
            "gcp:some/new:Thing",
            {"a": [{"b": {"items": [{"key": "startup-script", "value": "x"}]}}]},
            "a[0].b.items[0][startup-script]",
        ),
        (ITEM, {"key": "startup-script-url", "value": "x"}, "key 'startup-script-url'"),
        (ITEM, {"key": "user-data", "value": "x"}, "key 'user-data'"),
        (
            "gcp:compute/projectMetadata:ProjectMetadata",
            {"metadata": {"a": "b"}},
            "is the whole map",
        ),
    ],
)
def test_refused(type_: str, props: dict[str, Any], path: str) -> None:
    with pytest.raises(guard.GhostScriptError) as caught:
        guard.refuse(args(type_, props))
    assert path in str(caught.value)
    assert "'vm'" in str(caught.value)


def test_a_script_hidden_in_an_output_is_found() -> None:
    async def program() -> None:
        for hidden in (
            pulumi.Output.secret({"startup-script": "x"}),
            pulumi.Output.from_input({"startup-script": "x", "other": pulumi.UNKNOWN}),
            {"a": "b", "startup-script": pulumi.Output.secret("x")},
        ):
            with pytest.raises(guard.GhostScriptError):
                guard.refuse(args(INSTANCE, await guard.resolve({"metadata": hidden})))
        key = await guard.resolve({"key": pulumi.Output.secret("startup-script-url"), "value": "x"})
        with pytest.raises(guard.GhostScriptError):
            guard.refuse(args(ITEM, key))

    run_async(program())


@pytest.mark.parametrize(
    ("type_", "props"),
    [
        (INSTANCE, {}),
        (INSTANCE, {"metadata": None}),
        (INSTANCE, {"metadata": pulumi.UNKNOWN}),
        (INSTANCE, {"metadata": {"pilot-role": "swarm", "x": "startup-script"}}),
        (INSTANCE, {"description": "startup-script", "metadataStartupScript": None}),
        (ITEM, {"key": "startup-script", "value": "x"}),
        (ITEM, {"key": "enable-oslogin", "value": "TRUE"}),
    ],
)
def test_left_alone(type_: str, props: dict[str, Any]) -> None:
    guard.refuse(args(type_, props))
