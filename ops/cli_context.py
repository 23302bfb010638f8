"""Commands about contexts: names for the places where fleets are."""

# No `from __future__ import annotations` here: typer would evaluate each text twice, for help too.

import os
from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli_options import Json
from ops.errors import OpsError
from ops.lazy import lazy
from ops.terminal import say, show

if TYPE_CHECKING:
    from ops import contexts, contexts_table
else:
    contexts, contexts_table = lazy("ops.contexts"), lazy("ops.contexts_table")

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def names(incomplete: str) -> list[str]:
    """The contexts that a shell completes to; none where the file cannot be read."""
    try:
        known = contexts.read(contexts.config_path(os.environ))
    except OpsError:
        return []
    return [name for name in sorted(known.contexts) if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(metavar="NAME")]
KnownName = Annotated[str, typer.Argument(metavar="NAME", autocompletion=names)]


@commands.command("list")
def list_(*, as_json: Json = False) -> None:
    """Show the contexts; * marks the current one."""
    known = contexts.read(contexts.config_path(os.environ))
    if as_json:
        show(known.document())
    elif known.contexts:
        show(contexts_table.render(known))
    else:
        say("no contexts: `pilot-fleet context add NAME --project PROJECT` makes one")


@commands.command()
def use(*, name: KnownName) -> None:
    """Make a context the current one."""
    contexts.change(contexts.config_path(os.environ), lambda known: contexts.used(known, name))
    say(f"the current context is {name}")


@commands.command()
def add(
    *,
    name: Name,
    project: Annotated[str, typer.Option(help="The Google Cloud project.")] = "",
    fleet: Annotated[str, typer.Option(help="The fleet, by its stack's name.")] = "",
    dashboard: Annotated[
        str, typer.Option(help="The URL of a dashboard that counts the agents online.")
    ] = "",
    endpoint: Annotated[str, typer.Option(help="The base URL of all APIs, if not Google's.")] = "",
    compute_endpoint: Annotated[str, typer.Option(help="The same for Compute Engine.")] = "",
    storage_endpoint: Annotated[str, typer.Option(help="The same for Cloud Storage.")] = "",
    monitoring_endpoint: Annotated[str, typer.Option(help="The same for Monitoring.")] = "",
    use: Annotated[bool, typer.Option("--use", help="Make it the current one.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a context of that name.")
    ] = False,
) -> None:
    """Name the place where a fleet is. The first context becomes the current one.

    It is kept in ~/.config/pilot-fleet/contexts.json (or below XDG_CONFIG_HOME), without any
    secret: the login is gcloud's.
    """
    context = contexts.FleetContext(
        project=project,
        fleet=fleet,
        dashboard=dashboard,
        endpoint=endpoint,
        compute_endpoint=compute_endpoint,
        storage_endpoint=storage_endpoint,
        monitoring_endpoint=monitoring_endpoint,
    )
    known = contexts.change(
        contexts.config_path(os.environ),
        lambda known: contexts.added(known, name, context, use=use, over=replace),
    )
    if known.current == name:
        say(f"{name} is a context, and the current one")
    else:
        say(f"{name} is a context: `pilot-fleet context use {name}` makes it the current one")


@commands.command()
def remove(*, name: KnownName) -> None:
    """Forget a context. The fleet is not touched."""
    known = contexts.change(
        contexts.config_path(os.environ), lambda known: contexts.removed(known, name)
    )
    say(f"{name} is a context no more")
    if known.contexts and not known.current:
        say("no context is the current one: `pilot-fleet context use NAME` makes one so")
