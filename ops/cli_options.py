"""Options of the command line that several commands take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ops.errors import OpsError
from ops.lazy import lazy

if TYPE_CHECKING:
    from ops import contexts, google, orders
    from ops import fleet as fleets
    from ops.contexts import FleetContext
    from ops.fleet import Fleet, Instance, ProjectVms
    from ops.google import Cloud
else:
    contexts, fleets = lazy("ops.contexts"), lazy("ops.fleet")
    google, orders = lazy("ops.google"), lazy("ops.orders")


GOOGLE_PROJECT: Final = ("CLOUDSDK_CORE_PROJECT", "GOOGLE_CLOUD_PROJECT")
"""Variables of the login's project."""


@dataclass(frozen=True, kw_only=True)
class GlobalOptions:
    """The options that stand before the command's name."""

    given: Mapping[str, str]
    """Where the fleet is, as far as options and variables say, by the fields of FleetContext."""
    context: str
    """The context that --context names, or ""."""
    uses_current: bool
    """Whether the current context is used where none is named."""
    given_by: str
    poll: float

    @cached_property
    def _settled(self) -> tuple[FleetContext, str]:
        given = contexts.FleetContext(**self.given)
        if not (self.context or self.uses_current):
            return given, ""
        known = contexts.read(contexts.config_path(os.environ))
        found = contexts.settle(given, known, self.context)
        # The current context is set aside where something else is given.
        return found, "" if found is given else self.context or known.current

    @property
    def where(self) -> FleetContext:
        """Where the fleet is: the given options, then the context. Read when a command first asks,
        so that neither help nor `context` needs a sound file."""
        return self._settled[0]

    @property
    def context_in_use(self) -> str:
        """The name of the context that says where the fleet is; "" for none."""
        return self._settled[1]

    @property
    def by(self) -> str:
        """The name on this operator's orders."""
        return self.given_by or orders.this_operator()

    @property
    def fleet(self) -> str:
        return self.where.fleet

    @property
    def dashboard(self) -> str:
        return self.where.dashboard

    def cloud(self) -> Cloud:
        address = self.where.address
        # Google's own variables are the login's project: a context says more.
        project = address.project or next(
            (found for name in GOOGLE_PROJECT if (found := os.environ.get(name))), ""
        )
        return google.Cloud(replace(address, project=project))

    def look(self, cloud: Cloud, there: ProjectVms | None = None) -> Fleet:
        return fleets.read(cloud, fleet=self.fleet, dashboard=self.dashboard, there=there)

    def instance(self, cloud: Cloud, vm: str) -> Instance:
        """The VM of that name. OpsError where there is none."""
        project = fleets.instances(cloud)
        _, found = fleets.choose(project, self.fleet)
        for each in found:
            if each.name == vm:
                return each
        names = ", ".join(each.name for each in found)
        text = f"{vm} is no VM of the fleet: there are {names}"
        raise OpsError("; ".join((text, *project.unseen)))


Every = Annotated[float, typer.Option("--every", min=1, help="Seconds between two looks.")]
Threshold = Annotated[
    float,
    typer.Option(
        "--threshold", min=0, max=1, help="Fraction of the declared agents that must be online."
    ),
]
Growth = Annotated[
    float,
    typer.Option("--growth", min=0, help="Limit of the growth of a VM's agents, in MiB per hour."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[
    float,
    typer.Option("--limit", min=1, help="Seconds without progress before it gives up."),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without", metavar="VM", help="Leave this VM out (repeats); with --resume, from now on."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted one.")]
Abandon = Annotated[
    bool, typer.Option("--abandon", help="End an interrupted one: start what it has stopped.")
]
Insist = Annotated[
    bool, typer.Option("--insist", help="Begin even if agents fail or the registry is down.")
]
Silence = Annotated[bool, typer.Option(help="Silence alerts, and show a banner on the dashboard.")]
VmName = Annotated[str, typer.Argument(metavar="VM")]
VmNames = Annotated[list[str] | None, typer.Argument(metavar="[VM]...")]
