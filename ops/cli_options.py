"""Options of the command line that several commands take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ops import fleet as fleets
from ops.errors import OpsError
from ops.fleet import Fleet, Instance, ProjectVms
from ops.google import Cloud, CloudAddress


@dataclass(frozen=True, kw_only=True)
class GlobalOptions:
    """The options that stand before the command's name."""

    place: CloudAddress
    fleet: str
    dashboard: str
    by: str
    poll: float

    def cloud(self) -> Cloud:
        return Cloud(self.place)

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
