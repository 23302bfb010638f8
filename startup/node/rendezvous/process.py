"""The rendezvous' process: its unit in systemd, its answers on loopback, and whether it is well."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ..desired.spec import RendezvousSpec
from ..machine import http_client
from ..machine.retry import FinalError, TemporaryError
from ..machine.systemd import Systemctl, SystemdError

UNIT: Final = "pilot-rendezvous.service"

# Seconds after which a new process without an answer hangs: upstream reads 45 MB in a few.
START = 90.0
# Seconds of being up after which earlier failures are forgotten.
STEADY = 60.0
# Seconds of silence, after it has answered once. On trial it has failed then; an accepted one is
# reported only.
MUTE = 20.0
# Part of the nodes in its file that a rendezvous must know once it has read it.
KNOWN = 0.5
# int() refuses a number of thousands of digits.
_TOTAL = re.compile(rb'"total_nodes":\s*(\d{1,18})(?!\d)')
_ACTIVE = re.compile(rb'"active_nodes":\s*(\d{1,18})(?!\d)')
_MOST = 10**18
# Lines of the journal that are read. Before a start, `pilot-node store` logs some two dozen.
_LINES = 100
# systemd's message IDs: a process of a unit ended, and a unit failed.
_PROCESS_EXIT = "98e322203f7a4ed290d09fe03c09fe15"
_UNIT_RESULT = "d9b373ed55a64feb8242e02dbe79a49c"
_RESULTS = {
    "oom-kill": "the VM had no memory left",
    "timeout": "it did not end in time",
    "watchdog": "its watchdog",
}
# How __main__ begins a line of a step.
_STEP_LINE = "pilot:   "


@dataclass(frozen=True, kw_only=True)
class Process:
    """The unit as systemd has it."""

    active: str = "inactive"
    """systemd's ActiveState."""
    pid: int = 0
    restarts: int = 0
    """By systemd itself."""
    job: bool = False
    """A start or stop is queued or at work."""
    why: str = ""
    """How it ended, where it did."""

    @property
    def gone(self) -> bool:
        return self.active in ("inactive", "failed") and not self.job


class Unit(Protocol):
    """The unit of the rendezvous. No call waits for a job. Raises SystemdError."""

    def process(self) -> Process: ...
    def last_end(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class SystemdUnit:
    """The unit in systemd."""

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
            # Of a unit that runs again, systemd reports the process that runs: "success".
            why=f"{state.result}, exit status {state.exit_status}"
            if state.active == "failed"
            else "systemd started it again, and does not say why",
        )

    def last_end(self) -> str:
        """How its last process ended, by systemd's record in the journal, and the last line of
        that process. "" where there is no record of the last START seconds, or the journal cannot
        be read. (`systemctl show` forgets an end once the unit is started again.)"""
        ends, result = f"MESSAGE_ID={_PROCESS_EXIT}", f"MESSAGE_ID={_UNIT_RESULT}"
        records = [
            record
            for line in self._journal("--output=json", f"UNIT={UNIT}", ends, result)
            if (record := _record(line))
        ]
        last = next((each for each in reversed(records) if "EXIT_CODE" in each), None)
        if last is None:
            return ""
        run = last.get("INVOCATION_ID", "")
        results = (each.get("UNIT_RESULT") for each in records if each.get("INVOCATION_ID") == run)
        how = _how(last, [each for each in results if each])
        # A killed process had no time to say why. One that dumped core said it itself.
        line = "" if last["EXIT_CODE"] == "killed" else self._last_line(run)
        return ": ".join(filter(None, (how, line)))

    def _last_line(self, run: str) -> str:
        """The last line in a run of the unit, of the rendezvous, or of `pilot-node store` where
        that failed: at most 200 printable characters."""
        named = f"SYSLOG_IDENTIFIER={UNIT.removesuffix('.service')}"
        lines = self._journal("--output=cat", f"_SYSTEMD_INVOCATION_ID={run}", named)
        # `store` logs its steps in the same unit: these are no reason for an end.
        lines = [line for line in lines if not line.startswith(_STEP_LINE)] or [""]
        return "".join(c for c in lines[-1] if c.isprintable())[-200:]

    @staticmethod
    def _journal(*matches: str) -> list[str]:
        command = ["journalctl", "--quiet", "--no-pager", f"--lines={_LINES}"]
        command += [f"--since=-{START:.0f}s", *matches]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return []
        return done.stdout.decode(errors="replace").strip().split("\n")


