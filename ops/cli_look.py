"""Commands that only look."""

# No `from __future__ import annotations` here: typer would evaluate each text twice, for help too.

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ops.cli_options import Every, GlobalOptions, Growth, Json, Threshold, VmName
from ops.defaults import DASHBOARD_PORT, GROWTH, THRESHOLD
from ops.errors import FINE, FOUND, OpsError, UsageError
from ops.lazy import lazy
from ops.terminal import busy, draw, printable, say, show

if TYPE_CHECKING:
    from ops import audit as audits
    from ops import fleet as fleets
    from ops import holds, looks, status, watch
    from ops import live as screen
    from ops.fleet import Vm
    from ops.google import Cloud
    from ops.looks import FleetLooks
else:
    audits, fleets = lazy("ops.audit"), lazy("ops.fleet")
    holds, status, watch = lazy("ops.holds"), lazy("ops.status"), lazy("ops.watch")
    looks, screen = lazy("ops.looks"), lazy("ops.live")

commands = typer.Typer()
_LOOKS: Final = "looking at the fleet"
_BACKLOG: Final = 16 * 1024  # bytes of the console that `logs` shows first


@commands.command("status")
def status_(
    ctx: typer.Context,
    *,
    as_json: Json = False,
    svg: Annotated[str, typer.Option(metavar="FILE", help="Draw it to this file too.")] = "",
) -> None:
    """Show the VMs, what runs on them, and what the registry counts."""
    with busy(_LOOKS):
        found = status.picture(ctx.obj.look(ctx.obj.cloud()))
    if svg:
        draw(status.render(found), Path(svg))
    show(found.document() if as_json else status.render(found))
    raise typer.Exit(FINE if found.is_well else FOUND)


@commands.command()
def top(ctx: typer.Context, vm: VmName, as_json: Json = False) -> None:
    """Show the agents of a VM that use most memory: 20 of those above twice the planning size."""
    with busy(_LOOKS):
        found = _vm(ctx.obj, vm)
    if not found.is_swarm:
        raise UsageError(f"{vm} is the rendezvous: it has no agents")
    if not found.speaks:
        raise OpsError(f"{vm}: {found.problem}")
    memory = found.status.content.get("memory")
    show({"vm": vm, "memory": memory} if as_json else status.top(found))


