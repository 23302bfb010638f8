"""What pilot-node follows: metadata and orders, each from a daemon thread of its own.

A source is asked over and over, by a long poll where there is one. What it said last is a
`Reading`, which the loop takes without waiting for anybody. Absent, unreachable and read are three
things: what was read stays the value while the source is away. Whether a value means anything is
for its reader to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

from . import release, web
from .metadata import MetadataServer
from .place import Place
from .retry import FinalError, TemporaryError

T = TypeVar("T")

READ = "read"
ABSENT = "absent"
UNREACHABLE = "unreachable"

# Seconds that a long poll may take: Google's own agent asks for as many.
POLL_SECONDS = 60
# Seconds between two looks at the orders (docs/CONTRACT.md).
ORDERS_SECONDS = 10.0
# Seconds between two questions at least: a server that answers a long poll at once, or refuses,
# must not keep a CPU busy. The pause doubles to PAUSE_MAX while nothing is heard.
PAUSE = 0.2
PAUSE_MAX = 8.0
# Bytes of an orders object; the fields of a real one take a few hundred.
_ORDERS_LIMIT = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[T]):
    """What a source said last. `state` is "" until it said anything; then READ (`value` is
    there), ABSENT (it is None), or UNREACHABLE (it is what was read before, None if nothing
    was), with `error`."""

    state: str = ""
    value: T | None = None
    error: str = ""


class Wake:
    """Ends a wait, from any thread and from a signal's handler: no lock, which a handler could
    find held by what it interrupted."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        with suppress(BlockingIOError):
            # A full pipe wakes as well.
            os.write(self._write, b"x")

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, or for `seconds`; whether it was. It is not set any more."""
        select.select([self._read], [], [], max(0.0, seconds))
        try:
            return bool(os.read(self._read, 65536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Source(Generic[T]):
    """Asks `ask` over and over. `ask` gives a value, or None for absent; it may take its time."""

    def __init__(
        self,
        name: str,
        ask: Callable[[], T | None],
        *,
        wake: Wake,
        every: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` is set at each change. `every`: seconds from one question to the next."""
        self.name = name
        self._ask = ask
        self._wake = wake
        self._every = max(every, PAUSE)
        self._clock = clock
        self._reading: Reading[T] = Reading()
        self._ended = threading.Event()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. A question that is open is left to end by itself."""
        self._ended.set()

    def latest(self) -> Reading[T]:
        """What it said last, without waiting. Raises RuntimeError when its thread is dead, which
        is a mistake in this tree: whoever cannot see must not go on as if nothing changed."""
        if self._broken is not None:
            raise RuntimeError(f"{self.name}: {self._broken!r}") from self._broken
        return self._reading

    def _run(self) -> None:
        pause = PAUSE
        try:
            while not self._ended.is_set():
                began = self._clock()
                heard = self._once()
                pause = PAUSE if heard else min(pause * 2, PAUSE_MAX)
                rest = began + self._every - self._clock() if heard else pause
                self._ended.wait(max(0.0, rest))
        except BaseException as error:
            self._broken = error
            self._wake.set()
            raise

    def _once(self) -> bool:
        """One question; whether it was answered."""
        before = self._reading
        try:
            value = self._ask()
        except (TemporaryError, FinalError, OSError) as error:
            now = Reading(state=UNREACHABLE, value=before.value, error=str(error))
        else:
            now = Reading(state=ABSENT if value is None else READ, value=value)
        if now != before and not self._ended.is_set():
            self._reading = now
            self._wake.set()
        return now.state != UNREACHABLE


@dataclass(kw_only=True)
class Attributes:
    """The custom metadata below `path` (`instance/attributes`, `project/attributes`): one long
    poll for all keys, so that one that comes and one that goes are seen alike."""

    server: MetadataServer
    path: str
    seconds: int = POLL_SECONDS
    _etag: str = ""

    def __call__(self) -> Mapping[str, str]:
        if self._etag:
            found = self.server.wait(self.path, self._etag, self.seconds, tree=True)
        else:
            found = self.server.tree(self.path)
        try:
            values = json.loads(found.text)
        except (ValueError, RecursionError) as error:
            raise FinalError(f"{self.path}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise FinalError(f"{self.path}: not an object")
        # Only now: what could not be read is asked for again.
        self._etag = found.etag
        return {key: value for key, value in values.items() if isinstance(value, str)}


@dataclass(kw_only=True)
class Maintenance:
    """`instance/maintenance-event`: `NONE`, `MIGRATE_ON_HOST_MAINTENANCE`, or
    `TERMINATE_ON_HOST_MAINTENANCE`, from a minute before it happens."""

    server: MetadataServer
    seconds: int = POLL_SECONDS
    _etag: str = ""

    def __call__(self) -> str | None:
        path = "instance/maintenance-event"
        if not self._etag:
            # Where there is no such key there is none of its events.
            if self.server.value(path) is None:
                return None
            self._etag = "0"
        found = self.server.wait(path, self._etag, self.seconds)
        self._etag = found.etag
        return found.text.strip()


@dataclass(frozen=True, kw_only=True)
class OrdersPlace:
    """Where the orders of a VM are: `endpoint` of Cloud Storage, the bucket, the VM's name."""

    endpoint: str
    bucket: str
    vm: str

    @property
    def url(self) -> str:
        name = quote(f"orders/{self.vm}.json", safe="")
        return f"{self.endpoint}/storage/v1/b/{quote(self.bucket, safe='')}/o/{name}"

    def __str__(self) -> str:
        return f"gs://{self.bucket}/orders/{self.vm}.json"


