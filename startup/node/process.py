"""The rendezvous' process: as systemd has it, what it says of itself on loopback, and what is to be
thought of it. What is done about that is rendezvous.py's."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from dataclasses import dataclass, replace
from typing import Final, Protocol

from . import web
from .retry import FinalError, TemporaryError
from .spec import RendezvousSpec
from .systemd import Systemctl, SystemdError

UNIT: Final = "pilot-rendezvous.service"

# Seconds. Start: upstream reads 45 MB in a few; without an answer by then the process hangs.
# Steady: up for so long, its earlier failures are forgotten.
START = 90.0
STEADY = 60.0
# One that has answered once is to go on: silent for so long, it has failed on trial, and is said to
# be silent when it is accepted.
MUTE = 20.0
# Of nodes that its file holds, the part that a rendezvous must know once it has read it.
KNOWN = 0.5
# No more digits than a number of nodes can have: int() refuses thousands of them.
_TOTAL = re.compile(rb'"total_nodes":\s*(\d{1,18})(?!\d)')
_ACTIVE = re.compile(rb'"active_nodes":\s*(\d{1,18})(?!\d)')
_MOST = 10**18
# Lines of the journal that are looked at: before a start `pilot-node store` says of each bad file
# and copy what it does, some two dozen at most; __main__ begins these so.
_LINES = 100
_DOES = "pilot:   "


@dataclass(frozen=True, kw_only=True)
class Process:
    """The unit as systemd has it. `restarts`: by systemd itself."""

    active: str = "inactive"
    pid: int = 0
    restarts: int = 0
    job: bool = False
    why: str = ""

    @property
    def gone(self) -> bool:
        return self.active in ("inactive", "failed") and not self.job


class Unit(Protocol):
    """The unit of the rendezvous; nothing waits. Raises SystemdError."""

    def process(self) -> Process: ...
    def last_line(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class SystemdUnit:
    """The real one."""

    def __init__(self, systemctl: Systemctl | None = None) -> None:
        self._systemctl = systemctl or Systemctl()

    def start(self) -> None:
        self._systemctl.start([UNIT])

    def stop(self) -> None:
        self._systemctl.stop([UNIT])

    def process(self) -> Process:
        state = self._systemctl.states([UNIT]).get(UNIT)
        if state is None:
            raise SystemdError(f"systemctl show {UNIT}: says nothing of it")
        return Process(
            active=state.active,
            pid=state.pid,
            restarts=state.restarts,
            job=state.job,
            why=f"{state.result}, exit status {state.exit_status}",
        )

    def last_line(self) -> str:
        """What the rendezvous said last, or why `pilot-node store` let it not start: at most 200
        printable characters; "" where neither said anything for START seconds (an earlier one's
        word is no reason), or the journal cannot be had."""
        command = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={_LINES}"]
        command += [f"--since=-{START:.0f}s", f"_SYSTEMD_UNIT={UNIT}"]
        command.append(f"SYSLOG_IDENTIFIER={UNIT.removesuffix('.service')}")
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        lines = done.stdout.decode(errors="replace").strip().split("\n")
        # `store` tells in the same unit what it does before each start: no reason for an end.
        lines = [line for line in lines if not line.startswith(_DOES)] or [""]
        return "".join(c for c in lines[-1] if c.isprintable())[-200:]


@dataclass(frozen=True, kw_only=True)
class Health:
    """What the process said last. `total` is None where it does not tell."""

    answers: bool = False
    why: str = "not asked yet"
    online: int | None = None
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is remembered of the process from round to round. Times in seconds of the clock.

    `since`: when it was last told to start, or first seen; `up`: since when it has answered;
    `mute`: since when it does not any more; `failures`: in a row, with `why`; `hangs`: it is to be
    ended; `pid` and `restarts`: as last seen.
    """

    since: float | None = None
    up: float | None = None
    mute: float | None = None
    failures: int = 0
    why: str = ""
    hangs: bool = False
    pid: int = 0
    restarts: int = 0

    def is_mute(self, now: float) -> bool:
        """It was up, and has been silent for too long."""
        return self.mute is not None and now - self.mute >= MUTE


