"""Refuses ghost scripts: startup scripts (and their kin) anywhere but in the project's one item.

An instance-level startup script silently replaces the project's, guard and all (docs/GOTCHAS.md).
The policy pack refuses it in CI; this resource transform refuses it in a plain `pulumi up` too.
It looks at whole inputs, not at a list of types, because a new resource type can carry metadata.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pulumi

# Keys of instance metadata that make a guest run something: Google's runner (startup, shutdown,
# their URL and Windows forms, sysprep) and cloud-init.
_SCRIPT_KEY = re.compile(
    r"(?:windows-)?(?:startup|shutdown)-script(?:-(?:url|ps1|cmd|bat))?"
    r"|sysprep-(?:specialize|oobe)-script(?:-(?:url|ps1|cmd|bat))?"
    r"|user-data(?:-encoding)?|vendor-data|cloud-init|cloud-config|cloudinit",
    re.IGNORECASE,
)
# Properties of the provider that hold a script under a name of their own.
_SCRIPT_PROPERTY = re.compile(r"metadata_?startup_?scripts?", re.IGNORECASE)
_PROJECT_ITEM = "gcp:compute/projectMetadataItem:ProjectMetadataItem"
# PYTHON_PROCESS_EXITED_AFTER_SHOWING_USER_ACTIONABLE_MESSAGE_CODE of Pulumi's Python runtime.
_USER_HAS_BEEN_TOLD = 32
_PROJECT_METADATA = "gcp:compute/projectMetadata:ProjectMetadata"


class GhostScriptError(pulumi.RunError):
    """A resource carries a startup script of its own."""


def ghost_scripts(type_: str, props: Mapping[str, Any]) -> list[str]:
    """Paths of the startup scripts, and their kin, in a resource's inputs (in provider names)."""
    if type_ == _PROJECT_ITEM:
        key = props.get("key")
        allowed = not isinstance(key, str) or key == "startup-script" or not _is_script(key)
        return [] if allowed else [f"key {key!r}"]
    if type_ == _PROJECT_METADATA:
        return ["metadata (the whole map: it would wipe everyone else's keys)"]
    return sorted(set(_walk(props, "")))


def refuse(args: pulumi.ResourceTransformArgs) -> None:
    """Raises `GhostScriptError` where a resource of the provider carries a script of its own."""
    found = ghost_scripts(args.type_, args.props) if args.type_.startswith("gcp:") else []
    if found:
        raise GhostScriptError(
            f"{args.type_} {args.name!r} carries a startup script of its own: {', '.join(found)}. "
            "It would silently replace the project's startup script on that VM. Remove it; what "
            "has to run on a VM belongs in startup/, what differs between VMs in the stack file."
        )


async def resolve(value: Any) -> Any:
    """Inputs with every output in them replaced by its value, secrets too.

    Each on its own: one unknown value would make an `Output.all` of everything unknown.
    """
    if isinstance(value, pulumi.Output):
        return await resolve(await value.future(with_unknowns=True))
    if isinstance(value, Mapping):
        return {key: await resolve(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [await resolve(inner) for inner in value]
    return value


def register() -> None:
    """Guards every resource that the program declares from now on."""
    pulumi.runtime.register_resource_transform(_transform)


async def _transform(args: pulumi.ResourceTransformArgs) -> None:
    try:
        refuse(args)
        # What hides a script hides it in an output: a secret map, or a key that is secret.
        args.props = await resolve(args.props)
        refuse(args)
    except GhostScriptError as error:
        # An exception out of a transform comes back as the traceback of an RPC. So the sentence is
        # logged and the program ends with the exit code that tells the language host "the user
        # has been told": the engine loses the answer it waits for, and the resource is refused.
        pulumi.log.error(str(error))
        os._exit(_USER_HAS_BEEN_TOLD)


def _is_script(key: str) -> bool:
    return _SCRIPT_KEY.fullmatch(key.strip()) is not None


def _walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        # `{key: startup-script, value: …}`, the API's own form of a metadata item.
        name = value.get("key")
        if isinstance(name, str) and _is_script(name):
            yield f"{path}[{name}]"
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            if inner is not None and (_is_script(str(key)) or _SCRIPT_PROPERTY.fullmatch(str(key))):
                yield here
            else:
                yield from _walk(inner, here)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{index}]")
