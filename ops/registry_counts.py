"""Counts of the registry, as its dashboard serves them (`/api/stats`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import requests

from ops.json_document import Doc

_DASHBOARD_TIMEOUT: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of the registry. None: not known."""

    name: str
    members: int | None
    online: int | None
    """Members that are online."""


@dataclass(frozen=True, kw_only=True)
class RegistryCounts:
    """The registry's counts. None: not known."""

    online: int | None = None
    total: int | None = None
    networks: tuple[Network, ...] = ()
    source: str = ""
    """The VM or the dashboard that told the counts."""
    networks_source: str = ""
    """The dashboard that told the networks."""
    problem: str = ""
    """Why the counts are missing, or the named dashboard is not their source."""


def ask_dashboard(url: str) -> RegistryCounts:
    """A dashboard's counts; all None where it does not answer."""
    try:
        answer = requests.get(f"{url.rstrip('/')}/api/stats", timeout=_DASHBOARD_TIMEOUT)
        answer.raise_for_status()
        found = counted(Doc(answer.json()))
    except (requests.RequestException, ValueError):
        return RegistryCounts()
    return replace(found, source=f"the dashboard at {url}", networks_source=url)


def counted(stats: Doc) -> RegistryCounts:
    """The counts in `/api/stats`; each may be missing."""
    networks = [
        Network(
            name=each.text("name") or str(each.number("id")),
            members=each.number("members"),
            online=each.number("online_members"),
        )
        for each in stats.documents("networks")
    ]
    return RegistryCounts(
        online=stats.number("active_nodes"),
        total=stats.number("total_nodes"),
        networks=tuple(networks),
    )
