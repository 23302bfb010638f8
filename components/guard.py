"""Refuses ghost scripts: startup scripts (and the like) anywhere but in the project's one item.

An instance-level startup script silently replaces the project's (docs/GOTCHAS.md). The policy pack
refuses it in CI; this resource transform refuses it in a plain `pulumi up` too. It looks at the
shape of inputs, not at types or packages: a new type can carry metadata, and a package can have any
name. Only the policy pack sees resources that are declared before `register`, or changed by a
transform that is registered later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pulumi

from components import program_exit

_REPLACES: Final = "runs at every boot in place of the project's startup script"
# Keys of instance metadata that make a guest run something, and when. tests/ghosts.py compares this
# list with the policy's, pilot-node's and the audit's.
_SCRIPTS: Final = {
    r"startup-script(?:-url)?": _REPLACES,
    r"windows-startup-script(?:-(?:url|ps1|cmd|bat))?|startup-script-(?:ps1|cmd|bat)": (
        "runs at every boot of a Windows VM"
    ),
    r"(?:windows-)?shutdown-script(?:-(?:url|ps1|cmd|bat))?": "runs whenever the VM shuts down",
    r"sysprep-(?:specialize|oobe)-script(?:-(?:url|ps1|cmd|bat))?": (
        "runs when a Windows VM is set up"
    ),
    r"user-data(?:-encoding)?|vendor-data|cloud-?init|cloud-config": (
        "is what cloud-init and its kin run at boot (Ubuntu, Container-Optimized OS, Flatcar)"
    ),
    r"bootstrap-script(?:-url)?|(?:user|vendor)-data-.+": (
        "is named like a script: none of Google's images runs it, one of your own may"
    ),
    r"gce-container-declaration|google-container-manifest": (
        "starts containers at boot on Container-Optimized OS"
    ),
    r"(?:containerd-)?configure-sh|(?:k8s-node-setup|common)-psm1": (
        "is run at boot by the images of GKE's nodes"
    ),
    r"post-startup-script(?:-url)?": (
        "is run after boot by the images of Deep Learning VM and Workbench"
    ),
    r"gce-software-declaration": "makes Google's OS Config agent run install scripts",
    r"enable-osconfig|os-?config-enabled-prerelease-features": (
        "makes Google's OS Config agent run the scripts of policies and patch jobs"
    ),
    r"os-?config-endpoint": "makes Google's OS Config agent take its scripts from another server",
}
# Values of enable-osconfig that switch the agent off.
_OFF: Final = frozenset({"false", "f", "0"})
# Properties that hold a script under another name.
_SCRIPT_PROPERTY: Final = re.compile(
    r".*(?:startup|shutdown|specialize|bootstrap)script.*|metadata_startup_scripts?"
    r"|init_?scripts?|initialization_?actions?",
    re.IGNORECASE,
)
# Properties whose maps and pairs are never metadata of a VM.
_NO_METADATA: Final = re.compile(
    r".*(?:labels|annotations|headers?|headerstoadds?|tags|taints?|tolerations|variables|envvars"
    r"|attributes|parameters|params|substitutions|conditions|selectors?|affinities|expressions"
    r"|filters|mappings?|overrides|properties)"
    r"|envs?|data|vars|values|args|options|custommetadata|parametervalues",
    re.IGNORECASE,
)
# Other clouds: their VMs do not belong to the fleet.
_OTHER_CLOUDS: Final = frozenset(
    {
        *("alicloud", "aws", "aws-native", "azure", "azure-native"),
        *("kubernetes", "oci", "openstack", "yandex"),
    }
)
_PROJECT_ITEM: Final = "gcp:compute/projectMetadataItem:ProjectMetadataItem"
# These reach every VM of a project or zone, so the fleet's too: no name allows a script there.
_WHOLE_PROJECT: Final = re.compile(r".*project(?:common)?metadata", re.IGNORECASE)
_FOR_ALL: Final = re.compile(
    r".*(?:project(?:common)?metadata(?:item)?|instancesettings)", re.IGNORECASE
)
_FLEETS: Final = frozenset({"pilot-role", "pilot-spec", "pilot-fleet"})


class GhostScriptError(pulumi.RunError):
    """A resource carries a script of its own."""


@dataclass(frozen=True, kw_only=True)
class Ghost:
    """A script in a resource's inputs."""

    # Path in the inputs.
    where: str
    # Its effect on a VM, as the end of a sentence.
    does: str


def what_runs(key: str, value: Any = None) -> str:
    """The effect of a metadata key on a VM; "" for none."""
    folded = key.strip().lower()
    if folded == "enable-osconfig" and isinstance(value, str) and value.strip().lower() in _OFF:
        return ""
    for pattern, does in _SCRIPTS.items():
        if re.fullmatch(pattern, folded):
            return does
    return ""


