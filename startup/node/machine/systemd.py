"""systemd, through systemctl."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

# Seconds for a call. With thousands of units a reload takes PID 1 up to 20 s (docs/FACTS.md).
TIMEOUT = 40.0
# Seconds for a call once pilot-node has to end: the drain needs the time.
HURRIED = 10.0
# Units on one command line: far below the kernel's limit.
BATCH = 500
_PROPERTIES = "Id,ActiveState,Job,Result,ExecMainStatus,MainPID,NRestarts"


class SystemdError(Exception):
    """systemctl failed or did not answer. The text has its message."""


@dataclass(frozen=True, kw_only=True)
class UnitState:
    """systemd's state of a unit."""

    active: str
    job: bool
    """A job of the unit is queued or at work."""
    result: str
    exit_status: str
    pid: int = 0
    """Of the main process, 0 for none."""
    restarts: int = 0
    """By systemd itself."""

    @property
    def ended(self) -> bool:
        """Whether it does not run, and is not about to."""
        return self.active in ("inactive", "failed") and not self.job


class Systemd(Protocol):
    """The calls that pilot-node makes."""

    def start(self, units: Sequence[str]) -> None: ...
    def stop(self, units: Sequence[str]) -> None: ...
    def states(self, units: Sequence[str]) -> dict[str, UnitState]: ...
    def stopping(self) -> bool: ...
    def hurry(self) -> None: ...


class Systemctl:
    """systemctl. No call waits for a unit: jobs are queued, and their effect is observed."""

    def __init__(self) -> None:
        self._timeout = TIMEOUT

    def start(self, units: Sequence[str]) -> None:
        self._queue("start", units)

    def stop(self, units: Sequence[str]) -> None:
        self._queue("stop", units)

    def states(self, units: Sequence[str]) -> dict[str, UnitState]:
        """The state of each of `units`. Each is a call to PID 1, so ask for few."""
        found = {}
        for batch in _batches(units):
            text = self._run("show", f"--property={_PROPERTIES}", *batch)
            for block in text.strip().split("\n\n"):
                fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
                if "Id" in fields:
                    found[fields["Id"]] = UnitState(
                        active=fields.get("ActiveState", ""),
                        job=fields.get("Job", "0") not in ("", "0"),
                        result=fields.get("Result", ""),
                        exit_status=fields.get("ExecMainStatus", ""),
                        pid=int(fields.get("MainPID") or 0),
                        restarts=int(fields.get("NRestarts") or 0),
                    )
        return found

    def stopping(self) -> bool:
        """Whether the system goes down: a job for that is queued or at work."""
        # It exits with 1 unless it says "running".
        return self._call("is-system-running").stdout.strip() == "stopping"

    def hurry(self) -> None:
        """From now on wait HURRIED seconds at most, also in a call that is under way."""
        self._timeout = HURRIED

    def _queue(self, verb: str, units: Sequence[str]) -> None:
        for batch in _batches(units):
            self._run("--no-block", verb, *batch)

    def _run(self, *arguments: str) -> str:
        done = self._call(*arguments)
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            raise SystemdError(f"systemctl {' '.join(arguments[:3])}: {said[:500]}")
        return done.stdout

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        begun = time.monotonic()
        try:
            with subprocess.Popen(
                ["systemctl", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                while True:
                    try:
                        out, err = process.communicate(timeout=0.5)
                        break
                    except subprocess.TimeoutExpired:
                        # Read each time: `hurry` may have shortened it.
                        if time.monotonic() - begun >= self._timeout:
                            process.kill()
                            raise
        except subprocess.TimeoutExpired as error:
            raise SystemdError(
                f"systemctl {' '.join(arguments[:3])}: no answer within {self._timeout:.0f} s"
            ) from error
        except OSError as error:
            raise SystemdError(f"systemctl {arguments[0]}: {error}") from error
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _batches(units: Sequence[str]) -> Iterable[Sequence[str]]:
    for first in range(0, len(units), BATCH):
        yield units[first : first + BATCH]
