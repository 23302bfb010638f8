"""The operator's command line: look at a fleet, and change what runs on it.

Exit codes: 0 all is as it should be · 1 something was found (a VM that is not whole, an alert, a
ghost, a halted roll) · 2 the command line makes no sense · 3 the command could not look or order (a
right is missing, nobody answers, no such VM, the output cannot be written) · 4 the order was given
and has not taken effect in time · 130 interrupted.
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
# Added without a name: their commands become the app's, in this order.
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
            help="The Google Cloud project; default: your login's.",
        ),
    ] = "",
    fleet: Annotated[
        str,
        typer.Option(
            envvar="PILOT_FLEET",
            help="The fleet, by its stack's name (label pilot-fleet); default: the only one.",
        ),
    ] = "",
    dashboard: Annotated[
        str,
        typer.Option(
            envvar="PILOT_DASHBOARD",
            help="The URL of a dashboard that counts the agents online; default: the status of the "
            "rendezvous' VM, and http://localhost:3000 (the tunnel) for networks only.",
        ),
    ] = "",
    by: Annotated[
        str, typer.Option(envvar="PILOT_BY", help="The name on your orders; default: USER@HOST.")
    ] = "",
    endpoint: Annotated[
        str,
        typer.Option(envvar="PILOT_ENDPOINT", help="The base URL of all APIs, if not Google's."),
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
        float, typer.Option(min=0.01, help="Seconds between two looks while a command waits.")
    ] = run.POLL,
) -> None:
    """Read the options that all commands share."""
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
    """Run the command line; its exit code."""
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
