"""The project's startup script: one owner, a guard, small enough, and the sha256 of the specs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .instance_scripts import OWNER, OWNER_KEY, is_owner, owns_all_metadata
from .spec import fleet_vms, parse_spec
from .values import UNKNOWN, Resource, Violation

# A metadata value holds at most 256 KiB (docs/FACTS.md).
LIMIT_BYTES: Final = 256 * 1024
_HASH_PATH: Final = 'metadata["pilot-spec"] script.sha256'


@dataclass(frozen=True, kw_only=True)
class ProjectScriptConfig:
    """Settings of `guarded-project-script`."""

    # The script's second line.
    secondLine: str = "# pilot-fleet startup script"  # noqa: N815 - the name in the configuration
    # Texts that the script must contain.
    contains: Sequence[str] = ("/run/pilot/guard",)
    # It must be smaller, in bytes of UTF-8.
    maxBytes: int = LIMIT_BYTES  # noqa: N815


def guarded_script(resource: Resource, config: ProjectScriptConfig) -> Iterator[Violation]:
    """Problems with the project's startup script, or with its owner."""
    if owns_all_metadata(resource):
        yield Violation(
            path="metadata",
            problem="this resource owns all of the project's metadata and wipes every key that "
            "somebody else put there, SSH keys too",
            remedy=f"Declare single items instead ({OWNER})",
        )
    if not is_owner(resource):
        return
    script = resource.props.get("value")
    if script is UNKNOWN:
        problem = "the startup script depends on something that is not known yet"
        remedy = "Render it from configuration alone, so that a plan can be checked"
        yield Violation(path="value", problem=problem, remedy=remedy)
    elif not isinstance(script, str) or not script:
        problem, remedy = "there is no startup script in it", "Give it the rendered script"
        yield Violation(path="value", problem=problem, remedy=remedy)
    else:
        yield from _content(script, config)


def _content(script: str, config: ProjectScriptConfig) -> Iterator[Violation]:
    size = len(script.encode())
    if size >= config.maxBytes:
        yield Violation(
            path="value",
            problem=f"the startup script has {size} bytes, {size - config.maxBytes + 1} too many",
            remedy=f"Keep it below {config.maxBytes} bytes: move files out of it",
        )
    first, second, *_ = [*script.split("\n", 2), "", ""]
    if not first.startswith("#!"):
        yield Violation(
            path="value",
            problem="the startup script does not start with #!, so nothing says what runs it",
            remedy="Start it with #!/bin/bash",
        )
    if second.strip() != config.secondLine:
        yield Violation(
            path="value",
            problem=f"the startup script's second line is not {config.secondLine!r}",
            remedy="Render it from the fleet's template, or configure secondLine",
        )
    for text in config.contains:
        if text not in script:
            yield Violation(
                path="value",
                problem=f"the startup script does not mention {text}, so its guard is missing and "
                "it would do its work again whenever it is run",
                remedy="Render it from the fleet's template, or configure contains",
            )


def one_script(resources: Sequence[Resource]) -> Iterator[tuple[Resource | None, Violation]]:
    """The fleet's VMs against the project's startup script: (resource at fault, finding) pairs.

    Where there is a VM of the fleet, exactly one item owns the script, and every VM's spec expects
    that script. The rules about single resources report unknown values.
    """
    owners = [resource for resource in resources if is_owner(resource)]
    vms = list(fleet_vms(resources))
    if len(owners) > 1:
        names = ", ".join(sorted(owner.name for owner in owners))
        for owner in owners:
            yield (
                owner,
                Violation(
                    path="key",
                    problem=f"{len(owners)} resources own the project's startup-script: {names}",
                    remedy="Keep one of them: the last one written would win",
                ),
            )
        return
    if not owners:
        if vms:
            problem = f"{len(vms)} VMs of the fleet and no startup script for them"
            remedy = f"Declare one {OWNER} with the key {OWNER_KEY}"
            yield None, Violation(path="", problem=problem, remedy=remedy)
        return
    script = owners[0].props.get("value")
    if isinstance(script, str):
        digest = hashlib.sha256(script.encode()).hexdigest()
        for vm in vms:
            finding = _expects(vm.metadata.get("pilot-spec"), digest, owners[0].name)
            if finding:
                yield vm.resource, finding


def _expects(text: Any, digest: str, owner: str) -> Violation | None:
    spec = parse_spec(text)
    if not isinstance(spec, dict):
        return None
    script = spec.get("script")
    expected = script.get("sha256") if isinstance(script, dict) else None
    if expected == digest:
        return None
    wants = f"expects {expected}" if expected else "says nothing"
    return Violation(
        path=_HASH_PATH,
        problem=f"the VM {wants}, the project's script ({owner}) is {digest}",
        remedy="Put the sha256 of the rendered script, as it is in the project's item, into the "
        "spec; a VM does not run a script that it does not expect",
    )
