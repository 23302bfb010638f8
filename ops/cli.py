"""The command line of who runs a fleet. `python -m ops --help` lists what it can do.

Exit codes: 0 all is as it should be · 1 something is found (a VM that is not whole, an alert, a
ghost, a halted roll) · 2 the command line makes no sense · 3 it could not be found out or ordered
(a right is missing, nobody answers, no such VM) · 4 what was ordered has not come about in time ·
130 interrupted.
"""

from __future__ import annotations

import getpass
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from ops import audit as audits
from ops import fleet as fleets
from ops import holds, rolls, run, status, watch
from ops import plan as plans
from ops.errors import (
    FINE,
    FOUND,
    INTERRUPTED,
    OpsError,
    StuckError,
    UsageError,
)
from ops.fleet import Fleet, Instance, Vm
from ops.google import COMPUTE, MONITORING, STORAGE, Cloud, Place
from ops.orders import BANNER_LIMIT, Orders, new_id
from ops.plan import Plan, Seen
from ops.terminal import Bar, ask, complain, confirm_clean, draw, say, show

app = typer.Typer(
    help=__doc__,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_BACKLOG: Final = 16 * 1024  # bytes of a console that `logs` begins with
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options before the command's name."""

    place: Place
    fleet: str
    dashboard: str
    by: str
    poll: float

    def cloud(self) -> Cloud:
        return Cloud(self.place)

    def look(self, cloud: Cloud, there: Sequence[Instance] | None = None) -> Fleet:
        return fleets.read(cloud, fleet=self.fleet, dashboard=self.dashboard, there=there)


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[
    float,
    typer.Option("--limit", min=1, help="Seconds without progress after which it gives up."),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without", metavar="VM", help="Leave this VM out (repeats); with --resume, from now on."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with one interrupted.")]
