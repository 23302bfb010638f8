"""The service on the rendezvous VM: its process as declared, its registry kept, its status said.

systemd starts the process again when it dies. What is planned is this module's: a stop after the
registry was saved and copied, a start of what is wanted, a new binary on trial. A process is known
by what it was started with (`Run`, in /run/pilot): when that is what is wanted it is left alone,
whoever restarts pilot-node.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeGuard

from . import token_source
from .base_loop import FAILURES, Loop, end_with_any_thread, roll_status
from .desired.spec import Binary, RendezvousSpec, Roll
from .follower import Follower, recall_spec
from .machine import files, http_client, proc
from .machine.errors import NotReadyError
from .machine.kernel_log import KernelLog
from .machine.paths import Paths
from .machine.polling import Wake
from .machine.retry import FinalError, TemporaryError
from .machine.systemd import Systemctl, SystemdError
from .machine.user import UID
from .pressure import kernel_limits
from .rendezvous import access_tokens, registry_file
from .rendezvous.access_tokens import Tokens
from .rendezvous.process import (
    STEADY,
    UNIT,
    Health,
    Judged,
    Process,
    SystemdUnit,
    Unit,
    ask,
    judge,
    post,
)
from .report.metrics import Exporter
from .report.publisher import Publisher
from .report.status import Published, RegistryStatus, RendezvousFacts, document
from .rollout import roll_state
from .rollout import rollout as rolls
from .setup import kernel, limits, release, units
from .setup.limits import LimitsError

# Seconds from one copy of the registry's file to the next: what a lost file can cost at most.
COPY = 300.0
# A new binary is one port of a roll: watched for so long, answering all the while.
WATCH = 30
# How often it is asked for its health, and for its numbers (which it counts node by node).
HEALTH = 5.0
NUMBERS = 60.0
# How often what nobody needs is removed.
PRUNE = 60.0
# The first start waits so long for the tokens: IAM lets a new binding in after minutes.
PATIENCE = 30.0
STATUS = 1.0
ROUND = 1.0
FAILED = 5.0
# A forced snapshot writes the whole registry, 45 MB on a slow disk.
SNAPSHOT = 60.0
# Lines of its unit that nobody is taken offline for: what runs is given the first, and the next
# start or stop takes the others.
_NEEDS_NO_RESTART = ("#", "LimitNOFILE=", "Before=", "SyslogIdentifier=")
# At a power-off there are some 90 s for all (Compute Engine ends the machine then), and the process
# writes its registry once more when it is ended.
LAST_SNAPSHOT = 20.0
# A file that is younger holds nodes that are not stale: 3 minutes in the oldest binaries
# (docs/FACTS.md).
FRESH: Final = 60.0
# What a binary with a banner names, and what every one does.
_BANNER: Final = "banner.txt"
_ANY: Final = "registry-addr"
RESTARTING: Final = "Restarting; agents come back by themselves."
MAINTENANCE: Final = "Host maintenance; agents come back by themselves."


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a process is started with: its binary, and hashes of its environment, its unit and its
    tokens; the last restart that was ordered. Another one is a planned restart."""

    release: str
    environment: str
    unit: str
    tokens: str
    restart: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A release that is not accepted yet, from before its first start until it is, or the store is
    mended after it: remembered, for a reboot must not hide what it did to the store. `keys`: those
    of the newest copy then, which is the way back. One that cannot be read is a trial of a release
    that nobody knows."""

    release: str = ""
    keys: int = 0


@dataclass(kw_only=True)
class RendezvousLoop(Loop):
    """The loop of the rendezvous VM. `round` is one turn."""

    unit: Unit
    tokens: Callable[[], Tokens | None]
    """What Secret Manager said last, None before it said anything."""
    judged: Judged = field(default_factory=Judged)
    health: Health = field(default_factory=Health)
    process: Process = field(default_factory=Process)
    stopping: bool = False
    began: float | None = None
    _held: Tokens = field(default_factory=Tokens)
    _config: Mapping[str, str] = field(default_factory=dict)
    # The tokens that only an earlier pilot-node has fetched.
    _recalled: set[str] = field(default_factory=set)
    _banner: tuple[str, str] | None = None
    _event: str = ""
    _expected: int = 0
    # A number of descriptors that the host does not allow.
    _refused: int = 0
    # By release, what its binary knows.
    _known: dict[str, frozenset[str] | None] = field(default_factory=dict)

    def round(self) -> float:
        """One turn; the seconds until the next."""
        try:
            self._turn()
        except (*FAILURES, TemporaryError, registry_file.BadRegistryError) as error:
            self.fault(str(error))
            return FAILED
        return ROUND

    def _turn(self) -> None:
        now = self.clock()
        self.began = now if self.began is None else self.began
        try:
            self.follower.look()
        except (FinalError, LimitsError, OSError, subprocess.SubprocessError) as error:
            # The process is kept at what is known.
            self.fault(str(error))
        self.keep_disk()
        if not self.follower.is_mounted():
            raise NotReadyError(self.paths.unmounted("the rendezvous has no store"))
        try:
            self._act(now)
        finally:
            if self.process.active == "active" and self.is_due("copy", COPY):
                self._attempt(self.copy)

    def _act(self, now: float) -> None:
        self.follower.ensure_state()
        if self.roll is None:
            if self._trial():
                # An earlier pilot-node may have started what runs.
                self._expected = self._nodes_to_read(self.wall_clock())
            # What runs has tokens that Secret Manager has not told this pilot-node yet.
            self._config = access_tokens.recall(self.paths.rendezvous_config)
            self._held = access_tokens.held(self._config)
            self._recalled = set(self._held.values)
            self.roll = roll_state.recall(self.paths, self.say)
        self._take_tokens()
        self._look(now)
        try:
            state = self._advance(self.roll, now)
        except OSError as error:
            # What cannot be remembered is not begun; what was begun before goes on.
            self.fault(str(error))
            state = self.roll
        self.want(self.spec, state)
        self._keep(state, now)
        self._serve_maintenance()
        self._attempt(partial(self._show_banner, self._wanted_banner()))
        if self.is_due("prune", PRUNE):
            self._attempt(partial(self._prune, state))

    def _attempt(self, step: Callable[[], object]) -> None:
        """What is no reason to keep a process, or none: where the disk refuses it, it is said."""
        try:
            step()
        except OSError as error:
            self.fault(str(error))

    # What is seen

    def _look(self, now: float) -> None:
        self.process = self.unit.process()
        if self.process.active != "active":
            self.health = Health(why=f"the process is {self.process.active}")
        elif self.judged.up is None or self.is_due("health", HEALTH):
            fresh = self.judged.up is None or self.is_due("numbers", NUMBERS)
            self.health = ask(self.spec, self.health, numbers=fresh)
        before = self.judged
        trial = self._is_on_trial(self._running())
        if before.since is None and not trial and self._has_answered():
            # An earlier pilot-node has seen it up: its silence is no other than if this one had.
            pid, restarts = self.process.pid, self.process.restarts
            before = Judged(since=now, up=now, pid=pid, restarts=restarts)
        if self.process.restarts > before.restarts or self.process.active == "failed":
            said = self.unit.last_end() or self.process.why
            self.process = replace(self.process, why=kernel_limits.explain(said, self.paths))
        self.judged = judge(before, self.process, self.health, now, self._expected, trial=trial)
        if self.judged.failures > before.failures:
            self.fault(f"the rendezvous {self.judged.why}")
        if self.judged.up is not None and self.judged.up != before.up:
            self._attempt(
                partial(files.write, self._answered_record, f"{self.process.pid}\n", 0o600)
            )
        if self.judged.is_mute(now):
            name = self.spec.name
            self.fault(
                f"the rendezvous does not answer: {self.health.why}: it may be at work and is not "
                f"stopped; where that lasts: `ops drain {name}`, then `ops undrain {name}`"
            )
        if self.judged.hangs:
            self.say("the rendezvous hangs: it is stopped, and started again")
            self.unit.stop()
        if self.judged.up is not None and now - self.judged.up >= STEADY:
            # What it lacks from here on it was told to forget.
            self._expected = 0

    @property
    def spec(self) -> RendezvousSpec:
        spec = self.follower.known.spec
        if not isinstance(spec, RendezvousSpec):
            raise FinalError(f"this VM is a {spec.role}, it has no registry")
        return spec

    # The roll

    def _advance(self, state: roll_state.RollState, now: float) -> roll_state.RollState:
        spec, standing = self.spec, self.follower.standing
        port = spec.registry_port
        running = self._running()
        trial = self._is_on_trial(running)
        # Nothing is accepted while it is silent.
        ready = self.judged.up is not None and (self.health.answers or not trial)
        # What the old binary did is not the new one's fault, and what the new one did at the first
        # look is: a watch that begins takes the failures that it finds for the old one's.
        failures = self.judged.failures if trial and state.watch else 0
        new, said = rolls.advance(
            state,
            rolls.RollObserved(
                now=now,
                time=self.wall_clock(),
                target=self.target(spec),
                settings=Roll(auto=True, batch=1, watch_seconds=WATCH),
                verdict=standing.orders.roll,
                there=self.fetcher.there(),
                lost=self.fetcher.lost(),
                held=standing.hold,
                ports=() if standing.hold else (port,),
                on={port: running.release} if running else {},
                ready=frozenset({port} if ready else ()),
                up_since={port: self.judged.up} if self.judged.up is not None else {},
                failures={port: failures} if failures else {},
                why={port: self.judged.why} if self.judged.why else {},
                calm=ready,
                kernel=self.kernel_log.lines() if self.kernel_log else (),
                epoch=standing.restart,
            ),
        )
        self.rolled(new)
        if new.accepted != state.accepted:
            self._attempt(self._end_trial)
            self.at_once("copy")
        for line in said:
            self.say(line)
        return new

    def _prune(self, state: roll_state.RollState) -> None:
        """Remove the releases that nothing runs and nothing goes back to. Raises OSError."""
        keep = {*rolls.kept(state), self.target(self.spec).sha256}
        keep |= {run.release for run in (self._running(), self._trial()) if run}
        with suppress(FileNotFoundError):
            # What systemd starts again, whatever is known of it.
            keep.add((self.paths.opt / "current").readlink().name)
        for sha256 in release.prune(self.paths.opt, keep):
            self.say(f"release {sha256[:12]} removed: nothing runs it, and nothing goes back to it")

    # The process

    def _keep(self, state: roll_state.RollState, now: float) -> None:
        """Have the process that is wanted, or none while held."""
        wanted = self._wanted(state)
        running = self._running()
        if self.follower.standing.hold:
            if not self.process.gone and not self.process.job:
                self._stop("held", save=True)
            return
        if wanted is None:
            return
        if self.process.gone:
            if not self._waits_for_tokens(now):
                self._start(wanted, running)
        elif running != wanted and not self.process.job:
            # What a rejected one saves is not worth a copy: it may have read nothing.
            rejected = running is not None and self._is_rejected(running)
            self._stop(_difference(running, wanted), save=not rejected, then=wanted)
        else:
            self._raise_descriptors()

    def _wanted(self, state: roll_state.RollState) -> Run | None:
        """None while its binary is not there."""
        spec = self.spec
        found = rolls.releases(state, (spec.registry_port,)).get(spec.registry_port)
        if found is None or found.sha256 not in self.fetcher.there():
            return None
        unit = self.paths.units / UNIT
        lines = [
            line
            for line in unit.read_text(encoding="utf-8").splitlines()
            # The limit of descriptors is raised in the process that runs.
            if line.strip() and not line.startswith(_NEEDS_NO_RESTART)
        ]
        return Run(
            release=found.sha256,
            environment=_hash(self._environment()),
            unit=_hash("\n".join(lines)),
            tokens=_hash(json.dumps(self._config, sort_keys=True)),
            restart=self.follower.standing.restart,
        )

    def _environment(self) -> str:
        machine = kernel.machine(self.paths)
        return units.environment_file(units.rendezvous_environment(machine, self.spec))

    @property
    def _record(self) -> Path:
        return self.paths.run / "rendezvous-run.json"

    def _running(self) -> Run | None:
        """What the process was started with, None where that is not known."""
        try:
            return files.record(Run, json.loads(self._record.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return None

    @property
    def _answered_record(self) -> Path:
        return self.paths.run / "rendezvous-answered"

    def _has_answered(self) -> bool:
        """Whether the process that runs has been up, as far as an earlier pilot-node saw."""
        try:
            return int(self._answered_record.read_bytes()) == self.process.pid
        except (FileNotFoundError, ValueError):
            return False

    def _stop(self, why: str, *, save: bool, then: Run | None = None) -> None:
        if save:
            self.save()
        if self._is_on_trial(then) and self._trial() is None:
            # Where either cannot be kept what is running stays: no trial without a way back.
            self.copy()
            self._begin_trial(then)
        self.say(f"the rendezvous is stopped: {why}")
        banner = self.follower.standing.orders.banner or RESTARTING
        self._attempt(partial(self._show_banner, banner))
        self.unit.stop()

    def _start(self, wanted: Run, before: Run | None) -> None:
        orders = self.follower.standing.orders
        now = self.wall_clock()
        trial = self._trial()
        if trial and trial.release != wanted.release:
            self._mend(now)
        elif before and before.release != wanted.release:
            # The store as the old binary left it: whatever the new one makes of it.
            self._attempt(self.copy)
        if self._is_on_trial(wanted):
            if trial is None or trial.release != wanted.release:
                self._begin_trial(wanted)
        elif trial:
            self._attempt(self._end_trial)
        if orders.clean and orders.restart and self._cleaned() != orders.restart:
            registry_file.clean(self.paths, now, self.say)
            files.write(self._clean_record, orders.restart + "\n", 0o600)
            if self._is_on_trial(wanted):
                self._begin_trial(wanted)
        access_tokens.write(self.paths.rendezvous_config, self._config)
        files.write(self.paths.rendezvous_environment, self._environment(), 0o600)
        release.use(Binary.of(self.spec.binary.name, wanted.release), self.paths.opt)
        self._banner = None
        self._attempt(partial(self._set_banner, orders.banner))
        self._expected = self._nodes_to_read(now)
        same = before is not None and before == wanted
        files.write(self._record, json.dumps(asdict(wanted), sort_keys=True) + "\n", 0o600)
        self.unit.start()
        self.judged = Judged(
            since=self.clock(),
            failures=self.judged.failures if same else 0,
            why=self.judged.why if same else "",
            restarts=self.process.restarts,
        )
        self.health = Health()
        self.say(f"the rendezvous is started, release {wanted.release[:12]}")

    def _is_rejected(self, run: Run) -> bool:
        rejected = self.roll.rejected if self.roll else ()
        return run.release in {each.sha256 for each in rejected}

    def _is_on_trial(self, run: Run | None) -> TypeGuard[Run]:
        """Whether `run` is of the release that is rolled out, and not accepted yet."""
        roll = self.roll
        if run is None or roll is None or roll.target is None:
            return False
        return roll.state in roll_state.ON_TRIAL and run.release == roll.target.sha256

    @property
    def _trial_record(self) -> Path:
        return self.paths.node_state / "trial.json"

    def _trial(self) -> Trial | None:
        try:
            return files.record(Trial, json.loads(self._trial_record.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError):
            return Trial()

    def _begin_trial(self, run: Run) -> None:
        """Before the first start: with a power-off after it, this is on disk. Raises OSError."""
        known = registry_file.copies(self.paths)
        trial = Trial(release=run.release, keys=known[-1].keys if known else 0)
        files.write(self._trial_record, json.dumps(asdict(trial), sort_keys=True) + "\n", 0o600)
        registry_file.sync_directory(self.paths.node_state)

    def _end_trial(self) -> None:
        self._trial_record.unlink(missing_ok=True)

    def _store_is_suspect(self) -> bool:
        """Whether the registry's file may be the work of a release that is not accepted: one was
        on trial, and what was started last is not known to be the accepted one."""
        if self._trial() is None:
            return False
        running, accepted = self._running(), self.roll.accepted if self.roll else None
        return running is None or accepted is None or running.release != accepted.sha256

    def _nodes_to_read(self, now: float) -> int:
        """The nodes that a process which reads the registry's file knows afterwards: not those
        that have been silent for too long, so an old file promises none. One that lost its keys in
        a trial promises them all: it was started with them."""
        path = self.paths.registry / registry_file.NAME
        trial = self._trial()
        try:
            found = registry_file.examine(path)
            if found and trial and found.keys < trial.keys * registry_file.SHRUNK:
                return trial.keys
            if found is not None and now - path.stat().st_mtime < FRESH:
                return found.nodes
        except registry_file.BadRegistryError:
            # `pilot-node store`, before the start, deals with it.
            pass
        return 0

    @property
    def _clean_record(self) -> Path:
        return self.paths.node_state / "cleaned"

    def _cleaned(self) -> str:
        """The restart with which the store was last set aside by order."""
        try:
            return self._clean_record.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def _mend(self, now: float) -> None:
        """Back from a release on trial: the store as it was before, where that one lost part of it
        or writes it in another format. The newest copy is of before: in a trial none is taken. Its
        log goes whatever becomes of the file: replayed, it gives keys the ids that one gave."""
        self._attempt(partial(registry_file.set_log_aside, self.paths, "bad", now, self.say))
        try:
            found = registry_file.examine(self.paths.registry / registry_file.NAME)
        except registry_file.BadRegistryError:
            found = None
        for copy in reversed(registry_file.copies(self.paths)):
            try:
                known = registry_file.examine(self.paths.registry / "copies" / copy.name)
            except registry_file.BadRegistryError as error:
                self.fault(f"copy {copy.name}: {error}: it is not used")
                continue
            if known is not None and (
                found is None or found.keys < known.keys or found.version != known.version
            ):
                registry_file.put_back(self.paths, copy, now, self.say)
            return

    def _raise_descriptors(self) -> None:
        """LimitNOFILE follows the number of agents; a process that runs is given it as well."""
        wanted = limits.rendezvous_descriptors(self.spec)
        pid = self.process.pid
        if not pid or not self.is_due("descriptors", COPY / 10):
            return
        try:
            hard = proc.most_descriptors(pid)
            if (proc.descriptors(pid) or 0) > hard * kernel_limits.NEAR:
                # Without the number, which is another one each time.
                self.fault(
                    f"LimitNOFILE of {UNIT}: more than {kernel_limits.NEAR:.0%} of {hard:.0f}: "
                    "it will exit when it is full; the spec's number of agents raises it"
                )
            if hard >= wanted or wanted == self._refused:
                return
            try:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, wanted))
            except (PermissionError, ValueError) as error:
                # A host that a container shares has the last word, and goes on having it.
                self._refused = wanted
                text = f"the rendezvous has {hard} descriptors and cannot have {wanted}: {error}"
                # Half of it is what the agents hold (limits.py), the rest is room.
                (self.say if hard >= wanted // 2 else self.fault)(text)
            else:
                self.say(f"the rendezvous may now have {wanted} descriptors")
        except ProcessLookupError:
            return

    # The registry

    def save(self, seconds: float = SNAPSHOT) -> None:
        """Have the registry's file as new as can be, and a copy of it; the answer to the former may
        begin within twice `seconds`. What cannot be is said: it is no reason not to stop, which
        writes the file as well."""
        if self.process.active == "active":
            try:
                answered = post(self._url("/api/snapshot"), seconds)
                if answered not in (200, 404, 405):
                    self.say(f"forced snapshot: {answered}")
            except (TemporaryError, FinalError) as error:
                self.say(f"forced snapshot: {error}")
        self._attempt(self.copy)

    def copy(self) -> None:
        """A copy of the registry's file where it is good. None in a trial: the newest is the way
        back from it. Raises OSError."""
        if self._store_is_suspect():
            return
        try:
            taken = registry_file.take_copy(self.paths, self.wall_clock())
        except registry_file.BadRegistryError as error:
            self.fault(f"{registry_file.NAME}: {error}: not copied; the rendezvous will replace it")
            return
        known = registry_file.best(registry_file.copies(self.paths))
        if taken and known and taken.keys < known[0].keys * registry_file.SHRUNK:
            self.fault(
                f"the registry knows {taken.keys} keys, and knew {known[0].keys} "
                f"({known[0].name}): has it started empty?"
            )

    def _serve_maintenance(self) -> None:
        event = self.follower.maintenance
        if event != self._event:
            self._event = event
            if event not in ("", "NONE"):
                self.save()

    # Tokens and banner

    def _take_tokens(self) -> None:
        if not self.spec.secrets:
            self._held, self._config = Tokens(), {}
            return
        new = self.tokens()
        answered = new is not None
        if new is None:
            missing = dict.fromkeys(self.spec.secrets, "Secret Manager has not answered yet")
            new = Tokens(missing=missing)
        # One that it refuses now is no longer known, but to an earlier pilot-node.
        for what in self._recalled & new.refused:
            self._held = replace(self._held, values=_without(self._held.values, what))
            self._config = _without(self._config, access_tokens.FLAGS[what])
        self._recalled -= {*new.values, *new.refused}
        new = access_tokens.kept(new, self._held)
        if new != self._held or not self._config:
            known = dict(self._config)
            self._config = access_tokens.config(new)
            flag = access_tokens.FLAGS["dashboard"]
            if "dashboard" in new.missing and flag in known:
                # The one that nobody knows stays the same: another one would be a restart.
                self._config = {**self._config, flag: known[flag]}
            self._held = new
        # In the moment before the first answer, whatever that is, nothing has gone wrong.
        if new.problem and answered:
            stays = set(new.missing) <= set(new.values)
            rest = "the one that is known stays" if stays else "closed until it can be had"
            self.fault(f"{new.problem}: {rest}")

    def _waits_for_tokens(self, now: float) -> bool:
        """The first start waits a moment for them: each that comes later is a restart."""
        began = self.began if self.began is not None else now
        return bool(self._held.missing) and now - began < PATIENCE and not self._record.exists()

    def _wanted_banner(self) -> str:
        ordered = self.follower.standing.orders.banner
        return ordered or (MAINTENANCE if self._event not in ("", "NONE") else "")

    def _show_banner(self, text: str) -> None:
        """By the dashboard where there is an admin token, else by the file: upstream reads that at
        its start only. What fails is tried again, now and then."""
        token = self._config.get(access_tokens.FLAGS["admin"], "")
        if self._banner == (text, token):
            return
        if not self.is_due(f"banner {text}", HEALTH * 6):
            return
        if token and self.process.active == "active":
            try:
                headers = {"X-Admin-Token": token, "Content-Type": "text/plain"}
                with http_client.request(
                    "PUT", self._url("/api/banner"), headers, text.encode(), timeout=5.0
                ) as answer:
                    if answer.status == 200:
                        self._banner = (text, token)
                        return
            except (TemporaryError, FinalError):
                return
        self._set_banner(text)

    def _set_banner(self, text: str) -> None:
        """What a new process shows from its start on. Raises OSError."""
        self._write_banner(text)
        self._banner = (text, self._config.get(access_tokens.FLAGS["admin"], ""))

    def _write_banner(self, text: str) -> None:
        """`banner.txt`, owned by the rendezvous, which replaces it. Raises OSError."""
        path = self.paths.registry / "banner.txt"
        if not text:
            path.unlink(missing_ok=True)
            return
        files.sweep(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=self.paths.registry)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                if os.geteuid() == 0:
                    os.fchown(stream.fileno(), UID, UID)
                os.fchmod(stream.fileno(), 0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.spec.dashboard_port}{path}"

    # The status

    def phase(self) -> str:
        """In one word what the rendezvous is at."""
        if self.stopping:
            return "stopping"
        if self.follower.standing.hold:
            return "held" if self.process.gone else "stopping"
        if self.judged.up is not None and self.health.answers:
            return "serving"
        failed = self.judged.failures or self.judged.is_mute(self.clock())
        return "failed" if failed else "starting"

    def facts(self, published: Published, *, started: float) -> RendezvousFacts:
        """What this VM says of itself now. `started`: when, in seconds since the epoch."""
        spec, state = self.spec, self.roll or roll_state.RollState()
        accepted = self.accepted(spec)
        memory = proc.meminfo(self.paths)
        # Before `last_error` is read: what fails here is one.
        store = self._registry_status()
        return RendezvousFacts(
            **self.follower.facts(self.wall_clock()),
            disk=self.disk.usage,
            started=started,
            version=accepted.version,
            sha256=accepted.sha256,
            roll=roll_status(state, 1),
            last_error=self.last_error,
            published=published,
            phase=self.phase(),
            registry=store,
            memory_total=memory.get("MemTotal"),
            memory_available=memory.get("MemAvailable"),
        )

    def _unsupported(self) -> list[str]:
        """What is declared or ordered, and unknown to the binary that runs: it takes its `-config`
        and says nothing of what it does not know."""
        running = self._running()
        if running is None:
            return []
        if running.release not in self._known:
            binary = Binary.of(self.spec.binary.name, running.release)
            self._known[running.release] = words_of(release.path_of(binary, self.paths.opt))
        known = self._known[running.release]
        if known is None:
            return []
        wanted = {f"tokens.{what}": access_tokens.FLAGS[what] for what in self.spec.secrets}
        if self._wanted_banner():
            wanted["banner"] = _BANNER
        return sorted(name for name, word in wanted.items() if word not in known)

    def _registry_status(self) -> RegistryStatus:
        copies: list[registry_file.Copy] = []
        aside: list[str] = []
        try:
            copies = registry_file.copies(self.paths)
            aside = registry_file.set_aside_names(self.paths)
        except OSError as error:
            self.fault(str(error))
        try:
            store = (self.paths.registry / registry_file.NAME).lstat()
        except OSError:
            store = None
        up = self.judged.up is not None
        return RegistryStatus(
            online=self.health.online if up else None,
            total=self.health.total if up else None,
            store=store.st_size if store else None,
            store_time=store.st_mtime if store else None,
            copies=len(copies),
            newest_copy=copies[-1].time if copies else None,
            set_aside=aside,
            restored=_restored(self.paths),
            unsupported=self._unsupported(),
        )


def words_of(binary: Path) -> frozenset[str] | None:
    """Which flags, and files, the binary names in itself; None where that cannot be told: it is
    not there, or packed. It is read and not run: asked for its flags, here, it would be outside of
    its unit's walls."""
    try:
        with (
            binary.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as text,
        ):
            words = (_ANY, _BANNER, *access_tokens.FLAGS.values())
            found = frozenset(word for word in words if text.find(word.encode()) >= 0)
    except (OSError, ValueError):
        return None
    return found if _ANY in found else None


