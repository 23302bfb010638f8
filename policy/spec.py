"""VMs of the fleet in a plan, and the spec that each carries in its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .values import UNKNOWN, Resource, join, walk


@dataclass(frozen=True, kw_only=True)
class PlannedVm:
    """A block of a resource with the fleet's keys in its metadata."""

    resource: Resource
    # Path of the block in the resource; "" for the resource itself.
    path: str
    # Plain value; may be unknown or `None`.
    machine_type: Any
    metadata: Mapping[str, Any]
    block: Mapping[str, Any]

    @property
    def role(self) -> Any:
        """`pilot-role`: a string, unknown, or `None`."""
        return self.metadata.get("pilot-role")

    def at(self, key: str) -> str:
        """The path of the metadata key `key`."""
        return join(join(self.path, "metadata"), key)


def fleet_vms(resources: Iterable[Resource]) -> Iterator[PlannedVm]:
    """Every block with `pilot-role` or `pilot-spec` in its metadata, in whatever resource."""
    for resource in resources:
        for path, _, block in [("", "", resource.props), *walk(resource.props)]:
            metadata = block.get("metadata") if isinstance(block, Mapping) else None
            if isinstance(metadata, Mapping) and {"pilot-role", "pilot-spec"} & metadata.keys():
                yield PlannedVm(
                    resource=resource,
                    path=path,
                    machine_type=block.get("machineType"),
                    metadata=metadata,
                    block=block,
                )


def parse_spec(text: Any) -> Any:
    """The document in `pilot-spec`: a dict, `UNKNOWN`, or a string that says what is wrong."""
    if text is UNKNOWN:
        return UNKNOWN
    if text is None:
        return "there is no pilot-spec"
    if not isinstance(text, str):
        return "pilot-spec is not a string"
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"pilot-spec is not JSON ({error})"
    return spec if isinstance(spec, dict) else "pilot-spec is not a JSON object"
