"""The loop of a swarm VM: it follows spec and orders, rolls the release, keeps the agents, reports.

The loop never waits: sources, fetches, samples and publications have threads of their own. A
failure in a round is logged and tried again, and the running agents go on.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .base_loop import FAILURES, Loop, end_with_any_thread, roll_status
from .desired.spec import Binary, SwarmSpec
from .follower import AnySpec, Follower, recall_spec
from .machine.agent_units import OWN
from .machine.errors import NotReadyError
from .machine.kernel_log import KernelLog
from .machine.paths import Paths
from .machine.polling import Wake
from .machine.retry import FinalError
from .machine.systemd import Systemd, SystemdError
from .pressure import kernel_limits
from .pressure.sampler import Planning, Sample, Sampler
from .report.metrics import Exporter
from .report.publisher import Publisher
from .report.status import Published, SwarmFacts, document
from .rollout import roll_state
from .rollout import rollout as rolls
from .setup import isolation, release, units
from .swarm import goal, variants
from .swarm.decide import Goal
from .swarm.drain import SHUTDOWN_SECONDS, drain_for_shutdown
from .swarm.supervisor import Keeper

# Seconds between two looks at the sources. The loop also wakes when one says something.
LOOK = 1.0
# Seconds between two steps of the roll.
ROLL = 0.5
# Seconds between two removals of releases and variants that nothing needs.
PRUNE = 60.0
# Seconds between two status documents: as often as the keeper looks. Each counts all agents.
STATUS = 2.0
# Seconds between two measurements of a batch's memory: each walks the pages of some 30 agents.
MEASURE = 5.0
# Seconds until the next round after one that failed.
FAILED = 2.0


@dataclass(kw_only=True)
class SwarmLoop(Loop):
    """`round` is one turn of the loop."""

    keeper: Keeper
    private: Callable[[Sequence[int]], float | None]
    """Mean private bytes of the agents of these ports (pressure.Sampler)."""
    address: str
    """The VM's own internal address, where its agents are reached."""
    ports: tuple[int, ...] = ()
    drained: str = ""
    _variants: dict[tuple[str, str], str] = field(default_factory=dict)
    _releases: dict[str, str] = field(default_factory=dict)
    _goal_made_of: tuple[object, ...] = ()
    """What the keeper's goal follows from."""
    _has_goal: bool = False
    """Whether the keeper's goal was decided on. Until then it must not act: its first goal is to
    have no agents."""

    def round(self, *, woken: bool = False) -> float:
        """One turn; the seconds until the next. `woken`: a source said something."""
        try:
            pause = self._turn(woken)
        except FAILURES as error:
            # The running agents go on.
            self.fault(str(error))
            pause = FAILED
        return pause

    def _turn(self, woken: bool) -> float:
        if (woken or self.is_due("look", LOOK)) and self.look():
            self.at_once("roll")
        self.keep_disk()
        spec = self._spec()
        plan = goal.plan(spec, self.follower.standing, self.follower.maintenance)
        if plan.drained != self.drained:
            self.say(plan.drained or "no longer drained")
        self.ports, self.drained = plan.ports, plan.drained
        try:
            self._decide(spec)
        except FAILURES as error:
            # The goal stays as it was decided last.
            self.fault(str(error))
        if self.drained:
            # A drain works also where the disk refuses writes.
            self.keeper.goal = Goal(variants={}, window=spec.window)
            self._goal_made_of, self._has_goal = (), True
        if not self._has_goal:
            self.keeper.look()
            return FAILED
        pause = self.keeper.round()
        if self.roll is not None and self.is_due("prune", PRUNE):
            self._prune(self.roll)
        return pause

    def _decide(self, spec: SwarmSpec) -> None:
        """The roll's next step, and the goal that follows from it. Raises what FAILURES has."""
        if self.roll is None:
            if not self.follower.is_mounted():
                raise NotReadyError(
                    self.paths.unmounted("the accepted release is not known: no agent is started")
                )
            self.roll = roll_state.recall(self.paths, self.say)
            if self.roll.accepted is None:
                # The running agents show what was accepted.
                self.keeper.look()
        if not self.is_due("roll", ROLL):
            return
        try:
            state = self._advance(spec, self.roll)
        except FAILURES as error:
            # A step that cannot be written down is not begun. Earlier ones go on.
            self.fault(str(error))
            state = self.roll
        self.want(spec, state)
        if state.accepted is not None:
            self._set_goal(spec, state)

    @property
    def window(self) -> int:
        """The spec's window. The keeper's goal may not be set yet."""
        return self._spec().window

    def _spec(self) -> SwarmSpec:
        spec = self.follower.known.spec
        if not isinstance(spec, SwarmSpec):
            raise FinalError(f"this VM is a {spec.role}, it has no agents")
        return spec

    # The roll

    def _advance(self, spec: SwarmSpec, state: roll_state.RollState) -> roll_state.RollState:
        view = self.keeper.view()
        # Once for each variant: there are few, and thousands of agents.
        releases = {ID: self._release_of(ID) for ID in set(view.variant.values())}
        now = self.clock()
        resting = view.ready | view.trouble.keys()
        moving = view.starting or view.stopping or now < view.window.rest_until
        new, said = rolls.advance(
            state,
            rolls.RollObserved(
                now=now,
                time=self.wall_clock(),
                target=self.target(spec),
                settings=spec.roll,
                verdict=self.follower.standing.orders.roll,
                there=self.fetcher.there(),
                lost=self.fetcher.lost(),
                held=bool(self.drained),
                ports=self.ports,
                on={port: releases[ID] for port, ID in view.variant.items()},
                ready=view.ready,
                up_since=view.up_since,
                failures={port: each.failures for port, each in view.trouble.items()},
                why={port: each.why for port, each in view.trouble.items()},
                calm=not moving and resting.issuperset(self.ports),
                private=self._private(state, spec),
                kernel=self.kernel_log.lines() if self.kernel_log else (),
                epoch=self._epoch(spec),
            ),
        )
        self.rolled(new)
        for line in said:
            self.say(line)
        return new

    def _private(self, state: roll_state.RollState, spec: SwarmSpec) -> float | None:
        ports = rolls.measured(state, self.ports)
        since = state.watch.since if state.watch else None
        ends = since is not None and self.clock() - since >= spec.roll.watch_seconds
        if ports and (ends or self.is_due("measure", MEASURE)):
            return self.private(ports)
        return None

    # The goal

    def _set_goal(self, spec: SwarmSpec, state: roll_state.RollState) -> None:
        """Set what the agents should be now."""
        there = self.fetcher.there()
        found: dict[str, str] = {}
        needed = goal.wanted_releases(state, self.ports)
        for each in needed:
            if each.sha256 in there:
                found[each.sha256] = self._variant(spec, each)
        running: Mapping[int, str] = {}
        if len(found) < len(needed):
            # An agent may run although its link in /run is gone.
            there_now = dict.fromkeys(self.keeper.look().running, "")
            running = there_now | variants.read(self.paths)
        made_of = (spec, self.ports, state, found, running)
        if not self._has_goal or made_of != self._goal_made_of:
            self.keeper.goal = goal.goal(*made_of)
            self._goal_made_of = made_of
        self._has_goal = True
        current = state.accepted
        if current and current.sha256 in there:
            release.use(Binary.of(spec.binary.name, current.sha256), self.paths.opt)

    def _variant(self, spec: SwarmSpec, each: roll_state.Release) -> str:
        key = (each.sha256, self._epoch(spec))
        known = self._variants.get(key)
        if known is None or not (self.paths.variants / known).is_dir():
            known = variants.ensure(
                self.paths,
                binary=Binary.of(spec.binary.name, each.sha256),
                version=each.version,
                environment=units.agent_environment(spec, self.address),
                unit=self._unit(),
                restart=self.follower.standing.restart,
            )
            self._variants[key] = known
            self._releases[known] = each.sha256
        return known

    def _unit(self) -> str:
        # All unit files of agents have one text.
        return (self.paths.units / OWN.templates[0]).read_text(encoding="utf-8")

    def _epoch(self, spec: SwarmSpec) -> str:
        """A hash of everything but the release that agents are started with."""
        made_of = [
            sorted(units.agent_environment(spec, self.address).items()),
            self._unit(),
            self.follower.standing.restart,
        ]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def _release_of(self, variant: str) -> str:
        """The release (sha256) of a variant, "" where that is not known."""
        if variant and variant not in self._releases:
            self._releases[variant] = variants.about(self.paths, variant).get("release", "")
        return self._releases.get(variant, "")

    def _prune(self, state: roll_state.RollState) -> None:
        """Remove variants and releases that nothing runs and nothing goes back to."""
        used = set(self.keeper.goal.variants.values()) | set(self.keeper.view().variant.values())
        variants.prune(self.paths, used)
        self._variants = {key: ID for key, ID in self._variants.items() if ID in used}
        target = self._spec().binary.sha256
        keep = {*rolls.kept(state), target, *map(self._release_of, used)}
        for sha256 in release.prune(self.paths.opt, keep):
            self.say(f"release {sha256[:12]} removed: nothing runs it, and nothing goes back to it")

    # The status

    def facts(
        self, sample: Sample, published: Published, *, started: float, stopping: bool = False
    ) -> SwarmFacts:
        """The facts for the status. `started`: when pilot-node did, in seconds since the epoch."""
        spec, follower = self._spec(), self.follower
        state = self.roll or roll_state.RollState()
        accepted = self.accepted(spec)
        ports = self.ports if self.roll or self.drained else spec.ports
        view = self.keeper.view()
        return SwarmFacts(
            **follower.facts(self.wall_clock()),
            disk=self.disk.usage,
            started=started,
            version=accepted.version,
            sha256=accepted.sha256,
            roll=roll_status(state, len(self.ports)),
            last_error=self.last_error,
            published=published,
            # With agents that cannot be started yet: they are wanted all the same.
            goal={**dict.fromkeys(ports, ""), **self.keeper.goal.variants},
            view=view,
            releases={ID: self._release_of(ID) for ID in set(view.variant.values()) if ID},
            sample=sample,
            stopping=stopping,
            drained=bool(self.drained),
        )