def prepare_store(paths: Paths, say: Callable[[str], None]) -> None:
    """Before every start, as root (`pilot-node store`): a registry that can be read. Raises
    OSError."""
    found = registry_file.prepare(paths, time.time(), say)
    files.write(paths.run / "store.json", json.dumps(asdict(found), sort_keys=True) + "\n")


def _restored(paths: Paths) -> str:
    try:
        return str(json.loads((paths.run / "store.json").read_bytes())["restored"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _without(known: Mapping[str, str], name: str) -> dict[str, str]:
    return {each: value for each, value in known.items() if each != name}


def _difference(before: Run | None, wanted: Run) -> str:
    if before is None:
        return "it is not known what it runs with"
    names = [name for name, value in asdict(wanted).items() if asdict(before)[name] != value]
    return f"another {', '.join(names)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def serve(paths: Paths, *, say: Callable[[str], None]) -> None:
    """Keep the rendezvous as it is declared, until SIGTERM; it does not end with this process.

    Raises FinalError where there is no spec to begin with.
    """
    known = recall_spec(paths)
    started, wake, ended = time.time(), Wake(), threading.Event()
    systemd = Systemctl()

    def end(*_: object) -> None:
        systemd.hurry()
        ended.set()
        wake.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    end_with_any_thread(say)
    follower = Follower(paths=paths, known=known, say=say, wake=wake)

    tokens = token_source.TokenSource(follower, wake)
    rendezvous = RendezvousLoop(
        paths=paths,
        follower=follower,
        unit=SystemdUnit(systemd),
        fetcher=release.Fetcher(opt=paths.opt, token=follower.server.token, say=say, wake=wake.set),
        tokens=tokens.latest,
        say=say,
        kernel_log=KernelLog(paths=paths),
    )
    publisher = Publisher(paths=paths, put=follower.server.put_guest_attribute, say=say)
    exporter = Exporter(say=say)
    for part in (follower, rendezvous.fetcher, publisher, exporter, tokens):
        part.start()
    tell = partial(_tell, rendezvous, publisher, exporter, started)
    while not ended.is_set():
        pause = rendezvous.round()
        tell()
        wake.wait(pause)
    follower.stop()
    tokens.stop()
    try:
        rendezvous.stopping = systemd.stopping()
    except SystemdError as error:
        say(f"is the system going down? {error}")
    if rendezvous.stopping:
        rendezvous.save(LAST_SNAPSHOT)
        tell()
    publisher.close()
    exporter.close()


def _tell(
    rendezvous: RendezvousLoop, publisher: Publisher, exporter: Exporter, started: float
) -> None:
    found = document(rendezvous.facts(publisher.published, started=started))
    publisher.publish(found)
    exporter.show(found)
