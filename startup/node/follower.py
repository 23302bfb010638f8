"""Follows the spec, the orders, the project's script, ghosts and maintenance, for both roles.

`Follower.look` takes what the sources said last, without waiting. It applies a new spec's units,
and runs the project's script again where it is the one that the spec expects. The loops
do the rest with spec and orders.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from .desired import ghost_scripts, orders, sources
from .desired.json_reader import SpecError
from .desired.orders import Standing
from .desired.sources import Attributes, Maintenance, OrdersPlace, OrdersPoller
from .desired.spec import RendezvousSpec, ScriptSpec, SwarmSpec, expected_script, parse
from .machine import files, proc
from .machine.metadata import MetadataServer
from .machine.paths import AGAIN, Paths
from .machine.polling import ABSENT, READ, UNREACHABLE, Reading, Source, Wake
from .machine.retry import FinalError
from .report.status import OrdersStatus, ScriptStatus, SpecStatus
from .setup import apply
from .setup.limits import LimitsError

CURRENT: Final = "current"
MALFORMED: Final = "malformed"
APPLYING: Final = "applying"
WAITING: Final = "waiting"
FAILED: Final = "failed"
FOREIGN: Final = "foreign"

# Seconds after which a script that was run, and did not finish its work, is run again.
SCRIPT_SECONDS = 600.0
_SCRIPT_FAILED = (
    "it was run and its work is not done: the serial console says in which step it failed. It is "
    f"run again {SCRIPT_SECONDS // 60:.0f} minutes after the last time"
)
# Seconds that systemd may take to start the unit of a script that it was told to run.
_STARTS = 5.0
# Seconds between two attempts to apply a spec that failed on this machine (a full disk, systemd).
_AGAIN = 10.0
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_UNIT = "pilot-script"

AnySpec = SwarmSpec | RendezvousSpec
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Known:
    """The spec in use."""

    text: str
    spec: AnySpec
    script: ScriptSpec
    """The script that the newest spec expects, also where that spec cannot be used."""
    state: str = UNREACHABLE
    """CURRENT, ABSENT, UNREACHABLE or MALFORMED."""
    error: str = "not asked yet"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode(errors="replace")).hexdigest()


def follow_spec(
    known: Known, reading: Reading[Mapping[str, str]], check: Callable[[AnySpec], None]
) -> Known:
    """`known`, after the instance's metadata said `reading`. `check` raises LimitsError for a spec
    that does not fit this machine."""
    if reading.state == UNREACHABLE:
        return replace(known, state=UNREACHABLE, error=reading.error)
    if reading.state != READ or reading.value is None:
        return known
    text = reading.value.get("pilot-spec")
    if text is None:
        return replace(known, state=ABSENT, error="metadata has no pilot-spec: run `pulumi up`")
    expected = expected_script(text)
    script = expected if expected.sha256 else known.script
    try:
        spec = parse(text)
        if spec.role != known.spec.role:
            raise SpecError([f"role: is {spec.role!r}, this VM is a {known.spec.role}: replace it"])
        check(spec)
    except (SpecError, LimitsError) as error:
        return replace(known, state=MALFORMED, error=str(error)[:1000], script=script)
    return Known(text=text, spec=spec, state=CURRENT, error="", script=script)


def script_state(
    project: Reading[Mapping[str, str]], *, expected: str, applied: str
) -> tuple[str, bool]:
    """The state of the project's script, and whether to apply it now. `applied`: sha256 of the
    script that finished its work, "" where none did."""
    if project.state == UNREACHABLE or project.value is None:
        return UNREACHABLE, False
    found = ghost_scripts.script_hash(project.value)
    if not found:
        return ABSENT, False
    if found == applied:
        # The expected script may not be in the project's metadata yet.
        return (CURRENT if found == expected else APPLYING), False
    return (APPLYING, True) if found == expected else (FOREIGN, False)


def apply_script(paths: Paths) -> None:
    """Start Google's runner in a unit of its own: the script restarts this service."""
    unit = ["--no-block", "--collect", f"--unit={_UNIT}"]
    unit += ["--description=Pilot: the project's startup script, applied again"]
    done = subprocess.run(
        ["systemd-run", *unit, "/bin/bash", str(paths.runner)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise FinalError(f"the project's script was not run: {' '.join(done.stderr.split())}")


def script_runs() -> bool:
    """Whether the unit of `apply_script` is at work."""
    command = ["systemctl", "is-active", "--quiet", f"{_UNIT}.service"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=60)
    return done.returncode == 0


@dataclass(frozen=True)
class Turn:
    """When this VM first expected the script `sha256`, in seconds since the kernel started."""

    sha256: str
    since: float


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The script that was run last."""

    sha256: str
    uptime: float
    """When: seconds since the kernel started."""
    # Older versions wrote no count.
    tries: int = 1


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Which parts changed at a look."""

    spec: bool = False
    orders: bool = False
    maintenance: bool = False

    def __bool__(self) -> bool:
        return self.spec or self.orders or self.maintenance


class Follower:
    """The sources of one VM. `known` is the spec in use, `standing` the orders in force."""

    def __init__(
        self,
        *,
        paths: Paths,
        known: Known,
        say: Callable[[str], None],
        wake: Wake,
        run_script: Callable[[Paths], None] = apply_script,
        script_runs: Callable[[], bool] = script_runs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.paths = paths
        self.known = known
        self.say = say
        self.standing = Standing()
        self.maintenance = ""
        self.ghosts: tuple[str, ...] = ()
        # The metadata of the instance and of its project, as last heard.
        self._seen: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
        self.script = UNREACHABLE
        self._clock = clock
        self._run_script = run_script
        self._script_runs = script_runs
        self._ran = float("-inf")
        # An attempt that is known to be over.
        self._ended: Attempt | None = None
        self._turn: Turn | None = None
        self._said_turn: tuple[tuple[Turn, ScriptSpec], float] | None = None
        self._recalled = False
        # Whether `known.spec` was applied to this machine.
        self._is_applied = False
        self._apply_again = 0.0
        self._said: dict[str, str] = {}
        self._failed: Exception | None = None
        self._unwritten = False
        server = MetadataServer(host=paths.metadata_host)
        self.server = server
        self._attributes: Source[Mapping[str, str]] = Source(
            "instance metadata", Attributes(server=server, path="instance/attributes"), wake=wake
        )
        self._project: Source[Mapping[str, str]] = Source(
            "project metadata", Attributes(server=server, path="project/attributes"), wake=wake
        )
        self._maintenance: Source[str] = Source(
            "maintenance", Maintenance(server=server), wake=wake, every=1.0
        )
        self._orders: Source[sources.OrdersObject] = Source(
            "orders",
            OrdersPoller(server=server, where=self._orders_place),
            wake=wake,
            every=sources.ORDERS_SECONDS,
        )

    def start(self) -> None:
        for source in self._sources():
            source.start()

    def stop(self) -> None:
        for source in self._sources():
            source.stop()

    def look(self) -> Changes:
        """Take what the sources said, and return what changed.

        Raises FinalError, OSError or SubprocessError where a new spec could not be applied (the
        old one stays in use) or written down; it is tried again. Errors are raised at the end, so
        that a failing step does not block the script that may fix it.
        """
        self._failed = None
        changes = Changes(orders=self._look_at_orders(), maintenance=self._look_at_maintenance())
        instance = self._attributes.latest()
        project = self._project.latest()
        # A source that does not answer changes nothing.
        self._seen = (
            self._seen[0] if instance.value is None else instance.value,
            self._seen[1] if project.value is None else project.value,
        )
        self.ghosts = ghost_scripts.ghosts(*self._seen)
        self._note("ghosts", f"ghost: {', '.join(self.ghosts)}" if self.ghosts else "")
        changed = self._look_at_spec(instance)
        self._look_at_script(instance)
        if self._failed is not None:
            raise self._failed
        return replace(changes, spec=changed)

    def facts(self, now: float) -> dict[str, Any]:
        """The follower's part of status.StatusFacts. `now`: seconds since the epoch."""
        known, standing = self.known, self.standing
        generation = standing.generation
        return {
            "vm": known.spec.name,
            "now": now,
            "boot": self.paths.at(_BOOT_ID).read_text(encoding="ascii").strip(),
            "uptime": proc.uptime(self.paths),
            "script": self.applied_script(),
            "orders": OrdersStatus(
                generation=int(generation) if generation.isdecimal() else None,
                state=standing.state,
                hold=standing.hold,
                restart=standing.restarted or standing.restarted_here,
                error=standing.error or standing.here_error,
                ignored=standing.orders.ignored,
            ),
            "spec": SpecStatus(
                sha256=known.sha256,
                state=known.state,
                error=known.error,
                ignored=known.spec.ignored,
            ),
            "project_script": ScriptStatus(
                expected=known.script.sha256,
                state=self.script,
                turn=self._turn_at(now),
                error=_SCRIPT_FAILED if self.script == FAILED else "",
            ),
            "ghosts": self.ghosts,
        }

    def _sources(
        self,
    ) -> tuple[Source[Mapping[str, str]] | Source[str] | Source[sources.OrdersObject], ...]:
        return (self._attributes, self._project, self._maintenance, self._orders)

    def _orders_place(self) -> OrdersPlace:
        spec = self.known.spec
        return OrdersPlace(endpoint=spec.storage, bucket=spec.bucket, vm=spec.name)

    # The spec

    def _look_at_spec(self, instance: Reading[Mapping[str, str]]) -> bool:
        new = follow_spec(self.known, instance, lambda spec: apply.check(self.paths, spec))
        if new.spec != self.known.spec or not self._is_applied:
            if self._clock() < self._apply_again:
                self.known = replace(self.known, script=new.script)
                return False
            self._apply_again = self._clock() + _AGAIN
            # Where it fails halfway, the old spec has to be applied again as well.
            self._is_applied = False
            try:
                self._apply(new.spec)
            except LimitsError as error:
                new = replace(self.known, state=MALFORMED, error=str(error), script=new.script)
            except (OSError, subprocess.SubprocessError) as error:
                self._failed = error
                self.known = replace(self.known, script=new.script)
                return False
            else:
                self._apply_again = 0.0
                self._is_applied = True
        changed = new.spec != self.known.spec
        if changed:
            what = f"{new.spec.agents} agents, release {new.spec.version}"
            self.say(f"another spec: {what}, sha256 {new.sha256[:12]}")
        self.known = new
        self._note("spec", f"spec {new.state}: {new.error}" if new.state != CURRENT else "")
        if new.state == CURRENT:
            try:
                self._remember_spec(new.text)
            except OSError as error:
                self._failed = error
        return changed

    def _remember_spec(self, text: str) -> None:
        files.write(self.paths.spec, text)
        if self.is_mounted():
            self.ensure_state()
            files.write(self.paths.node_state / "spec.json", text, 0o600)

    def _apply(self, spec: AnySpec) -> None:
        apply.apply_units(self.paths, spec, self.say)

    def is_mounted(self) -> bool:
        return self.paths.is_mounted(self.paths.state)

    def ensure_state(self) -> None:
        """Make pilot-node's directory on the state disk, which has to be mounted."""
        self.paths.node_state.mkdir(mode=0o700, exist_ok=True)

    # Orders

    def _look_at_orders(self) -> bool:
        before = self.standing
        if not self._recalled and self.is_mounted():
            self._recalled = True
            self.standing = orders.recall(self.paths, self.known.spec.role, self.say)
        reading = self._orders.latest()
        if reading.state:
            self.standing = orders.follow(self.standing, reading, self.known.spec.role)
        self.standing = orders.follow_here(self.standing, self._here(), self.known.spec.role)
        now = self.standing
        self._note("orders", f"orders {now.state}: {now.error}" if now.error else "")
        self._note("here", f"{self.paths.orders}: {now.here_error}" if now.here_error else "")
        if now != before:
            self._unwritten = True
        if self._unwritten and now.state in (READ, ABSENT) and self.is_mounted():
            try:
                self.ensure_state()
                orders.remember(self.paths, now)
            except OSError as error:
                # The orders are in force all the same.
                self._failed = error
            else:
                self._unwritten = False
        return now != before

    def _here(self) -> str | None:
        try:
            return self.paths.orders.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def _look_at_maintenance(self) -> bool:
        reading = self._maintenance.latest()
        event = reading.value or ""
        if reading.state != READ or event == self.maintenance:
            # A server that is unreachable does not end a maintenance.
            return False
        if event != "NONE" or self.maintenance:
            self.say(f"host maintenance: {event}")
        self.maintenance = event
        return True

    # The project's script

    def applied_script(self) -> str:
        """sha256 of the script that finished its work in this boot, "" where none did."""
        try:
            words = self.paths.guard.read_text(encoding="ascii").split()
        except (FileNotFoundError, UnicodeDecodeError):
            return ""
        return words[1] if len(words) == 2 else ""

    def _look_at_script(self, instance: Reading[Mapping[str, str]]) -> None:
        script, applied = self.known.script, self.applied_script()
        project = self._project.latest()
        self.script, due = script_state(project, expected=script.sha256, applied=applied)
        if self._until_turn(script, applied) > 0 and due:
            self.script, due = WAITING, False
        said = ""
        if self.script == FOREIGN:
            said = (
                "the project's startup script is neither the applied one nor the one that the spec "
                "expects: it is not run"
            )
        elif self.script == WAITING:
            said = (
                f"the startup script {script.sha256[:12]} is expected: it is applied when it is "
                f"this VM's turn, {script.after_seconds} s after it was first expected"
            )
        self._note("script", said)
        if not due:
            return
        if instance.value is None or ghost_scripts.replaced(instance.value):
            # The runner would run the ghost script instead.
            return
        last = self._last_attempt()
        if last is not None and last.sha256 != script.sha256:
            last = None
        at_work = self._is_at_work(last)
        if not at_work and self.applied_script() == script.sha256:
            # It ended since the first look.
            self.script = CURRENT
            return
        if last is not None and (last.tries > 1 or not at_work):
            # FAILED also while it is tried again.
            self.script = FAILED
            self._note("script", f"startup script {script.sha256[:12]}: {_SCRIPT_FAILED}")
        now = proc.uptime(self.paths)
        if at_work or (last is not None and now - last.uptime < SCRIPT_SECONDS):
            return
        tries = last.tries + 1 if last else 1
        self._remember_attempt(Attempt(sha256=script.sha256, uptime=now, tries=tries))
        self.say(f"the project's startup script is {script.sha256[:12]}, as expected: applying it")
        self._run_script(self.paths)
        self._ran = self._clock()

    def _until_turn(self, script: ScriptSpec, applied: str) -> float:
        """Seconds until this VM may apply `script`. 0 on a VM where no script has finished: it
        boots, or a script failed halfway, and this one may fix it."""
        path = self.paths.run / "turn.json"
        if script.sha256 in ("", applied):
            if self._turn is not None:
                path.unlink(missing_ok=True)
            self._turn = None
            return 0.0
        now = proc.uptime(self.paths)
        if self._turn is None or self._turn.sha256 != script.sha256:
            # An earlier pilot-node may have written it.
            kept = files.recall(Turn, path)
            if kept is None or kept.sha256 != script.sha256 or kept.since > now:
                kept = Turn(script.sha256, now)
                try:
                    files.write(path, json.dumps(asdict(kept)) + "\n", 0o600)
                except OSError as error:
                    # This process knows it all the same.
                    self._failed = error
            self._turn = kept
        return max(0.0, self._turn.since + script.after_seconds - now) if applied else 0.0

    def _turn_at(self, now: float) -> float | None:
        """When this VM's turn is, in seconds since the epoch, while it waits for it. Computed once,
        so that the status does not change from look to look."""
        if self.script != WAITING or self._turn is None:
            return None
        key = (self._turn, self.known.script)
        if self._said_turn is None or self._said_turn[0] != key:
            left = self._until_turn(self.known.script, self.applied_script())
            self._said_turn = (key, now + left)
        return self._said_turn[1]

    def _is_at_work(self, last: Attempt | None) -> bool:
        """Whether a run of the script has the lock, or is about to take it."""
        try:
            handle = os.open(self.paths.run / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        else:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(handle)
        if last is None or last == self._ended:
            return False
        if self._clock() - self._ran < _STARTS or self._script_runs():
            return True
        self._ended = last
        return False

    def _last_attempt(self) -> Attempt | None:
        return files.recall(Attempt, self.paths.run / "attempt.json")

    def _remember_attempt(self, attempt: Attempt) -> None:
        """Write it down first: the script restarts this process."""
        text = json.dumps(asdict(attempt)) + "\n"
        files.write(self.paths.run / "attempt.json", text, 0o600)

    def _note(self, key: str, text: str) -> None:
        """Log `text` where it differs from the last one of `key`. "": the problem is over."""
        if self._said.get(key, "") != text:
            self._said[key] = text
            if text:
                self.say(text)


def recall_spec(paths: Paths) -> Known:
    """The spec to begin with: this boot's, else the last good one, where it fits this machine.
    Raises FinalError where there is none."""
    problems: list[str] = []
    for path in (paths.spec, paths.node_state / "spec.json"):
        try:
            text = _read(path)
            spec = parse(text)
            apply.check(paths, spec)
        except FileNotFoundError:
            problems.append(f"{path} is not there")
        except (SpecError, LimitsError) as error:
            problems.append(f"{path}: {error}")
        else:
            return Known(text=text, spec=spec, script=spec.script)
    raise FinalError(f"there is no spec to begin with: {'; '.join(problems)}; {AGAIN}")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
