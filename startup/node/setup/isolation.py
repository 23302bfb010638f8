"""Closes journald, D-Bus, shared memory and the metadata server to the agents' group.

Agents are not trusted. Files are closed by POSIX ACL, once per boot: each boot makes them anew. The
metadata server, which gives anybody the VM's service account, is closed by a BPF program on the
agents' slice.
"""

from __future__ import annotations

import stat
import struct
import subprocess
from collections.abc import Callable, Mapping
from os import setxattr
from pathlib import Path
from typing import Final

from ..machine.agent_units import SLICE, base
from ..machine.errors import NotReadyError
from ..machine.paths import Paths
from ..machine.user import GID
from . import egress_filter

# Path -> the permissions that agents keep, as in a mode. journald takes 4,096 streams: an agent
# that holds them all keeps others out of the journal. (systemd opens an agent's own output, a file,
# before the process is the agent's.) Files in shared memory would stay when their agent is gone.
_LEFT: Final[Mapping[str, int]] = {
    "/run/systemd/journal/socket": 0,
    "/run/systemd/journal/stdout": 0,
    "/run/systemd/journal/dev-log": 0,
    "/run/systemd/notify": 0,
    # PID 1 has one thread, and a list of its units is long with thousands of agents.
    "/run/dbus/system_bus_socket": 0,
    "/run/systemd/private": 0,
    "/run/systemd/userdb": 0,
    # It buffers up to 16 MiB per connection. Its old name, and its new one.
    "/run/systemd/io.system.ManagedOOM": 0,
    "/run/systemd/io.systemd.ManagedOOM": 0,
    "/dev/shm": 5,  # noqa: S108
    "/run/lock": 5,
}
# The metadata server, all ports.
METADATA: Final = ("169.254.169.254", "fd20:ce::254")
_REFUSING: Final = egress_filter.refusing(METADATA)
_SECONDS: Final = 30.0
# acl(5) as the kernel takes it: a version, then tag, permissions and ID of each entry.
_VERSION: Final = struct.pack("<I", 2)
_OWNER, _GROUP, _NAMED_GROUP, _MASK, _OTHER = 1, 4, 8, 16, 32
_NOBODY: Final = 0xFFFFFFFF


def close(paths: Paths, say: Callable[[str], None]) -> None:
    """Close the paths. A failure is logged only, and agents run all the same."""
    problems = []
    for name, left in _LEFT.items():
        path = paths.at(name)
        try:
            setxattr(path, "system.posix_acl_access", _acl(path, left), follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{name} ({error.strerror})")
    if problems:
        say(f"not closed to agents: {', '.join(problems)}")


def _acl(path: Path, left: int) -> bytes:
    """An ACL: the mode of `path`, and `left` for the agents' group. Raises OSError."""
    mode = stat.S_IMODE(path.lstat().st_mode)
    owner, group, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    entries = (
        (_OWNER, owner, _NOBODY),
        (_GROUP, group, _NOBODY),
        (_NAMED_GROUP, left, GID),
        (_MASK, group, _NOBODY),
        (_OTHER, other, _NOBODY),
    )
    return _VERSION + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def shut_metadata(paths: Paths) -> None:
    """Close the metadata server to agents, where it is not closed yet. Raises NotReadyError: no
    agent may be started.

    `IPAddressDeny=` of their slice would do the same, but systemd loads two BPF programs for each
    unit below it, a tenth of what a start takes (docs/UNITS.md). One on the slice is enough for the
    kernel. A routing rule would not do: a socket that is bound to a device passes it.
    """
    try:
        slice_ = base(paths) or _begun(paths)
        if not egress_filter.is_on(slice_, _REFUSING):
            egress_filter.put_on(slice_, _REFUSING)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotReadyError(
            f"agents could take the VM's service account from {METADATA[0]}, so none is started: "
            f"{SLICE} takes no BPF program that refuses it: {error}; it is tried in every round; "
            "if it lasts, restart the VM"
        ) from error


def _begun(paths: Paths) -> Path:
    """Start the agents' slice, which has no cgroup before its first agent; that cgroup."""
    command = ["systemctl", "start", SLICE]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=_SECONDS)
    found = base(paths)
    if found is None:
        raise FileNotFoundError(f"`{' '.join(command)}` made no cgroup")
    return found
