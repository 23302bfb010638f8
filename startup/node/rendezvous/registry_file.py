"""The registry's file: checked before every start, copied while good, replaced when not.

A snapshot is whole when the SHA-256 that it ends with is that of all before it (upstream's source
of 2026, every writer of version 1). That needs no JSON and no memory: a megabyte at a time. What is
older (version 0) or newer must be one JSON object that has the shape. Copies are root's: the
rendezvous can neither read nor harm them. Each is verified while it is written, so that what is
kept is what was checked, and verified again before it is put back.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from ..machine import files
from ..machine.paths import Paths

NAME: Final = "registry.json"
# The log of what happened since the snapshot: upstream replays it on top (it is next to the store).
LOG: Final = f"{NAME}.wal"

# Copies that are kept: of the last half hour each (one in five minutes), then one an hour and one
# a day. By number and not by age: a clock that jumps ahead would take them all.
NEWEST: Final = 6
HOURLY: Final = 8
DAILY: Final = 7
# Copies that know more than half as many keys as the one that knows most: of these so many stay,
# whatever comes after them. Keys are only ever added, so a registry with fewer has lost some: it
# started empty, and its copies must not push out those from before.
PINNED: Final = 3
SHRUNK: Final = 0.5
# All copies together, those that are kept for people as well: this part of the file system at most.
# The default disk has 20 GB, a registry of 200,000 nodes 60 MB.
DISK_PART: Final = 0.25
# Files set aside: so many, the newest, and so many bytes of them. Of bad copies as many.
BAD_FILES: Final = 5
BAD_BYTES: Final = 1 << 30

# Bytes of what can be a registry, and of what is parsed: 200,000 nodes take 60 MB.
MOST_BYTES: Final = 4 << 30
MOST_PARSED: Final = 256 << 20

_CHUNK: Final = 1 << 20
_SEAL: Final = re.compile(rb',"checksum":"([0-9a-f]{64})"\}\s{0,4}\Z')
_SEAL_BYTES: Final = len(',"checksum":""}') + 64 + 4
_VERSION: Final = re.compile(rb'\A\{"version":(\d{1,4})[,}]')
_NODE: Final = b'"public_key":'
_KEYS: Final = b'"pub_key_idx":{'
_COPY: Final = re.compile(r"(\d{8}T\d{6}Z)-(\d{1,9})\.json")
# `.bad-TIME`: not whole; `.clean-TIME`: set aside by order.
_ASIDE: Final = re.compile(rf"{re.escape(NAME)}(\.wal)?\.(bad|clean)-\d{{8}}T\d{{6}}Z(-\d+)?")
# Behind the name of a copy: from before the store was set aside by order; not whole any more.
_CLEANED: Final = ".before-clean"
_BAD: Final = ".bad"
_TIME: Final = "%Y%m%dT%H%M%SZ"


class BadRegistryError(Exception):
    """A registry file that must not be used. The text says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a whole file holds: its bytes, its nodes, and the keys that have an id (nodes that are
    gone keep theirs). `version`: of its format, 0 where it has none."""

    size: int
    nodes: int
    keys: int
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A good copy: its file's name, when it was taken (seconds since the epoch), bytes, keys."""

    name: str
    time: float
    size: int
    keys: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was done before a start. `restored`: the copy that was put back, or "". `set_aside`:
    the file's new name, or "". `why`: what was wrong with it. `nodes` and `keys`: what the
    rendezvous will read."""

    restored: str = ""
    set_aside: str = ""
    why: str = ""
    nodes: int = 0
    keys: int = 0


class Check:
    """Judges a file that is fed to it in pieces, of any size, and counts what is in it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._head = b""
        # What is not hashed yet: the seal may begin in it.
        self._tail = b""
        self._size = 0
        self._nodes = 0
        self._keys = 0
        # Of the last piece, for a word that is cut by the end of one.
        self._left = b""
        self._in_keys = False
        self._keys_begun = False

    def feed(self, piece: bytes) -> None:
        self._size += len(piece)
        if len(self._head) < 64:
            self._head += piece[:64]
        data = self._tail + piece
        cut = max(0, len(data) - _SEAL_BYTES)
        self._hash.update(data[:cut])
        self._tail = data[cut:]
        self._count(piece)

    def result(self) -> Summary | None:
        """What a whole sealed file holds; None for one without a seal, which is to be judged by
        `parsed`. Raises BadRegistryError."""
        if not self._size:
            raise BadRegistryError("it is empty")
        if not self._head.strip(b"\0"):
            raise BadRegistryError("it holds zeros")
        sealed = _SEAL.search(self._tail)
        if sealed is None:
            version = _VERSION.match(self._head)
            if version and int(version[1]) == 1:
                raise BadRegistryError("its end is missing: no checksum")
            return None
        digest = self._hash.copy()
        digest.update(self._tail[: sealed.start()] + b"}")
        if digest.hexdigest().encode() != sealed[1]:
            raise BadRegistryError("its checksum is not that of its content")
        version = _VERSION.match(self._head)
        if not version:
            raise BadRegistryError("it is no snapshot of a registry")
        return Summary(
            size=self._size,
            nodes=self._nodes,
            keys=max(self._keys, self._nodes),
            version=int(version[1]),
        )

    def _count(self, piece: bytes) -> None:
        text = self._left + piece
        self._nodes += text.count(_NODE)
        keep = max(len(_NODE), len(_KEYS)) - 1
        begin = 0
        if not self._keys_begun and (at := text.find(_KEYS)) >= 0:
            self._keys_begun = self._in_keys = True
            begin = at + len(_KEYS)
            # Entries are one more than the commas between them; base64 has neither ',' nor '}'.
            self._keys = 0 if text[begin : begin + 1] == b"}" else 1
        elif self._in_keys:
            begin = len(self._left)
        if self._in_keys:
            end = text.find(b"}", begin)
            self._keys += text.count(b",", begin, len(text) if end < 0 else end)
            self._in_keys = end < 0
        left = text[-keep:]
        # A whole word in it has been counted.
        self._left = left[-(len(_NODE) - 1) :] if _NODE in left else left