def _record(line: str) -> dict[str, str]:
    """The journal's entry in `line`, empty where there is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in known if isinstance(value, str)}


def _how(record: Mapping[str, str], results: Sequence[str]) -> str:
    """How a process ended, by systemd's `record` of it and the unit's `results` (`oom-kill`)."""
    code, status = record["EXIT_CODE"], record.get("EXIT_STATUS", "")
    try:
        number = int(status)
        name = signal.Signals(number).name if code != "exited" else ""
    except ValueError:
        number, name = 0, f"signal {status}"
    if code == "exited":
        return f"exit status {number}"
    known = [_RESULTS[each] for each in results if each in _RESULTS]
    dumped = ", dumping core" if code == "dumped" else ""
    return f"killed by {name}{dumped}{''.join(f' ({each})' for each in known[:1])}"


@dataclass(frozen=True, kw_only=True)
class Health:
    """The process' last answers."""

    answers: bool = False
    why: str = "not asked yet"
    """Why there is no answer."""
    online: int | None = None
    """Nodes that are online, None where it does not tell."""
    total: int | None = None
    """Nodes that it knows, None where it does not tell."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The judgement of the process, from round to round. Times in seconds of the clock."""

    since: float | None = None
    """When it was last told to start, or first seen."""
    up: float | None = None
    """Since when it is up: it has answered."""
    mute: float | None = None
    """Since when it is up and does not answer."""
    failures: int = 0
    """In a row."""
    why: str = ""
    """Of the last failure."""
    hangs: bool = False
    """It should be stopped."""
    pid: int = 0
    """As last seen, like `restarts`."""
    restarts: int = 0

    def is_mute(self, now: float) -> bool:
        """Whether it was up, and has been silent for too long."""
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
    in the file that it was started with. `trial`: its release is not accepted yet.

    An accepted process that was up and falls silent is not stopped: agents that reconnect all at
    once keep it busy, and a restart would make them reconnect again. It is reported, and people
    decide.
    """
    failures, why, up, hangs = judged.failures, judged.why, judged.up, False
    again = process.restarts - judged.restarts
    if again > 0 or process.active == "failed":
        failures, why, up = failures + max(1, again), f"exits: {process.why}", None
    elif judged.pid and process.pid and process.pid != judged.pid:
        up = None
    since = now if again > 0 else judged.since
    if since is None and process.active == "active":
        # An earlier pilot-node started it: its time to answer begins now.
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
        # Failed at once: its next snapshot would replace the file.
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
    """Ask the rendezvous of `spec` on loopback. With `numbers`, or where another number of nodes is
    online than before, `/api/stats` is asked, which gives both numbers at once. Older binaries
    have no `/healthz`."""
    base = f"http://127.0.0.1:{spec.dashboard_port}"
    try:
        with socket.create_connection(("127.0.0.1", spec.registry_port), 5.0):
            pass
    except OSError as error:
        return Health(why=f"port {spec.registry_port}: {error.strerror or error}")
    try:
        online: int | None = None
        with http_client.get(f"{base}/healthz", {}, 5.0) as answer:
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
    with http_client.request("POST", url, {"Content-Length": "0"}, timeout=seconds) as answer:
        return answer.status


def _stats(base: str) -> tuple[int | None, int | None]:
    """Total and active nodes. The answer may list every node: megabytes."""
    found: dict[re.Pattern[bytes], int] = {}
    with http_client.get(f"{base}/api/stats", {}, 10.0) as answer:
        if answer.status != 200:
            return None, None
        left = b""
        for chunk in answer.chunks(30.0):
            text = left + chunk
            for pattern in (_TOTAL, _ACTIVE):
                match = pattern.search(text)
                # A number at the end of a chunk may go on in the next one.
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
