"""The registry's file: checked before every start, copied while good, replaced when bad.

A snapshot of version 1 is whole when it ends with the SHA-256 of all before that (upstream's source
of 2026). The check reads a megabyte at a time and parses no JSON. An older (version 0) or newer
file must be one JSON object of the right shape. Copies belong to root: the rendezvous can neither
read nor change them. A copy is checked while it is written, and again before it is put back.
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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from ..machine import files
from ..machine.paths import Paths

NAME: Final = "registry.json"
# The log of events since the snapshot, beside it. Upstream replays it at a start.
LOG: Final = f"{NAME}.wal"

# Copies that are kept: the last half hour's (one per five minutes), then one per hour and one per
# day. By number and not by age: a clock that jumps ahead would remove all of them.
NEWEST: Final = 6
HOURLY: Final = 8
DAILY: Final = 7
# A copy is whole where it knows at least this part of the keys that the largest copy knows. Keys
# are only ever added, so a registry with fewer has started empty.
SHRUNK: Final = 0.5
# So many whole copies always stay: those of a registry that started empty must not replace them.
PINNED: Final = 3
# Part of the file system that all copies may take, with those that were set aside. The default disk
# has 20 GB, a registry of 200,000 nodes 60 MB.
DISK_PART: Final = 0.25
# Files set aside that are kept, the newest ones, and their bytes. As many bad copies.
BAD_FILES: Final = 5
BAD_BYTES: Final = 1 << 30

# Most bytes of a registry, and of one that is parsed: 200,000 nodes take 60 MB.
MOST_BYTES: Final = 4 << 30
MOST_PARSED: Final = 256 << 20

_CHUNK: Final = 1 << 20
_SEAL: Final = re.compile(rb',"checksum":"([0-9a-f]{64})"\}\s{0,4}\Z')
_SEAL_BYTES: Final = len(',"checksum":""}') + 64 + 4
_VERSION: Final = re.compile(rb'\A\{"version":(\d{1,4})[,}]')
_NODE: Final = b'"public_key":'
_KEYS: Final = b'"pub_key_idx":{'
_COPY: Final = re.compile(r"(\d{8}T\d{6}Z)-(\d{1,9})\.json")
# `.bad-TIME`: a bad file; `.clean-TIME`: set aside by order.
_ASIDE: Final = re.compile(rf"{re.escape(NAME)}(\.wal)?\.(bad|clean)-\d{{8}}T\d{{6}}Z(-\d+)?")
# Suffixes of a copy: from before the store was set aside by order; found bad.
_CLEANED: Final = ".before-clean"
_BAD: Final = ".bad"
_TIME: Final = "%Y%m%dT%H%M%SZ"


class BadRegistryError(Exception):
    """A registry file that must not be used. The text says why."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a whole file holds."""

    size: int
    """Bytes."""
    nodes: int
    keys: int
    """Keys that have a node ID. They stay when their node is gone."""
    version: int = 1
    """Of the format, 0 where the file names none."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A good copy."""

    name: str
    time: float
    """When it was taken, in seconds since the epoch."""
    size: int
    """Bytes."""
    keys: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was done before a start."""

    restored: str = ""
    """The copy that was put back, or ""."""
    set_aside: str = ""
    """The bad file's new name, or ""."""
    why: str = ""
    """What was wrong with it."""
    nodes: int = 0
    """Nodes that the rendezvous will read."""
    keys: int = 0
    """Keys that the rendezvous will read."""


