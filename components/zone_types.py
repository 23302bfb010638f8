"""Looks up machine types in the zones of VMs before anything is declared.

Not every zone has every type. The provider notices that only when it makes the VM. A VM that it
replaces is deleted by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pulumi

from components.google_rest import (
    NO_CREDENTIALS,
    Google,
    GoogleError,
    NotLookedUpError,
    no_credentials,
)


@dataclass(frozen=True, kw_only=True)
class NeededMachineType:
    """A machine type that an update needs."""

    vm: str
    zone: str
    machine_type: str


def problems(
    needed: Mapping[str, NeededMachineType],
    look: Callable[[str, str], str | None],
    *,
    dry_run: bool,
) -> list[str]:
    """A sentence for each machine type of `needed` that its zone does not have.

    `needed` is by the path of the key. A failed look-up is a warning in a preview, and such a
    sentence in an update; zones whose look-ups fail for the same reason share one. A deprecated
    type is a warning.
    """
    found: dict[tuple[str, str], str | None] = {}
    # Why nothing can be looked up in a zone, by zone.
    failed: dict[str, str] = {}
    for each in needed.values():
        key = (each.zone, each.machine_type)
        if each.zone in failed or key in found:
            continue
        try:
            found[key] = look(*key)
        except NotLookedUpError as error:
            # The other zones may answer.
            failed[each.zone] = str(error)
    sentences = []
    for reason in dict.fromkeys(failed.values()):
        zones = [zone for zone, why in failed.items() if why == reason]
        paths = [path for path, each in needed.items() if each.zone in zones]
        message = (
            f"{', '.join(paths)}: cannot be looked up, so {' or '.join(zones)} may not have these "
            f"machine types: {reason}"
        )
        if dry_run:
            pulumi.log.warn(message)
        else:
            sentences.append(f"{message}. Nothing was changed")
    states = {kind: state for (_, kind), state in found.items() if state}
    for kind, state in states.items():
        pulumi.log.warn(f"Google calls the machine type {kind} {state.lower()}")
    return sentences + [
        f"{path}: {each.zone} has no machine type {each.machine_type}, so {each.vm} cannot be one. "
        "Nothing was changed; "
        f"`gcloud compute machine-types list --zones={each.zone}` lists those that it has"
        for path, each in needed.items()
        if each.zone not in failed and found[each.zone, each.machine_type] is None
    ]


def looker(project: str) -> Callable[[str, str], str | None]:
    """Makes `look` for `problems`, which takes a zone and a machine type.

    It returns the deprecation state of the type: "" where there is none, so it is sold; None where
    the zone has no such type. It raises `NotLookedUpError` where the look-up fails.
    """
    session: list[Google] = []

    def look(zone: str, machine_type: str) -> str | None:
        if no_credentials():
            raise NotLookedUpError(NO_CREDENTIALS)
        try:
            if not session:
                session.append(Google("compute"))
            path = f"projects/{project}/zones/{zone}/machineTypes/{machine_type}"
            answer = session[0].get(path)
        except GoogleError as error:
            # A project or a zone that is not there is a 404 too.
            if error.status == 404 and "/machineTypes/" in str(error):
                return None
            raise NotLookedUpError(str(error).rstrip(". ")) from None
        return str(answer.get("deprecated", {}).get("state", ""))

    return look
