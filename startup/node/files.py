"""Writing files so that a reader sees the old one or the new one, and only when they differ."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(path: Path, content: str, mode: int = 0o644) -> bool:
    """Make `path` hold `content` with `mode`; True when it did not before.

    The new file is complete and on disk before it takes the old one's place in one rename.
    Directories above it are made as needed.
    """
    data = content.encode()
    try:
        if path.read_bytes() == data and path.stat().st_mode & 0o7777 == mode:
            return False
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return True


def link(path: Path, target: str) -> bool:
    """Make `path` a symbolic link to `target` in one rename; True when it was not one before."""
    if path.is_symlink() and str(path.readlink()) == target:
        return False
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    return True
