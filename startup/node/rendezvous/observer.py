"""Looks at the rendezvous' process each round, and says what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from ..pressure import kernel_limits
from . import runs, trials
from .context import LoopContext
from .process import STEADY, Health, Judged, Process, Unit, ask, judge

# Seconds between two questions for its health, and for its numbers (it counts node by node).
HEALTH = 5.0
NUMBERS = 60.0


@dataclass(kw_only=True)
class Observer:
    """The process, and its health."""

    loop: LoopContext
    unit: Unit
    process: Process = field(default_factory=Process)
    """The unit, as systemd has it."""
    health: Health = field(default_factory=Health)
    """The process' last answers."""
    judged: Judged = field(default_factory=Judged)
    """The judgement of both, over time."""
    expected: int = 0
    """Nodes in the file that it was started with; 0 once it is steady."""

    @property
    def is_active(self) -> bool:
        return self.process.active == "active"

    def look(self, now: float) -> None:
        """See, ask and judge the process. One that hangs is stopped; systemd or the next round
        starts it again."""
        loop = self.loop
        self.process = self.unit.process()
        if not self.is_active:
            self.health = Health(why=f"the process is {self.process.active}")
        elif self.judged.up is None or loop.is_due("health", HEALTH):
            fresh = self.judged.up is None or loop.is_due("numbers", NUMBERS)
            self.health = ask(loop.spec, self.health, numbers=fresh)
        before = self.judged
        trial = trials.is_on_trial(runs.running(loop.paths), loop.roll)
        pid, restarts = self.process.pid, self.process.restarts
        if before.since is None and not trial and runs.has_answered(loop.paths, pid):
            # An earlier pilot-node has seen it up: silence means the same as if this one had.
            before = Judged(since=now, up=now, pid=pid, restarts=restarts)
        if restarts > before.restarts or self.process.active == "failed":
            said = self.unit.last_end() or self.process.why
            self.process = replace(self.process, why=kernel_limits.explain(said, loop.paths))
        self.judged = judge(before, self.process, self.health, now, self.expected, trial=trial)
        if self.judged.failures > before.failures:
            loop.fault(f"the rendezvous {self.judged.why}")
        if self.judged.up is not None and self.judged.up != before.up:
            loop.attempt(partial(runs.remember_answer, loop.paths, pid))
        if self.judged.is_mute(now):
            name = loop.spec.name
            loop.fault(
                f"the rendezvous does not answer: {self.health.why}: it may be at work and is not "
                f"stopped; where that lasts: `ops drain {name}`, then `ops undrain {name}`"
            )
        if self.judged.hangs:
            loop.say("the rendezvous hangs: it is stopped, and started again")
            self.unit.stop()
        if self.judged.up is not None and now - self.judged.up >= STEADY:
            # Nodes that it lacks from here on were removed on purpose.
            self.expected = 0

    def started(self, *, same: bool) -> None:
        """Begin anew with a new process. `same`: it has the same run as the one before, whose
        failures then count."""
        self.judged = Judged(
            since=self.loop.clock(),
            failures=self.judged.failures if same else 0,
            why=self.judged.why if same else "",
            restarts=self.process.restarts,
        )
        self.health = Health()
