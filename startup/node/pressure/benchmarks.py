"""Runs benchmarks in a slice of their own, and freezes them while memory is short.

`pilot-node bench -- COMMAND` runs a command in SLICE. The service looks at memory every second. It
freezes all benchmarks below FREEZE_BELOW, thaws them above THAW_ABOVE (the gap avoids flapping),
and freezes them while an order says so. Frozen benchmarks keep their memory and take no more. If
memory runs out all the same, the kernel ends them first: they have the highest OOM score.

The slice is not named `pilot-bench.slice`: that would be a part of pilot.slice, within the agents'
memory limit, and stopped with them (docs/DECISIONS.md).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from ..machine.paths import Paths
from ..machine.retry import FinalError
from ..setup.limits import NR_OPEN

SLICE: Final = "pilotbench.slice"
# Available parts of the VM's memory (docs/FACTS.md).
FREEZE_BELOW: Final = 0.20
THAW_ABOVE: Final = 0.25

NONE, RUNNING, FROZEN, PAUSED = "none", "running", "frozen", "paused"

# Variables of the caller's environment that a command gets. Not all of them: a service should not
# have the whole environment of a login. systemd sets name and home.
_VARIABLES: Final = ("PATH", "LANG", "TERM")


def short(was: bool, *, available: int | None, total: int | None) -> bool:
    """Whether memory is short for benchmarks. `was`: whether it was a moment ago; also the answer
    where the bytes are not known."""
    if available is None or not total:
        return was
    share = available / total
    return share <= THAW_ABOVE if was else share < FREEZE_BELOW


class Freezer(Protocol):
    """Freezes all processes of the slice."""

    def populated(self) -> bool:
        """Whether there are any."""
        ...

    def frozen(self) -> bool: ...

    def set(self, frozen: bool) -> None:
        """Freeze or thaw all processes, and those that they start. Raises OSError."""
        ...


@dataclass(kw_only=True)
class Governor:
    """Decides whether benchmarks are frozen. Each change is logged."""

    freezer: Freezer
    say: Callable[[str], None]
    _short: bool | None = None
    _was: str = NONE

    def step(self, *, paused: bool, available: int | None, total: int | None) -> str:
        """Freeze or thaw where that is due. The state of benchmarks: none, running, frozen (memory)
        or paused (order). Raises OSError."""
        frozen = self.freezer.frozen()
        # At the first step: as an earlier pilot-node left it.
        before = frozen if self._short is None else self._short
        self._short = short(before, available=available, total=total)
        there = self.freezer.populated()
        wanted = paused or (self._short and there)
        if wanted != frozen:
            self.freezer.set(wanted)
        now = PAUSED if paused else FROZEN if wanted else RUNNING if there else NONE
        if now != self._was:
            self._say_change(now, available, total)
            self._was = now
        return now

    def close(self) -> None:
        """Thaw: after this process nothing would. A frozen command also ignores SIGTERM, and would
        delay a power-off. Raises OSError."""
        if self.freezer.frozen():
            self.freezer.set(False)

    def _say_change(self, now: str, available: int | None, total: int | None) -> None:
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
    """Freezes the slice's cgroup through `cgroup.freeze`, which needs no controller. Not by
    `systemctl freeze`, which waits for PID 1."""

    paths: Paths

    def populated(self) -> bool:
        for folder, _, _ in os.walk(self._cgroup()):
            try:
                if (Path(folder) / "cgroup.procs").read_text(encoding="ascii"):
                    return True
            except OSError:
                # It ended meanwhile.
                continue
        return False

    def frozen(self) -> bool:
        try:
            return self._switch().read_text(encoding="ascii").strip() == "1"
        except FileNotFoundError:
            return False

    def set(self, frozen: bool) -> None:
        if not self._switch().exists() or self.frozen() == frozen:
            return
        # Without O_CREAT: the slice may be gone.
        handle = os.open(self._switch(), os.O_WRONLY)
        try:
            os.write(handle, b"1" if frozen else b"0")
        finally:
            os.close(handle)

    def _cgroup(self) -> Path:
        return self.paths.at(f"/sys/fs/cgroup/{SLICE}")

    def _switch(self) -> Path:
        return self._cgroup() / "cgroup.freeze"


def command(
    argv: Sequence[str], *, unit: str, terminal: bool, environment: Mapping[str, str]
) -> list[str]:
    """The command that runs `argv` in the slice: as a service that is waited for, in the same
    directory, and as the user who called sudo."""
    options = [
        *("systemd-run", "--quiet", "--wait", "--collect", "--same-dir", "--service-type=exec"),
        "--pty" if terminal else "--pipe",
        f"--slice={SLICE}",
        f"--unit={unit}",
        "--description=Benchmark",
        # Ended first when memory runs out; agents have 500.
        "--property=OOMScoreAdjust=1000",
        # The slice has a limit. The default of a service is 15 % of the kernel's.
        "--property=TasksMax=infinity",
        f"--property=LimitNOFILE={NR_OPEN}",
        "--property=LimitNPROC=infinity",
        "--property=TimeoutStopSec=10",
    ]
    # sudo is needed for this command only, and not for the benchmark.
    if (user := environment.get("SUDO_UID", "0")) != "0" and user.isdigit():
        options.append(f"--uid={user}")
        if (group := environment.get("SUDO_GID", "")).isdigit():
            options.append(f"--gid={group}")
    options += [
        f"--setenv={name}={environment[name]}" for name in _VARIABLES if environment.get(name)
    ]
    # Escaped: systemd would replace `$NAME`, which the caller's shell has done already.
    return [*options, "--", argv[0], *(word.replace("$", "$$") for word in argv[1:])]


def run(
    argv: Sequence[str], *, environment: Mapping[str, str], terminal: bool | None = None
) -> int:
    """Run `argv` as a benchmark and wait for it; its exit status, 128 + N for signal N. A signal to
    this process ends the benchmark as well. Raises FinalError where it cannot be run."""
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
            # systemd-run alone would leave the benchmark running.
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
