"""The command line of who runs a fleet. `python -m ops --help` lists what it can do.

Exit codes: 0 all is as it should be · 1 something is found (a VM that is not whole, an alert, a
ghost, a halted roll) · 2 the command line makes no sense · 3 it could not be found out or ordered
(a right is missing, nobody answers, no such VM; the answer could not be written) · 4 what was
ordered has not come about in time · 130 interrupted.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from typing import Annotated

import typer

from ops import cli_act, cli_look, run
from ops.cli_options import GlobalOptions
from ops.errors import FINE, INTERRUPTED, OpsError
from ops.google import COMPUTE, MONITORING, STORAGE, CloudAddress
from ops.terminal import answers, complain

app = typer.Typer(
    help=__doc__,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Without names: their commands are the app's, in this order.
app.add_typer(cli_look.commands)
app.add_typer(cli_act.commands)


@app.callback()
def options(
    ctx: typer.Context,
    *,
    project: Annotated[
        str,
        typer.Option(
            envvar=["PILOT_PROJECT", "CLOUDSDK_CORE_PROJECT", "GOOGLE_CLOUD_PROJECT"],
            help="The Google Cloud project; default: that of your login.",
        ),
    ] = "",
    fleet: Annotated[
        str,
        typer.Option(
            envvar="PILOT_FLEET",
            help="The fleet (label pilot-fleet: the stack's name); default: the only one.",
        ),
    ] = "",
    dashboard: Annotated[
        str,
        typer.Option(
            envvar="PILOT_DASHBOARD",
            help="A dashboard's URL, to count what is online; default: the rendezvous' VM counts, "
            "and the tunnel's http://localhost:3000 tells of networks only.",
        ),
    ] = "",
    by: Annotated[
        str, typer.Option(envvar="PILOT_BY", help="Who orders; default: USER@HOST.")
    ] = "",
    endpoint: Annotated[
        str,
        typer.Option(
            envvar="PILOT_ENDPOINT", help="The base of all APIs, where they are not Google's."
        ),
    ] = "",
    compute_endpoint: Annotated[
        str, typer.Option(envvar="PILOT_COMPUTE_ENDPOINT", help="The same for Compute Engine.")
    ] = "",
    storage_endpoint: Annotated[
        str, typer.Option(envvar="PILOT_STORAGE_ENDPOINT", help="The same for Cloud Storage.")
    ] = "",
    monitoring_endpoint: Annotated[
        str, typer.Option(envvar="PILOT_MONITORING_ENDPOINT", help="The same for Monitoring.")
    ] = "",
    poll: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two looks of a command that waits.")
    ] = run.POLL,
) -> None:
    """Reads the options that all commands share."""
    ctx.obj = GlobalOptions(
        place=CloudAddress(
            project=project,
            compute=(compute_endpoint or endpoint or COMPUTE).rstrip("/"),
            storage=(storage_endpoint or endpoint or STORAGE).rstrip("/"),
            monitoring=(monitoring_endpoint or endpoint or MONITORING).rstrip("/"),
        ),
        fleet=fleet,
        dashboard=dashboard,
        by=by or f"{getpass.getuser()}@{socket.gethostname()}",
        poll=poll,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; its exit code."""
    try:
        with answers():
            app(args=None if arguments is None else list(arguments), prog_name="ops")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FINE
    except OpsError as error:
        complain(f"ops: {error}")
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    return FINE
