"""The loop of the rendezvous VM: it keeps the process as declared and ordered, rolls its binary,
copies its registry and reports. Its parts are in rendezvous/."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from . import token_source
from .base_loop import FAILURES, Loop, end_with_any_thread, roll_status
from .desired.spec import Binary, RendezvousSpec, Roll
from .follower import Follower, recall_spec
from .machine import proc
from .machine.errors import NotReadyError
from .machine.kernel_log import KernelLog
from .machine.paths import Paths
from .machine.polling import Wake
from .machine.retry import FinalError, TemporaryError
from .machine.systemd import Systemctl, SystemdError
from .rendezvous import banner, registry_copies, registry_file, runs, trials
from .rendezvous.access_tokens import Tokens
from .rendezvous.banner import Banner
from .rendezvous.binary_features import BinaryFeatures
from .rendezvous.bucket_copies import BucketCopies
from .rendezvous.copies_bucket import CopiesBucket, Place
from .rendezvous.descriptors import DescriptorLimit
from .rendezvous.observer import Observer
from .rendezvous.process import SystemdUnit, Unit
from .rendezvous.process_keeper import ProcessKeeper
from .rendezvous.registry_keeper import RegistryKeeper
from .rendezvous.token_keeper import TokenKeeper
from .report.metrics import Exporter
from .report.publisher import Publisher
from .report.status import Published, RegistryStatus, RendezvousFacts, document
from .rollout import roll_state
from .rollout import rollout as rolls
from .setup import release

# Seconds between two copies of the registry's file: at most so much is lost when the file is.
COPY = 300.0
# Seconds that a new binary is watched. It must answer all the while.
WATCH = 30
# Seconds between two removals of releases that nothing needs.
PRUNE = 60.0
# Seconds until the next round, and after one that failed.
ROUND = 1.0
FAILED = 5.0
# Seconds for the forced snapshot at a power-off: Compute Engine ends the machine after some 90 s,
# and the process writes its registry once more when it is ended.
LAST_SNAPSHOT = 20.0


@dataclass(kw_only=True)
class RendezvousLoop(Loop):
    """`round` is one turn of the loop."""

    unit: Unit
    tokens: Callable[[], Tokens | None]
    """What Secret Manager said last, None before it said anything."""
    bucket: BucketCopies
    stopping: bool = False
    """Whether the VM goes down."""
    observer: Observer = field(init=False)
    registry: RegistryKeeper = field(init=False)
    token_keeper: TokenKeeper = field(init=False)
    keeper: ProcessKeeper = field(init=False)
    _features: BinaryFeatures = field(default_factory=BinaryFeatures)
    _event: str = ""
    """The maintenance event that was served last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.observer = Observer(loop=self, unit=self.unit)
        self.registry = RegistryKeeper(loop=self, bucket=self.bucket)
        self.token_keeper = TokenKeeper(loop=self)
        self.keeper = ProcessKeeper(
            loop=self,
            observer=self.observer,
            registry=self.registry,
            tokens=self.token_keeper,
            banner=Banner(loop=self),
            descriptors=DescriptorLimit(loop=self),
        )

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
        if self.token_keeper.first_turn_at is None:
            self.token_keeper.first_turn_at = now
        self.look()
        self.keep_disk()
        if not self.follower.is_mounted():
            raise NotReadyError(self.paths.unmounted("the rendezvous has no store"))
        try:
            self._act(now)
        finally:
            if self.observer.is_active and self.is_due("copy", COPY):
                self.attempt(self.registry.copy)
            if why := self.bucket.state.error:
                self.fault(f"the registry's newest copy is not in the bucket: {why}")

    def _act(self, now: float) -> None:
        self.follower.ensure_state()
        before = self._recall() if self.roll is None else self.roll
        self.token_keeper.take(self.tokens())
        self.observer.look(now)
        try:
            state = self._advance(before, now)
        except OSError as error:
            # A step that cannot be written down is not begun. Earlier ones go on.
            self.fault(str(error))
            state = self.roll or before
        self.want(self.spec, state)
        standing = self.follower.standing
        wanted = self.keeper.wanted(state, standing.restart, self.fetcher.there())
        self.keeper.keep(wanted, standing, now)
        self._serve_maintenance()
        self.attempt(partial(self.keeper.show_banner, self._wanted_banner()))
        if self.is_due("prune", PRUNE):
            self.attempt(partial(self._prune, state))

    def attempt(self, step: Callable[[], object]) -> None:
        """Run `step`. An OSError, as of a full disk, becomes a fault: it is no reason to stop the
        process, or not to start it."""
        try:
            step()
        except OSError as error:
            self.fault(str(error))

    @property
    def spec(self) -> RendezvousSpec:
        spec = self.follower.known.spec
        if not isinstance(spec, RendezvousSpec):
            raise FinalError(f"this VM is a {spec.role}, it has no registry")
        return spec

    def _recall(self) -> roll_state.RollState:
        """The roll as it was left. Takes over what an earlier pilot-node may have started."""
        if trials.current(self.paths):
            self.observer.expected = self.registry.nodes_to_read(self.wall_clock())
        # The running process has tokens that Secret Manager has not told this pilot-node yet.
        self.token_keeper.recall()
        self.roll = roll_state.recall(self.paths, self.say)
        return self.roll

    # The roll

    def _advance(self, state: roll_state.RollState, now: float) -> roll_state.RollState:
        spec, standing = self.spec, self.follower.standing
        judged = self.observer.judged
        port = spec.registry_port
        running = runs.running(self.paths)
        trial = trials.is_on_trial(running, self.roll)
        # A release on trial is not accepted while it does not answer.
        ready = judged.up is not None and (self.observer.health.answers or not trial)
        # Before the watch begins, failures are the old binary's: the watch begins with 0.
        failures = judged.failures if trial and state.watch else 0
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
                up_since={port: judged.up} if judged.up is not None else {},
                failures={port: failures} if failures else {},
                why={port: judged.why} if judged.why else {},
                calm=ready,
                kernel=self.kernel_log.lines() if self.kernel_log else (),
                epoch=standing.restart,
            ),
        )
        self.rolled(new)
        if new.accepted != state.accepted:
            self.attempt(partial(trials.end, self.paths))
            self.at_once("copy")
        for line in said:
            self.say(line)
        return new

    def _prune(self, state: roll_state.RollState) -> None:
        """Remove the releases that nothing runs and nothing goes back to. Raises OSError."""
        keep = {*rolls.kept(state), self.target(self.spec).sha256}
        keep |= {
            run.release for run in (runs.running(self.paths), trials.current(self.paths)) if run
        }
        with suppress(FileNotFoundError):
            # systemd starts this release again after a crash.
            keep.add((self.paths.opt / "current").readlink().name)
        for sha256 in release.prune(self.paths.opt, keep):
            self.say(f"release {sha256[:12]} removed: nothing runs it, and nothing goes back to it")

    def _serve_maintenance(self) -> None:
        """Save the registry when a maintenance event begins."""
        event = self.follower.maintenance
        if event != self._event:
            self._event = event
            if event not in ("", "NONE"):
                self.keeper.save()

    def _wanted_banner(self) -> str:
        ordered = self.follower.standing.orders.banner
        return ordered or (banner.MAINTENANCE if self._event not in ("", "NONE") else "")

    def last_save(self) -> None:
        """Save the registry before a power-off."""
        self.registry.save(LAST_SNAPSHOT, active=self.observer.is_active)

    # The status

    def phase(self) -> str:
        """What the rendezvous is doing, in one word."""
        judged = self.observer.judged
        if self.stopping:
            return "stopping"
        if self.follower.standing.hold:
            return "held" if self.observer.process.gone else "stopping"
        if judged.up is not None and self.observer.health.answers:
            return "serving"
        failed = judged.failures or judged.is_mute(self.clock()) or self.registry.waits
        return "failed" if failed else "starting"

    def facts(self, published: Published, *, started: float) -> RendezvousFacts:
        """What this VM says of itself now. `started`: when, in seconds since the epoch."""
        spec, state = self.spec, self.roll or roll_state.RollState()
        accepted = self.accepted(spec)
        memory = proc.meminfo(self.paths)
        # First: a failure here becomes the `last_error`.
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
        """Declared or ordered features that the running binary does not know."""
        running = runs.running(self.paths)
        if running is None:
            return []
        binary = Binary.of(self.spec.binary.name, running.release)
        return self._features.unsupported(
            self.paths, binary, self.spec.secrets, banner=bool(self._wanted_banner())
        )

    def _registry_status(self) -> RegistryStatus:
        copies: list[registry_copies.Copy] = []
        aside: list[str] = []
        try:
            copies = registry_copies.copies(self.paths)
            aside = registry_copies.set_aside_names(self.paths)
        except OSError as error:
            self.fault(str(error))
        try:
            store = (self.paths.registry / registry_file.NAME).lstat()
        except OSError:
            store = None
        up = self.observer.judged.up is not None
        last = registry_copies.last_start(self.paths)
        return RegistryStatus(
            online=self.observer.health.online if up else None,
            total=self.observer.health.total if up else None,
            store=store.st_size if store else None,
            store_time=store.st_mtime if store else None,
            copies=len(copies),
            newest_copy=copies[-1].time if copies else None,
            set_aside=aside,
            restored=last.restored,
            started_empty=last.empty,
            bucket_copies=self.bucket.state.copies,
            bucket_newest=self.bucket.state.newest,
            bucket_error=self.bucket.state.error,
            unsupported=self._unsupported(),
        )


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
    bucket = _bucket_copies(follower, wake)
    rendezvous = RendezvousLoop(
        paths=paths,
        follower=follower,
        unit=SystemdUnit(systemd),
        fetcher=release.Fetcher(opt=paths.opt, token=follower.server.token, say=say, wake=wake.set),
        tokens=tokens.latest,
        bucket=bucket,
        say=say,
        kernel_log=KernelLog(paths=paths),
    )
    publisher = Publisher(paths=paths, put=follower.server.put_guest_attribute, say=say)
    exporter = Exporter(say=say)
    for part in (follower, rendezvous.fetcher, publisher, exporter, tokens, bucket):
        part.start()
    tell = partial(_tell, rendezvous, publisher, exporter, started)
    rendezvous.check_kernel()
    while not ended.is_set():
        pause = rendezvous.round()
        tell()
        wake.wait(pause)
    follower.stop()
    tokens.stop()
    bucket.stop()
    try:
        rendezvous.stopping = systemd.stopping()
    except SystemdError as error:
        say(f"is the system going down? {error}")
    if rendezvous.stopping:
        rendezvous.last_save()
        tell()
    publisher.close()
    exporter.close()


def _bucket_copies(follower: Follower, wake: Wake) -> BucketCopies:
    def uploads() -> bool:
        known = follower.known.spec
        return isinstance(known, RendezvousSpec) and known.upload_copies

    def place() -> Place:
        known = follower.known.spec
        return Place(endpoint=known.storage, bucket=known.bucket, vm=known.name)

    return BucketCopies(
        follower.paths,
        CopiesBucket(place=place, token=follower.server.token),
        uploads=uploads,
        say=follower.say,
        wake=wake,
    )


def _tell(
    rendezvous: RendezvousLoop, publisher: Publisher, exporter: Exporter, started: float
) -> None:
    found = document(rendezvous.facts(publisher.published, started=started))
    publisher.publish(found)
    exporter.show(found)