def ghost_scripts(type_: str, props: Mapping[str, Any]) -> list[Ghost]:
    """The startup scripts and the like in a resource's inputs (in provider names)."""
    package, kind = type_.partition(":")[0], type_.rpartition(":")[2]
    if package in _OTHER_CLOUDS:
        return []
    if _WHOLE_PROJECT.fullmatch(kind):
        return [Ghost(where="metadata", does="is the whole map: it wipes everyone else's keys")]
    if type_ == _PROJECT_ITEM and props.get("key") == "startup-script":
        return []
    is_object = kind.lower().endswith("bucketobject")
    found = [*_pair(props, ""), *_walk(props, "", "", is_object=is_object)]
    if kind.lower().endswith("projectmetadataitem"):
        found = [
            Ghost(where=each.where, does=each.does.replace("in place of", "beside"))
            for each in found
        ]
    return list(dict.fromkeys(found))


def is_refused(
    type_: str, name: str, props: Mapping[str, Any], allowed: Sequence[str] = ()
) -> bool:
    """Whether a resource carries a script and is not in `allowed`.

    On the fleet's VMs, and on resources that reach them, no script can be allowed.
    """
    is_named = name in allowed or props.get("name") in allowed
    may_pass = is_named and not _reaches_the_fleet(type_, props)
    return bool(ghost_scripts(type_, props)) and not may_pass


def refuse(args: pulumi.ResourceTransformArgs, allowed: Sequence[str] = ()) -> None:
    """Raises `GhostScriptError` where a resource `is_refused`."""
    if not is_refused(args.type_, args.name, args.props, allowed):
        return
    found = ghost_scripts(args.type_, args.props)
    way_out = (
        ""
        if _reaches_the_fleet(args.type_, args.props)
        else " If it is not the fleet's and the script is wanted, name it in "
        "pilot-fleet:allowedScripts, and for the policies in policy/settings.json."
    )
    raise GhostScriptError(
        f"{args.type_} {args.name!r} carries a script of its own: "
        f"{'; '.join(f'{ghost.where} {ghost.does}' for ghost in found)}. Remove it. Programs "
        "for the fleet's VMs belong in startup/, differences between VMs in the stack "
        f"file.{way_out}"
    )


async def resolve(value: Any) -> Any:
    """Inputs with every output replaced by its value, secrets too.

    One by one, because one unknown value makes an `Output.all` of everything unknown.
    """
    if isinstance(value, pulumi.Output):
        return await resolve(await value.future(with_unknowns=True))
    if isinstance(value, Mapping):
        return {key: await resolve(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [await resolve(inner) for inner in value]
    return value


def register(allowed: Sequence[str] = ()) -> None:
    """Guard every resource that the program declares from now on. `allowed`: as of `refuse`."""

    async def transform(args: pulumi.ResourceTransformArgs) -> None:
        try:
            # An output can hide a script: a secret map, or a secret key.
            args.props = await resolve(args.props)
            refuse(args, allowed)
        except GhostScriptError as error:
            # An exception in a transform would print an RPC's traceback. Instead, log the sentence
            # and exit with the code for "the user has the message". The engine loses the answer
            # that it waits for, and refuses the resource.
            pulumi.log.error(str(error))
            program_exit.at_once()

    pulumi.runtime.register_resource_transform(transform)


def _reaches_the_fleet(type_: str, props: Mapping[str, Any]) -> bool:
    return bool(_FOR_ALL.fullmatch(type_.rpartition(":")[2])) or _is_fleets(props)


def _is_fleets(value: Any) -> bool:
    if isinstance(value, Mapping):
        if not _FLEETS.isdisjoint(value):
            return True
        if isinstance(key := value.get("key"), str) and key in _FLEETS:
            return True
        return any(_is_fleets(inner) for inner in value.values())
    return isinstance(value, list | tuple) and any(_is_fleets(inner) for inner in value)


def _pair(value: Mapping[str, Any], path: str) -> Iterator[Ghost]:
    """A script in `{key: startup-script, value: …}`, the API's form of a metadata item."""
    key = value.get("key")
    if not isinstance(key, str) or {"value", "values"}.isdisjoint(value):
        return
    if {"effect", "operator"}.isdisjoint(value) and (does := what_runs(key, value.get("value"))):
        yield Ghost(where=f"{path}[{key}]" if path else f"key {key!r}", does=does)


def _walk(value: Any, path: str, name: str, *, is_object: bool) -> Iterator[Ghost]:
    """`name`: of the property that holds `value`; items of a list have the list's name."""
    folded = name.replace("_", "").lower()
    is_metadata = not _NO_METADATA.fullmatch(folded) and not (is_object and folded == "metadata")
    if isinstance(value, Mapping):
        if path and is_metadata:
            yield from _pair(value, path)
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            does = ""
            if is_metadata and inner is not None:
                does = what_runs(str(key), inner) or _property(str(key))
            if does:
                yield Ghost(where=here, does=does)
            else:
                yield from _walk(inner, here, str(key), is_object=is_object)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{index}]", name, is_object=is_object)


def _property(key: str) -> str:
    if "-" in key or not _SCRIPT_PROPERTY.fullmatch(key):
        return ""
    return _REPLACES if key.lower().startswith("metadata") else "is run when a machine starts"
