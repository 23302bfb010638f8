"""The operator's command line: look at a fleet, and change what runs on it.

Exit codes: 0 all is as it should be · 1 something was found (a VM that is not whole, an alert, a
ghost, a halted roll) · 2 the command line makes no sense · 3 the command could not look or order (a
right is missing, nobody answers, no such VM, the output cannot be written) · 4 the order was given
and has not taken effect in time · 130 interrupted.
"""

# No `from __future__ import annotations` here: typer would evaluate each text twice, for help too.

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ops import cli_act, cli_context, cli_look
from ops.cli_options import GlobalOptions
from ops.defaults import POLL
from ops.errors import FINE, INTERRUPTED, OpsError
from ops.lazy import lazy
from ops.terminal import answers, complain, say

if TYPE_CHECKING:
    from ops import version as versions
else:
    versions = lazy("ops.version")

MODULE: Final = "ops"
"""The program's name as `python -m ops`."""
COMMAND: Final = "pilot-fleet"
"""The program's name as the command in .venv/bin. It alone uses the current context: scripts that
call `python -m ops` name their place."""

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Added without a name: their commands become the app's, in this order.
app.add_typer(cli_look.commands)
app.add_typer(cli_act.commands)
app.add_typer(cli_context.commands, name="context", help="Name the places where your fleets are.")


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"{COMMAND} {versions.version()}")
        raise typer.Exit(FINE)


@app.callback()
def options(
    ctx: typer.Context,
    *,
    project: Annotated[
        str,
        typer.Option(
            envvar="PILOT_PROJECT",
            help="The Google Cloud project; default: the context's, then CLOUDSDK_CORE_PROJECT, "
            "GOOGLE_CLOUD_PROJECT, your login's.",
        ),
    ] = "",
    context: Annotated[
        str,
        typer.Option(
            envvar="PILOT_CONTEXT",
            metavar="NAME",
            autocompletion=cli_context.names,
            help="Where the fleet is, by the name that `context add` has given it; default: the "
            "current one (`python -m ops`: none). Options that name another place win.",
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
    ] = POLL,
    version: Annotated[  # noqa: ARG001 - its callback has answered
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Read the options that all commands share."""
    ctx.obj = GlobalOptions(
        given={
            "project": project,
            "fleet": fleet,
            "dashboard": dashboard,
            "endpoint": endpoint,
            "compute_endpoint": compute_endpoint,
            "storage_endpoint": storage_endpoint,
            "monitoring_endpoint": monitoring_endpoint,
        },
        context=context,
        uses_current=ctx.info_name == COMMAND,
        given_by=by,
        poll=poll,
    )


def main(arguments: Sequence[str] | None = None, *, program: str = MODULE) -> int:
    """Run the command line under a name; its exit code."""
    try:
        with answers():
            app(args=None if arguments is None else list(arguments), prog_name=program)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FINE
    except OpsError as error:
        complain(f"{program}: {error}")
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    return FINE
