"""Orders that are given from the screen of `live`: what each will do, and giving it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ops import orders, plan, rolls, run
from ops.defaults import LIMIT
from ops.errors import OpsError
from ops.fleet import Fleet, Vm
from ops.google import Cloud
from ops.live_rows import paused_vms


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """An order that is not given yet."""

    what: str
    """In a few words, for the log."""
    question: str
    """What will happen."""
    orders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """VM -> the changes of its order."""
    restarts: tuple[str, ...] = ()
    """The VMs of a restart, in its order."""


def drain(_: Fleet, vm: Vm) -> Proposal | str:
    """Stop a VM's agents; a sentence where that makes no sense."""
    if vm.is_swarm:
        running = vm.count("running")
        agents = f"{vm.wanted if running is None else running:,} agents"
        text = f"Its {agents} stop, {_pace(vm)}. None starts until undrain."
    else:
        text = (
            "Its registry is saved and stops until undrain. Agents that run live through a few "
            "minutes of that; none can start or register."
        )
    return Proposal(
        what=f"drain {vm.name}",
        question=f"Drain {vm.name}? {text}{_deaf(vm)}",
        orders={vm.name: orders.DRAIN},
    )


def undrain(_: Fleet, vm: Vm) -> Proposal | str:
    """End a drain."""
    text = (
        f"Its {vm.wanted:,} agents start, {_pace(vm)}." if vm.is_swarm else "Its registry starts."
    )
    return Proposal(
        what=f"undrain {vm.name}",
        question=f"Undrain {vm.name}? {text}{_deaf(vm)}",
        orders={vm.name: orders.UNDRAIN},
    )


def restart(fleet: Fleet, _: Vm) -> Proposal | str:
    """Restart the whole fleet."""
    names = tuple(vm.name for vm in fleet.swarm)
    if not names:
        return "there is no VM with agents to restart"
    agents = sum(vm.wanted for vm in fleet.swarm)
    return Proposal(
        what="restart",
        question=(
            f"Restart {agents:,} agents on {', '.join(names)}? The VMs drain one after the other, "
            f"then start in this order, {_pace(*fleet.swarm)}. Alerts are silenced meanwhile. It "
            "goes on while this screen is open."
        ),
        restarts=names,
    )


def pause(fleet: Fleet, _: Vm) -> Proposal | str:
    """Pause the benchmarks of all VMs, or let them go on where all are paused."""
    names = [vm.name for vm in fleet.swarm]
    on = ", ".join(names)
    if names and paused_vms(fleet) == names:
        changes, what = orders.UNPAUSE, "let benchmarks go on"
        question = f"Let benchmarks go on, on {on}, where memory allows?"
    else:
        changes, what = orders.PAUSE, "pause benchmarks"
        question = f"Pause the benchmarks on {on}? They freeze until they are let go on (p again)."
    return Proposal(
        what=what,
        question=f"{question} No agent stops.",
        orders=dict.fromkeys(names, changes),
    )


def roll_go(_: Fleet, vm: Vm) -> Proposal | str:
    """Let a VM's roll begin, or try again."""
    found = rolls.roll(vm)
    if (why := _no_roll(found)) is not None:
        return why
    if found.state in ("rolling", "watching"):
        return f"{vm.name} rolls to {found.version} already"
    if vm.is_swarm:
        spec = vm.instance.spec
        batch, watched = spec.number("roll.batch"), spec.number("roll.watchSeconds")
        pace = f", {batch:,} at a time with {watched} s of watching after each" if batch else ""
        text = f"Its {vm.wanted:,} agents restart{pace}."
    else:
        text = "Its registry restarts."
    return Proposal(
        what=f"roll {vm.name} to {found.version}",
        question=f"Roll {vm.name} from {found.accepted} to {found.version}? {text}",
        orders={vm.name: orders.roll_go(found.sha256)},
    )


def roll_reject(_: Fleet, vm: Vm) -> Proposal | str:
    """End a VM's roll, and return to the release before."""
    found = rolls.roll(vm)
    if (why := _no_roll(found)) is not None:
        return why
    back = ""
    if vm.is_swarm and found.done:
        back = f" The {found.done:,} agents that have it restart, {_pace(vm)}."
    return Proposal(
        what=f"reject {found.version} on {vm.name}",
        question=f"Reject {found.version} on {vm.name}, and stay at {found.accepted}?{back}",
        orders={vm.name: orders.roll_reject(found.sha256)},
    )


