"""Commands that change the fleet. Continue an interrupted restart or reboot with --resume."""

# No `from __future__ import annotations` here: typer would evaluate each text twice, for help too.

import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from ops.cli_options import (
    Abandon,
    GlobalOptions,
    Insist,
    Json,
    Limit,
    Resume,
    Silence,
    VmNames,
    Without,
    Yes,
)
from ops.defaults import LIMIT
from ops.errors import FINE, FOUND, OpsError, OutputError, StuckError, UsageError
from ops.lazy import lazy
from ops.terminal import ask, complain, confirm_clean, say, show

if TYPE_CHECKING:
    from ops import fleet as fleets
    from ops import orders, progress_bar, rolls, run
    from ops import plan as plans
    from ops.fleet import Fleet
    from ops.plan import RestartPlan, VmInPlan
else:
    fleets, orders, plans = lazy("ops.fleet"), lazy("ops.orders"), lazy("ops.plan")
    progress_bar, rolls, run = lazy("ops.progress_bar"), lazy("ops.rolls"), lazy("ops.run")

commands = typer.Typer()
# As a VM takes it (docs/CONTRACT.md, "Orders").
_COPY: Final = re.compile(r"\d{8}T\d{6}Z-\d{1,9}\.json")
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


@commands.command()
def restart(
    ctx: typer.Context,
    *,
    rendezvous: Annotated[
        bool, typer.Option("--rendezvous", help="Restart the registry too, while no agent runs.")
    ] = False,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="With --rendezvous: start with an empty registry; the old one is set aside.",
        ),
    ] = False,
    restore: Annotated[
        str,
        typer.Option(
            metavar="COPY",
            help="With --rendezvous: start with this copy of the registry; the present one is set "
            "aside.",
        ),
    ] = "",
    confirm: Annotated[
        str, typer.Option(metavar="FLEET", help="The fleet's name, which --clean else asks for.")
    ] = "",
    resume: Resume = False,
    abandon: Abandon = False,
    silence: Silence = True,
    without: Without = None,
    insist: Insist = False,
    limit: Limit = LIMIT,
    yes: Yes = False,
) -> None:
    """Restart the whole fleet: drain VM by VM, then start them, the smallest first.

    It can be interrupted at any time: alerts sound again, and --resume continues from there.
    """
    if clean and not rendezvous:
        raise UsageError("--clean empties the registry's store: it needs --rendezvous")
    if restore and (clean or not rendezvous):
        raise UsageError("--restore needs --rendezvous, and is not for --clean")
    if restore and not _COPY.fullmatch(restore):
        raise UsageError(
            f"--restore: {restore!r} is no name of a copy: TIME-KEYS.json, as in the bucket's "
            "folder registry/ (20261130T120000Z-9500.json)"
        )
    given = {"--rendezvous": rendezvous, "--confirm": confirm, "--insist": insist}
    _check(resume=resume, abandon=abandon, without=without, given=given)
    with _runner(ctx.obj, limit) as runner:
        if resume or abandon:
            _take_up(runner, plans.RESTART, abandon=abandon, silence=silence, without=without or ())
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
        plan = run.new_plan(
            plans.RESTART, vms, by=ctx.obj.by, rendezvous=name, clean=clean, restore=restore
        )
        generation = runner.begin(plan, found, insist=insist)
        _carry_out(runner, plan, generation, silence=silence)


@commands.command()
def reboot(
    ctx: typer.Context,
    *,
    vms: VmNames = None,
    resume: Resume = False,
    abandon: Abandon = False,
    silence: Silence = True,
    without: Without = None,
    insist: Insist = False,
    limit: Limit = LIMIT,
    yes: Yes = False,
) -> None:
    """Reboot VM by VM, for a new kernel: drain, off, on, whole, next. Default: all swarm VMs; the
    rendezvous only if it is named."""
    given = {"a VM's name": vms, "--insist": insist}
    _check(resume=resume, abandon=abandon, without=without, given=given)
    with _runner(ctx.obj, limit) as runner:
        if resume or abandon:
            _take_up(runner, plans.REBOOT, abandon=abandon, silence=silence, without=without or ())
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
    """UsageError where an option is given that a plan settles when it begins."""
    if not (resume or abandon):
        return
    word = "--abandon" if abandon else "--resume"
    useless = [name for name, value in given.items() if value]
    if abandon:
        useless += [name for name, value in (("--resume", resume), ("--without", without)) if value]
    if useless:
        raise UsageError(f"{word} is about one that has begun: it goes without {useless[0]}")


