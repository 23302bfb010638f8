"""The plan of a restart or a reboot of many VMs, and its next move. Pure.

The fleet's orders and statuses say what is done. The rest is kept beside the orders, in
`orders/_plan.json`: which VMs, in which order, and the boot ID that each had before. So any machine
can continue an interrupted plan, and the object's generation lets only one do so at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Literal

from ops.errors import OpsError
from ops.fleet import Vm
from ops.orders import FOLDER, Order
from ops.registry_counts import RegistryCounts

SCHEMA: Final = 1
OBJECT: Final = f"{FOLDER}_plan.json"
RESTART: Final = "restart"
REBOOT: Final = "reboot"

# Steps of a restart.
DRAIN: Final = "drain"
RENDEZVOUS: Final = "rendezvous"
START: Final = "start"
VERIFY: Final = "verify"
# The step of a reboot: VM by VM.
EACH: Final = "each"
DONE: Final = "done"


@dataclass(frozen=True, kw_only=True)
class RestartPlan:
    """A restart or a reboot that has begun."""

    id: str
    kind: str
    vms: tuple[str, ...]
    """In the order in which they start: the smallest first."""
    rendezvous: str = ""
    """The VM of the rendezvous, where it is restarted too."""
    clean: bool = False
    """Start the rendezvous with an empty registry."""
    restore: str = ""
    """Start the rendezvous with this copy of its registry."""
    step: str = DRAIN
    boots: Mapping[str, str] = field(default_factory=dict)
    """VM -> its boot ID before its reboot."""
    held: tuple[str, ...] = ()
    """VMs that this plan has drained. It ends no other hold."""
    done: tuple[str, ...] = ()
    """VMs that were rebooted."""
    silences: tuple[str, ...] = ()
    """Snoozes of Cloud Monitoring that this plan has begun."""
    by: str = ""
    at: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.step == DONE

    @property
    def everyone(self) -> tuple[str, ...]:
        """All VMs of the plan, the rendezvous last."""
        return (*self.vms, self.rendezvous) if self.rendezvous else self.vms

    @property
    def open(self) -> tuple[str, ...]:
        """VMs whose reboot has begun and is not done: they may be off."""
        return tuple(name for name in self.boots if name not in self.done)

    def encode(self) -> bytes:
        """The object's text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True, indent=1).encode()


