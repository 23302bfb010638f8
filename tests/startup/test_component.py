"""ProjectStartupScript: one item of metadata with the script in it, and outputs that say so."""

from __future__ import annotations

from typing import Any

import pulumi
import pytest

from components.startup import (
    FOREIGN_SCRIPT,
    ProjectStartupScript,
    ProjectStartupScriptArgs,
    render,
)


class Mocks(pulumi.runtime.Mocks):
    def __init__(self) -> None:
        self.made: list[pulumi.runtime.MockResourceArgs] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, Any]:
        self.made.append(args)
        return f"{args.name}-id", args.inputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
        return {}


@pytest.fixture
def mocks() -> Mocks:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, preview=False)
    return mocks


def test_the_component(mocks: Mocks) -> None:
    script = render(10_000)
    seen: dict[str, Any] = {}

    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def declare() -> Any:
        component = ProjectStartupScript(
            "startup", ProjectStartupScriptArgs(project="some-project", script=script)
        )
        return pulumi.Output.all(component.key, component.sha256, component.urn).apply(
            lambda values: seen.update(zip(("key", "sha256", "urn"), values, strict=True))
        )

    declare()
    assert seen["key"] == "startup-script"
    assert seen["sha256"] == script.sha256
    assert "pilot:fleet:ProjectStartupScript::startup" in seen["urn"]
    made = {args.typ: args for args in mocks.made}
    assert set(made) == {
        "pilot:fleet:ProjectStartupScript",
        "gcp:compute/projectMetadataItem:ProjectMetadataItem",
    }
    item = made["gcp:compute/projectMetadataItem:ProjectMetadataItem"]
    assert item.name == "startup-item"
    assert item.inputs == {
        "key": "startup-script",
        "project": "some-project",
        "value": script.text,
    }


def test_the_error_for_a_foreign_script_says_what_to_do() -> None:
    text = FOREIGN_SCRIPT.format(project="p", name="startup-item", parent="urn:x")
    for part in ("describe --project p", "pulumi import", "remove-metadata --project p"):
        assert part in text
