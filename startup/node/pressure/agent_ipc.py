"""Asks an agent for its node ID and its connections, through its IPC socket.

As `pilotctl info` of 1.18.0 does (seen with strace): a frame is four bytes of length, big endian,
then as many bytes, of which the first is the kind. Kind 13, alone, asks. Kind 14, with one JSON
object, is the answer. The daemon answers in about a millisecond.

The daemon answers its own user only, not even root ("IPC rejected cross-UID connection", seen with
1.18.0). So this thread takes the socket owner's user while it connects.

The agent is not trusted. Links are not followed, time and bytes are bounded, and only two whole
numbers of the answer are used.
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
# Seconds in all.
TIMEOUT: Final = 2.0
# Most bytes of a frame: some 300 per connection and peer, and an agent has few.
_BYTES: Final = 1 << 20
# Most frames until the answer.
_FRAMES: Final = 8
# Most connections that are believed.
_MOST: Final = 1_000_000
# Number of setresuid(2), by machine (asm/unistd.h).
_SETRESUID: Final = {"x86_64": 117, "aarch64": 147}


class IpcError(Exception):
    """An agent did not answer as it should. The text has its socket."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """An agent's answer."""

    node_id: int
    """32 bits."""
    connections: int
    """To other agents."""


def info(path: Path, timeout: float = TIMEOUT) -> Info:
    """Ask the agent at the socket `path`. Raises IpcError, after `timeout` seconds at most."""
    try:
        text = _ask(path, time.monotonic() + timeout)
        found = json.loads(text)
    # json refuses numbers of too many digits, too deep nesting, and what is not UTF-8.
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise IpcError(f"{path}: {error or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise IpcError(f"{path}: the answer is no object")
    return Info(
        node_id=_number(path, found, "node_id", 2**32 - 1),
        connections=_number(path, found, "connections", _MOST),
    )


def _ask(path: Path, deadline: float) -> bytes:
    # By descriptor: between a check of the name and its use, an agent could put a link to one of
    # root's sockets there.
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
                # Other frames are events.
                if frame[0] == _ANSWER:
                    return frame[1:]
            raise ValueError("an answer to another question")
    finally:
        os.close(handle)


@contextmanager
def _as(user: int) -> Iterator[None]:
    """Give this thread the effective user `user`, where it is root's. Raises OSError.

    Real and saved user stay root, so no process of `user` may signal or trace this one.
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
    # The system call itself: libc's function, and so os.seteuid, changes all threads.
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
    """Set the timeout to the rest of the time, so that single bytes do not extend it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    peer.settimeout(left)


def _number(path: Path, found: dict[str, object], name: str, most: int) -> int:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise IpcError(f"{path}: {name} is no number from 0 to {most}")
    return value
