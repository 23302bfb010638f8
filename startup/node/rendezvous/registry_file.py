"""The registry's file: whether it is good, and what it holds.

A snapshot of version 1 is whole when it ends with the SHA-256 of all before that (upstream's source
of 2026). The check reads a megabyte at a time and parses no JSON. An older (version 0) or newer
file must be one JSON object of the right shape.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

NAME: Final = "registry.json"

# The log of events since the snapshot, beside it. Upstream replays it at a start.
LOG: Final = f"{NAME}.wal"

# Most bytes of a registry, and of one that is parsed: 200,000 nodes take 60 MB.
MOST_BYTES: Final = 4 << 30
MOST_PARSED: Final = 256 << 20
_CHUNK: Final = 1 << 20
SEAL: Final = re.compile(rb',"checksum":"([0-9a-f]{64})"\}\s{0,4}\Z')
_SEAL_BYTES: Final = len(',"checksum":""}') + 64 + 4
_VERSION: Final = re.compile(rb'\A\{"version":(\d{1,4})[,}]')
_NODE: Final = b'"public_key":'
_KEYS: Final = b'"pub_key_idx":{'


class BadRegistryError(Exception):
    """A registry file that must not be used. The text says why."""


class UnknownVersionError(BadRegistryError):
    """A whole file of a format that must not be put back unseen."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"its format is version {version}, which this program does not know: its counter of "
            "IDs cannot be raised, so it is put back by order only"
        )


def version_of(content: bytes) -> int:
    """The version of a file's format, 0 where it names none."""
    match = _VERSION.match(content[:64])
    return int(match[1]) if match else 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of a whole file."""

    size: int
    """Bytes."""
    nodes: int
    keys: int
    """Keys that have a node ID. They stay when their node is gone."""
    version: int = 1
    """Of the format, 0 where the file names none."""


class Check:
    """Judges a file that is fed to it in pieces, of any size, and counts what is in it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._head = b""
        # Not hashed yet: the seal may begin in it.
        self._tail = b""
        self._size = 0
        self._nodes = 0
        self._keys = 0
        # The end of the last piece: a word may begin in it.
        self._left = b""
        self._in_keys = False
        self._keys_begun = False

    def feed(self, piece: bytes) -> None:
        self._size += len(piece)
        if len(self._head) < 64:
            self._head += piece[:64]
        data = self._tail + piece
        cut = max(0, len(data) - _SEAL_BYTES)
        self._hash.update(data[:cut])
        self._tail = data[cut:]
        self._count(piece)

    def result(self) -> Summary | None:
        """The content of a whole sealed file. None for a file without a seal: use `parsed`. Raises
        BadRegistryError."""
        if not self._size:
            raise BadRegistryError("it is empty")
        if not self._head.strip(b"\0"):
            raise BadRegistryError("it holds zeros")
        sealed = SEAL.search(self._tail)
        if sealed is None:
            version = _VERSION.match(self._head)
            if version and int(version[1]) == 1:
                raise BadRegistryError("its end is missing: no checksum")
            return None
        digest = self._hash.copy()
        digest.update(self._tail[: sealed.start()] + b"}")
        if digest.hexdigest().encode() != sealed[1]:
            raise BadRegistryError("its checksum is not that of its content")
        version = _VERSION.match(self._head)
        if not version:
            raise BadRegistryError("it is no snapshot of a registry")
        return Summary(
            size=self._size,
            nodes=self._nodes,
            keys=max(self._keys, self._nodes),
            version=int(version[1]),
        )

    def _count(self, piece: bytes) -> None:
        text = self._left + piece
        self._nodes += text.count(_NODE)
        keep = max(len(_NODE), len(_KEYS)) - 1
        begin = 0
        if not self._keys_begun and (at := text.find(_KEYS)) >= 0:
            self._keys_begun = self._in_keys = True
            begin = at + len(_KEYS)
            # One entry more than commas; base64 has neither ',' nor '}'.
            self._keys = 0 if text[begin : begin + 1] == b"}" else 1
        elif self._in_keys:
            begin = len(self._left)
        if self._in_keys:
            end = text.find(b"}", begin)
            self._keys += text.count(b",", begin, len(text) if end < 0 else end)
            self._in_keys = end < 0
        left = text[-keep:]
        # A whole word in it was counted already.
        self._left = left[-(len(_NODE) - 1) :] if _NODE in left else left


def parsed(data: bytes) -> Summary:
    """What an unsealed file holds: one JSON object with `nodes`. Raises BadRegistryError.

    Keys of nodes that are gone are in `pub_key_idx`, which older files lack. Objects are dropped
    while they are read: 45 MB take some 200 MB of memory and a second, not 500 MB.
    """
    nodes = 0

    def drop(pairs: list[tuple[str, object]]) -> object:
        nonlocal nodes
        names = {name for name, _ in pairs}
        if "public_key" in names:
            nodes += 1
            return None
        # The maps of nodes and keys are large; the document itself is known by its fields.
        if names & {"version", "next_node", "nodes"}:
            return {name: held for name, held in pairs if isinstance(held, int)}, names
        return len(pairs)

    try:
        found = json.loads(data, object_pairs_hook=drop)
    except (ValueError, RecursionError) as error:
        raise BadRegistryError(f"it is no whole JSON: {str(error)[:200]}") from error
    # Only `drop` makes a tuple: the document.
    if not isinstance(found, tuple) or not {"next_node", "nodes"} & found[1]:
        raise BadRegistryError("it is no snapshot of a registry")
    return Summary(
        size=len(data),
        nodes=nodes,
        keys=max(found[0].get("pub_key_idx", 0), nodes),
        version=version_of(data),
    )


def examine(path: Path) -> Summary | None:
    """Check the file at `path`; None where there is none. Raises BadRegistryError, OSError."""
    try:
        with opened(path) as stream:
            return verify(stream, None)
    except FileNotFoundError:
        return None


def verify(source: IO[bytes], out: IO[bytes] | None) -> Summary:
    """Check `source` to its end, writing it to `out` on the way. Raises BadRegistryError, also
    where a block of it cannot be read, and OSError."""
    size = left = os.fstat(source.fileno()).st_size
    if size > MOST_BYTES:
        raise BadRegistryError(f"its {size} bytes are more than a registry has")
    check = Check()
    # No further than its size was: somebody may be writing to it without end.
    while left and (piece := _read(source, min(_CHUNK, left))):
        left -= len(piece)
        check.feed(piece)
        if out is not None:
            out.write(piece)
    summary = check.result()
    if summary is not None:
        return summary
    if size > MOST_PARSED:
        raise BadRegistryError(f"it has no checksum, and {size} bytes are too many to be parsed")
    source.seek(0)
    return parsed(_read(source, size))


def _read(source: IO[bytes], size: int) -> bytes:
    """As `read`. Raises BadRegistryError where a block of this file cannot be read (the disk,
    ext4's checksums): other files can. Raises OSError for other errors."""
    try:
        return source.read(size)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EBADMSG, errno.EUCLEAN):
            raise BadRegistryError(f"it cannot be read: {error.strerror}") from error
        raise


def opened(path: Path) -> IO[bytes]:
    """Open the file `path`. The rendezvous writes in its directory, so links are not followed, and
    a FIFO is not waited for: both raise BadRegistryError. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if path.is_symlink() or path.is_socket():
            raise BadRegistryError("it is no file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadRegistryError("it is no file")
    return os.fdopen(handle, "rb")
