"""Protection of resources that hold state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .values import Resource, Violation

# Disks hold identities and the registry, buckets releases and orders; an address is in every
# VM's spec.
STATEFUL: Final = (
    "gcp:compute/address:Address",
    "gcp:compute/disk:Disk",
    "gcp:compute/globalAddress:GlobalAddress",
    "gcp:compute/regionDisk:RegionDisk",
    "gcp:storage/bucket:Bucket",
)


@dataclass(frozen=True, kw_only=True)
class ProtectionConfig:
    """Settings of `stateful-protected`."""

    # Resource types that must be protected.
    types: Sequence[str] = STATEFUL
    # Stacks that come and go, such as a lab's.
    exemptStacks: Sequence[str] = ()  # noqa: N815 - the name in the configuration
    # Pulumi names of resources that may stay unprotected.
    exemptNames: Sequence[str] = ()  # noqa: N815


def unprotected(resource: Resource, config: ProtectionConfig) -> Iterator[Violation]:
    """A stateful resource that a mistaken `pulumi destroy` or replacement would delete."""
    if resource.type not in config.types or resource.protect:
        return
    if resource.stack in config.exemptStacks or resource.name in config.exemptNames:
        return
    yield Violation(
        path="",
        problem=f"{resource.name} holds state and is not protected",
        remedy="Declare it with protect=True; a stack that is meant to be thrown away goes into "
        "exemptStacks",
    )
