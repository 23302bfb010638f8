"""What every user of a VM may use and agents, a stranger's program, need not: closed to their user.

By POSIX ACL, once a boot: what is closed is made anew with each. The metadata server, which gives
whoever asks the VM's service account, by a rule of the kernel's routing for their user.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Mapping
from os import setxattr
from pathlib import Path
from typing import Final

from .agents import UID, NotReadyError
from .place import Place

# What is left to them, as in a mode. journald takes 4,096 streams, and who holds them all keeps
# everybody else's words out of the journal; systemd opens an agent's own output (to a file) before
# the process is theirs. What is put into memory that is nobody's stays when its agent is gone.
_LEFT: Final[Mapping[str, int]] = {
    "/run/systemd/journal/socket": 0,
    "/run/systemd/journal/stdout": 0,
    "/run/systemd/journal/dev-log": 0,
    "/run/systemd/notify": 0,
    "/dev/shm": 5,  # noqa: S108
    "/run/lock": 5,
}
# The metadata server. Its port does not matter: a rule is about addresses.
METADATA: Final = ("169.254.169.254", "fd20:ce::254")
_PORT: Final = 80
# Before the rules of everybody else's (the main table's is 32766), and easy to tell by it.
_PREFERENCE: Final = UID
_SECONDS: Final = 30.0
# acl(5) as the kernel takes it: a version, then tag, permissions and ID of each entry.
_VERSION: Final = struct.pack("<I", 2)
_OWNER, _USER, _GROUP, _MASK, _OTHER = 1, 2, 4, 16, 32
_NOBODY: Final = 0xFFFFFFFF


def close(place: Place, say: Callable[[str], None]) -> None:
    """Close them. What cannot be closed is said: agents run all the same."""
    problems = []
    for name, left in _LEFT.items():
        path = place.at(name)
        try:
            setxattr(path, "system.posix_acl_access", _acl(path, left), follow_symlinks=False)
        except FileNotFoundError:
            # Nothing to close.
            continue
        except OSError as error:
            problems.append(f"{name} ({error.strerror})")
    if problems:
        say(f"not closed to agents: {', '.join(problems)}")


def _acl(path: Path, left: int) -> bytes:
    """The mode of `path`, and `left` for the agents' user. Raises OSError."""
    mode = stat.S_IMODE(path.lstat().st_mode)
    owner, group, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    entries = (
        (_OWNER, owner, _NOBODY),
        (_USER, left, UID),
        (_GROUP, group, _NOBODY),
        (_MASK, group, _NOBODY),
        (_OTHER, other, _NOBODY),
    )
    return _VERSION + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def shut_metadata() -> None:
    """Keep the agents' user from the metadata server, where it is not yet. Raises NotReadyError:
    no agent may be started.

    Not by `IPAddressDeny=` of their slice, which says the same: systemd makes two BPF programs of
    it for each unit below, a tenth of what a start takes (docs/UNITS.md). Whoever flushes rules is
    noticed: each round of pilot-node asks the kernel.
    """
    for address in METADATA:
        if is_shut(address):
            continue
        family = "-6" if ":" in address else "-4"
        rule = ["from", "all", "uidrange", f"{UID}-{UID}", "to", address]
        command = ["ip", family, "rule", "add", *rule, "prohibit", "pref", str(_PREFERENCE)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
            )
            said = " ".join(done.stderr.split())
        except (OSError, subprocess.SubprocessError) as error:
            said = str(error)
        if not is_shut(address):
            raise NotReadyError(
                f"agents could take the VM's service account from {address}, so none is started: "
                f"`{' '.join(command)}`: {said or 'it has no effect'}"
            )


def is_shut(address: str) -> bool:
    """Whether the kernel refuses the agents' user every way to `address`; nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            # As if one of theirs had made it (sockfs keeps the owner with the socket).
            os.fchown(asked.fileno(), UID, -1)
            asked.connect((address, _PORT))
    except OSError as error:
        # No IPv6 at all is as good; no way there is not, for one may come.
        return error.errno in (errno.EACCES, errno.EAFNOSUPPORT)
    return False