def _no_roll(found: rolls.VmRoll) -> str | None:
    if found.problem:
        return f"{found.vm}: {found.problem}"
    return None if found.is_open else f"{found.vm} has accepted what is declared for it"


def _pace(*vms: Vm) -> str:
    """How many agents start or stop at once."""
    limits = [vm.status.number("window.limit") or vm.instance.spec.number("window") for vm in vms]
    each = " on each VM" if len(vms) > 1 else ""
    most = max((limit for limit in limits if limit), default=None)
    return f"at the window's pace{each}" if most is None else f"at most {most} at a time{each}"


def _deaf(vm: Vm) -> str:
    return "" if vm.speaks else f" ({vm.problem}: it follows the order when it is back.)"


PROPOSALS: Final[Mapping[str, Callable[[Fleet, Vm], Proposal | str]]] = {
    "drain": drain,
    "undrain": undrain,
    "restart": restart,
    "pause": pause,
    "roll_go": roll_go,
    "roll_reject": roll_reject,
}


@dataclass(kw_only=True)
class _SharedRunner(run.Runner):
    """A runner whose looks are the screen's."""

    ask: Callable[[], Fleet]

    def look(self, only: Iterable[str] = ()) -> Fleet:  # noqa: ARG002 - the screen shows all
        return self.ask()


@dataclass(kw_only=True)
class OrderDesk:
    """Gives orders as the command line does. Each method is for a thread of its own."""

    cloud: Cloud
    by: str
    poll: float
    limit: float = LIMIT
    given: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Orders that were given, in a few words each: the last one of its VMs and fields."""
    interrupted: plan.RestartPlan | None = None
    """A restart that `end` has interrupted."""
    _over: threading.Event = field(default_factory=threading.Event)
    _restarting: threading.Lock = field(default_factory=threading.Lock)

    def carry_out(
        self,
        proposal: Proposal,
        fleet: Fleet,
        *,
        ask: Callable[[], Fleet],
        say: run.Say,
        progress: run.Progress,
    ) -> None:
        """Give the orders of a proposal, or carry its restart out. `ask` looks at the fleet.
        OpsError where it cannot be done, with the right that is missing."""
        bucket = run.bucket(vm.instance for vm in fleet.vms)
        runner = _SharedRunner(
            cloud=self.cloud,
            orders=orders.OrdersBucket(cloud=self.cloud, bucket=bucket, by=self.by),
            fleet=fleet.name,
            dashboard="",
            say=say,
            progress=progress,
            pause=self._pause,
            limit=self.limit,
            poll=self.poll,
            ask=ask,
        )
        if proposal.restarts:
            self._restart(runner, proposal.restarts)
            return
        if note := runner.note_of_plan():
            say(note)
        for vm, changes in proposal.orders.items():
            runner.orders.give(vm, changes)
        fields = {name for changes in proposal.orders.values() for name in changes}
        self.given[*sorted(proposal.orders), *sorted(fields)] = proposal.what
        say(f"ordered: {proposal.what}")

    def _restart(self, runner: run.Runner, vms: tuple[str, ...]) -> None:
        if not self._restarting.acquire(blocking=False):
            raise OpsError("a restart is under way already")
        made = run.new_plan(plan.RESTART, vms, by=self.by)
        try:
            generation = runner.begin(made, runner.look())
            runner.carry_out(made, generation, banner=run.banner(made), silence=True)
            runner.say(f"{made.kind}: done")
        except KeyboardInterrupt:
            self.interrupted = made
        finally:
            self._restarting.release()

    def _pause(self, seconds: float) -> None:
        """Wait, or raise what Ctrl-C raises on the command line."""
        if self._over.wait(seconds):
            raise KeyboardInterrupt

    def end(self) -> None:
        """Interrupt a restart that is under way, and wait until its silence has ended."""
        self._over.set()
        with self._restarting:
            pass
