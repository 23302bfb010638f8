"""Carries plans and orders out, and waits for what they bring about."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

from ops import fleet as fleets
from ops import plan as plans
from ops.errors import ClashError, OpsError, StuckError, UnfinishedError, UsageError
from ops.fleet import Fleet, Vm
from ops.google import Cloud
from ops.orders import FOLDER, Order, Orders, name, new_id, now
from ops.plan import Await, Give, Go, Plan, Power, Seen, Totals
from ops.silence import Silence

POLL: Final = 3.0
"""Seconds between two looks; a VM publishes what changed at most every 5 s."""
LIMIT: Final = 300.0
"""Seconds without progress after which a wait is given up (the blog's five minutes)."""
# More than that a silence is not left to end by itself.
_MOST_SILENCE: Final = timedelta(hours=24)

Say = Callable[[str], None]


class Progress:
    """Shows how far a wait is; this one shows nothing."""

    def shown(self, waiting: Await | None) -> None:
        """The wait that is on, None for none."""


@dataclass(kw_only=True)
class Runner:
    """`say` gets a line an event, `pause` waits so many seconds, `limit` is in seconds."""

    cloud: Cloud
    orders: Orders
    fleet: str
    dashboard: str
    say: Say
    progress: Progress = field(default_factory=Progress)
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    limit: float = LIMIT
    poll: float = POLL
    _known: dict[str, Order] = field(default_factory=dict)

    # Looking

    def look(self, only: Iterable[str] = ()) -> Fleet:
        """The fleet now."""
        return fleets.read(self.cloud, fleet=self.fleet, dashboard=self.dashboard, only=only)

    def see(self, found: Fleet, vms: Iterable[str]) -> dict[str, Seen]:
        """VMs and what is ordered of them; one request, and one for each order that changed."""
        there = self.cloud.objects(self.orders.bucket, FOLDER)
        known = {each.name: each for each in found.vms}
        seen: dict[str, Seen] = {}
        for vm in vms:
            generation = there.get(name(vm), 0)
            if generation == 0:
                self._known[vm] = Order()
            elif self._known.get(vm, Order()).generation != generation:
                self._known[vm] = self.orders.read(vm)
            if vm in known:
                seen[vm] = Seen(vm=known[vm], order=self._known[vm])
        return seen

    # Plans

    def plan(self) -> tuple[Plan | None, int]:
        """The plan that is kept in the bucket, and its generation."""
        found = self.cloud.read(self.orders.bucket, plans.OBJECT)
        return plans.decode(found.data), found.generation

    def keep(self, plan: Plan, generation: int) -> int:
        """Keep a plan; ClashError where somebody else has gone on with it."""
        try:
            return self.cloud.write(
                self.orders.bucket, plans.OBJECT, plan.encode(), generation=generation
            )
        except ClashError as error:
            raise ClashError(
                f"somebody else works on this {plan.kind} at the same time: leave it to them, or "
                "look at `ops status` and go on with --resume"
            ) from error

    def begin(self, plan: Plan, seen: Mapping[str, Seen]) -> int:
        """Keep a new plan; its generation. UsageError where an older one is not over, or this one
        cannot be begun."""
        old, generation = self.plan()
        if old is not None and not old.is_over:
            raise UsageError(unfinished(old))
        wrong = [*plans.obstacles(plan.kind, seen, plan.vms)]
        if plan.rendezvous and not seen[plan.rendezvous].vm.speaks:
            wrong.append(f"{plan.rendezvous}: {seen[plan.rendezvous].vm.problem}")
        if wrong:
            raise StuckError(f"no {plan.kind} now:\n" + "\n".join(f"  {each}" for each in wrong))
        return self.keep(plan, generation)

    def carry_out(self, plan: Plan, generation: int, *, banner: str, silence: bool) -> Plan:
        """Carry a plan out, in silence; the plan as it is then.

        The silence ends however this ends. UnfinishedError where something does not come about.
        """
        begun = self.look()
        rendezvous = begun.rendezvous
        with self.silenced(plan, rendezvous, banner if silence else "") as silences:
            if silences:
                plan = replace(plan, silences=silences)
                generation = self.keep(plan, generation)
            while not plan.is_over:
                move = self._next(plan)
                if isinstance(move, Go):
                    self.say(move.why)
                    plan = move.plan
                    generation = self.keep(plan, generation)
                elif isinstance(move, Give):
                    self.say(f"{move.vm}: {move.why}")
                    self.orders.give(move.vm, move.changes)
                elif isinstance(move, Power):
                    self._power(move)
        return plan

    def _next(self, plan: Plan) -> Give | Go | Power:
        """The next move that is one; waits until there is."""
        waiting, best, since = "", 0, 0.0
        try:
            while True:
                found = self.look()
                rendezvous = found.rendezvous
                names = [*plan.vms, *([rendezvous.name] if rendezvous else [])]
                move = plans.decide(plan, self.see(found, names), totals(found))
                if not isinstance(move, Await):
                    return move
                subject = f"{move.vm} {plan.step}"
                left = best if move.left is None else move.left
                # Only who comes nearer than ever has made progress: one that flaps has not.
                if subject != waiting or left < best:
                    if subject != waiting:
                        self.say(_waiting(move))
                    waiting, best, since = subject, left, self.clock()
                elif self.clock() - since > self.limit:
                    raise UnfinishedError(
                        f"{_waiting(move)}, without progress for {self.limit:.0f} s. Nothing is "
                        f"lost: `ops status` and `ops logs {move.vm}` say why, `ops {plan.kind} "
                        "--resume` goes on"
                    )
                self.progress.shown(move)
                self.pause(self.poll)
        finally:
            self.progress.shown(None)

    def _power(self, move: Power) -> None:
        self.say(f"{move.vm}: {'shut down' if move.verb == 'stop' else 'power on'}")
        zone = self.look(only=[move.vm]).vm(move.vm).instance.zone
        (self.cloud.stop if move.verb == "stop" else self.cloud.start)(zone, move.vm)

    @contextmanager
    def silenced(self, plan: Plan, rendezvous: Vm | None, banner: str) -> Iterator[tuple[str, ...]]:
        """Alerts and dashboard know that this is planned; no banner: nobody is told."""
        silence = Silence(cloud=self.cloud, fleet=self.fleet)
        begun: tuple[str, ...] = ()
        if banner:
            span = timedelta(seconds=self.limit * (2 * len(plan.vms) + 2))
            begun = silence.begin(banner, min(span, _MOST_SILENCE))
            self.say(f"alerts are silenced ({len(begun)})" if begun else "no alerts to silence")
        try:
            if banner and rendezvous is not None:
                self.orders.give(rendezvous.name, {"banner": banner})
            yield begun
        finally:
            self._sound(silence, (*plan.silences, *begun), rendezvous if banner else None)

    def _sound(self, silence: Silence, begun: Collection[str], rendezvous: Vm | None) -> None:
        """End the silence, all of it that can be ended."""
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
        """Give a plan up: what it holds or has shut down starts again. UsageError where there is
        none."""
        plan, generation = self.plan()
        if plan is None or plan.is_over:
            raise UsageError("there is nothing unfinished")
        found = self.look()
        for vm, seen in self.see(found, plan.vms).items():
            if seen.order.hold:
                self.say(f"{vm}: start")
                self.orders.give(vm, {"hold": None})
            if plans.is_shut_down(plan, seen):
                self._power(Power(vm=vm, verb="start"))
        self.keep(replace(plan, step=plans.DONE), generation)
        silence = Silence(cloud=self.cloud, fleet=self.fleet)
        self._sound(silence, plan.silences, found.rendezvous)

    # Orders to some VMs

    def give_and_wait(
        self,
        vms: Iterable[str],
        changes: Mapping[str, Any],
        done: Callable[[Seen], bool],
        what: str,
    ) -> None:
        """Order the same of VMs, all at once, and wait until each is done."""
        wanted = list(vms)
        for vm in wanted:
            self.orders.give(vm, changes)
        self.wait(wanted, done, what)

    def wait(self, vms: list[str], done: Callable[[Seen], bool], what: str) -> None:
        """Wait until each VM is done. StuckError from `done` ends it, and a VM that is gone."""
        since, best = self.clock(), len(vms) + 1
        try:
            while True:
                found = self.look(only=vms)
                for vm in vms:
                    found.vm(vm)
                open_ = [vm for vm, seen in self.see(found, vms).items() if not done(seen)]
                if not open_:
                    return
                if len(open_) < best:
                    best, since = len(open_), self.clock()
                elif self.clock() - since > self.limit:
                    reasons = [found.vm(vm).problem or "it goes on trying" for vm in open_]
                    each = "; ".join(f"{a}: {b}" for a, b in zip(open_, reasons, strict=True))
                    raise UnfinishedError(
                        f"not within {self.limit:.0f} s: {what} ({each}). The order stands, and "
                        "the VM will follow it when it can"
                    )
                self.progress.shown(Await(vm=", ".join(open_), what=what, left=len(open_)))
                self.pause(self.poll)
        finally:
            self.progress.shown(None)


def totals(found: Fleet) -> Totals:
    """What is online, and what runs on all VMs that say so."""
    running = sum(vm.count("running") or 0 for vm in found.swarm)
    return Totals(online=found.registry.online, running=running)


def unfinished(plan: Plan) -> str:
    """What to do about a plan that is not over."""
    return (
        f"a {plan.kind} that {plan.by or 'somebody'} began at {plan.at} is unfinished (step "
        f"{plan.step}): `ops {plan.kind} --resume` goes on with it, `ops {plan.kind} --abandon` "
        "starts what it has drained and forgets it"
    )


def new_plan(kind: str, vms: Iterable[str], *, by: str, **more: Any) -> Plan:
    """A plan that has not begun."""
    step = plans.EACH if kind == plans.REBOOT else plans.DRAIN
    return Plan(id=new_id(kind), kind=kind, vms=tuple(vms), step=step, by=by, at=now(), **more)


def _waiting(move: Await) -> str:
    left = "" if move.left is None else f", {move.left:,} left"
    return f"{move.vm}: {move.what}{left}"
