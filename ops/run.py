"""Carries out plans and orders, and waits for their effect."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, TypeVar

from ops import fleet as fleets
from ops import plan as plans
from ops.defaults import LIMIT, POLL
from ops.errors import (
    ClashError,
    DeniedError,
    OpsError,
    StuckError,
    TryLaterError,
    UnfinishedError,
    UnreachableError,
    UsageError,
)
from ops.fleet import Fleet, Instance, Vm
from ops.google import Cloud
from ops.orders import BANNER_LIMIT, FOLDER, Order, OrdersBucket, name, new_id, now
from ops.plan import Await, Give, Go, Power, RestartPlan, Totals, VmInPlan
from ops.silence import Silence

# The longest silence. A command that is killed leaves it to end by itself.
_MOST_SILENCE: Final = timedelta(hours=24)

# States that end in TERMINATED by themselves.
_GOING_OFF: Final = ("PENDING_STOP", "STOPPING")

Say = Callable[[str], None]
T = TypeVar("T")


class Progress:
    """Shows how far a wait has come. This one shows nothing."""

    def shown(self, waiting: Await | None) -> None:
        """Show this wait; None: no wait is on."""


@dataclass(kw_only=True)
class _Nearest:
    """How near each VM has come to the end of a wait. Only a new best is progress, so a VM that
    flaps makes none."""

    clock: Callable[[], float]
    since: float = 0.0
    _left: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.since = self.clock()

    def saw(self, who: str, left: int | None) -> bool:
        """Note what is left of `who` (None: not known). True where `who` is new."""
        is_new = who not in self._left
        found = math.inf if left is None else left
        if is_new or found < self._left[who]:
            self._left[who], self.since = found, self.clock()
        return is_new

    @property
    def idle(self) -> float:
        """Seconds since the last progress."""
        return self.clock() - self.since


@dataclass(kw_only=True)
class Runner:
    """Carries out plans and orders of one fleet."""

    cloud: Cloud
    orders: OrdersBucket
    fleet: str
    dashboard: str
    say: Say
    """Gets a line per event."""
    progress: Progress = field(default_factory=Progress)
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    limit: float = LIMIT
    """Seconds without progress, or without an answer, after which a wait is given up."""
    poll: float = POLL
    """Seconds between two looks."""
    _known: dict[str, Order] = field(default_factory=dict)
    _unanswered: set[str] = field(default_factory=set)

    # Looking

    def look(self, only: Iterable[str] = ()) -> Fleet:
        """The fleet now."""
        return fleets.read(self.cloud, fleet=self.fleet, dashboard=self.dashboard, only=only)

    def see(self, found: Fleet, vms: Iterable[str]) -> dict[str, VmInPlan]:
        """VMs with their orders. One request, and one per order that changed."""
        there = self.cloud.objects(self.orders.bucket, FOLDER)
        known = {each.name: each for each in found.vms}
        seen: dict[str, VmInPlan] = {}
        for vm in vms:
            generation = there.get(name(vm), 0)
            if generation == 0:
                self._known[vm] = Order()
            elif self._known.get(vm, Order()).generation != generation:
                self._known[vm] = self.orders.read(vm)
            if vm in known:
                seen[vm] = VmInPlan(vm=known[vm], order=self._known[vm])
        return seen

    def _look(
        self, vms: Iterable[str], only: Iterable[str] = ()
    ) -> tuple[Fleet, dict[str, VmInPlan]]:
        def once() -> tuple[Fleet, dict[str, VmInPlan]]:
            found = self.look(only)
            seen = self.see(found, vms)
            if found.unseen and (lost := [vm for vm in vms if vm not in seen]):
                # They are not gone: their zone did not answer.
                raise UnreachableError(f"{', '.join(lost)}: {'; '.join(found.unseen)}")
            return found, seen

        return self._until_answered(once)

    def _until_answered(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer, for `limit` seconds at most. Each refusal is said once."""
        since = self.clock()
        while True:
            try:
                return ask()
            except TryLaterError as error:
                if self.clock() - since > self.limit:
                    raise
                if str(error) not in self._unanswered:
                    self._unanswered.add(str(error))
                    self.say(f"{error}: trying again")
                self.pause(self.poll)

    # Plans

    def plan(self) -> tuple[RestartPlan | None, int]:
        """The plan in the bucket, and its generation."""
        found = self.cloud.read(self.orders.bucket, plans.OBJECT)
        return plans.decode(found.data), found.generation

    def note_of_plan(self) -> str:
        """A note where a plan is unfinished, which holds VMs and starts them again; "" where none
        is."""
        try:
            plan, _ = self.plan()
        except OpsError as error:
            return f"note: {error}"
        return "" if plan is None or plan.is_over else f"note: {unfinished(plan)}"

    def keep(self, plan: RestartPlan, generation: int) -> int:
        """Write the plan to the bucket; its new generation. ClashError where somebody else has."""
        data, tried = plan.encode(), False

        def once() -> int:
            nonlocal tried
            # A write whose answer was lost may have succeeded.
            if tried:
                found = self.cloud.read(self.orders.bucket, plans.OBJECT)
                if found.data == data:
                    return found.generation
            tried = True
            return self.cloud.write(self.orders.bucket, plans.OBJECT, data, generation=generation)

        try:
            return self._until_answered(once)
        except ClashError as error:
            raise ClashError(
                f"somebody else works on this {plan.kind} at the same time: leave it to them, or "
                "look at `ops status` and continue with --resume"
            ) from error

    def begin(self, plan: RestartPlan, found: Fleet, *, insist: bool = False) -> int:
        """Write a new plan to the bucket; its generation. `insist` passes over doubts.

        UsageError where an older plan is not over, StuckError where this one cannot begin.
        """
        old, generation = self.plan()
        if old is not None and not old.is_over:
            raise UsageError(unfinished(old))
        seen = self.see(found, plan.everyone)
        wrong = [*plans.obstacles(plan, seen)]
        if not insist:
            wrong += plans.doubts(plan, seen, found.registry)
        if wrong:
            raise StuckError(f"no {plan.kind} now:\n" + "\n".join(f"  {each}" for each in wrong))
        return self.keep(plan, generation)

    def carry_out(
        self, plan: RestartPlan, generation: int, *, banner: str, silence: bool
    ) -> RestartPlan:
        """Carry out a plan while alerts are silenced; the plan as it is afterwards.

        The silence ends however this ends. UnfinishedError where a wait makes no progress.
        """
        begun, _ = self._look(())
        rendezvous = begun.rendezvous
        with self.silenced(plan, rendezvous, banner if silence else "") as silences:
            if silences:
                plan = replace(plan, silences=silences)
                generation = self.keep(plan, generation)
            while not plan.is_over:
                move = self._next(plan)
                if isinstance(move, Go):
                    if move.why:
                        self.say(move.why)
                    plan = move.plan
                    generation = self.keep(plan, generation)
                elif isinstance(move, Give):
                    self.say(f"{move.vm}: {move.why}")
                    self._give(move.vm, move.changes)
                elif isinstance(move, Power):
                    self._power(move)
        return plan

    def _next(self, plan: RestartPlan) -> Give | Go | Power:
        """Wait until there is something to do; that move."""
        nearest = _Nearest(clock=self.clock)
        try:
            while True:
                found, seen = self._look(plan.everyone)
                move = plans.decide(plan, seen, totals(found))
                if not isinstance(move, Await):
                    return move
                if nearest.saw(move.vm, move.left):
                    self.say(waiting(move))
                if nearest.idle > self.limit:
                    there = any(vm.name == move.vm for vm in found.vms)
                    logs = f" and `ops logs {move.vm}` say" if there else " says"
                    raise UnfinishedError(
                        f"{waiting(move)}, without progress for {self.limit:.0f} s. Nothing is "
                        f"lost: `ops status`{logs} why, `ops {plan.kind} --resume` continues "
                        f"(--without VM leaves one out), `ops {plan.kind} --abandon` starts again "
                        "what was stopped"
                    )
                self.progress.shown(move)
                self.pause(self.poll)
        finally:
            self.progress.shown(None)

    def _give(self, vm: str, changes: Mapping[str, Any]) -> None:
        self._until_answered(lambda: self.orders.give(vm, changes))

    def _power(self, move: Power) -> None:
        self.say(f"{move.vm}: {'shut down' if move.verb == 'stop' else 'power on'}")

        def once() -> None:
            # The request before may have succeeded, and only its answer was lost.
            instance = self.look(only=[move.vm]).vm(move.vm).instance
            if move.verb == "stop" and instance.is_on:
                self.cloud.stop(instance.zone, move.vm)
            elif move.verb == "start" and instance.state == "TERMINATED":
                self.cloud.start(instance.zone, move.vm)
            elif move.verb == "start" and instance.state in _GOING_OFF:
                # A start has failed: the VM is off again in a moment.
                raise TryLaterError(f"{move.vm} is {instance.state}")

        try:
            self._until_answered(once)
        except UnreachableError:
            raise
        except TryLaterError as error:
            raise UnfinishedError(
                f"{error}, for {self.limit:.0f} s now. Nothing is lost: `ops reboot --resume` "
                "continues later (--limit SECONDS waits longer), `ops reboot --abandon` only "
                "powers on what is off"
            ) from error

    @contextmanager
    def silenced(
        self, plan: RestartPlan, rendezvous: Vm | None, banner: str
    ) -> Iterator[tuple[str, ...]]:
        """Silence the fleet's alerts and show `banner` on the dashboard meanwhile; "": neither.

        An operator without the right to silence alerts is told so, and the plan goes on.
        """
        silence = Silence(cloud=self.cloud, fleet=self.fleet)
        begun, said = tuple[str, ...](), ""
        if banner:
            span = timedelta(seconds=self.limit * (2 * len(plan.vms) + 2))
            try:
                begun = silence.begin(banner, min(span, _MOST_SILENCE))
            except DeniedError as error:
                said = f"alerts are not silenced: {error}"
            else:
                said = f"alerts are silenced ({len(begun)})" if begun else "no alerts to silence"
        try:
            if said:
                self.say(said)
            if banner and rendezvous is not None:
                self._give(rendezvous.name, {"banner": banner})
            yield begun
        finally:
            self._sound(silence, (*plan.silences, *begun), rendezvous if banner else None)

    def _sound(self, silence: Silence, begun: Collection[str], rendezvous: Vm | None) -> None:
        """End each silence that can be ended, and the banner."""
        wrong: list[str] = []
        for each in begun:
            try:
                silence.end(each)
            except OpsError as error:
                wrong.append(f"{each}: {error}")
        try:
            if rendezvous is not None:
                self.orders.give(rendezvous.name, {"banner": None})
        except OpsError as error:
            wrong.append(str(error))
        for each in wrong:
            self.say(f"the silence may go on: {each}")
        if begun and not wrong:
            self.say("alerts sound again")

    def abandon(self) -> None:
        """Give the plan up: start what it holds, power on what it shut down. UsageError where
        there is none."""
        plan, generation = self.plan()
        if plan is None or plan.is_over:
            raise UsageError("there is nothing unfinished")
        found = self._release(plan, plan.vms)
        if plan.rendezvous and self.orders.read(plan.rendezvous).doc.text("restart") == plan.id:
            # A restart that has not begun must not begin, least of all with an empty registry.
            self._give(plan.rendezvous, {"restart": None, "clean": None, "restore": None})
        self.keep(replace(plan, step=plans.DONE), generation)
        silence = Silence(cloud=self.cloud, fleet=self.fleet)
        self._sound(silence, plan.silences, found.rendezvous)

    def leave_out(
        self, plan: RestartPlan, generation: int, vms: Collection[str]
    ) -> tuple[RestartPlan, int]:
        """The plan without these VMs, which start again. UsageError where one is not in the plan,
        or none would be left."""
        if strange := [vm for vm in vms if vm not in plan.vms]:
            raise UsageError(
                f"{', '.join(strange)}: not in this {plan.kind}, which is of {', '.join(plan.vms)}"
            )
        left = tuple(vm for vm in plan.vms if vm not in vms)
        if not left:
            raise UsageError(f"no VM would be left: `ops {plan.kind} --abandon` gives it up")
        self._release(plan, vms)
        held = tuple(vm for vm in plan.held if vm not in vms)
        plan = replace(plan, vms=left, held=held)
        return plan, self.keep(plan, generation)

    def _release(self, plan: RestartPlan, vms: Collection[str]) -> Fleet:
        """Start those of these VMs that the plan holds or has shut down; the fleet before that."""
        for vm in plan.held:
            # Also for a VM that is gone: made again, it would be held and nobody would know why.
            if vm in vms and self.orders.read(vm).hold:
                self.say(f"{vm}: start")
                self._give(vm, {"hold": None})
        found, _ = self._look(())
        there = {vm.name for vm in found.vms}
        for vm in plan.open:
            if vm in vms and vm in there:
                self._power_on(vm)
        return found

    def _power_on(self, vm: str) -> None:
        """Power a VM on if it is off, or is about to be."""
        since = self.clock()
        try:
            while (state := self._look((), [vm])[0].vm(vm).instance.state) in _GOING_OFF:
                if self.clock() - since > self.limit:
                    raise UnfinishedError(
                        f"{vm} is {state} for {self.limit:.0f} s, and has to be powered on once it "
                        "is off: repeat this command then"
                    )
                self.progress.shown(Await(vm=vm, what=f"is {state}"))
                self.pause(self.poll)
        finally:
            self.progress.shown(None)
        if state == "TERMINATED":
            self._power(Power(vm=vm, verb="start"))

    # Orders to some VMs

    def give_and_wait(
        self,
        vms: Iterable[str],
        changes: Mapping[str, Any],
        done: Callable[[VmInPlan], bool],
        what: str,
        left: Callable[[VmInPlan], int | None] = lambda _: None,
    ) -> None:
        """Give VMs the same order, all at once, and wait until each is done."""
        wanted = list(vms)
        for vm in wanted:
            self._give(vm, changes)
        self.wait(wanted, done, what, left)

    def wait(
        self,
        vms: list[str],
        done: Callable[[VmInPlan], bool],
        what: str,
        left: Callable[[VmInPlan], int | None] = lambda _: None,
    ) -> None:
        """Wait until each VM is done; `left` counts down on the way. A StuckError of `done` ends
        it, and a VM that is gone."""
        nearest = _Nearest(clock=self.clock)
        try:
            while True:
                found, seen = self._look(vms, vms)
                for vm in vms:
                    found.vm(vm)
                open_ = {vm: left(one) for vm, one in seen.items() if not done(one)}
                if not open_:
                    return
                nearest.saw("", len(open_))
                for vm, number in open_.items():
                    nearest.saw(vm, number)
                if nearest.idle > self.limit:
                    reasons = (found.vm(vm).problem or "it is still trying" for vm in open_)
                    each = "; ".join(f"{a}: {b}" for a, b in zip(open_, reasons, strict=True))
                    raise UnfinishedError(
                        f"{what}: without progress for {self.limit:.0f} s ({each}). The order "
                        "stands, and the VM will follow it when it can"
                    )
                known = [number for number in open_.values() if number is not None]
                agents = sum(known) if known else len(open_)
                self.progress.shown(Await(vm=", ".join(open_), what=what, left=agents))
                self.pause(self.poll)
        finally:
            self.progress.shown(None)


