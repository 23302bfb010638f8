"""What every user of a VM may use and agents, a stranger's program, need not: closed to their user.

By POSIX ACL, once a boot: what is closed is made anew with each. The metadata server, which gives
whoever asks the VM's service account, by a program of the kernel's on their slice.
"""

from __future__ import annotations

import stat
import struct
import subprocess
from collections.abc import Callable, Mapping
from os import setxattr
from pathlib import Path
from typing import Final

from ..machine.cgroup import SLICE, cgroup
from ..machine.errors import NotReadyError
from ..machine.paths import Paths
from ..machine.user import UID
from . import egress_filter

# What is left to them, as in a mode. journald takes 4,096 streams, and who holds them all keeps
# everybody else's words out of the journal; systemd opens an agent's own output (to a file) before
# the process is theirs. What is put into memory that is nobody's stays when its agent is gone.
_LEFT: Final[Mapping[str, int]] = {
    "/run/systemd/journal/socket": 0,
    "/run/systemd/journal/stdout": 0,
    "/run/systemd/journal/dev-log": 0,
    "/run/systemd/notify": 0,
    # PID 1 has one thread, and an answer that lists its units is as long as there are agents.
    "/run/dbus/system_bus_socket": 0,
    "/run/systemd/private": 0,
    "/run/systemd/userdb": 0,
    # It keeps what it is sent until it is whole, 16 MiB a connection: by its name of then and now.
    "/run/systemd/io.system.ManagedOOM": 0,
    "/run/systemd/io.systemd.ManagedOOM": 0,
    "/dev/shm": 5,  # noqa: S108
    "/run/lock": 5,
}
# The metadata server, whatever the port.
METADATA: Final = ("169.254.169.254", "fd20:ce::254")
_REFUSING: Final = egress_filter.refusing(METADATA)
_SECONDS: Final = 30.0
# acl(5) as the kernel takes it: a version, then tag, permissions and ID of each entry.
_VERSION: Final = struct.pack("<I", 2)
_OWNER, _USER, _GROUP, _MASK, _OTHER = 1, 2, 4, 16, 32
_NOBODY: Final = 0xFFFFFFFF


def close(paths: Paths, say: Callable[[str], None]) -> None:
    """Close them. What cannot be closed is said: agents run all the same."""
    problems = []
    for name, left in _LEFT.items():
        path = paths.at(name)
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


def shut_metadata(paths: Paths) -> None:
    """Keep agents from the metadata server, where they are not yet. Raises NotReadyError: no agent
    may be started.

    Not by `IPAddressDeny=` of their slice, which says the same: systemd makes two BPF programs of
    it for each unit below, a tenth of what a start takes (docs/UNITS.md). The slice's own is enough
    for the kernel. Not by a rule of its routing either: a socket that is bound to a device passes.
    """
    try:
        slice_ = cgroup(paths) or _begun(paths)
        if not egress_filter.is_on(slice_, _REFUSING):
            egress_filter.put_on(slice_, _REFUSING)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotReadyError(
            f"agents could take the VM's service account from {METADATA[0]}, so none is started: "
            f"{SLICE} takes no BPF program that refuses it: {error}; it is tried in every round; "
            "if it lasts, restart the VM"
        ) from error


def _begun(paths: Paths) -> Path:
    """The cgroup of the agents' slice, which has one without them only where it was told to."""
    command = ["systemctl", "start", SLICE]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=_SECONDS)
    found = cgroup(paths)
    if found is None:
        raise FileNotFoundError(f"`{' '.join(command)}` made no cgroup")
    return found
