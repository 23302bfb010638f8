"""Copies of the registry's file: taken while it is good, put back when it is bad.

Copies belong to root: the rendezvous can neither read nor change them. A copy is checked while it
is written, and again before it is put back. Bad files are set aside under another name.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ..machine import files
from ..machine.paths import Paths
from ..machine.retry import FinalError
from .next_node import raised
from .registry_file import (
    LOG,
    MOST_PARSED,
    NAME,
    BadRegistryError,
    Summary,
    UnknownVersionError,
    examine,
    opened,
    verify,
)

# Copies that are kept, on the disk and in the bucket: the last two hours' (one per five minutes),
# then one per day. By number and not by age: a clock that jumps ahead would remove all of them.
NEWEST: Final = 24
DAILY: Final = 14

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
_COPY: Final = re.compile(r"(\d{8}T\d{6}Z)-(\d{1,9})\.json")

# `.bad-TIME`: a bad file; `.clean-TIME`: set aside by order.
_ASIDE: Final = re.compile(rf"{re.escape(NAME)}(\.wal)?\.(bad|clean)-\d{{8}}T\d{{6}}Z(-\d+)?")

# Suffixes of a copy: from before the store was set aside by order; found bad.
_CLEANED: Final = ".before-clean"
_BAD: Final = ".bad"
_TIME: Final = "%Y%m%dT%H%M%SZ"


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
    empty: bool = False
    """Whether the registry starts empty."""
    nodes: int = 0
    """Nodes that the rendezvous will read."""
    keys: int = 0
    """Keys that the rendezvous will read."""


def copies(paths: Paths, suffix: str = "") -> list[Copy]:
    """The good copies, oldest first. With `suffix`: the copies whose names end with it."""
    found = []
    folder = paths.registry / "copies"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.endswith(suffix):
            with suppress(OSError):
                copy = named(path.name.removesuffix(suffix), path.stat().st_size)
                found += [replace(copy, name=path.name)] if copy else []
    return sorted(found, key=lambda copy: copy.name)


def named(name: str, size: int) -> Copy | None:
    """The copy of that name, None where it is not the name of one."""
    match = _COPY.fullmatch(name)
    if not match:
        return None
    return Copy(name=name, time=_seconds(match[1]), size=size, keys=int(match[2]))


def best(found: Sequence[Copy]) -> list[Copy]:
    """The copies in the order in which they should be put back: the newest first, and those of a
    registry that had lost keys last."""
    most = max((copy.keys for copy in found), default=0)
    whole = [copy for copy in found if copy.keys >= most * SHRUNK]
    return [*reversed(whole), *(copy for copy in reversed(found) if copy not in whole)]


def in_order(found: Sequence[Copy]) -> Iterator[Copy]:
    """The copies as they should be tried, until one is good: what a bad one's name says of its keys
    does not count for the others."""
    left = list(found)
    while left:
        copy = best(left)[0]
        left.remove(copy)
        yield copy


def surplus(found: Sequence[Copy], room: int) -> list[Copy]:
    """The copies (oldest first) to remove: there are too many, or more than `room` bytes."""
    keep = {copy.name for copy in found[-NEWEST:]}
    # The newest of each day.
    days = {int(copy.time // 86400): copy.name for copy in found}
    keep |= {days[day] for day in sorted(days)[-DAILY:]}
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
    path, folder = paths.registry / NAME, copies_folder(paths)
    known = copies(paths)
    for left in folder.glob(".new-*"):
        left.unlink()
    try:
        source = opened(path)
    except FileNotFoundError:
        return None
    with source:
        seen = os.fstat(source.fileno())
        if known and _same(folder / known[-1].name, seen):
            return None
        if any(copy.time > now for copy in known):
            known = _dated_back(folder, known, now)
        # Later than the last copy, also where the clock was set back.
        at = max(now, known[-1].time + 1 if known else 0)
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as out:
                summary = verify(source, out)
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


def prepare(
    paths: Paths, now: float, say: Callable[[str], None], *, may_be_empty: bool = True
) -> Start:
    """Have a good registry file. Called before every start, as root.

    A bad file is set aside. A bad or missing one is replaced by the best copy that is still good.
    Without one the registry starts empty where it may. Raises FinalError, OSError.
    """
    path = paths.registry / NAME
    copies_folder(paths)
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
    for copy in in_order(copies(paths)):
        try:
            found = _restore(paths, copy)
        except UnknownVersionError as error:
            say(f"copy {copy.name}: {error}")
            continue
        except BadRegistryError as error:
            say(f"copy {copy.name}: {error}: it is not used")
            folder = paths.registry / "copies"
            (folder / copy.name).replace(folder / f"{copy.name}{_BAD}")
            _bound(folder, _BAD, BAD_FILES)
            continue
        set_log_aside(paths, "bad", now, say)
        say(f"{path}: {why or 'it is gone'}: {copy.name} put back, {found.keys} keys")
        return Start(
            restored=copy.name, set_aside=aside, why=why, nodes=found.nodes, keys=found.keys
        )
    if not may_be_empty:
        raise FinalError(
            f"{path}: {why or 'it is gone'}, and there is no good copy on the disk: pilot-node "
            "looks in the bucket first"
        )
    say(f"{path}: no good copy: THE REGISTRY STARTS EMPTY")
    return Start(set_aside=aside, why=why, empty=True)


def prepare_store(paths: Paths, say: Callable[[str], None]) -> None:
    """`prepare`, and its result in /run/pilot (`pilot-node store`). Raises FinalError, OSError."""
    permit = empty_permit(paths)
    found = prepare(paths, time.time(), say, may_be_empty=permit.exists())
    if not found.empty:
        permit.unlink(missing_ok=True)
    files.write(paths.run / "store.json", json.dumps(asdict(found), sort_keys=True) + "\n")


def last_start(paths: Paths) -> Start:
    """What was done before the last start, as far as that is known."""
    return files.recall(Start, paths.run / "store.json") or Start()


def empty_permit(paths: Paths) -> Path:
    """The file that allows a start with an empty registry: pilot-node makes it when it has found no
    copy on the disk and in the bucket, or was ordered to set the registry aside. It goes when there
    is a registry's file again."""
    return paths.run / "registry-may-start-empty"