def totals(found: Fleet) -> Totals:
    """The agents that are online, and those that run as far as VMs say."""
    running = sum(vm.count("running") or 0 for vm in found.swarm)
    name = found.rendezvous.name if found.rendezvous else ""
    return Totals(online=found.registry.online, running=running, rendezvous=name)


def unfinished(plan: RestartPlan) -> str:
    """A sentence: what to do about a plan that is not over."""
    return (
        f"a {plan.kind} that {plan.by or 'somebody'} began at {plan.at} is unfinished (step "
        f"{plan.step}): `ops {plan.kind} --resume` continues it, `ops {plan.kind} --abandon` "
        "starts what it has drained and ends it"
    )


def interrupted(plan: RestartPlan) -> str:
    """A sentence: what an interrupted plan leaves."""
    off = ", and a VM that was shut down stays off" if plan.kind == plans.REBOOT else ""
    return (
        f"interrupted. Drained VMs stay drained{off}: `ops {plan.kind} --resume` continues, "
        f"`ops {plan.kind} --abandon` starts them again"
    )


def banner(plan: RestartPlan) -> str:
    """What the dashboard says while a plan is carried out."""
    return f"{plan.kind} under way since {plan.at}, by {plan.by}"[:BANNER_LIMIT]


def bucket(vms: Iterable[Instance]) -> str:
    """The bucket that takes the orders for these VMs. OpsError where there is not one."""
    names = {each.spec.text("bucket") for each in vms} - {""}
    if len(names) != 1:
        raise OpsError(
            f"the VMs' specs name {len(names)} buckets, not one: where should orders go?"
        )
    return names.pop()


def new_plan(kind: str, vms: Iterable[str], *, by: str, **more: Any) -> RestartPlan:
    """A plan that has not begun."""
    step = plans.EACH if kind == plans.REBOOT else plans.DRAIN
    return RestartPlan(
        id=new_id(kind), kind=kind, vms=tuple(vms), step=step, by=by, at=now(), **more
    )


def waiting(move: Await) -> str:
    """A sentence: what a plan waits for."""
    left = "" if move.left is None else f", {move.left:,} left"
    return f"{move.vm}: {move.what}{left}"