def parsed(data: bytes) -> Summary:
    """What an unsealed file holds: one JSON object with `nodes`. Raises BadRegistryError.

    As in a sealed one, nodes that are gone keep their keys: these are in `pub_key_idx` (files
    without it are older than that). Objects are dropped as they are read: 45 MB take some 200 MB
    and a second, not 500 MB.
    """
    nodes = 0

    def drop(pairs: list[tuple[str, object]]) -> object:
        nonlocal nodes
        names = {name for name, _ in pairs}
        if "public_key" in names:
            nodes += 1
            return None
        # Maps of nodes and keys are what is large; the document itself is told by its fields.
        if names & {"version", "next_node", "nodes"}:
            return {name: held for name, held in pairs if isinstance(held, int)}, names
        return len(pairs)

    try:
        found = json.loads(data, object_pairs_hook=drop)
    except (ValueError, RecursionError) as error:
        raise BadRegistryError(f"it is no whole JSON: {str(error)[:200]}") from error
    # A list in the file is no tuple.
    if not isinstance(found, tuple) or not {"next_node", "nodes"} & found[1]:
        raise BadRegistryError("it is no snapshot of a registry")
    version = _VERSION.match(data[:64])
    return Summary(
        size=len(data),
        nodes=nodes,
        keys=max(found[0].get("pub_key_idx", 0), nodes),
        version=int(version[1]) if version else 0,
    )


def examine(path: Path) -> Summary | None:
    """What the file at `path` holds, None where there is none. Raises BadRegistryError, OSError."""
    try:
        with _opened(path) as stream:
            return _judge(stream, None)
    except FileNotFoundError:
        return None


def copies(paths: Paths, suffix: str = "") -> list[Copy]:
    """The good copies, oldest first; with `suffix` those that have it behind their names."""
    found = []
    folder = paths.registry / "copies"
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _COPY.fullmatch(path.name.removesuffix(suffix))
        if match and path.name.endswith(suffix):
            with suppress(OSError):
                found.append(
                    Copy(
                        name=path.name,
                        time=_seconds(match[1]),
                        size=path.stat().st_size,
                        keys=int(match[2]),
                    )
                )
    return sorted(found, key=lambda copy: copy.name)


