"""The user pilot, which agents and the rendezvous run as."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from . import files

# By number: the state disk outlives the boot disk and its /etc/passwd.
UID = 610
# The mode of a directory in which the user pilot makes files and removes only its own.
_SHARED = 0o1770


def own(path: Path) -> None:
    """chown `path` to the user pilot. Does nothing unless root (tests)."""
    if os.geteuid() == 0:
        os.chown(path, UID, UID)


def share(path: Path) -> None:
    """Let the user pilot make files in the directory `path`, which stays root's and is sticky.
    Raises OSError with the path, and with what to do where the disk is full or read-only."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # Only what differs: the registry must be readable from a read-only disk as well.
        found = os.fstat(handle)
        if os.geteuid() == 0 and (found.st_uid, found.st_gid) != (0, UID):
            os.fchown(handle, 0, UID)
        if stat.S_IMODE(found.st_mode) != _SHARED:
            os.fchmod(handle, _SHARED)
    except OSError as error:
        raise OSError(error.errno, files.explained(error), str(path)) from error
    finally:
        os.close(handle)