def serve(paths: Paths, *, address: str, systemd: Systemd, say: Callable[[str], None]) -> None:
    """Keep this VM's agents at what is declared, until SIGTERM. The agents go on after that. Where
    the whole system goes down, they are drained first.

    Raises FinalError where there is no spec to begin with.
    """
    known = recall_spec(paths)
    started, wake, ended = time.time(), Wake(), threading.Event()
    asked: list[float] = []

    def end(*_: object) -> None:
        asked.append(time.monotonic())
        systemd.hurry()
        ended.set()
        wake.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    end_with_any_thread(say)
    follower = Follower(paths=paths, known=known, say=say, wake=wake)
    sampler = Sampler(paths=paths, planning=_planning(known.spec), say=say)
    swarm = SwarmLoop(
        paths=paths,
        follower=follower,
        keeper=Keeper(
            paths=paths,
            goal=Goal(variants={}, window=1),
            systemd=systemd,
            say=say,
            shut=lambda: isolation.shut_metadata(paths),
            explain=lambda failure: kernel_limits.explain(failure, paths),
        ),
        fetcher=release.Fetcher(opt=paths.opt, token=follower.server.token, say=say, wake=wake.set),
        private=sampler.mean_private_bytes,
        say=say,
        address=address,
        kernel_log=KernelLog(paths=paths),
    )
    publisher = Publisher(paths=paths, put=follower.server.put_guest_attribute, say=say)
    exporter = Exporter(say=say)
    for part in (follower, swarm.fetcher, sampler, publisher, exporter):
        part.start()

    def tell(*, stopping: bool = False) -> None:
        facts = swarm.facts(
            sampler.latest(), publisher.published, started=started, stopping=stopping
        )
        found = document(facts)
        publisher.publish(found)
        exporter.show(found)

    swarm.check_kernel()
    told, woken = float("-inf"), True
    while not ended.is_set():
        pause = swarm.round(woken=woken)
        sampler.planning = _planning(follower.known.spec)
        sampler.pause(follower.standing.orders.pause_benchmarks)
        if time.monotonic() - told >= STATUS:
            told = time.monotonic()
            tell()
        woken = wake.wait(min(pause, STATUS))
    follower.stop()
    if _goes_down(systemd, say):
        tell(stopping=True)
        # systemd's time runs since SIGTERM, and the last turn may have taken some of it.
        left = SHUTDOWN_SECONDS - (time.monotonic() - asked[0])
        drain_for_shutdown(paths, limit=swarm.window, say=say, seconds=left)
    sampler.close()
    publisher.close()
    exporter.close()


def _planning(spec: AnySpec) -> Planning:
    """The planning sizes of `spec`, in bytes."""
    if not isinstance(spec, SwarmSpec):
        raise FinalError(f"this VM is a {spec.role}, it has no agents")
    return Planning(agent=spec.agent_mb << 20, connection=spec.connection_mb << 20)


def _goes_down(systemd: Systemd, say: Callable[[str], None]) -> bool:
    """Whether the whole system goes down, and not this service alone."""
    for last in (False, True):
        try:
            return systemd.stopping()
        except SystemdError as error:
            say(f"is the system going down? {error}" + ": the agents are left to it" * last)
    return False
