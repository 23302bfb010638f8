"""Benchmarks: run in a slice of their own, and frozen while memory is short.

`pilot-node bench -- COMMAND` runs a command in SLICE; the pilot-node of the service looks at memory
every second and freezes all of them below FREEZE_BELOW, thaws them above THAW_ABOVE (a gap, so that
it does not flap), and freezes them while an order says so. Frozen, they keep what they hold and
take no more. Should memory run out all the same, they are the first that the kernel ends: their OOM
score is the highest there is.

The slice is not `pilot-bench.slice`: by its name that is a part of pilot.slice, within the agents'
memory limit, counted as theirs and stopped with them (docs/DECISIONS.md).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from ..machine.paths import Paths
from ..machine.retry import FinalError
from ..setup.limits import NR_OPEN

SLICE: Final = "pilotbench.slice"
# Shares of the VM's memory that are available (docs/FACTS.md).
FREEZE_BELOW: Final = 0.20
THAW_ABOVE: Final = 0.25

NONE, RUNNING, FROZEN, PAUSED = "none", "running", "frozen", "paused"

# What a command gets of its caller's environment. All of it would be more than a service should
# have of somebody's login; these are what programs need to find things and to draw. Name and home
# systemd gives it itself.
_VARIABLES: Final = ("PATH", "LANG", "TERM")


def short(was: bool, *, available: int | None, total: int | None) -> bool:
    """Whether memory is short for benchmarks, which it `was` or was not a moment ago. Bytes;
    where it is not known, it is as it was."""
    if available is None or not total:
        return was
    share = available / total
    return share <= THAW_ABOVE if was else share < FREEZE_BELOW


class Freezer(Protocol):
    """The processes of the slice, as a whole."""

    def populated(self) -> bool:
        """Whether there are any."""
        ...

    def frozen(self) -> bool: ...

    def set(self, frozen: bool) -> None:
        """Freeze or thaw all, and whatever they start; raises OSError."""
        ...


@dataclass(kw_only=True)
class Governor:
    """Keeps benchmarks frozen or not. `say` gets a line at each change."""

    freezer: Freezer
    say: Callable[[str], None]
    _short: bool | None = None
    _was: str = NONE

    def step(self, *, paused: bool, available: int | None, total: int | None) -> str:
        """Do what is to be done now; how benchmarks are: none, running, frozen (memory), paused
        (order). Raises OSError."""
        frozen = self.freezer.frozen()
        # A pilot-node that was restarted goes on with what its predecessor decided.
        before = frozen if self._short is None else self._short
        self._short = short(before, available=available, total=total)
        there = self.freezer.populated()
        wanted = paused or (self._short and there)
        # Again at each step while frozen by signals: what was started since runs.
        if wanted or frozen:
            self.freezer.set(wanted)
        now = PAUSED if paused else FROZEN if wanted else RUNNING if there else NONE
        if now != self._was:
            self._told(now, available, total)
            self._was = now
        return now

    def close(self) -> None:
        """Thaw: nobody would after this process. A frozen command would also not end by SIGTERM,
        and hold up a power-off. Raises OSError."""
        if self.freezer.frozen():
            self.freezer.set(False)

    def _told(self, now: str, available: int | None, total: int | None) -> None:
        if now == FROZEN:
            self.say(f"benchmarks frozen: {_percent(available, total)} of memory is available")
        elif now == PAUSED:
            self.say("benchmarks paused by order")
        elif self._was in (FROZEN, PAUSED):
            self.say(f"benchmarks go on: {_percent(available, total)} of memory is available")


def _percent(available: int | None, total: int | None) -> str:
    return "an unknown part" if available is None or not total else f"{available / total:.0%}"


@dataclass(kw_only=True)
class CgroupFreezer:
    """The slice's cgroup. With cgroup v2 (a VM; it needs no controller, so v2 beside a host's v1
    will do) the kernel freezes it as a whole, through `cgroup.freeze`. Not through `systemctl
    freeze`, which waits for PID 1. Where there is only v1 (a container of such a host), SIGSTOP is
    sent to each process, again and again as they start others: the last resort, for a benchmark
    can see it, and undo it."""

    paths: Paths
    kill: Callable[[int, int], None] = os.kill

    def populated(self) -> bool:
        return next(self._processes(), None) is not None

    def frozen(self) -> bool:
        if (switch := self._switch()) is not None:
            return switch.read_text(encoding="ascii").strip() == "1"
        return any(self._is_stopped(process) for process in self._processes())

    def set(self, frozen: bool) -> None:
        if (switch := self._switch()) is not None:
            if self.frozen() != frozen:
                # Never with O_CREAT: where it is gone, so is the slice.
                handle = os.open(switch, os.O_WRONLY)
                try:
                    os.write(handle, b"1" if frozen else b"0")
                finally:
                    os.close(handle)
            return
        for process in list(self._processes()):
            try:
                self.kill(process, signal.SIGSTOP if frozen else signal.SIGCONT)
            except ProcessLookupError:
                continue

    def _cgroup(self) -> Path | None:
        for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"):
            if (path := self.paths.at(f"{root}/{SLICE}")).is_dir():
                return path
        return None

    def _switch(self) -> Path | None:
        path = self._cgroup()
        found = path / "cgroup.freeze" if path is not None else None
        return found if found is not None and found.is_file() else None

    def _processes(self) -> Iterator[int]:
        if (base := self._cgroup()) is None:
            return
        for folder, _, _ in os.walk(base):
            try:
                text = (Path(folder) / "cgroup.procs").read_text(encoding="ascii")
            except OSError:
                # Ended in between.
                continue
            yield from map(int, text.split())

    def _is_stopped(self, process: int) -> bool:
        try:
            text = self.paths.at(f"/proc/{process}/stat").read_text("utf-8", "replace")
        except OSError:
            return False
        # The name before it may hold anything, parentheses and blanks as well.
        return text.rpartition(")")[2].split()[0] in ("T", "t")


def command(
    argv: Sequence[str], *, unit: str, terminal: bool, environment: Mapping[str, str]
) -> list[str]:
    """What runs `argv` in the slice: as a service that ends with the caller's wait, with the rights
    of who called sudo, in the same directory."""
    options = [
        *("systemd-run", "--quiet", "--wait", "--collect", "--same-dir", "--service-type=exec"),
        "--pty" if terminal else "--pipe",
        f"--slice={SLICE}",
        f"--unit={unit}",
        "--description=Benchmark",
        # First of all when memory runs out; agents have 500.
        "--property=OOMScoreAdjust=1000",
        # The slice has a limit; a service would have 15 % of the kernel's.
        "--property=TasksMax=infinity",
        f"--property=LimitNOFILE={NR_OPEN}",
        "--property=LimitNPROC=infinity",
        "--property=TimeoutStopSec=10",
    ]
    # Who asked for root only to get here does not need it for a benchmark.
    if (user := environment.get("SUDO_UID", "0")) != "0" and user.isdigit():
        options.append(f"--uid={user}")
        if (group := environment.get("SUDO_GID", "")).isdigit():
            options.append(f"--gid={group}")
    options += [
        f"--setenv={name}={environment[name]}" for name in _VARIABLES if environment.get(name)
    ]
    # systemd would put the service's variables in place of `$NAME`; the shell has done that.
    return [*options, "--", argv[0], *(word.replace("$", "$$") for word in argv[1:])]


def run(
    argv: Sequence[str], *, environment: Mapping[str, str], terminal: bool | None = None
) -> int:
    """Run `argv` as a benchmark and wait for it; its exit status, 128 + N for signal N. A signal to
    this process ends it as well. Raises FinalError where it cannot be run."""
    if not argv:
        raise FinalError("bench: no command; run `pilot-node bench -- COMMAND [ARGUMENT ...]`")
    if os.geteuid() != 0:
        raise FinalError("bench: only root may start one: run it with sudo")
    if terminal is None:
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
    unit = f"pilotbench-{os.getpid()}.service"
    ended = _Signals()
    with ended:
        try:
            process = subprocess.Popen(
                command(argv, unit=unit, terminal=terminal, environment=environment)
            )
        except OSError as error:
            raise FinalError(f"bench: systemd-run: {error}") from error
        try:
            status = process.wait()
        except _Ended:
            # systemd-run alone would leave it running.
            subprocess.run(["systemctl", "stop", unit], check=False, stdin=subprocess.DEVNULL)
            process.wait()
            return 128 + ended.number
    return status if status >= 0 else 128 - status


class _Ended(BaseException):
    """A signal that asks to end."""


class _Signals:
    """While in it, SIGINT, SIGTERM and SIGHUP raise _Ended, once."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._got)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _got(self, number: int, _frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            raise _Ended