Abandon = Annotated[
    bool, typer.Option("--abandon", help="Start again what one interrupted has stopped; forget it.")
]
Insist = Annotated[
    bool, typer.Option("--insist", help="Begin though agents fail, or the registry is down.")
]
Silence = Annotated[bool, typer.Option(help="Silence alerts, show a banner.")]
VmName = Annotated[str, typer.Argument(metavar="VM")]
VmNames = Annotated[list[str] | None, typer.Argument(metavar="[VM]...")]


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
    ctx.obj = Options(
        place=Place(
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


# Looking


@app.command("status")
def status_(
    ctx: typer.Context,
    *,
    as_json: Json = False,
    svg: Annotated[str, typer.Option(metavar="FILE", help="Keep it as a picture too.")] = "",
) -> None:
    """The VMs of the fleet, what runs on them, and what the registry counts."""
    found = status.picture(ctx.obj.look(ctx.obj.cloud()))
    if svg:
        draw(status.render(found), Path(svg))
    show(found.document() if as_json else status.render(found))
    raise typer.Exit(FINE if found.is_well else FOUND)


@app.command()
def top(ctx: typer.Context, vm: VmName, as_json: Json = False) -> None:
    """The 20 agents of a VM that use most memory."""
    found = _one(ctx.obj, vm)
    if not found.is_swarm:
        raise UsageError(f"{vm} is the rendezvous: it has no agents")
    if not found.speaks:
        raise OpsError(f"{vm}: {found.problem}")
    memory = found.status.content.get("memory")
    show({"vm": vm, "memory": memory} if as_json else status.top(found))


@app.command("watch")
def watch_(
    ctx: typer.Context,
    *,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 60.0,
    threshold: Annotated[
        float,
        typer.Option(min=0, max=1, help="Least fraction of the declared agents to be online."),
    ] = watch.THRESHOLD,
    growth: Annotated[
        float, typer.Option(min=0, help="Most growth of a VM's agents, in MiB an hour.")
    ] = watch.GROWTH / 2**20,
    once: Annotated[
        bool, typer.Option("--once", help="One look, for cron: exit 1 on any.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Says what goes wrong and what is over, a line an event; quiet otherwise."""
    settings, cloud = ctx.obj, ctx.obj.cloud()
    limits = watch.Limits(online=threshold, growth=int(growth * 2**20))
    before: Fleet | None = None
    standing: dict[str, str] = {}
    while True:
        when = time.time()
        try:
            now = settings.look(cloud)
        except OpsError as error:
            if once:
                raise
            # It goes on with what stood before: that it cannot look is an alert itself.
            found = {**standing, "ops/blind": str(error)}
        else:
            when = now.time
            found = watch.alerts(now, limits) | watch.falls(before, now, limits, standing)
            found |= holds.alerts(cloud, now)
            before = now
        for event in watch.events(standing, found, when):
            line = vars(event) if as_json else event.line()
            print(json.dumps(line) if as_json else line, flush=True)
        standing = found
        if once:
            raise typer.Exit(FOUND if found else FINE)
        time.sleep(every)


@app.command()
def logs(
    ctx: typer.Context,
    *,
    vm: VmName,
    follow: Annotated[bool, typer.Option(help="Go on with what comes.")] = True,
    everything: Annotated[
        bool, typer.Option("--all", help="From as far back as there is (1 MiB).")
    ] = False,
) -> None:
    """The serial console of a VM: its startup script, its kernel, pilot-node."""
    cloud = ctx.obj.cloud()
    instance = _instance(ctx.obj, cloud, vm)
    start = 0 if everything else -_BACKLOG
    while True:
        text, start = cloud.serial(instance.zone, vm, start)
        # A console is a stranger's text: no sequence in it reaches this terminal.
        sys.stdout.write("".join(c if c.isprintable() or c in "\n\t" else "" for c in text))
        sys.stdout.flush()
        if not follow:
            return
        time.sleep(2)


@app.command()
def dashboard(
    ctx: typer.Context,
    *,
    port: Annotated[int, typer.Option(help="The port on this machine.")] = fleets.DASHBOARD_PORT,
) -> None:
    """Opens a tunnel to the dashboard, through IAP, until it is interrupted."""
    cloud = ctx.obj.cloud()
    _, found = fleets.choose(fleets.instances(cloud), ctx.obj.fleet)
    rendezvous = next((each for each in found if each.role == fleets.RENDEZVOUS), None)
    if rendezvous is None:
        raise OpsError("the fleet has no rendezvous")
    if cloud.place.is_here:
        say(f"{fleets.dashboard_url(cloud, rendezvous)} (a cloud on this machine: no tunnel)")
        return
    if shutil.which("gcloud") is None:
        raise OpsError("gcloud is not installed: it opens the tunnel")
    say(f"http://localhost:{port} leads to the dashboard until you end this (Ctrl-C)")
    command = ["gcloud", "compute", "start-iap-tunnel", rendezvous.name]
    command += [str(fleets.DASHBOARD_PORT), f"--local-host-port=localhost:{port}"]
    command += [f"--zone={rendezvous.zone}", f"--project={cloud.place.project}"]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@app.command("audit")
def audit_(
    ctx: typer.Context,
    *,
    declared: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="What the checkout declares (- for stdin), as `python -m components.declared "
            "STACK` prints it. Without: what the VMs' specs expect.",
        ),
    ] = "",
    expected: Annotated[
        str, typer.Option("--expected-sha256", help="The hash that the project's script must have.")
    ] = "",
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A VM or template whose own script is wanted (repeats)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Looks for startup scripts where none may be, and for what nobody declared."""
    wanted = _declared(declared, expected)
    cloud = ctx.obj.cloud()
    everything = fleets.instances(cloud)
    fleet = ctx.obj.look(cloud, everything)
    report = audits.audit(audits.read(cloud, everything), fleet, wanted, allow or ())
    if as_json:
        show(report.document())
    else:
        for each in report.findings:
            remedy = f"\n    {each.remedy}" if each.remedy else ""
            print(f"{each.rule}  {each.where}\n    {each.what}{remedy}")
        for unread in report.unread:
            print(f"not looked at: {unread} (this API does not have them)")
        looked = ", ".join(f"{number} {kind}" for kind, number in report.looked_at.items())
        print(f"{len(report.findings)} findings; looked at: {looked}")
    raise typer.Exit(FOUND if report.findings else FINE)


def _declared(file: str, expected: str) -> audits.Declared:
    if expected and not re.fullmatch("[0-9a-f]{64}", expected):
        raise UsageError("--expected-sha256 takes 64 hexadecimal digits")
    if not file:
        return audits.Declared(script=expected)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        found = json.loads(text)
        metadata = {name: dict(each) for name, each in found["metadata"].items()}
        return audits.Declared(script=expected or str(found["script"]), metadata=metadata)
    except OSError as error:
        raise UsageError(f"--declared {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--declared {file} is not what `python -m components.declared STACK` prints"
        ) from error


# Ordering


@app.command()
def restart(
    ctx: typer.Context,
    *,
    rendezvous: Annotated[
        bool, typer.Option("--rendezvous", help="Restart the registry too, between the two.")
    ] = False,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="With --rendezvous: with an empty registry (set aside)."),
    ] = False,
    confirm: Annotated[
        str, typer.Option(metavar="FLEET", help="What --clean else asks you to type.")
    ] = "",
    resume: Resume = False,
    abandon: Abandon = False,
    silence: Silence = True,
    without: Without = None,
    insist: Insist = False,
    limit: Limit = run.LIMIT,
    yes: Yes = False,
) -> None:
    """Restarts the whole fleet: drain VM by VM, then start them, the smallest first.

    Interrupt it whenever you like: alerts sound again, and --resume goes on from where it was.
    """
    if clean and not rendezvous:
        raise UsageError("--clean empties the registry's store: it needs --rendezvous")
    given = {"--rendezvous": rendezvous, "--confirm": confirm, "--insist": insist}
    _check(resume=resume, abandon=abandon, without=without, given=given)
    with _runner(ctx.obj, limit) as runner:
        if abandon:
            runner.abandon()
            return
        if resume:
            _resume(runner, plans.RESTART, silence=silence, without=without or ())
            return
        found = runner.look()
        vms = _chosen(found, None, without)
        name = found.rendezvous.name if rendezvous and found.rendezvous else ""
        if rendezvous and not name:
            raise OpsError("the fleet has no rendezvous")
        if clean:
            confirm_clean(found.name, confirm)
        agents = sum(found.vm(vm).wanted for vm in vms)
        registry = " and the registry" if name else ""
        ask(f"Restart {agents:,} agents on {', '.join(vms)}{registry}?", yes=yes)
        plan = run.new_plan(plans.RESTART, vms, by=ctx.obj.by, rendezvous=name, clean=clean)
        generation = runner.begin(plan, found, insist=insist)
        _carry_out(runner, plan, generation, silence=silence)


@app.command()
def reboot(
    ctx: typer.Context,
    *,
    vms: VmNames = None,
    resume: Resume = False,
    abandon: Abandon = False,
    silence: Silence = True,
    without: Without = None,
    insist: Insist = False,
    limit: Limit = run.LIMIT,
    yes: Yes = False,
) -> None:
    """Reboots VM by VM (for a new kernel): drain, off, on, whole, next. All swarm VMs unless some
    are named; the rendezvous only where it is named."""
    given = {"a VM's name": vms, "--insist": insist}
    _check(resume=resume, abandon=abandon, without=without, given=given)
    with _runner(ctx.obj, limit) as runner:
        if abandon:
            runner.abandon()
            return
        if resume:
            _resume(runner, plans.REBOOT, silence=silence, without=without or ())
            return
        found = runner.look()
        names = _chosen(found, vms, without)
        ask(f"Reboot {', '.join(names)}, one after the other?", yes=yes)
        plan = run.new_plan(plans.REBOOT, names, by=ctx.obj.by)
        generation = runner.begin(plan, found, insist=insist)
        _carry_out(runner, plan, generation, silence=silence)


def _check(
    *, resume: bool, abandon: bool, without: Sequence[str] | None, given: Mapping[str, object]
) -> None:
    """UsageError where something is given that is settled once a plan has begun."""
    if not (resume or abandon):
        return
    word = "--abandon" if abandon else "--resume"
    useless = [name for name, value in given.items() if value]
    if abandon:
        useless += [name for name, value in (("--resume", resume), ("--without", without)) if value]
    if useless:
        raise UsageError(f"{word} is about one that has begun: it goes without {useless[0]}")


def _resume(runner: run.Runner, kind: str, *, silence: bool, without: Sequence[str]) -> None:
    plan, generation = runner.plan()
    if plan is None or plan.is_over:
        raise UsageError(f"there is no {kind} to go on with")
    if plan.kind != kind:
        raise UsageError(run.unfinished(plan))
    say(f"going on with the {kind} that {plan.by} began at {plan.at} (step {plan.step})")
    if without:
        plan, generation = runner.leave_out(plan, generation, without)
    _carry_out(runner, plan, generation, silence=silence)


def _carry_out(runner: run.Runner, plan: Plan, generation: int, *, silence: bool) -> None:
    banner = f"{plan.kind} under way since {plan.at}, by {plan.by}"[:BANNER_LIMIT]
    try:
        runner.carry_out(plan, generation, banner=banner, silence=silence)
    except KeyboardInterrupt:
        off = ", and a VM that was shut down stays off" if plan.kind == plans.REBOOT else ""
        complain(
            f"\ninterrupted. What is drained stays drained{off}: `ops {plan.kind} --resume` goes "
            f"on, `ops {plan.kind} --abandon` starts it again"
        )
        raise
    say(f"{plan.kind}: done")


@app.command()
def roll(
    ctx: typer.Context,
    *,
    verdict: Annotated[
        str, typer.Argument(metavar="[go|reject]", help="Nothing: look at it.")
    ] = "",
    only: Annotated[
        list[str] | None, typer.Option("--vm", metavar="VM", help="This VM only (repeats).")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it is over.")] = False,
    limit: Limit = 3600.0,
    as_json: Json = False,
) -> None:
    """Releases that roll: what each VM is at. `go` goes on VM by VM with one that waits or was
    halted, and stops where one halts; `reject` ends it and goes back."""
    if verdict not in ("", "go", "reject"):
        raise UsageError(f"{verdict!r}: say go or reject, or nothing to look")
    with _runner(ctx.obj, limit) as runner:
        found = runner.look()
        names = [found.vm(name).name for name in only or [vm.name for vm in found.vms]]
        seen = [each for each in rolls.rolls(found) if each.vm in names]
        if verdict == "go":
            _roll_on(runner, [each for each in seen if each.is_open])
        elif verdict == "reject":
            _reject(runner, [each for each in seen if each.is_open])
        elif follow:
            open_ = _heard([each for each in seen if each.is_open])
            runner.wait([each.vm for each in open_], rolls.ended, "roll")
        after = [each for each in rolls.rolls(runner.look()) if each.vm in names]
    show({"rolls": rolls.documents(after)} if as_json else rolls.render(after))
    raise typer.Exit(FOUND if any(each.is_bad for each in after) else FINE)


def _roll_on(runner: run.Runner, open_: Sequence[rolls.Roll]) -> None:
    if not open_:
        say("there is nothing to roll: every VM has accepted what is declared for it")
    for each in _heard(open_):
        if each.state not in ("rolling", "watching"):
            say(f"{each.vm}: go on to {each.version}")
            order = {"sha256": each.sha256, "verdict": "go", "id": new_id("go")}
            runner.orders.give(each.vm, {"roll": order})
        runner.wait([each.vm], _arrives(each.sha256), f"roll to {each.version}")
        say(f"{each.vm}: has {each.version}")


def _heard(open_: Sequence[rolls.Roll]) -> list[rolls.Roll]:
    """Without those of which nobody knows what they do: each would be waited for in vain."""
    for each in open_:
        if each.problem:
            complain(f"{each.vm} is left out: {each.problem}")
    return [each for each in open_ if not each.problem]


def _arrives(sha256: str) -> Callable[[Seen], bool]:
    return lambda seen: rolls.arrived(seen, sha256)


def _reject(runner: run.Runner, open_: Sequence[rolls.Roll]) -> None:
    if not open_:
        say("there is nothing to reject: every VM has accepted what is declared for it")
    open_ = _heard(open_)
    for each in open_:
        say(f"{each.vm}: reject {each.version}")
        runner.orders.give(each.vm, {"roll": {"sha256": each.sha256, "verdict": "reject"}})
    runner.wait([each.vm for each in open_], rolls.ended, "go back")


@app.command()
def pause(ctx: typer.Context, limit: Limit = 60.0) -> None:
    """Freezes benchmarks on every VM, until `resume`."""
    _benchmarks(ctx.obj, "pause", limit)


@app.command()
def resume(ctx: typer.Context, limit: Limit = 60.0) -> None:
    """Lets benchmarks go on (where memory allows). The end of `drain` is `undrain`."""
    _benchmarks(ctx.obj, None, limit)


def _benchmarks(settings: Options, word: str | None, limit: float) -> None:
    with _runner(settings, limit) as runner:
        names = [vm.name for vm in runner.look().swarm]
        what = "pause benchmarks" if word else "let benchmarks go on"
        runner.give_and_wait(names, {"benchmarks": word}, lambda seen: seen.heeds, what)
        say(f"{what}: {', '.join(names)}")
        if word:
            return
        # On a VM, `pilot-node resume` is the end of its drain: here it is not.
        for name, seen in runner.see(runner.look(), names).items():
            if seen.order.hold:
                say(f"{name} is still drained: `ops undrain {name}` ends that")
            elif seen.holds_itself:
                say(_held_itself(name))


@app.command()
def drain(ctx: typer.Context, *, vms: Annotated[list[str], typer.Argument(metavar="VM...")],
          limit: Limit = run.LIMIT) -> None:  # fmt: skip
    """Stops the agents of VMs at the window's pace, and keeps them stopped until `undrain`.

    For the rendezvous: its registry is saved, and stopped."""
    with _runner(ctx.obj, limit) as runner:
        names = _chosen(runner.look(), vms, None)
        _tell_of_plan(runner)
        try:
            runner.give_and_wait(
                names, {"hold": True}, lambda seen: seen.is_empty, "drain", _undrained
            )
        except KeyboardInterrupt:
            complain(f"\ninterrupted. It stays ordered: `ops undrain {' '.join(names)}` ends that")
            raise
        say(f"drained: {', '.join(names)}")


@app.command()
def undrain(ctx: typer.Context, *, vms: Annotated[list[str], typer.Argument(metavar="VM...")],
            limit: Limit = run.LIMIT) -> None:  # fmt: skip
    """Starts the agents of drained VMs again: the end of `drain`."""
    with _runner(ctx.obj, limit) as runner:
        names = _chosen(runner.look(), vms, None)
        _tell_of_plan(runner)
        runner.give_and_wait(names, {"hold": None}, _is_up, "start", _unfilled)
        say(f"whole: {', '.join(names)}")


def _undrained(seen: Seen) -> int | None:
    return seen.undrained


def _unfilled(seen: Seen) -> int | None:
    return seen.unfilled


def _is_up(seen: Seen) -> bool:
    """StuckError where it never will be, whatever is ordered."""
    if seen.holds_itself:
        raise StuckError(_held_itself(seen.vm.name))
    return seen.is_whole


def _held_itself(vm: str) -> str:
    return f"{vm} is still held, on the VM itself: `sudo pilot-node undrain` on it ends that"


def _tell_of_plan(runner: run.Runner) -> None:
    """A plan holds VMs, and starts those again."""
    try:
        plan, _ = runner.plan()
    except OpsError as error:
        complain(f"note: {error}")
        return
    if plan is not None and not plan.is_over:
        complain(f"note: {run.unfinished(plan)}")


# What commands share


def _instance(settings: Options, cloud: Cloud, vm: str) -> Instance:
    _, found = fleets.choose(fleets.instances(cloud), settings.fleet)
    for each in found:
        if each.name == vm:
            return each
    names = ", ".join(each.name for each in found)
    raise OpsError(f"{vm} is no VM of the fleet: there are {names}")


def _one(settings: Options, vm: str) -> Vm:
    cloud = settings.cloud()
    instance = _instance(settings, cloud, vm)
    text = cloud.guest_attribute(instance.zone, vm, fleets.STATUS) if instance.is_on else None
    return fleets.listen(instance, text, time.time())


def _chosen(found: Fleet, named: Sequence[str] | None, without: Sequence[str] | None) -> list[str]:
    """The names of VMs: those named, or all with agents; the smallest first. OpsError where one
    is not there."""
    for name in (*(named or ()), *(without or ())):
        found.vm(name)
    swarm = [vm.name for vm in found.swarm if not named or vm.name in named]
    others = [name for name in dict.fromkeys(named or ()) if name not in swarm]
    names = [name for name in (*swarm, *others) if name not in (without or ())]
    if not names:
        raise UsageError("no VM is left to do it to")
    return names


@contextmanager
def _runner(settings: Options, limit: float) -> Iterator[run.Runner]:
    """A runner, with a bar for its waits; signals that end it are an interruption."""
    cloud = settings.cloud()
    found = fleets.choose(fleets.instances(cloud), settings.fleet)
    names = {each.spec.text("bucket") for each in found[1]} - {""}
    if len(names) != 1:
        raise OpsError(
            f"the VMs' specs name {len(names)} buckets, not one: where should orders go?"
        )

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # One that is ignored (nohup) stays so.
    ends = [each for each in _ENDS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, interrupt) for each in ends}
    bar = Bar()
    try:
        yield run.Runner(
            cloud=cloud,
            orders=Orders(cloud=cloud, bucket=names.pop(), by=settings.by),
            fleet=found[0],
            dashboard=settings.dashboard,
            say=say,
            progress=bar,
            limit=limit,
            poll=settings.poll,
        )
    finally:
        bar.shown(None)
        for each, handler in before.items():
            signal.signal(each, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; its exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="ops")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FINE
    except OpsError as error:
        complain(f"ops: {error}")
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    return FINE
