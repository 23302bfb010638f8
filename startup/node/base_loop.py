"""The part that is the same in both loops: what is due, what failed, which release is wanted."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from .desired.spec import Binary, SwarmSpec
from .follower import AnySpec, Follower
from .machine import console
from .machine.errors import NotReadyError
from .machine.kernel_log import KernelLog
from .machine.paths import Paths
from .machine.retry import FinalError
from .machine.state_disk import StateDisk
from .machine.systemd import SystemdError
from .report.status import RollStatus, Said
from .rollout import roll_state
from .rollout import rollout as rolls
from .setup import kernel, release
from .setup.limits import LimitsError

# Seconds between two looks at the state disk.
DISK = 10.0

# Seconds after which the same failure is logged again, where it was not met meanwhile.
FORGOTTEN = 60.0

# Failures of a round that must not end the service.
FAILURES: Final = (
    FinalError,
    LimitsError,
    NotReadyError,
    OSError,
    SystemdError,
    subprocess.SubprocessError,
)


@dataclass(kw_only=True)
class Loop:
    """The parts and the state of a loop, of either role."""

    paths: Paths
    follower: Follower
    fetcher: release.Fetcher
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    kernel_log: KernelLog | None = None
    roll: roll_state.RollState | None = None
    last_error: Said | None = None
    _due: dict[str, float] = field(default_factory=dict)
    _failures: dict[str, float] = field(default_factory=dict)
    """When each failure was last met."""
    _unwritten: bool = False
    """Whether the roll's state is not on disk yet."""
    disk: StateDisk = field(init=False)

    def __post_init__(self) -> None:
        self.disk = StateDisk(self.paths, self.say)

    def look(self) -> bool:
        """Take what the sources say; whether something changed. Where it cannot be applied now it
        is tried again, and the VM stays at the last known spec."""
        try:
            return bool(self.follower.look())
        except FAILURES as error:
            self.fault(str(error))
            return False

    def check_kernel(self) -> None:
        """Say which numbers of the kernel are not as the startup script wants them, also on the
        serial console. pilot-node itself sets none."""
        has_agents = isinstance(self.follower.known.spec, SwarmSpec)
        if problem := kernel.problem(self.paths, has_agents=has_agents):
            self.fault(problem)
            console.tell(self.paths, f"pilot: {problem}")

    def keep_disk(self) -> None:
        """Measure the state disk, and grow it. A failure is logged, and the round goes on."""
        if not self.is_due("disk", DISK):
            return
        try:
            problem = self.disk.look()
        except FileNotFoundError:
            # The disk was taken away. The parts that need it say so.
            return
        except OSError as error:
            problem = str(error)
        if problem:
            self.fault(problem)

    def fault(self, text: str, *, said: bool = False) -> None:
        """Something failed. It is logged when it is new (unless it was `said` already), and is
        part of the status. Failures that alternate are logged once each."""
        now = self.clock()
        known = {t: at for t, at in self._failures.items() if now - at < FORGOTTEN}
        if text not in known:
            self.last_error = Said(text=text, time=self.wall_clock())
            if not said:
                self.say(text)
        self._failures = known | {text: now}

    def is_due(self, what: str, every: float) -> bool:
        """Whether `every` seconds have passed since this was last true of `what`."""
        now = self.clock()
        if now < self._due.get(what, float("-inf")):
            return False
        self._due[what] = now + every
        return True

    def at_once(self, what: str) -> None:
        """Make `what` due now."""
        self._due.pop(what, None)

    def target(self, spec: AnySpec) -> roll_state.Release:
        """The release that `spec` asks for."""
        return roll_state.Release(version=spec.version, sha256=spec.binary.sha256)

    def accepted(self, spec: AnySpec) -> roll_state.Release:
        """The release that is accepted here; while none is known, the one of `spec`."""
        return (self.roll and self.roll.accepted) or self.target(spec)

    def rolled(self, new: roll_state.RollState) -> None:
        """Set the roll to `new`, and write it to disk first: after a crash it must be known what
        was tried. A state that tries nothing more, as on the way back, is set also where the disk
        refuses it, and is written later.

        Raises OSError where `new` tries more and cannot be written. The roll then stays as it was;
        where its target changed, the trial of the old target ends.
        """
        if new == self.roll and not self._unwritten:
            return
        # Until both files are written: after an error one of them may be.
        self._unwritten = True
        try:
            self.follower.ensure_state()
            roll_state.remember(self.paths, new)
        except OSError as error:
            if rolls.tries_more(self.roll, new):
                if self.roll and self.roll.target != new.target:
                    self.roll = rolls.waiting(self.roll, new.target)
                raise
            self.fault(str(error))
        else:
            self._unwritten = False
        self.roll = new

    def want(self, spec: AnySpec, state: roll_state.RollState) -> None:
        """Have the accepted release on disk, and then the one of `spec`. It is a fault where the
        accepted one cannot be fetched: an agent that ends cannot be started again."""
        wanted = dict.fromkeys(r.sha256 for r in (state.accepted, self.target(spec)) if r)
        self.fetcher.want(
            release.Wanted(
                binaries=tuple(Binary.of(spec.binary.name, sha256) for sha256 in wanted),
                endpoint=spec.storage,
                bucket=spec.bucket,
            )
        )
        problem = self.fetcher.problems().get(state.accepted.sha256) if state.accepted else None
        if problem:
            self.fault(problem, said=True)


def roll_status(state: roll_state.RollState, agents: int) -> RollStatus:
    """The roll, for the status. `agents`: how many are wanted."""
    target = state.target if state.state != roll_state.NONE else None
    return RollStatus(
        state=state.state,
        version=target.version if target else "",
        sha256=target.sha256 if target else "",
        done=state.done,
        of=agents if target else 0,
        reason=state.reason,
        rejected=state.rejected,
    )


def end_with_any_thread(say: Callable[[str], None]) -> None:
    """From here on the process ends when a thread dies of an exception (a bug). systemd then
    starts it again, whole."""
    threading.excepthook = partial(_died, say)


def _died(say: Callable[[str], None], what: threading.ExceptHookArgs) -> None:
    name = what.thread.name if what.thread else "a thread"
    # It ends also where the message cannot be written.
    with suppress(OSError):
        say(f"{name} died: {what.exc_type.__name__}: {what.exc_value}; pilot-node ends")
        traceback.print_exception(what.exc_type, what.exc_value, what.exc_traceback)
    os._exit(70)
