"""What the loops of both roles share: when something is due, what failed, which release is
wanted."""

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

from .desired.spec import Binary
from .follower import AnySpec, Follower
from .machine.errors import NotReadyError
from .machine.kernel_log import KernelLog
from .machine.paths import Paths
from .machine.retry import FinalError
from .machine.state_disk import StateDisk
from .machine.systemd import SystemdError
from .report.status import RollStatus, Said
from .rollout import roll_state
from .rollout import rollout as rolls
from .setup import release
from .setup.limits import LimitsError

# Seconds between two looks at the state disk.
DISK = 10.0

# Seconds without a failure after which the same one is another, and said again.
FORGOTTEN = 60.0

# What can fail in a round, and must not end the service.
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
    """The loop's parts and what it remembers, whatever the role."""

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
    # When each failure was last met.
    _failures: dict[str, float] = field(default_factory=dict)
    # What became of the roll is not on disk yet.
    _unwritten: bool = False
    disk: StateDisk = field(init=False)

    def __post_init__(self) -> None:
        self.disk = StateDisk(self.paths, self.say)

    def keep_disk(self) -> None:
        """What is free on the state disk, and growing it: no reason for anything else to wait."""
        if not self.is_due("disk", DISK):
            return
        try:
            problem = self.disk.look()
        except FileNotFoundError:
            # A disk that was taken away: whoever needs it says so.
            return
        except OSError as error:
            problem = str(error)
        if problem:
            self.fault(problem)

    def fault(self, text: str, *, said: bool = False) -> None:
        """Something failed: said when it is new (and was not `said` before), and part of the
        status. Two that alternate are said once each."""
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
        """`what` is due."""
        self._due.pop(what, None)

    def target(self, spec: AnySpec) -> roll_state.Release:
        """The release that `spec` asks for."""
        return roll_state.Release(version=spec.version, sha256=spec.binary.sha256)

    def accepted(self, spec: AnySpec) -> roll_state.Release:
        """The release that is accepted here; while none is known, the one of `spec`."""
        return (self.roll and self.roll.accepted) or self.target(spec)

    def rolled(self, new: roll_state.RollState) -> None:
        """The roll is at `new`, and on disk before anything follows from it: what is tried must be
        known after a crash. What tries nothing more, the way back first of all, is in force where
        the disk does not take it as well, and is written as soon as it does. Raises OSError, and
        then the roll is where it was, but for another release on trial, whose trial is over."""
        if new == self.roll and not self._unwritten:
            return
        # Also after an error: one of the two files may have been written.
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
        """Have on disk what is accepted, first, and what `spec` asks for. What is accepted and
        cannot be had is said: who ends now cannot be started."""
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
    """How the roll stands, of `agents` that are wanted."""
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
    """From here on the process ends when a thread dies of an exception. That is a mistake in this
    tree; half of a service is worse than one that systemd starts again."""
    threading.excepthook = partial(_died, say)


def _died(say: Callable[[str], None], what: threading.ExceptHookArgs) -> None:
    name = what.thread.name if what.thread else "a thread"
    # Also where nobody takes what is said.
    with suppress(OSError):
        say(f"{name} died: {what.exc_type.__name__}: {what.exc_value}; pilot-node ends")
        traceback.print_exception(what.exc_type, what.exc_value, what.exc_traceback)
    os._exit(70)
