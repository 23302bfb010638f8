"""Has the process that is wanted: planned stops and starts. After a crash systemd starts it again.

Before a planned stop the registry is saved and copied. A release on trial is recorded before its
first start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..desired.orders import Standing
from ..desired.spec import Binary
from ..machine import files
from ..rollout import roll_state
from ..rollout import rollout as rolls
from ..setup import release
from . import access_tokens, banner, runs, trials
from .banner import Banner
from .context import LoopContext
from .descriptors import DescriptorLimit
from .observer import Observer
from .registry_keeper import RegistryKeeper
from .runs import Run
from .token_keeper import TokenKeeper


@dataclass(kw_only=True)
class ProcessKeeper:
    """Stops and starts the process that `observer` looks at."""

    loop: LoopContext
    observer: Observer
    registry: RegistryKeeper
    tokens: TokenKeeper
    banner: Banner
    descriptors: DescriptorLimit

    def keep(self, wanted: Run | None, standing: Standing, now: float) -> None:
        """Have the process that is `wanted`, or none while held. `wanted` is None while its binary
        is not on disk: the running process goes on. Raises OSError, SystemdError."""
        process = self.observer.process
        if standing.hold:
            if not process.gone and not process.job:
                self._stop("held", standing, save=True)
            return
        if wanted is None:
            return
        running = runs.running(self.loop.paths)
        if process.gone:
            if not self.tokens.is_worth_waiting_for(now):
                self._start(wanted, running, standing)
        elif running != wanted and not process.job:
            if not self._has_what_is_ordered(standing):
                return
            # A rejected release may have read nothing: its file is not worth a copy.
            rejected = running is not None and trials.is_rejected(running, self.loop.roll)
            why = runs.difference(running, wanted)
            self._stop(why, standing, save=not rejected, then=wanted)
        else:
            if process.active == "activating":
                # systemd starts it again and again: it may be a copy that it needs.
                self.registry.is_ready()
            else:
                # It has what it needs: a search that goes on would keep copies from being stored.
                self.registry.started()
                self.registry.end_permit()
            self.descriptors.raise_to_spec(process.pid)

    def wanted(
        self, state: roll_state.RollState, restart: str, on_disk: frozenset[str]
    ) -> Run | None:
        """The run that the process should have. `on_disk`: the releases that are there."""
        spec = self.loop.spec
        found = rolls.releases(state, (spec.registry_port,)).get(spec.registry_port)
        if found is None or found.sha256 not in on_disk:
            return None
        return runs.wanted(self.loop.paths, spec, found.sha256, self.tokens.config, restart)

    def show_banner(self, text: str) -> None:
        """Raises OSError."""
        self.banner.show(text, self.tokens.admin, active=self.observer.is_active)

    def save(self) -> None:
        self.registry.save(active=self.observer.is_active)

    def _stop(self, why: str, standing: Standing, *, save: bool, then: Run | None = None) -> None:
        loop = self.loop
        if save:
            self.save()
        if trials.is_on_trial(then, loop.roll) and trials.current(loop.paths) is None:
            # Where either raises, the running process stays: no trial without a way back.
            self.registry.copy()
            trials.begin(loop.paths, then)
        loop.say(f"the rendezvous is stopped: {why}")
        text = standing.orders.banner or banner.RESTARTING
        loop.attempt(partial(self.show_banner, text))
        self.observer.unit.stop()

    def _has_what_is_ordered(self, standing: Standing) -> bool:
        """Whether the copy that a restart is to put back is on the disk. The registry goes on until
        it is: a name may be wrong, and the bucket away."""
        orders = standing.orders
        is_due = bool(orders.restore) and self.registry.is_to_clean(orders.restart)
        return not is_due or self.registry.has(orders.restore)

    def _start(self, wanted: Run, before: Run | None, standing: Standing) -> None:
        loop, paths, orders = self.loop, self.loop.paths, standing.orders
        now = loop.wall_clock()
        ordered = orders.restart if orders.clean or orders.restore else ""
        is_due = bool(ordered) and self.registry.is_to_clean(ordered)
        if is_due and orders.restore and not self.registry.has(orders.restore):
            return
        if not is_due and not self.registry.is_ready():
            return
        self._take_up_trial(wanted, before, now)
        if is_due and orders.restore:
            self.registry.restore(ordered, orders.restore, now)
        elif is_due:
            self.registry.clean(ordered, now)
        if is_due and trials.is_on_trial(wanted, loop.roll):
            trials.begin(paths, wanted)
        access_tokens.write(paths.rendezvous_config, self.tokens.config)
        files.write(paths.rendezvous_environment, runs.environment(paths, loop.spec), 0o600)
        release.use(Binary.of(loop.spec.binary.name, wanted.release), paths.opt)
        self.banner.forget()
        loop.attempt(partial(self.banner.set, orders.banner, self.tokens.admin))
        self.observer.expected = self.registry.nodes_to_read(now)
        runs.remember(paths, wanted)
        self.observer.unit.start()
        self.observer.started(same=before is not None and before == wanted)
        loop.say(f"the rendezvous is started, release {wanted.release[:12]}")

    def _take_up_trial(self, wanted: Run, before: Run | None, now: float) -> None:
        """Begin, go on with or end a trial, and mend the registry after one."""
        loop, paths = self.loop, self.loop.paths
        trial = trials.current(paths)
        if trial and trial.release != wanted.release:
            self.registry.mend(now)
        elif before and before.release != wanted.release:
            # The registry as the old binary left it, before the new one touches it.
            loop.attempt(self.registry.copy)
        if trials.is_on_trial(wanted, loop.roll):
            if trial is None or trial.release != wanted.release:
                trials.begin(paths, wanted)
        elif trial:
            loop.attempt(partial(trials.end, paths))