@dataclass(frozen=True, kw_only=True)
class Object:
    """The orders object as it is: its generation and its text."""

    generation: str
    text: str


@dataclass(kw_only=True)
class Orders:
    """The orders object of the VM that `where` names (it follows the spec)."""

    server: MetadataServer
    where: Callable[[], OrdersPlace]
    _last: tuple[OrdersPlace, Object] | None = None

    def __call__(self) -> Object | None:
        where = self.where()
        known = self._last[1] if self._last and self._last[0] == where else None
        query = "alt=media" + (f"&ifGenerationNotMatch={known.generation}" if known else "")
        headers = {"Authorization": f"Bearer {self.server.token()}"}
        with web.get(f"{where.url}?{query}", headers) as answer:
            if answer.status == 304 and known:
                return known
            gone = release.what_is_gone(answer)
            if gone == "object":
                self._last = None
                return None
            if gone == "bucket":
                raise FinalError(
                    f"{where}: there is no such bucket: run `pulumi up`, or check the spec's bucket"
                )
            if answer.status != 200:
                raise FinalError(f"{where}: {_refused(answer.status, answer.reason)}")
            found = Object(
                generation=answer.headers.get("x-goog-generation", ""),
                # Not UTF-8 is not JSON: said by who parses it.
                text=answer.body(_ORDERS_LIMIT).decode(errors="replace"),
            )
        self._last = (where, found) if found.generation else None
        return found


def _refused(status: int, reason: str) -> str:
    advice = {
        401: "the VM's token is not accepted",
        403: "the VM's service account may not read it: grant it roles/storage.objectViewer on "
        "the bucket",
    }.get(status, "not an answer of Cloud Storage: check the spec's endpoints.storage")
    return f"{status} {reason}: {advice}"


# Metadata keys that make a guest run something of its own, in any case (what reads them takes one):
# Google's runner, also for Windows; cloud-init and its kin; the container starters of COS; the node
# setup of GKE; the images of Workbench; Google's OS Config agent.
_GHOST = re.compile(
    r"(windows-)?(startup|shutdown)-script(-(url|ps1|cmd|bat))?|post-startup-script(-url)?"
    r"|sysprep-(specialize|oobe)-script(-(url|ps1|cmd|bat))?"
    r"|(user|vendor)-data(-.+)?|cloud-?init|cloud-config|bootstrap-script(-url)?"
    r"|gce-container-declaration|google-container-manifest"
    r"|(containerd-)?configure-sh|(k8s-node-setup|common)-psm1"
    r"|gce-software-declaration|enable-osconfig|os-?config-(endpoint|enabled-prerelease-features)"
)
# Values of enable-osconfig with which the agent does nothing.
_OFF = frozenset({"false", "f", "0"})
# Those of them that the runner takes instead of the project's startup script.
_REPLACING = frozenset({"startup-script", "startup-script-url"})


def ghosts(instance: Mapping[str, str], project: Mapping[str, str]) -> tuple[str, ...]:
    """The keys of metadata with which the VM runs what nobody declared: the instance's own, and as
    `project/KEY` those of its project, where startup-script is the fleet's."""
    shared = [f"project/{key}" for key in _ghosts(project) if key != "startup-script"]
    return (*_ghosts(instance), *shared)


def _ghosts(attributes: Mapping[str, str]) -> list[str]:
    return sorted(key for key, value in attributes.items() if _is_ghost(key, value))


def _is_ghost(key: str, value: str) -> bool:
    folded = key.strip().lower()
    if folded == "enable-osconfig" and value.strip().lower() in _OFF:
        return False
    return _GHOST.fullmatch(folded) is not None


def replaced(attributes: Mapping[str, str]) -> bool:
    """Whether Google's runner would not even look at the project's startup script."""
    return not _REPLACING.isdisjoint(attributes)


def script_hash(project: Mapping[str, str]) -> str:
    """The sha256 (hex) of the project's startup script, "" where there is none."""
    text = project.get("startup-script")
    return "" if text is None else hashlib.sha256(text.encode(errors="replace")).hexdigest()


@dataclass(kw_only=True)
class KernelLog:
    """What the kernel said since the last look, from /dev/kmsg; nothing where there is none (a
    container that may not). Not a thread: reading it never waits."""

    place: Place
    _handle: int | None = field(default=None)

    def lines(self) -> tuple[str, ...]:
        """The lines since the last call; the first call only begins."""
        if self._handle is None:
            try:
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self._handle = os.open(self.place.at("/dev/kmsg"), flags)
                os.lseek(self._handle, 0, os.SEEK_END)
            except OSError:
                self.close()
            return ()
        found = []
        # One record a read. The bound: a kernel that says more than we can read must not stop us.
        for _ in range(10_000):
            try:
                record = os.read(self._handle, 8192)
            except BrokenPipeError:
                # The ring went past us; the next read is the oldest that is left.
                continue
            except OSError:
                break
            if not record:
                break
            found.append(kernel_text(record))
        return tuple(found)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None


def kernel_text(record: bytes) -> str:
    """The text of a record of /dev/kmsg: `priority,number,time,flag;text`, then lines of tags."""
    return record.partition(b"\n")[0].partition(b";")[2].decode(errors="replace")
