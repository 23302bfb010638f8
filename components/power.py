"""Engine hooks for changes that stop a VM: warn before, and start the VM again after a failure.

Google changes some properties of a VM only while it is off. The provider stops it, changes it and
starts it. Where Google refuses the change, the provider leaves the VM off. Hooks run in `make
preview`, `make up`, a pull request and plain Pulumi alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import pulumi

from components.google_rest import Google, GoogleError

# Inputs of gcp.compute.Instance whose change stops the VM, from the provider's source
# (`needToStopInstanceBeforeUpdating`), each with the parts that count; empty means all of it.
# docs/CONTRACT.md lists them.
STOPS: Final[Mapping[str, tuple[str, ...]]] = {
    "machineType": (),
    "serviceAccount": (),
    "shieldedInstanceConfig": (),
    "minCpuPlatform": (),
    "enableDisplay": (),
    "advancedMachineFeatures": (),
    "networkInterfaces": ("network", "subnetwork", "subnetworkProject"),
    "scheduling": ("nodeAffinities", "maxRunDuration"),
}
_OFF: Final = frozenset({"TERMINATED", "STOPPED"})
_ON: Final = frozenset({"PROVISIONING", "STAGING", "RUNNING", "REPAIRING"})


def stopping(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names of changed inputs that stop the instance.

    A value that is not known yet counts as changed.
    """
    return [
        key
        for key, parts in STOPS.items()
        if _relevant(old, key, parts) != _relevant(new, key, parts)
    ]


def _relevant(inputs: Mapping[str, Any], key: str, parts: tuple[str, ...]) -> Any:
    value = inputs.get(key)
    if not parts:
        return _plain(value)
    found = value if isinstance(value, list) else [value]
    return [
        [_plain(each.get(part)) for part in parts] for each in found if isinstance(each, Mapping)
    ]


def _plain(value: Any) -> Any:
    """A normal form, so that two spellings of a value compare equal.

    Links become their last part, lists are sorted, empty and false values are absent.
    """
    if isinstance(value, Mapping):
        return {key: kept for key in sorted(value) if (kept := _plain(value[key])) is not None}
    if isinstance(value, list):
        return sorted(map(_plain, value), key=repr) or None
    if isinstance(value, str) and "/" in value and "://" not in value.removeprefix("https://"):
        return value.rsplit("/", 1)[-1]
    return value or None


def hooks(name: str) -> pulumi.ResourceHookBinding:
    """The hooks of the instance with the resource name `name`."""
    before = pulumi.ResourceHook(
        f"{name}-stops", _before_update, pulumi.ResourceHookOptions(on_dry_run=True)
    )
    return pulumi.ResourceHookBinding(
        before_update=[before], on_error=[pulumi.ErrorHook(f"{name}-starts-again", _after_failure)]
    )


async def _before_update(update: pulumi.ResourceHookArgs) -> None:
    """Warn of a VM that this update stops."""
    old, new = update.old_inputs or {}, update.new_inputs or {}
    keys = stopping(old, new)
    if not keys:
        return
    pulumi.log.warn(
        f"`pulumi up` stops {_name(update.id)} and starts it again, to change "
        f"{' and '.join(keys)}: its agents or its registry are down meanwhile, and no other VM is "
        "stopped before it is back"
    )


async def _after_failure(failure: pulumi.ErrorHookArgs) -> bool:
    """Start a VM that a failed update left off. Never asks for a retry."""
    if failure.failed_operation == "update":
        await asyncio.to_thread(_start_again, failure.id)
    return False


def _start_again(instance: str) -> None:
    name = _name(instance)
    zone = instance.partition("/zones/")[2].partition("/")[0]
    try:
        compute = Google("compute")
        status = compute.get(instance).get("status")
        if status in _ON:
            return
        if status not in _OFF:
            raise GoogleError(f"it is {status}")
        compute.start(instance)
    except GoogleError as error:
        pulumi.log.error(
            f"{name} may be off, because its change failed, and it could not be started again: "
            f"{error}. The next `pulumi up` starts it; so does `gcloud compute instances start "
            f"{name} --zone={zone}`. `pulumi up --continue-on-error` changes the other VMs"
        )
    else:
        pulumi.log.warn(f"{name} was stopped for a change that failed: it is started again")


def _name(instance: str) -> str:
    return instance.rsplit("/", 1)[-1]
