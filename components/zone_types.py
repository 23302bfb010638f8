"""Looks up machine types in the fleet's zone before anything is declared.

Not every zone has every type. The provider notices that only when it makes the VM. A VM that it
replaces is deleted by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pulumi

from components.google_rest import (
    NO_CREDENTIALS,
    Google,
    GoogleError,
    NotLookedUpError,
    no_credentials,
)


def problems(
    zone: str,
    asked: Mapping[str, tuple[str, str]],
    look: Callable[[str], str | None],
    *,
    dry_run: bool,
) -> list[str]:
    """A sentence for each machine type of `asked` that `zone` does not have.

    `asked` has VM and type by the path of the key. A failed look-up is a warning in a preview, and
    such a sentence in an update. A deprecated type is a warning.
    """
    found: dict[str, str | None] = {}
    try:
        for _, kind in asked.values():
            if kind not in found:
                found[kind] = look(kind)
    except NotLookedUpError as error:
        message = (
            f"{', '.join(asked)}: cannot be looked up, so {zone} may not have these machine "
            f"types: {error}"
        )
        if not dry_run:
            return [f"{message}. Nothing was changed"]
        pulumi.log.warn(message)
        return []
    for kind, state in found.items():
        if state:
            pulumi.log.warn(f"Google calls the machine type {kind} {state.lower()}")
    return [
        f"{path}: {zone} has no machine type {kind}, so {vm} cannot be one. Nothing was changed; "
        f"`gcloud compute machine-types list --zones={zone}` lists those that it has"
        for path, (vm, kind) in asked.items()
        if found[kind] is None
    ]


def looker(project: str, zone: str) -> Callable[[str], str | None]:
    """Makes `look` for `problems`.

    It returns the deprecation state of a machine type: "" where there is none, so it is sold; None
    where the zone has no such type. It raises `NotLookedUpError` where the look-up fails.
    """
    session: list[Google] = []

    def look(machine_type: str) -> str | None:
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
