"""Finds zones that do not answer: `python -m components.dead_zones STACK`.

Standard input is `pulumi stack export`. Pulumi asks for each resource before an update and repeats
a 503 for minutes, and one that fails ends the update. So `make up` leaves out what such a zone has.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
# A zone is dead when it fails so many times, this many seconds apart.
_ATTEMPTS: Final = 3
_APART: Final = 2.0
_INSTANCE: Final = "gcp:compute/instance:Instance"


@dataclass(frozen=True, kw_only=True)
class InZone:
    """What a stack has in a zone."""

    urns: tuple[str, ...]
    """Of all resources there."""
    vms: tuple[str, ...]
    """Their names at Google."""


def by_zone(exported: Mapping[str, Any]) -> dict[str, InZone]:
    """What a stack's state has in each zone."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in (exported.get("deployment") or {}).get("resources") or ():
        # A disk's attachment has its zone among the inputs.
        values = {**(each.get("inputs") or {}), **(each.get("outputs") or {})}
        zone = values.get("zone")
        if isinstance(zone, str) and zone and str(each.get("type", "")).startswith("gcp:"):
            found.setdefault(zone.rpartition("/")[2], []).append(each)
    return {
        zone: InZone(
            urns=tuple(each["urn"] for each in them),
            vms=tuple(
                sorted(
                    str((each.get("inputs") or {}).get("name"))
                    for each in them
                    if each["type"] == _INSTANCE
                )
            ),
        )
        for zone, them in sorted(found.items())
    }


def dead(zones: Sequence[str], ask: Callable[[str], str]) -> dict[str, str]:
    """Why zones do not answer, by zone. `ask` returns "" where one does."""
    found = {}
    for zone in zones:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_APART)
            why = ask(zone)
            if not why:
                break
        else:
            found[zone] = why
    return found


def sentence(zone: str, why: str, there: InZone) -> str:
    """What an update does not do while a zone is dead, and what to do."""
    vms = ", ".join(there.vms) or "no VM"
    return (
        f"{zone} does not answer ({why.rstrip('. ')}): everything there stays as it is ({vms}; "
        f"resources: {len(there.urns)}). All else is carried out. Run `make up` again when {zone} "
        "answers: it does what is left, and deletes an old rendezvous VM "
        '(docs/PRODUCTION.md, "Zones")'
    )


def look(project: str, settings: Mapping[str, str]) -> Callable[[str], str] | None:
    """Makes `ask` for `dead`. None where nobody can tell: no credentials, or Google itself does
    not answer."""
    # Late: they take a second, and a new stack has no zones.
    import pulumi  # noqa: PLC0415

    from components.google_rest import Google, GoogleError, no_credentials  # noqa: PLC0415

    pulumi.runtime.set_all_config(dict(settings))
    if no_credentials():
        return None
    try:
        compute = Google("compute")
        compute.get(f"projects/{project}")
    except GoogleError:
        return None

    def ask(zone: str) -> str:
        try:
            compute.get(f"projects/{project}/zones/{zone}/instances?maxResults=1")
        except GoogleError as error:
            # Any other refusal is an answer.
            return str(error) if error.status is None or error.status >= 500 else ""
        return ""

    return ask


def main(stack: str) -> int:
    """Prints `{"exclude": [URN], "sentences": [TEXT]}`."""
    found = by_zone(json.load(sys.stdin))
    written = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text(encoding="utf-8")) or {}
    settings = {
        key: str(value)
        for key, value in (written.get("config") or {}).items()
        # Others are secrets, which the stack's key opens.
        if key.startswith("gcp:") and isinstance(value, str)
    }
    ask = look(settings.get("gcp:project", ""), settings) if found else None
    why = dead(list(found), ask) if ask else {}
    if why and look(settings.get("gcp:project", ""), settings) is None:
        # Nobody answers any more: no zone is to blame.
        why = {}
    told = {
        "exclude": [urn for zone in why for urn in found[zone].urns],
        "sentences": [sentence(zone, text, found[zone]) for zone, text in why.items()],
    }
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