class Check:
    """Judges a file that is fed to it in pieces, of any size, and counts what is in it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._head = b""
        # Not hashed yet: the seal may begin in it.
        self._tail = b""
        self._size = 0
        self._nodes = 0
        self._keys = 0
        # The end of the last piece: a word may begin in it.
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
        """What a whole sealed file holds. None for a file without a seal: use `parsed`. Raises
        BadRegistryError."""
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
            # One entry more than commas; base64 has neither ',' nor '}'.
            self._keys = 0 if text[begin : begin + 1] == b"}" else 1
        elif self._in_keys:
            begin = len(self._left)
        if self._in_keys:
            end = text.find(b"}", begin)
            self._keys += text.count(b",", begin, len(text) if end < 0 else end)
            self._in_keys = end < 0
        left = text[-keep:]
        # A whole word in it was counted already.
        self._left = left[-(len(_NODE) - 1) :] if _NODE in left else left


def parsed(data: bytes) -> Summary:
    """What an unsealed file holds: one JSON object with `nodes`. Raises BadRegistryError.

    Keys of nodes that are gone are in `pub_key_idx`, which older files lack. Objects are dropped
    while they are read: 45 MB take some 200 MB of memory and a second, not 500 MB.
    """
    nodes = 0

    def drop(pairs: list[tuple[str, object]]) -> object:
        nonlocal nodes
        names = {name for name, _ in pairs}
        if "public_key" in names:
            nodes += 1
            return None
        # The maps of nodes and keys are large; the document itself is known by its fields.
        if names & {"version", "next_node", "nodes"}:
            return {name: held for name, held in pairs if isinstance(held, int)}, names
        return len(pairs)

    try:
        found = json.loads(data, object_pairs_hook=drop)
    except (ValueError, RecursionError) as error:
        raise BadRegistryError(f"it is no whole JSON: {str(error)[:200]}") from error
    # Only `drop` makes a tuple: the document.
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
    """Check the file at `path`; None where there is none. Raises BadRegistryError, OSError."""
    try:
        with _opened(path) as stream:
            return _judge(stream, None)
    except FileNotFoundError:
        return None


def copies(paths: Paths, suffix: str = "") -> list[Copy]:
    """The good copies, oldest first. With `suffix`: the copies whose names end with it."""
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
    """The copies in the order in which they should be put back: the newest first, and those of a
    registry that had lost keys last."""
    most = max((copy.keys for copy in found), default=0)
    whole = [copy for copy in found if copy.keys >= most * SHRUNK]
    return [*reversed(whole), *(copy for copy in reversed(found) if copy not in whole)]


def surplus(found: Sequence[Copy], room: int) -> list[Copy]:
    """The copies (oldest first) to remove: there are too many, or more than `room` bytes."""
    keep: set[str] = {copy.name for copy in found[-NEWEST:]}
    for length, count in ((3600, HOURLY), (86400, DAILY)):
        slots: dict[int, str] = {}
        for copy in found:
            # The newest of each hour or day.
            slots[int(copy.time // length)] = copy.name
        keep |= {slots[slot] for slot in sorted(slots)[-count:]}
    preferred = [copy.name for copy in best(found)[:PINNED]]
    keep |= set(preferred)
    # Where there is no room the oldest go first. The newest and the best one always stay.
    used = sum(copy.size for copy in found if copy.name in keep)
    for copy in found:
        if used <= room:
            break
        if copy.name in keep and copy.name not in (found[-1].name, *preferred[:1]):
            keep.discard(copy.name)
            used -= copy.size
    return [copy for copy in found if copy.name not in keep]


def take_copy(paths: Paths, now: float) -> Copy | None:
    """Copy the registry's file where it is good and differs from the newest copy; None where there
    is nothing to copy. Raises BadRegistryError (then nothing was copied), OSError."""
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
        # Later than the last copy, also where the clock was set back.
        at = max(now, known[-1].time + 1 if known else 0)
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as out:
                summary = _judge(source, out)
                out.flush()
                # `_same` knows a copy of this file by its time.
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
    """Have a good registry file. Called before every start, as root.

    A bad file is set aside. A bad or missing one is replaced by the best copy that is still good.
    Without a file and copies it is a first start. Raises OSError.
    """
    path = paths.registry / NAME
    _folder(paths)
    # Each is as large as the registry. None is in use: the rendezvous does not run.
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


def prepare_store(paths: Paths, say: Callable[[str], None]) -> None:
    """`prepare`, and its result in /run/pilot (`pilot-node store`). Raises OSError."""
    found = prepare(paths, time.time(), say)
    files.write(paths.run / "store.json", json.dumps(asdict(found), sort_keys=True) + "\n")


def restored(paths: Paths) -> str:
    """The copy that was put back before the last start, "" where none was."""
    try:
        return str(json.loads((paths.run / "store.json").read_bytes())["restored"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def clean(paths: Paths, now: float, say: Callable[[str], None]) -> None:
    """Set the registry's file and its copies aside: the next start is a first one. Raises
    OSError."""
    with suppress(BadRegistryError, OSError):
        take_copy(paths, now)
    if (paths.registry / NAME).exists():
        say(f"{paths.registry / NAME}: set aside as {set_aside(paths, NAME, 'clean', now)}")
    set_log_aside(paths, "clean", now, say)
    folder = _folder(paths)
    before = best(copies(paths, _CLEANED))
    new = best(copies(paths))
    # The best copy of now, then the best ones of last time: a second order must not remove them.
    keep = [f"{copy.name}{_CLEANED}" for copy in new]
    keep[1:1] = [copy.name for copy in before]
    for copy in new:
        (folder / copy.name).replace(folder / f"{copy.name}{_CLEANED}")
    for name in list(dict.fromkeys(keep))[PINNED:]:
        (folder / name).unlink()
    sync_directory(folder)


def put_back(paths: Paths, copy: Copy, now: float, say: Callable[[str], None]) -> None:
    """Replace the registry's file by `copy`, and set it aside. Raises BadRegistryError, OSError."""
    path = paths.registry / NAME
    if path.exists() or path.is_symlink():
        say(f"{path}: set aside as {set_aside(paths, NAME, 'bad', now)}")
    _restore(paths, copy)
    say(f"{path}: {copy.name} put back, {copy.keys} keys")