def best(found: Sequence[Copy]) -> list[Copy]:
    """The copies in the order in which they are to be put back: the newest first, but those of a
    registry that had lost its keys last."""
    most = max((copy.keys for copy in found), default=0)
    whole = [copy for copy in found if copy.keys >= most * SHRUNK]
    return [*reversed(whole), *(copy for copy in reversed(found) if copy not in whole)]


def surplus(found: Sequence[Copy], room: int) -> list[Copy]:
    """The copies (oldest first) that are to go: too many, or over `room` bytes."""
    keep: set[str] = {copy.name for copy in found[-NEWEST:]}
    for length, count in ((3600, HOURLY), (86400, DAILY)):
        slots: dict[int, str] = {}
        for copy in found:
            # The newest of each slot: later ones replace it.
            slots[int(copy.time // length)] = copy.name
        keep |= {slots[slot] for slot in sorted(slots)[-count:]}
    preferred = [copy.name for copy in best(found)[:PINNED]]
    keep |= set(preferred)
    # Of those that stay, the oldest go first where there is no room, and the last good one never.
    used = sum(copy.size for copy in found if copy.name in keep)
    for copy in found:
        if used <= room:
            break
        if copy.name in keep and copy.name not in (found[-1].name, *preferred[:1]):
            keep.discard(copy.name)
            used -= copy.size
    return [copy for copy in found if copy.name not in keep]


def take_copy(paths: Paths, now: float) -> Copy | None:
    """Copy the registry's file where it is good and another than the newest copy; None where
    there is nothing to copy. Raises BadRegistryError (then nothing was copied), OSError."""
    path, folder = paths.registry / NAME, _folder(paths)
    known = copies(paths)
    for left in folder.glob(".new-*"):
        left.unlink()
    try:
        source = _opened(path)
    except FileNotFoundError:
        return None
    with source:
        seen = os.fstat(source.fileno())
        if known and _same(folder / known[-1].name, seen):
            _recount(folder, known)
            return None
        if any(copy.time > now for copy in known):
            known = _dated_back(folder, known, now)
        # Later than the last one, whatever the clock does.
        at = max(now, known[-1].time + 1 if known else 0)
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as out:
                summary = _judge(source, out)
                out.flush()
                # By which it is known again as a copy of this very file.
                os.utime(out.fileno(), ns=(seen.st_mtime_ns, seen.st_mtime_ns))
                os.fsync(out.fileno())
            name = f"{_stamp(at)}-{summary.keys}.json"
            Path(temporary).replace(folder / name)
        except OSError as error:
            raise OSError(error.errno, files.explained(error), str(folder)) from error
        finally:
            Path(temporary).unlink(missing_ok=True)
    sync_directory(folder)
    found = copies(paths)
    disk = os.statvfs(folder)
    kept = sum(_size(path) for path in folder.iterdir() if path.name.endswith((_BAD, _CLEANED)))
    for copy in surplus(found, int(disk.f_blocks * disk.f_frsize * DISK_PART) - kept):
        (folder / copy.name).unlink(missing_ok=True)
    return next((copy for copy in found if copy.name == name), None)


def prepare(paths: Paths, now: float, say: Callable[[str], None]) -> Start:
    """Have a registry file that can be started from: before every start, as root.

    No file and no copy is a first start. A bad file is set aside, and one that is bad or missing
    is replaced by the best copy that is still whole. Raises OSError.
    """
    path = paths.registry / NAME
    _folder(paths)
    # As large as the registry, each. Nobody writes one now: the rendezvous is not running.
    files.sweep(path, age=0)
    why = aside = ""
    try:
        summary = examine(path)
    except BadRegistryError as error:
        why, summary = str(error), None
        aside = set_aside(paths, NAME, "bad", now)
        say(f"{path}: {why}: set aside as {aside}")
    if summary is not None:
        return Start(nodes=summary.nodes, keys=summary.keys)
    for copy in best(copies(paths)):
        try:
            found = _restore(paths, copy)
        except BadRegistryError as error:
            say(f"copy {copy.name}: {error}: it is not used")
            folder = paths.registry / "copies"
            (folder / copy.name).replace(folder / f"{copy.name}{_BAD}")
            _bound(folder, _BAD, BAD_FILES)
            continue
        say(f"{path}: {why or 'it is gone'}: {copy.name} put back, {found.keys} keys")
        return Start(
            restored=copy.name, set_aside=aside, why=why, nodes=found.nodes, keys=found.keys
        )
    if why:
        say(f"{path}: no good copy: the registry starts empty")
    return Start(set_aside=aside, why=why)


def clean(paths: Paths, now: float, say: Callable[[str], None]) -> None:
    """Set the store and its copies aside: the next start is a first one. Raises OSError."""
    with suppress(BadRegistryError, OSError):
        take_copy(paths, now)
    if (paths.registry / NAME).exists():
        say(f"{paths.registry / NAME}: set aside as {set_aside(paths, NAME, 'clean', now)}")
    set_log_aside(paths, "clean", now, say)
    folder = _folder(paths)
    before = best(copies(paths, _CLEANED))
    new = best(copies(paths))
    # The best of now, then what was best at the last time: an order too many must not take it.
    keep = [f"{copy.name}{_CLEANED}" for copy in new]
    keep[1:1] = [copy.name for copy in before]
    for copy in new:
        (folder / copy.name).replace(folder / f"{copy.name}{_CLEANED}")
    for name in list(dict.fromkeys(keep))[PINNED:]:
        (folder / name).unlink()
    sync_directory(folder)


def put_back(paths: Paths, copy: Copy, now: float, say: Callable[[str], None]) -> None:
    """Replace the registry's file by `copy`, whatever it is. Raises BadRegistryError, OSError."""
    path = paths.registry / NAME
    if path.exists() or path.is_symlink():
        say(f"{path}: set aside as {set_aside(paths, NAME, 'bad', now)}")
    _restore(paths, copy)
    say(f"{path}: {copy.name} put back, {copy.keys} keys")


def set_log_aside(paths: Paths, kind: str, now: float, say: Callable[[str], None]) -> None:
    """Set the log aside where anything is in it: the next start replays none. Raises OSError."""
    path = paths.registry / LOG
    # Upstream empties it with every snapshot. What is no file is not opened as one either.
    if os.path.lexists(path) and path.lstat().st_size:
        say(f"{path}: set aside as {set_aside(paths, LOG, kind, now)}")


def set_aside(paths: Paths, name: str, kind: str, now: float) -> str:
    """Rename `name` in the store's directory, whatever it is; its new name. The oldest of those
    set aside go, where they are too many or too large."""
    path = paths.registry / name
    new = f"{name}.{kind}-{_stamp(now)}"
    number = 0
    while os.path.lexists(paths.registry / new):
        number += 1
        new = f"{name}.{kind}-{_stamp(now)}-{number}"
    path.rename(paths.registry / new)
    sync_directory(paths.registry)
    total = 0
    for index, old in enumerate(reversed(set_aside_names(paths))):
        total += _size(paths.registry / old)
        if index and (index >= BAD_FILES or total > BAD_BYTES):
            _remove(paths.registry / old)
    return new


def set_aside_names(paths: Paths) -> list[str]:
    """The files set aside, oldest first."""
    if not paths.registry.is_dir():
        return []
    names = [entry.name for entry in paths.registry.iterdir() if _ASIDE.fullmatch(entry.name)]
    return sorted(names, key=lambda name: re.split("-", name, maxsplit=1)[1])


def sync_directory(path: Path) -> None:
    """Have the names in `path` on disk: a rename alone may not survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _restore(paths: Paths, copy: Copy) -> Summary:
    """Put `copy` in the registry file's place, owned as that was, in one rename."""
    owner = paths.registry.stat()
    handle, temporary = tempfile.mkstemp(prefix=f".{NAME}.", dir=paths.registry)
    try:
        with (
            os.fdopen(handle, "wb") as out,
            _opened(paths.registry / "copies" / copy.name) as source,
        ):
            summary = _judge(source, out)
            # The rendezvous replaces it, which the sticky directory allows its owner only.
            if os.geteuid() == 0:
                os.fchown(out.fileno(), owner.st_gid, owner.st_gid)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(paths.registry / NAME)
    except OSError as error:
        raise OSError(error.errno, files.explained(error), str(paths.registry)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_directory(paths.registry)
    return summary


def _judge(source: IO[bytes], out: IO[bytes] | None) -> Summary:
    """Check `source` to its end, writing it to `out` on the way. Raises BadRegistryError, also
    where a block of it cannot be read, and OSError."""
    size = left = os.fstat(source.fileno()).st_size
    if size > MOST_BYTES:
        raise BadRegistryError(f"its {size} bytes are more than a registry has")
    check = Check()
    # No further than it was: who writes to it must not keep us here.
    while left and (piece := _read(source, min(_CHUNK, left))):
        left -= len(piece)
        check.feed(piece)
        if out is not None:
            out.write(piece)
    summary = check.result()
    if summary is not None:
        return summary
    if size > MOST_PARSED:
        raise BadRegistryError(f"it has no checksum, and {size} bytes are too many to be parsed")
    source.seek(0)
    return parsed(_read(source, size))


def _read(source: IO[bytes], size: int) -> bytes:
    """As `read`. A block that the disk, or ext4's checksums, refuse is the file's own trouble:
    others can be read. Raises BadRegistryError for that, OSError for the rest."""
    try:
        return source.read(size)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EBADMSG, errno.EUCLEAN):
            raise BadRegistryError(f"it cannot be read: {error.strerror}") from error
        raise


def _opened(path: Path) -> IO[bytes]:
    """`path` itself, a file: in a directory that another one writes in, nothing is followed and
    nothing waited for. Raises BadRegistryError for anything else, OSError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if path.is_symlink() or path.is_socket():
            raise BadRegistryError("it is no file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadRegistryError("it is no file")
    return os.fdopen(handle, "rb")


def _folder(paths: Paths) -> Path:
    """The copies' directory, root's alone. One that somebody else made is renamed away."""
    folder = paths.registry / "copies"
    with suppress(FileNotFoundError):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            folder.rename(paths.registry / f"copies.foreign-{time.time_ns()}")
    if not folder.exists():
        folder.mkdir(mode=0o700)
        sync_directory(paths.registry)
    # A disk that has become read-only is no reason not to start from what is on it.
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def _dated_back(folder: Path, known: Sequence[Copy], now: float) -> list[Copy]:
    """`known` (oldest first), those of a time that is still to come dated just before `now`, in
    their order: the clock was set back, and beside them whatever comes would be of one hour."""
    ahead = [copy for copy in known if copy.time > now]
    dated = [copy for copy in known if copy.time <= now]
    first = max(now - len(ahead), dated[-1].time + 1 if dated else 0)
    for number, copy in enumerate(ahead):
        name = f"{_stamp(first + number)}-{copy.keys}.json"
        (folder / copy.name).replace(folder / name)
        dated.append(replace(copy, name=name, time=_seconds(name.partition("-")[0])))
    return dated


def _recount(folder: Path, known: Sequence[Copy]) -> None:
    """Name the newest copy (the last of `known`) by the keys that it holds, where its name says
    that it has lost some: earlier versions of this program counted living nodes for keys. Raises
    BadRegistryError, OSError."""
    newest = known[-1]
    if newest.keys >= max(copy.keys for copy in known) * SHRUNK:
        return
    found = examine(folder / newest.name)
    if found is not None and found.keys != newest.keys:
        (folder / newest.name).replace(folder / f"{_stamp(newest.time)}-{found.keys}.json")
        sync_directory(folder)


def _same(copy: Path, seen: os.stat_result) -> bool:
    """Whether `copy` was taken of the file that was `seen`."""
    try:
        found = copy.stat()
    except OSError:
        return False
    return (found.st_mtime_ns, found.st_size) == (seen.st_mtime_ns, seen.st_size)


def _bound(folder: Path, suffix: str, count: int) -> None:
    """Keep the newest `count` of the files in `folder` that end with `suffix`."""
    names: Collection[Path] = sorted(
        path for path in folder.iterdir() if path.name.endswith(suffix)
    )
    for path in list(names)[:-count]:
        path.unlink()


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _remove(path: Path) -> None:
    """A directory that was planted under the name is left: removing what is in it is too much."""
    with suppress(OSError):
        path.unlink()


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime(_TIME)


def _seconds(stamp: str) -> float:
    try:
        return datetime.strptime(stamp, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
