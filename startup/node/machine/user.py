"""The users that agents and the rendezvous run as, and what belongs to them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from . import files

# The user pilot and its group. By number: the state disk outlives the boot disk's /etc/passwd.
UID = GID = 610
# The mode of a directory in which the user pilot makes files and removes only its own.
_SHARED = 0o1770
# Seconds for a home: it has a few files, unless its agent fills it.
_TREE_S = 10.0
# Replaces a file by its copy.
_COPY = 'cp --no-dereference --preserve=mode -- "$1" "$1.own" && mv --force -- "$1.own" "$1"'


def own(path: Path, owner: int = UID) -> None:
    """chown `path` to `owner`, and to the agents' group. Does nothing unless root (tests)."""
    if os.geteuid() == 0:
        os.chown(path, owner, GID)


def own_tree(path: Path, owner: int) -> None:
    """Give the directory `path` and all below it to `owner`, where it is another's. Raises OSError.

    An agent made what is in it, and others of the same user may change it meanwhile: no link is
    followed (`-execdir`). A file with a second name, which may be in another agent's home, is
    replaced by a copy. By find: a tree may be deeper than Python can go.
    """
    before = path.lstat().st_uid
    if os.geteuid() != 0 or before == owner:
        return
    others = ["!", "-uid", str(owner)]
    twins = [*others, "-type", "f", "-links", "+1"]
    if before != 0:
        # As the user that it belonged to: nobody can make root copy what that user may not read.
        copies = ["unshare", "--setgid", str(GID), "--setuid", str(before), "sh", "-c", _COPY, "sh"]
        _find(path, [*twins, "-execdir", *copies, "{}", ";"], owner)
    if twice := _find(path, [*twins, "-print", "-quit"], owner):
        raise OSError(
            f"{path.parent / twice} has a second name, and could not be copied over itself: it is "
            f"not given to user {owner}"
        )
    # From below: where this ends early, the directory itself still shows that it is not done.
    does = ["-execdir", "chown", "--no-dereference", f"{owner}:{GID}", "--", "{}", "+"]
    _find(path, [*others, *does], owner)


def _find(path: Path, words: list[str], owner: int) -> str:
    command = ["find", f"./{path.name}", "-xdev", "-depth", *words]
    try:
        done = subprocess.run(
            command, cwd=path.parent, capture_output=True, text=True, timeout=_TREE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{path} was not given to user {owner} within {_TREE_S:.0f} s") from error
    if done.returncode:
        raise OSError(f"{path} could not be given to user {owner}: {done.stderr.strip()[:200]}")
    return done.stdout.strip()


def share(path: Path) -> None:
    """Let the user pilot make files in the directory `path`, which stays root's and is sticky.
    Raises OSError with the path, and with what to do where the disk is full or read-only."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # Only what differs: the registry must be readable from a read-only disk as well.
        found = os.fstat(handle)
        if os.geteuid() == 0 and (found.st_uid, found.st_gid) != (0, GID):
            os.fchown(handle, 0, GID)
        if stat.S_IMODE(found.st_mode) != _SHARED:
            os.fchmod(handle, _SHARED)
    except OSError as error:
        raise OSError(error.errno, files.explained(error), str(path)) from error
    finally:
        os.close(handle)