def decode(data: bytes) -> RestartPlan | None:
    """The plan in the object's text; None where there is none. OpsError where it is of another
    version."""
    if not data:
        return None
    try:
        content = json.loads(data)
        if content.pop("schema") != SCHEMA:
            raise ValueError
        known = {each.name for each in fields(RestartPlan)}
        found = {key: value for key, value in content.items() if key in known}
        for name in ("vms", "held", "done", "silences"):
            found[name] = tuple(map(str, found.get(name, ())))
        return RestartPlan(**found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OpsError(
            f"{OBJECT} in the fleet's bucket is no plan that this command knows: restore its last "
            "good version. Or delete it; then `ops undrain` each held VM, and power on what is off"
        ) from error


@dataclass(frozen=True, kw_only=True)
class VmInPlan:
    """A VM and its order."""

    vm: Vm
    order: Order

    @property
    def heeds(self) -> bool:
        """Whether the VM has read its newest order."""
        return (
            self.vm.speaks
            and (self.vm.status.number("orders.generation") or 0) == self.order.generation
        )

    @property
    def phase(self) -> str:
        """The phase in the VM's status; "" where it does not speak."""
        return self.vm.status.text("phase") if self.vm.speaks else ""

    @property
    def agents(self) -> int:
        """Agents that run, start or stop, as far as the VM says."""
        return sum(self.vm.count(each) or 0 for each in ("running", "starting", "stopping"))

    @property
    def undrained(self) -> int | None:
        """Agents that a drain still has to stop; None: not known."""
        return self.agents if self.vm.speaks else None

    @property
    def unfilled(self) -> int | None:
        """Agents that still have to start; None: not known."""
        running = self.vm.count("running")
        return None if running is None else max(0, self.vm.wanted - running)

    @property
    def holds_itself(self) -> bool:
        """Whether `pilot-node drain` on the VM holds it, and no order in the bucket."""
        return self.heeds and not self.order.hold and self.vm.status.flag("orders.hold")

    @property
    def is_empty(self) -> bool:
        """Whether the VM is held and runs no agent (or no registry)."""
        return self.heeds and self.phase == "held" and self.agents == 0

    @property
    def is_whole(self) -> bool:
        """Whether everything runs that should by spec and order."""
        return self.heeds and self.phase == ("whole" if self.vm.is_swarm else "serving")


@dataclass(frozen=True, kw_only=True)
class Give:
    """Change the order of a VM."""

    vm: str
    changes: Mapping[str, Any]
    why: str


@dataclass(frozen=True, kw_only=True)
class Await:
    """Nothing to do but wait."""

    vm: str
    what: str
    left: int | None = None
    """Counts down; None: not known."""


@dataclass(frozen=True, kw_only=True)
class Power:
    """Shut a VM down, or power it on."""

    vm: str
    verb: Literal["stop", "start"]


@dataclass(frozen=True, kw_only=True)
class Go:
    """Keep this plan, then look again."""

    plan: RestartPlan
    why: str = ""
    """A line for the operator; "" for none."""


Move = Give | Await | Power | Go


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Agents of the whole fleet."""

    online: int | None
    """By the registry's count; None: not known."""
    running: int
    """By the VMs' statuses."""
    rendezvous: str = ""
    """The VM of the registry; "" where there is none."""


def decide(plan: RestartPlan, seen: Mapping[str, VmInPlan], totals: Totals) -> Move:
    """The next move of a plan that is not over."""
    missing = [name for name in plan.everyone if name not in seen]
    if missing:
        raise OpsError(f"{', '.join(missing)}: not there any more; end this with --abandon")
    moves = {
        DRAIN: _drain_all,
        RENDEZVOUS: _restart_rendezvous,
        START: _start_all,
        VERIFY: _verify,
        EACH: _reboot_each,
    }
    if plan.step not in moves:
        raise OpsError(f"{OBJECT}: step {plan.step!r} is unknown; end this with --abandon")
    return moves[plan.step](plan, seen, totals)


def _drain_all(plan: RestartPlan, seen: Mapping[str, VmInPlan], _: Totals) -> Move:
    for name in plan.vms:
        if move := _drain(plan, seen[name]):
            return move
    after = RENDEZVOUS if plan.rendezvous else START
    return Go(plan=replace(plan, step=after), why="every VM is empty")


def _drain(plan: RestartPlan, one: VmInPlan) -> Move | None:
    """None once the VM is empty, or where it is off."""
    name = one.vm.name
    if not one.vm.instance.is_on:
        return None
    if not one.order.hold:
        # Keep this first: the plan would never end a hold that it does not know as its own.
        if name not in plan.held:
            return Go(plan=replace(plan, held=(*plan.held, name)))
        return Give(vm=name, changes={"hold": True}, why="drain")
    if one.is_empty:
        return None
    return Await(vm=name, what="drains", left=one.undrained)


def _restart_rendezvous(plan: RestartPlan, seen: Mapping[str, VmInPlan], _: Totals) -> Move:
    one = seen[plan.rendezvous]
    if one.order.doc.text("restart") != plan.id:
        # pilot-node saves the registry before it stops.
        changes = {
            "restart": plan.id,
            "clean": True if plan.clean else None,
            "restore": plan.restore or None,
        }
        return Give(vm=plan.rendezvous, changes=changes, why="restart")
    if not (one.is_whole and one.vm.status.text("orders.restart") == plan.id):
        return Await(vm=plan.rendezvous, what="restarts its registry")
    if one.order.doc.flag("clean"):
        return Give(vm=plan.rendezvous, changes={"clean": None}, why="was cleaned once")
    if one.order.doc.text("restore"):
        return Give(vm=plan.rendezvous, changes={"restore": None}, why="was restored once")
    return Go(plan=replace(plan, step=START), why="the registry serves")


def _start_all(plan: RestartPlan, seen: Mapping[str, VmInPlan], _: Totals) -> Move:
    for name in plan.vms:
        if move := _fill(plan, seen[name]):
            return move
    others = [name for name in plan.vms if seen[name].order.hold]
    but = f" but {', '.join(others)}, held by somebody else" if others else ""
    return Go(plan=replace(plan, step=VERIFY), why=f"every VM is whole{but}")


def _fill(plan: RestartPlan, one: VmInPlan) -> Move | None:
    """None once the VM is whole, or where somebody else holds it."""
    name = one.vm.name
    if one.order.hold:
        is_ours = name in plan.held
        return Give(vm=name, changes={"hold": None}, why="start") if is_ours else None
    if name in plan.held:
        # A hold from now on is somebody else's.
        return Go(plan=replace(plan, held=tuple(each for each in plan.held if each != name)))
    if one.is_whole:
        return None
    what = "is held by `pilot-node drain` on it" if one.holds_itself else "fills"
    return Await(vm=name, what=one.vm.problem or what, left=one.unfilled)


def _verify(plan: RestartPlan, _: Mapping[str, VmInPlan], totals: Totals) -> Move:
    if totals.online is not None and totals.online >= totals.running:
        why = f"{totals.running:,} agents run, {totals.online:,} are online"
        return Go(plan=replace(plan, step=DONE), why=why)
    left = None if totals.online is None else totals.running - totals.online
    return Await(vm=totals.rendezvous or "registry", what="counts its agents", left=left)


def _reboot_each(plan: RestartPlan, seen: Mapping[str, VmInPlan], _: Totals) -> Move:
    for name in plan.vms:
        if name not in plan.done:
            return _reboot(plan, seen[name])
    return Go(plan=replace(plan, step=DONE), why="every VM was rebooted")


def _reboot(plan: RestartPlan, one: VmInPlan) -> Move:
    name = one.vm.name
    before = plan.boots.get(name)
    if before is None:
        if not one.vm.speaks:
            return Await(vm=name, what=one.vm.problem)
        boots = {**plan.boots, name: one.vm.status.text("boot")}
        held = plan.held if one.order.hold else (*plan.held, name)
        return Go(plan=replace(plan, boots=boots, held=held), why=f"{name} is the next")
    if one.vm.instance.state == "TERMINATED":
        return Power(vm=name, verb="start")
    # A status of an earlier boot says nothing of this one: `_drain` waits for the VM's word.
    if one.vm.status.text("boot") == before:
        return _drain(plan, one) or _stop(one)
    how = "held by somebody else" if one.order.hold else "whole"
    done = replace(plan, done=(*plan.done, name))
    return _fill(plan, one) or Go(plan=done, why=f"{name} is {how} after its reboot")


def _stop(one: VmInPlan) -> Move:
    if one.vm.instance.is_on:
        return Power(vm=one.vm.name, verb="stop")
    return Await(vm=one.vm.name, what=f"is {one.vm.instance.state}")


def obstacles(plan: RestartPlan, seen: Mapping[str, VmInPlan]) -> Iterator[str]:
    """Sentences: why a plan cannot begin."""
    for name in plan.everyone:
        one = seen[name]
        out = "leave it out (--without)" if name in plan.vms else "do without --rendezvous"
        if not one.vm.speaks:
            yield f"{name}: {one.vm.problem}, so nobody sees what it does: {out}"
        elif one.order.hold:
            by, at = one.order.doc.text("by"), one.order.doc.text("at")
            yield (
                f"{name} is held by an order of {by or 'somebody'} ({at}), and a {plan.kind} would "
                f"not end that: `ops undrain {name}` first, or {out}"
            )
        elif one.holds_itself:
            yield (
                f"{name} is held on the VM itself, which no order ends: `sudo pilot-node undrain` "
                f"on it first, or {out}"
            )
        elif one.heeds and one.phase in ("draining", "held"):
            yield (
                f"{name} is drained for its host's maintenance, which no order ends: wait for its "
                f"end, or {out}"
            )
        elif one.vm.status.text("roll.state") in ("rolling", "watching"):
            yield f"{name} rolls a release: let it finish (`ops roll`), or {out}"


def doubts(
    plan: RestartPlan, seen: Mapping[str, VmInPlan], registry: RegistryCounts
) -> Iterator[str]:
    """Sentences: why a plan might not end once it has begun. --insist passes over them."""
    swarm = [seen[name].vm for name in plan.vms if seen[name].vm.is_swarm]
    for vm in swarm:
        if failed := vm.count("failed"):
            yield (
                f"{vm.name}: {failed} agents fail (`ops status` says why), so it would not be "
                "whole afterwards either: mend that first, leave it out (--without), or --insist"
            )
    if swarm and registry.online is None and not plan.rendezvous:
        restart = "restart it too (--rendezvous), " if plan.kind == RESTART else ""
        yield (
            "the registry does not serve, so no agent would come back "
            f"({registry.problem}): {restart}mend it first, or --insist"
        )
