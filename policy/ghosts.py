"""Startup scripts where none may be.

Google's guest agent looks for a startup script at the instance first. If it finds one there it
never looks at the project's, so a script anywhere but in the project's one item silently replaces
the script that the fleet lives by: a ghost script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .values import UNKNOWN, Finding, Resource, join, walk

OWNER: Final = "gcp:compute/projectMetadataItem:ProjectMetadataItem"
OWNER_KEY: Final = "startup-script"

# Names of metadata keys and of properties alike, compared in lower case without blanks and
# dashes. Metadata keys: Google's guest agent (startup-script, startup-script-url, windows-…,
# shutdown-…, sysprep-specialize-script-…) and cloud-init (user-data, user-data-encoding,
# vendor-data, cloud-init…, cloud-config). Properties, from the docstrings of pulumi-gcp 10.2:
# metadataStartupScript (Compute Engine), startupScript (Hypercompute Cluster),
# postStartupScript… (Colab, Workbench), initScript (GKE's custom node init),
# initializationActions (Dataproc): each is run as root when a VM starts. Not here: scripts that
# another service runs later and on its own terms (OS Config, Cloud Build, SQL, Slurm's prologs).
_SCRIPT: Final = re.compile(
    r"(startup|shutdown|specialize|bootstrap)script|^initscripts?$|^initializationactions?$"
    r"|^userdata|^vendordata|^cloudinit|^cloudconfig"
)
# Labels and annotations never run, whatever they are called.
_INERT: Final = re.compile(r"labels$|annotations$", re.IGNORECASE)
# Blocks that hold metadata or a script somewhere below, in pulumi-gcp 10.2: one of them unknown
# as a whole could hide one. tests/policy/test_sdk.py reads the SDK and says when one is missing.
_HOLDERS: Final = re.compile(
    r"metadata|^(items|properties|instanceproperties|preservedstate|allinstancesconfig"
    r"|nodeconfig|nodepools?|linuxnodeconfig|customnodeinit|placement|managedcluster|config"
    r"|clusterconfig|gceclusterconfig|gcesetup|virtualmachine|virtualmachineconfig|host"
    r"|gceinstance|computeinstancerestoreproperties|softwareconfig|orchestrator|slurm"
    r"|loginnodes|nodesets|computeinstance)$"
)
_REMEDY: Final = (
    "Take it out: code belongs into the project's one startup-script item "
    f"({OWNER}, key {OWNER_KEY}), data into keys of another name"
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """`providers`: packages whose resources are walked. `extraKeys`: more names to refuse, of
    metadata keys or properties. `ignoreTypes`: resource types that are not walked."""

    providers: Sequence[str] = ("gcp", "google-native", "google", "google-beta")
    extraKeys: Sequence[str] = ()  # noqa: N815 - the name in the configuration
    ignoreTypes: Sequence[str] = ()  # noqa: N815


def _folded(name: str) -> str:
    return re.sub(r"[\s\-]", "", name).lower()


def carries_script(name: str, extra: Iterable[str] = ()) -> bool:
    """Whether a metadata key or property of this name holds something that a VM runs at boot."""
    folded = _folded(name)
    return bool(_SCRIPT.search(folded)) or folded in {_folded(key) for key in extra}


def is_owner(resource: Resource) -> bool:
    """Whether this is the one resource that may hold a startup script: the project's item."""
    return resource.type == OWNER and resource.props.get("key") == OWNER_KEY


def ghosts(resource: Resource, config: Config) -> Iterator[Finding]:
    """Everything in `resource` that is, or could turn out to be, a startup script.

    A key alone is enough: its value, empty, unknown or secret, changes nothing. `None` is what
    the provider takes for absent.
    """
    if resource.package not in config.providers or resource.type in config.ignoreTypes:
        return
    if is_owner(resource):
        return
    nodes = [("", "", resource.props), *walk(resource.props, prune=_is_inert)]
    for path, key, value in nodes:
        if value is not None and key and carries_script(key, config.extraKeys):
            if not path.endswith("]") or path.endswith('"]'):
                yield Finding(path=path, problem=_problem(value), remedy=_REMEDY)
        elif value is UNKNOWN and _HOLDERS.search(_folded(key)):
            yield Finding(
                path=path,
                problem="not known yet, so nobody can say whether a startup script is in it",
                remedy="It is judged in the update, where it is known; to see it in the plan, "
                "let its keys not depend on other resources' outputs",
                unjudged=True,
            )
        if isinstance(value, Mapping):
            yield from _pair(path, value, config)


def _is_inert(key: str) -> bool:
    return bool(_INERT.search(key))


def _problem(value: Any) -> str:
    known = "an unknown value" if value is UNKNOWN else "a value"
    return f"{known} that a VM runs at boot; it replaces the project's startup script, unseen"


def _pair(path: str, value: Mapping[str, Any], config: Config) -> Iterator[Finding]:
    """Metadata written as the API does: `{"key": K, "value": V}`, alone or as a list's item."""
    if "key" not in value or not {"value", "values"} & value.keys():
        return
    key, where = value["key"], join(path, "key")
    if isinstance(key, str) and carries_script(key, config.extraKeys):
        yield Finding(path=where, problem=f"{key!r} names {_problem('')}", remedy=_REMEDY)
    elif key is UNKNOWN:
        yield Finding(
            path=where,
            problem="the name of a metadata key is not known yet, so it could be a startup script",
            remedy="It is judged in the update; better write the name out",
            unjudged=True,
        )