def set_log_aside(paths: Paths, kind: str, now: float, say: Callable[[str], None]) -> None:
    """Set the log aside where it is not empty: the next start replays nothing. Raises OSError."""
    path = paths.registry / LOG
    # Upstream empties it with every snapshot. It is not opened: it may be no file.
    if os.path.lexists(path) and path.lstat().st_size:
        say(f"{path}: set aside as {set_aside(paths, LOG, kind, now)}")


def set_aside(paths: Paths, name: str, kind: str, now: float) -> str:
    """Rename `name` in the registry's directory, also where it is no file; its new name. The oldest
    files that were set aside are removed where there are too many or they are too large."""
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
    """The files that were set aside, oldest first."""
    if not paths.registry.is_dir():
        return []
    names = [entry.name for entry in paths.registry.iterdir() if _ASIDE.fullmatch(entry.name)]
    return sorted(names, key=lambda name: re.split("-", name, maxsplit=1)[1])


def sync_directory(path: Path) -> None:
    """Have the names in `path` on disk: without this a rename may not survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _restore(paths: Paths, copy: Copy) -> Summary:
    """Put `copy` in the place of the registry's file in one rename, with the same owner."""
    owner = paths.registry.stat()
    handle, temporary = tempfile.mkstemp(prefix=f".{NAME}.", dir=paths.registry)
    try:
        with (
            os.fdopen(handle, "wb") as out,
            _opened(paths.registry / "copies" / copy.name) as source,
        ):
            summary = _judge(source, out)
            # The rendezvous must own it: in a sticky directory only the owner may replace it.
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
    # No further than its size was: somebody may be writing to it without end.
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
    """As `read`. Raises BadRegistryError where a block of this file cannot be read (the disk,
    ext4's checksums): other files can. Raises OSError for other errors."""
    try:
        return source.read(size)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EBADMSG, errno.EUCLEAN):
            raise BadRegistryError(f"it cannot be read: {error.strerror}") from error
        raise


def _opened(path: Path) -> IO[bytes]:
    """Open the file `path`. The rendezvous writes in its directory, so links are not followed, and
    a FIFO is not waited for: both raise BadRegistryError. Raises OSError."""
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
    """The directory of the copies, root's only. One with another owner is renamed."""
    folder = paths.registry / "copies"
    with suppress(FileNotFoundError):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            folder.rename(paths.registry / f"copies.foreign-{time.time_ns()}")
    if not folder.exists():
        folder.mkdir(mode=0o700)
        sync_directory(paths.registry)
    # Only where it is needed: on a read-only disk it would fail, and a start must not.
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def _dated_back(folder: Path, known: Sequence[Copy], now: float) -> list[Copy]:
    """`known` (oldest first), with copies of the future renamed to just before `now`, in their
    order. The clock was set back: beside them all later copies would be of one hour."""
    ahead = [copy for copy in known if copy.time > now]
    dated = [copy for copy in known if copy.time <= now]
    first = max(now - len(ahead), dated[-1].time + 1 if dated else 0)
    for number, copy in enumerate(ahead):
        name = f"{_stamp(first + number)}-{copy.keys}.json"
        (folder / copy.name).replace(folder / name)
        dated.append(replace(copy, name=name, time=_seconds(name.partition("-")[0])))
    return dated


def _recount(folder: Path, known: Sequence[Copy]) -> None:
    """Count the keys of the newest copy (the last of `known`) again where its name says that it
    lost some, and rename it: earlier versions counted living nodes as keys. Raises
    BadRegistryError, OSError."""
    newest = known[-1]
    if newest.keys >= max(copy.keys for copy in known) * SHRUNK:
        return
    found = examine(folder / newest.name)
    if found is not None and found.keys != newest.keys:
        (folder / newest.name).replace(folder / f"{_stamp(newest.time)}-{found.keys}.json")
        sync_directory(folder)


def _same(copy: Path, seen: os.stat_result) -> bool:
    """Whether `copy` was taken of the file of `seen`."""
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
    """Remove a file. A directory of that name stays."""
    with suppress(OSError):
        path.unlink()


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime(_TIME)


def _seconds(stamp: str) -> float:
    try:
        return datetime.strptime(stamp, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
