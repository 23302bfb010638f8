"""What an agent says of itself: its node id and its connections, from its IPC socket.

As `pilotctl info` of 1.18.0 asks (seen with strace): a frame is four bytes of length, big endian,
then as many bytes; the first of these is the kind. Kind 13, alone, asks; kind 14, followed by one
JSON object, is the answer. The daemon answers in a millisecond or so.

The daemon answers its own user only, not even root ("IPC rejected cross-UID connection", seen with
1.18.0): whoever asks is the socket's owner while it connects.

The peer is a stranger's program. So the socket is opened without following links, time and bytes
are bounded, and nothing of the answer is believed but two whole numbers.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ASK: Final = b"\x00\x00\x00\x01\x0d"
_ANSWER: Final = 14
# Seconds for all of it.
TIMEOUT: Final = 2.0
# Bytes of a frame, and frames: some 300 bytes a connection and peer, and an agent has few.
_BYTES: Final = 1 << 20
_FRAMES: Final = 8
# More than this is no number of connections; a node id has 32 bits.
_MOST: Final = 1_000_000
# Number of setresuid(2), by machine (asm/unistd.h).
_SETRESUID: Final = {"x86_64": 117, "aarch64": 147}


class IpcError(Exception):
    """An agent that did not say. The text has its socket."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """An agent's node id (32 bits) and the number of its connections to other agents."""

    node_id: int
    connections: int


def info(path: Path, timeout: float = TIMEOUT) -> Info:
    """Ask the agent at the socket `path`. Raises IpcError, after `timeout` seconds at most."""
    try:
        text = _ask(path, time.monotonic() + timeout)
        found = json.loads(text)
    # json's own limits: a number of too many digits, too deep a nesting, no UTF-8.
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise IpcError(f"{path}: {error or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise IpcError(f"{path}: the answer is no object")
    return Info(
        node_id=_number(path, found, "node_id", 2**32 - 1),
        connections=_number(path, found, "connections", _MOST),
    )


def _ask(path: Path, deadline: float) -> bytes:
    # By descriptor: between a look at the name and its use, its directory's owners could put a
    # link to a socket of root's there.
    handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError("is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            _limit(peer, deadline)
            with _as(found.st_uid):
                peer.connect(f"/proc/self/fd/{handle}")
            peer.sendall(_ASK)
            for _ in range(_FRAMES):
                length = int.from_bytes(_exactly(peer, 4, deadline), "big")
                if not 1 <= length <= _BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                frame = _exactly(peer, length, deadline)
                # Others are events, which nobody asked for.
                if frame[0] == _ANSWER:
                    return frame[1:]
            raise ValueError("no answer to what was asked")
    finally:
        os.close(handle)


@contextmanager
def _as(user: int) -> Iterator[None]:
    """Root's thread has the effective user `user` in here; nobody else's does anything.

    Real and saved user stay root, so no process of `user` may signal or trace this one. Raises
    OSError.
    """
    if os.geteuid() != 0 or user == 0:
        yield
        return
    _set_effective(user)
    try:
        yield
    finally:
        _set_effective(0)


def _set_effective(user: int) -> None:
    # The system call itself: libc's function, and so os.seteuid, changes all threads of a process.
    number = _SETRESUID.get(platform.machine())
    if number is None:
        raise OSError(f"setresuid on {platform.machine()} is not known")
    if _LIBC.syscall(number, -1, user, -1) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setresuid {user}: {os.strerror(code)}")


_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _exactly(peer: socket.socket, count: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        _limit(peer, deadline)
        chunk = peer.recv(min(count - len(data), 1 << 16))
        if not chunk:
            raise EOFError(f"hung up after {len(data)} of {count} bytes")
        data += chunk
    return bytes(data)


def _limit(peer: socket.socket, deadline: float) -> None:
    """A byte now and then must not begin the time anew."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    peer.settimeout(left)


def _number(path: Path, found: dict[str, object], name: str, most: int) -> int:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise IpcError(f"{path}: {name} is no number from 0 to {most}")
    return value