def _take_up(
    runner: "run.Runner", kind: str, *, abandon: bool, silence: bool, without: Sequence[str]
) -> None:
    """Abandon or continue a plan that has begun."""
    if abandon:
        runner.abandon()
        return
    plan, generation = runner.plan()
    if plan is None or plan.is_over:
        raise UsageError(f"there is no {kind} to continue")
    if plan.kind != kind:
        raise UsageError(run.unfinished(plan))
    say(f"continuing the {kind} that {plan.by} began at {plan.at} (step {plan.step})")
    if without:
        plan, generation = runner.leave_out(plan, generation, without)
    _carry_out(runner, plan, generation, silence=silence)


def _carry_out(
    runner: "run.Runner", plan: "RestartPlan", generation: int, *, silence: bool
) -> None:
    try:
        runner.carry_out(plan, generation, banner=run.banner(plan), silence=silence)
    except (KeyboardInterrupt, OutputError):
        complain(f"\n{run.interrupted(plan)}")
        raise
    say(f"{plan.kind}: done")


@commands.command()
def roll(
    ctx: typer.Context,
    *,
    verdict: Annotated[str, typer.Argument(metavar="[go|reject]", help="Default: only look.")] = "",
    only: Annotated[
        list[str] | None, typer.Option("--vm", metavar="VM", help="This VM only (repeats).")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it is over.")] = False,
    limit: Limit = 3600.0,
    as_json: Json = False,
) -> None:
    """Show how far each VM's roll is. `go` rolls VM by VM those that wait or halted, and stops
    where one halts; `reject` ends a roll and returns to the release before."""
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
            with _if_interrupted("Nothing was ordered: what rolls goes on"):
                runner.wait([each.vm for each in open_], rolls.ended, "roll")
        after = [each for each in rolls.rolls(runner.look()) if each.vm in names]
    show({"rolls": rolls.documents(after)} if as_json else rolls.render(after))
    raise typer.Exit(FOUND if any(each.is_bad for each in after) else FINE)


def _roll_on(runner: "run.Runner", open_: "Sequence[rolls.VmRoll]") -> None:
    if not open_:
        say("there is nothing to roll: every VM has accepted what is declared for it")
    for each in _heard(open_):
        if each.state not in ("rolling", "watching"):
            say(f"{each.vm}: go on to {each.version}")
            runner.orders.give(each.vm, orders.roll_go(each.sha256))
        with _if_interrupted(
            f"{each.vm} rolls on. The VMs after it wait for another `ops roll go`"
        ):
            runner.wait([each.vm], _arrives(each.sha256), f"roll to {each.version}")
        say(f"{each.vm}: has {each.version}")


def _heard(open_: "Sequence[rolls.VmRoll]") -> "list[rolls.VmRoll]":
    """The rolls of VMs that speak: waiting for the others would be in vain."""
    for each in open_:
        if each.problem:
            complain(f"{each.vm} is left out: {each.problem}")
    return [each for each in open_ if not each.problem]


def _arrives(sha256: str) -> "Callable[[VmInPlan], bool]":
    return lambda seen: rolls.arrived(seen, sha256)


def _reject(runner: "run.Runner", open_: "Sequence[rolls.VmRoll]") -> None:
    if not open_:
        say("there is nothing to reject: every VM has accepted what is declared for it")
    open_ = _heard(open_)
    for each in open_:
        say(f"{each.vm}: reject {each.version}")
        runner.orders.give(each.vm, orders.roll_reject(each.sha256))
    with _if_interrupted("The order stands: the VMs go back without this command"):
        runner.wait([each.vm for each in open_], rolls.ended, "go back")


@commands.command()
def pause(ctx: typer.Context, limit: Limit = 60.0) -> None:
    """Freeze the benchmarks of all VMs until `unpause`."""
    _benchmarks(ctx.obj, orders.PAUSE, limit)


@commands.command()
@commands.command("resume", hidden=True)  # its name until 2026-11
def unpause(ctx: typer.Context, limit: Limit = 60.0) -> None:
    """End `pause`: benchmarks go on where memory allows."""
    _benchmarks(ctx.obj, orders.UNPAUSE, limit)


def _benchmarks(settings: GlobalOptions, changes: Mapping[str, object], limit: float) -> None:
    with _runner(settings, limit) as runner:
        names = [vm.name for vm in runner.look().swarm]
        pauses = changes is orders.PAUSE
        what = "pause benchmarks" if pauses else "let benchmarks go on"
        again = "`ops unpause` ends it" if pauses else "`ops pause` ends it"
        with _if_interrupted(f"The order stands: {again}"):
            runner.give_and_wait(names, changes, lambda seen: seen.heeds, what)
        say(f"{what}: {', '.join(names)}")
        if pauses:
            return
        # On a VM, `resume` was the word for undrain: name what is still drained.
        for name, seen in runner.see(runner.look(), names).items():
            if seen.order.hold:
                say(f"{name} is still drained: `ops undrain {name}` ends that")
            elif seen.holds_itself:
                say(_held_itself(name))


@commands.command()
def drain(ctx: typer.Context, *, vms: Annotated[list[str], typer.Argument(metavar="VM...")],
          limit: Limit = LIMIT) -> None:  # fmt: skip
    """Stop the agents of VMs at the window's pace, and start none until `undrain`.

    On the rendezvous: save its registry and stop it."""
    with _runner(ctx.obj, limit) as runner:
        names = _chosen(runner.look(), vms, None)
        _tell_of_plan(runner)
        with _if_interrupted(f"The order stands: `ops undrain {' '.join(names)}` ends it"):
            runner.give_and_wait(
                names, orders.DRAIN, lambda seen: seen.is_empty, "drain", _undrained
            )
        say(f"drained: {', '.join(names)}")


@commands.command()
def undrain(ctx: typer.Context, *, vms: Annotated[list[str], typer.Argument(metavar="VM...")],
            limit: Limit = LIMIT) -> None:  # fmt: skip
    """End `drain`: start the agents again."""
    with _runner(ctx.obj, limit) as runner:
        names = _chosen(runner.look(), vms, None)
        _tell_of_plan(runner)
        with _if_interrupted("The order stands: the agents start without this command"):
            runner.give_and_wait(names, orders.UNDRAIN, _is_up, "start", _unfilled)
        say(f"whole: {', '.join(names)}")


def _undrained(seen: "VmInPlan") -> int | None:
    return seen.undrained


def _unfilled(seen: "VmInPlan") -> int | None:
    return seen.unfilled


def _is_up(seen: "VmInPlan") -> bool:
    """Whether the VM is whole. StuckError where no order can make it so."""
    if seen.holds_itself:
        raise StuckError(_held_itself(seen.vm.name))
    return seen.is_whole


def _held_itself(vm: str) -> str:
    return f"{vm} is still held, on the VM itself: `sudo pilot-node undrain` on it ends that"


def _tell_of_plan(runner: "run.Runner") -> None:
    if note := runner.note_of_plan():
        complain(note)


# Shared by these commands


def _chosen(
    found: "Fleet", named: Sequence[str] | None, without: Sequence[str] | None
) -> list[str]:
    """The names of the VMs to change: those named, or all with agents; the smallest first.
    OpsError where one is not there."""
    for name in (*(named or ()), *(without or ())):
        found.vm(name)
    if not named and found.unseen:
        complain(f"note: {'; '.join(found.unseen)}: VMs there are left out")
    swarm = [vm.name for vm in found.swarm if not named or vm.name in named]
    others = [name for name in dict.fromkeys(named or ()) if name not in swarm]
    names = [name for name in (*swarm, *others) if name not in (without or ())]
    if not names:
        raise UsageError("no VM is left to change")
    return names


@contextmanager
def _if_interrupted(says: str) -> Iterator[None]:
    """Say what goes on without a command that is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        complain(f"\ninterrupted. {says}")
        raise


@contextmanager
def _runner(settings: GlobalOptions, limit: float) -> "Iterator[run.Runner]":
    """A runner with a progress bar. SIGTERM and SIGHUP interrupt it like Ctrl-C."""
    cloud = settings.cloud()
    found = fleets.choose(fleets.instances(cloud), settings.fleet)
    bucket = run.bucket(found[1])

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # An ignored signal (nohup) stays ignored.
    ends = [each for each in _ENDS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, interrupt) for each in ends}
    bar = progress_bar.Bar()
    try:
        yield run.Runner(
            cloud=cloud,
            orders=orders.OrdersBucket(cloud=cloud, bucket=bucket, by=settings.by),
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
