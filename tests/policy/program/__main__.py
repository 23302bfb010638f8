"""Registers the resources of one scenario, as they stand in a JSON file.

The file named by `POLICY_SCENARIO` holds a list of
`{"type", "name", "props", "protect"?, "version"?}`. Inside `props`:

* `{"$unknown": V}` is V, but only once a resource made for the purpose exists: in a preview
  nobody can know it;
* `{"$secret": V}` is V, marked secret.

No class of the SDK stands between: what is in the file is what the engine and the policies get.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulumi


class Raw(pulumi.CustomResource):
    """A resource of any type with any inputs."""


def resolve(value: Any, later: Callable[[Any], pulumi.Output[Any]]) -> Any:
    """`value` with its markers replaced; `later` turns a value into one unknown in preview."""
    if isinstance(value, list):
        return [resolve(item, later) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$unknown"}:
        return later(resolve(value["$unknown"], later))
    if set(value) == {"$secret"}:
        return pulumi.Output.secret(resolve(value["$secret"], later))
    return {key: resolve(item, later) for key, item in value.items()}


def main() -> None:
    """Register everything that the scenario lists."""
    scenario = json.loads(Path(os.environ["POLICY_SCENARIO"]).read_text("utf-8"))
    source: list[pulumi.CustomResource] = []

    def later(value: Any) -> pulumi.Output[Any]:
        if not source:
            # An address needs no other resource and has an id that only its creation tells.
            source.append(
                Raw(
                    "gcp:compute/address:Address",
                    "source",
                    {"name": "source", "region": "us-central1"},
                    pulumi.ResourceOptions(protect=True),
                )
            )
        known: pulumi.Output[Any] = source[0].id.apply(lambda _: value)
        return known

    for resource in scenario:
        Raw(
            resource["type"],
            resource["name"],
            resolve(resource["props"], later),
            pulumi.ResourceOptions(protect=resource.get("protect", False)),
        )


main()
