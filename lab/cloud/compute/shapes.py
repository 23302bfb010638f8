"""Types of the fields in compute requests: a field of a wrong type is never recorded."""

from typing import Final

from lab.cloud import Json
from lab.cloud.errors import invalid

_STRINGS: Final = frozenset(
    {
        "name",
        "description",
        "network",
        "subnetwork",
        "address",
        "addressType",
        "machineType",
        "sourceImage",
        "sourceDisk",
        "sourceSnapshot",
        "family",
        "type",
        "ipCidrRange",
        "region",
        "zone",
        "hostname",
        "purpose",
        "networkTier",
        "direction",
        "natIP",
        "networkIP",
        "source",
        "deviceName",
        "mode",
        "diskName",
        "diskType",
        "email",
        "minCpuPlatform",
    }
)
_OBJECTS: Final = frozenset(
    {
        "metadata",
        "tags",
        "labels",
        "scheduling",
        "shieldedInstanceConfig",
        "routingConfig",
        "logConfig",
        "properties",
        "snapshotSchedulePolicy",
        "initializeParams",
        "schedule",
        "retentionPolicy",
    }
)
_LISTS_OF_OBJECTS: Final = frozenset(
    {"disks", "networkInterfaces", "serviceAccounts", "accessConfigs", "allowed", "denied", "nats"}
)
_LISTS_OF_STRINGS: Final = frozenset(
    {
        "resourcePolicies",
        "sourceRanges",
        "sourceTags",
        "targetTags",
        "destinationRanges",
        "scopes",
        "licenses",
        "ports",
    }
)


def check(body: Json, where: str = "resource") -> None:
    """Refuse (400) fields that are not of the type that Google's API gives them."""
    for field, value in body.items():
        path = f"{where}.{field}"
        if value is None:
            continue
        if field in _STRINGS and not isinstance(value, str):
            raise invalid(path, value, "Must be a string.")
        if field in _OBJECTS and not isinstance(value, dict):
            raise invalid(path, value, "Must be an object.")
        if field in _LISTS_OF_STRINGS | _LISTS_OF_OBJECTS:
            kind = str if field in _LISTS_OF_STRINGS else dict
            if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
                what = "strings" if kind is str else "objects"
                raise invalid(path, value, f"Must be a list of {what}.")
        # Names that users choose are not fields of the API.
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict) and field not in ("labels", "items"):
                check(each, path)