def judge(
    judged: Judged,
    process: Process,
    health: Health,
    now: float,
    expected: int,
    *,
    trial: bool = False,
) -> Judged:
    """`judged`, after the process was seen as `process` and said `health`. `expected`: the nodes
    in the file that it was started with. `trial`: its release is not accepted yet. Of any other
    one that was up silence is taken for work, and it is not ended: agents that come back all at
    once are work, and a restart has them come back once more. People are told, and decide."""
    failures, why, up, hangs = judged.failures, judged.why, judged.up, False
    again = process.restarts - judged.restarts
    if again > 0 or process.active == "failed":
        failures, why, up = failures + max(1, again), f"exits: {process.why}", None
    elif judged.pid and process.pid and process.pid != judged.pid:
        up = None
    since = now if again > 0 else judged.since
    if since is None and process.active == "active":
        # Started by an earlier pilot-node: it has its time from here on.
        since = now
    if process.active != "active":
        up = None
    elif health.answers and up is None:
        up = now
    elif not health.answers and up is None and since is not None and now - since > START:
        failures, why = failures + 1, f"no answer in {START:.0f} s: {health.why}"
        since, hangs = now, True
    mute = _mute_since(judged, up, health, now)
    if trial and mute is not None and now - mute >= MUTE:
        failures, why = max(failures, 2), f"no answer for {MUTE:.0f} s: {health.why}"
    elif up is not None and health.total is not None and health.total < expected * KNOWN:
        # At once: its next snapshot replaces the file.
        failures = max(failures, 2)
        why = f"it knows {health.total} of the {expected} nodes that its file holds"
    elif up is not None and now - up >= STEADY:
        failures, why = 0, ""
    return Judged(
        since=since,
        up=up,
        mute=mute,
        failures=failures,
        why=why,
        hangs=hangs,
        pid=process.pid,
        restarts=process.restarts,
    )


def _mute_since(judged: Judged, up: float | None, health: Health, now: float) -> float | None:
    if up is None or health.answers:
        return None
    return now if judged.mute is None else judged.mute


def ask(spec: RendezvousSpec, before: Health, *, numbers: bool) -> Health:
    """What the rendezvous of `spec` says on loopback. With `numbers`, and where another number is
    online than before, it is asked for its nodes: both numbers are of one answer of `/api/stats`.
    `/healthz` newer ones have only."""
    base = f"http://127.0.0.1:{spec.dashboard_port}"
    try:
        with socket.create_connection(("127.0.0.1", spec.registry_port), 5.0):
            pass
    except OSError as error:
        return Health(why=f"port {spec.registry_port}: {error.strerror or error}")
    try:
        online: int | None = None
        with web.get(f"{base}/healthz", {}, 5.0) as answer:
            if answer.status == 200:
                online = _number(answer.body(64 << 10), "nodes_online")
            elif answer.status != 404:
                return Health(why=f"/healthz: {answer.status} {answer.reason}")
            old = answer.status == 404
        if not numbers and not old and online == before.online:
            return replace(before, answers=True, why="")
        total, active = _stats(base)
    except (TemporaryError, FinalError) as error:
        return Health(why=str(error))
    return Health(answers=True, why="", online=online if active is None else active, total=total)


def post(url: str, seconds: float) -> int:
    """The status of the answer to a POST without a body. Raises TemporaryError, FinalError."""
    with web.request("POST", url, {"Content-Length": "0"}, timeout=seconds) as answer:
        return answer.status


def _stats(base: str) -> tuple[int | None, int | None]:
    """Total and active nodes; the answer may list every node, megabytes of them, in between."""
    found: dict[re.Pattern[bytes], int] = {}
    with web.get(f"{base}/api/stats", {}, 10.0) as answer:
        if answer.status != 200:
            return None, None
        left = b""
        for chunk in answer.chunks(30.0):
            text = left + chunk
            for pattern in (_TOTAL, _ACTIVE):
                match = pattern.search(text)
                # A number at the very end may go on.
                if match and match.end() < len(text):
                    found.setdefault(pattern, int(match[1]))
            if len(found) == 2:
                break
            left = text[-64:]
    return found.get(_TOTAL), found.get(_ACTIVE)


def _number(body: bytes, name: str) -> int | None:
    try:
        value = json.loads(body)[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST
    return value if known else None
