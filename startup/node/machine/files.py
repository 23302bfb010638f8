"""Writes files, only where they differ, so that a reader sees the old one or the new one."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds after which a temporary file is of no running write.
_LEFT_SECONDS = 600.0


def write(path: Path, content: str, mode: int = 0o644) -> bool:
    """Make `path` hold `content` with `mode`; True when it did not before.

    The new file is complete and on disk before one rename puts it in place. Directories above it
    are made as needed. A link, a FIFO or a file of another user is replaced, never followed or
    waited for. Raises OSError with the path, and with what to do where the disk is full.
    """
    data = content.encode()
    if _holds(path, data, mode):
        return False
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        raise OSError(error.errno, explained(error), str(path)) from error
    finally:
        # It is gone where it was renamed.
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return True


def sweep(path: Path, *, age: float = _LEFT_SECONDS) -> None:
    """Remove the temporary files of interrupted writes of `path`, as after a power cut.

    Files younger than `age` seconds stay: the startup script and the service may be writing the
    same file now. Errors are ignored.
    """
    temporary = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    with suppress(OSError):
        for left in path.parent.iterdir():
            if temporary.fullmatch(left.name):
                # Also files of the future: the clock was set back.
                with suppress(OSError):
                    if abs(time.time() - left.lstat().st_mtime) >= age:
                        left.unlink()


def explained(error: OSError) -> str:
    """The text of `error` and, where the disk is full or read-only, what to do."""
    advice = {
        errno.ENOSPC: ": make room (`df -h` and `df -i` show where), then run it again",
        errno.EDQUOT: ": make room, then run it again",
        errno.EROFS: ": `dmesg` says why; check the file system, then start the VM again",
    }
    return (error.strerror or str(error)) + advice.get(error.errno or 0, "")


def _holds(path: Path, data: bytes, mode: int) -> bool:
    """Whether `path` is a file of this user with `mode` and `data`. Others may write in its
    directory, so links are not followed, and O_NONBLOCK: opening a FIFO would wait for a writer."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        if not (
            stat.S_ISREG(found.st_mode)
            and stat.S_IMODE(found.st_mode) == mode
            and found.st_uid == os.geteuid()
            and found.st_size == len(data)
        ):
            return False
        with open(handle, "rb", closefd=False) as stream:
            return stream.read(len(data) + 1) == data
    except OSError:
        # It cannot be read: it is written anew, which fails where that is not possible either.
        return False
    finally:
        os.close(handle)


def link(path: Path, target: str) -> bool:
    """Make `path` a symbolic link to `target` in one rename; True when it was not one before."""
    if path.is_symlink() and str(path.readlink()) == target:
        return False
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    return True


def record(kind: Callable[..., T], found: Mapping[str, Any]) -> T:
    """The dataclass `kind` with the fields `found`. Unknown fields (a newer program's) are ignored.
    Raises TypeError where one is missing."""
    known = inspect.signature(kind).parameters
    return kind(**{key: value for key, value in found.items() if key in known})


def recall(kind: Callable[..., T], path: Path) -> T | None:
    """The `record` in the JSON file `path`, None where there is none or it cannot be understood.
    Raises OSError where it is there and cannot be read."""
    try:
        return record(kind, json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None