@commands.command("watch")
def watch_(
    ctx: typer.Context,
    *,
    every: Every = 60.0,
    threshold: Threshold = THRESHOLD,
    growth: Growth = GROWTH / 2**20,
    once: Annotated[
        bool, typer.Option("--once", help="Look once, for cron: exit 1 if there is an alert.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print a line when an alert begins or ends."""
    found = _looks(ctx.obj, ctx.obj.cloud(), threshold, growth)
    while True:
        with busy(_LOOKS):
            look = found.next()
        if once and look.error:
            raise look.error
        for event in look.events:
            print(event.json() if as_json else event.line(), flush=True)
        if once:
            raise typer.Exit(FOUND if look.standing else FINE)
        with busy(f"{len(look.standing)} alerts stand; a look every {every:.0f} s"):
            time.sleep(every)


@commands.command()
def live(
    ctx: typer.Context,
    *,
    every: Every = 10.0,
    threshold: Threshold = THRESHOLD,
    growth: Growth = GROWTH / 2**20,
) -> None:
    """Show the fleet on one screen, as it changes, until `q` or Ctrl-C. Keys give orders: each asks
    first, and says what will happen."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("live needs a terminal: `status` prints a table, `watch` a line per alert")
    with busy(_LOOKS):
        cloud = ctx.obj.cloud()
        found = _looks(ctx.obj, cloud, threshold, growth)
        # A wrong project or a missing right is a sentence, and no screen.
        first = found.next()
    if first.error:
        raise first.error
    raise typer.Exit(screen.run(ctx.obj, cloud, found, first, every))


def _looks(
    settings: GlobalOptions, cloud: "Cloud", threshold: float, growth: float
) -> "FleetLooks":
    return looks.FleetLooks(
        lambda: settings.look(cloud),
        lambda fleet: holds.alerts(cloud, fleet),
        watch.Limits(online=threshold, growth=int(growth * 2**20)),
    )


@commands.command()
def logs(
    ctx: typer.Context,
    *,
    vm: VmName,
    follow: Annotated[bool, typer.Option(help="Print new lines as they come.")] = True,
    everything: Annotated[
        bool, typer.Option("--all", help="Begin with the oldest line that is kept (1 MiB).")
    ] = False,
) -> None:
    """Print a VM's serial console: its startup script, kernel and pilot-node."""
    cloud = ctx.obj.cloud()
    instance = ctx.obj.instance(cloud, vm)
    start = 0 if everything else -_BACKLOG
    while True:
        text, start = cloud.serial(instance.zone, vm, start)
        sys.stdout.write(printable(text))
        sys.stdout.flush()
        if not follow:
            return
        time.sleep(2)


@commands.command()
def dashboard(
    ctx: typer.Context,
    *,
    port: Annotated[int, typer.Option(help="The port on this machine.")] = DASHBOARD_PORT,
) -> None:
    """Open a tunnel to the dashboard through IAP, until interrupted."""
    cloud = ctx.obj.cloud()
    _, found = fleets.choose(fleets.instances(cloud), ctx.obj.fleet)
    rendezvous = fleets.newest_rendezvous(found)
    if rendezvous is None:
        raise OpsError("the fleet has no rendezvous")
    if cloud.place.is_here:
        say(f"{fleets.dashboard_url(cloud, rendezvous)} (a cloud on this machine: no tunnel)")
        return
    if shutil.which("gcloud") is None:
        raise OpsError("gcloud is not installed: it opens the tunnel")
    say(f"http://localhost:{port} leads to the dashboard until you end this (Ctrl-C)")
    command = ["gcloud", "compute", "start-iap-tunnel", rendezvous.name]
    command += [str(DASHBOARD_PORT), f"--local-host-port=localhost:{port}"]
    command += [f"--zone={rendezvous.zone}", f"--project={cloud.place.project}"]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@commands.command("audit")
def audit_(
    ctx: typer.Context,
    *,
    declared: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="The output of `python -m components.declared STACK` (- for stdin): compare with "
            "what the checkout declares. Default: with what the VMs' specs expect.",
        ),
    ] = "",
    expected: Annotated[
        str,
        typer.Option("--expected-sha256", help="The sha256 that the project's script must have."),
    ] = "",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A VM, template … outside the fleet that may have a script (repeats).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find startup scripts where none may be, and everything that nobody declared."""
    wanted = _declared(declared, expected)
    with busy("looking at the project"):
        cloud = ctx.obj.cloud()
        everything = fleets.instances(cloud)
        fleet = ctx.obj.look(cloud, everything)
        project = audits.read(cloud, everything.vms, everything.unseen)
    report = audits.audit(project, fleet, wanted, allow or ())
    if as_json:
        show(report.document())
    else:
        for each in report.findings:
            remedy = f"\n    {each.remedy}" if each.remedy else ""
            print(f"{each.rule}  {each.where}\n    {each.what}{remedy}")
        for unread in report.unread:
            print(f"not looked at: {unread}")
        looked = ", ".join(f"{number} {kind}" for kind, number in report.looked_at.items())
        print(f"{len(report.findings)} findings; looked at: {looked}")
    raise typer.Exit(FOUND if report.findings else FINE)


def _declared(file: str, expected: str) -> "audits.Declared":
    if expected and not re.fullmatch("[0-9a-f]{64}", expected):
        raise UsageError("--expected-sha256 takes 64 hexadecimal digits")
    if not file:
        return audits.Declared(script=expected)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        return audits.parse_declared(text, expected)
    except OSError as error:
        raise UsageError(f"--declared {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--declared {file} is not what `python -m components.declared STACK` prints"
        ) from error


def _vm(settings: GlobalOptions, vm: str) -> "Vm":
    cloud = settings.cloud()
    instance = settings.instance(cloud, vm)
    text = cloud.guest_attribute(instance.zone, vm, fleets.STATUS) if instance.is_on else None
    return fleets.listen(instance, text, time.time())