def set_aside_as_bad(paths: Paths) -> int:
    """How many files of the registry and copies were set aside as damaged. An ordered `clean` needs
    none of them: it permits the start by itself."""
    files_ = paths.registry.glob(f"{NAME}.bad-*")
    return sum(1 for _ in files_) + sum(1 for _ in (paths.registry / "copies").glob("*.bad"))


def cleaned_by(paths: Paths) -> str | None:
    """The ordered restart at which the registry was last set aside, None where this disk knows of
    none."""
    try:
        return (paths.node_state / "cleaned").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None


def remember_cleaned(paths: Paths, restart: str) -> None:
    """Raises OSError."""
    files.write(paths.node_state / "cleaned", restart + "\n", 0o600)


def clean(paths: Paths, now: float, say: Callable[[str], None]) -> None:
    """Set the registry's file and its copies aside: the next start is a first one. Raises
    OSError."""
    with suppress(BadRegistryError, OSError):
        take_copy(paths, now)
    if (paths.registry / NAME).exists():
        say(f"{paths.registry / NAME}: set aside as {set_aside(paths, NAME, 'clean', now)}")
    set_log_aside(paths, "clean", now, say)
    folder = copies_folder(paths)
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


def put_back_by_order(paths: Paths, name: str, now: float, say: Callable[[str], None]) -> None:
    """Replace the registry by the copy `name`, which may be of a format that is not known, and set
    it aside with all its copies. Raises BadRegistryError, OSError."""
    folder = copies_folder(paths)
    # `clean` keeps the best copies only.
    kept = folder / ".ordered"
    kept.unlink(missing_ok=True)
    kept.hardlink_to(folder / name)
    # First what can fail: a disk that is full, a counter that cannot be raised.
    with _prepared(paths, kept.name, by_order=True) as (prepared, _):
        clean(paths, now, say)
        prepared.replace(paths.registry / NAME)
    sync_directory(paths.registry)
    kept.unlink()
    say(f"{paths.registry / NAME}: {name} put back, as ordered")


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
    """Put `copy`, its counter of IDs raised, in place of the registry's file in one rename, with
    the same owner. Raises BadRegistryError, OSError."""
    with _prepared(paths, copy.name) as (prepared, summary):
        prepared.replace(paths.registry / NAME)
    sync_directory(paths.registry)
    return summary


@contextmanager
def _prepared(paths: Paths, name: str, *, by_order: bool = False) -> Iterator[tuple[Path, Summary]]:
    """The copy `name`, its counter of IDs raised, as a file beside the registry's own, which is
    removed where it is not renamed. Raises BadRegistryError, OSError."""
    owner = paths.registry.stat()
    handle, temporary = tempfile.mkstemp(prefix=f".{NAME}.", dir=paths.registry)
    try:
        with (
            os.fdopen(handle, "wb") as out,
            opened(paths.registry / "copies" / name) as source,
        ):
            summary = verify(source, None)
            if summary.size > MOST_PARSED:
                raise BadRegistryError(f"{summary.size} bytes are too many to raise its counter")
            source.seek(0)
            content = source.read(MOST_PARSED)
            try:
                content = raised(content)
            except UnknownVersionError:
                if not by_order:
                    raise
            out.write(content)
            # The rendezvous must own it: in a sticky directory only the owner may replace it.
            if os.geteuid() == 0:
                os.fchown(out.fileno(), owner.st_gid, owner.st_gid)
            out.flush()
            os.fsync(out.fileno())
        yield Path(temporary), summary
    except OSError as error:
        raise OSError(error.errno, files.explained(error), str(paths.registry)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def copies_folder(paths: Paths) -> Path:
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
    order. The clock was set back: beside them all later copies would be of one day."""
    ahead = [copy for copy in known if copy.time > now]
    dated = [copy for copy in known if copy.time <= now]
    first = max(now - len(ahead), dated[-1].time + 1 if dated else 0)
    for number, copy in enumerate(ahead):
        name = f"{_stamp(first + number)}-{copy.keys}.json"
        (folder / copy.name).replace(folder / name)
        dated.append(replace(copy, name=name, time=_seconds(name.partition("-")[0])))
    return dated


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
