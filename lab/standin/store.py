"""The store file: read at start, replaced by snapshots in one rename (or, a knob, written over)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from .log import Log
from .state import CorruptSnapshotError, State, read_snapshot, sealed

# Of a store that is written over: bytes at a time, and seconds from one to the next.
_PIECE: Final = 1 << 16
_PAUSE: Final = 0.01


def load(file: Path, log: Log, *, started: float) -> State:
    """The state in the store, or an empty one.

    A store that cannot be parsed is what the fleet was lost by (incident 4): the real one says so
    in its log, starts empty, and its next snapshot replaces the file. So does this one; who wants
    the old state back must have checked the file before the start.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        log.info("no store yet, starting empty", store=file)
        return State(started=started)
    except OSError as error:
        log.error("store cannot be read, starting EMPTY", store=file, err=error)
        return State(started=started)
    try:
        state = read_snapshot(content, started=started)
    except CorruptSnapshotError as error:
        log.error(
            "store cannot be parsed, starting EMPTY; the next snapshot replaces it",
            store=file,
            bytes=len(content),
            err=error,
        )
        return State(started=started)
    log.info("store loaded", store=file, nodes=len(state.nodes), keys=len(state.ids))
    return state


def save(file: Path, document: bytes, *, in_place: bool = False) -> int:
    """Replace the store by this snapshot; returns its bytes. OSError leaves the old one, unless it
    is written `in_place`.

    A temporary file, fsynced, renamed; the directory is not fsynced: as the real one does it
    (FACTS), so that what guards the fleet against its gaps has them to guard against.
    """
    content = sealed(document)
    if in_place:
        with file.open("wb") as out:
            for at in range(0, len(content), _PIECE):
                out.write(content[at : at + _PIECE])
                out.flush()
                os.fsync(out.fileno())
                # So that a cut finds it half-way on a fast disk too.
                time.sleep(_PAUSE)
        return len(content)
    temporary = file.with_name(file.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as out:  # noqa: PTH123 - a descriptor with its mode
        out.write(content)
        out.flush()
        os.fsync(descriptor)
    temporary.replace(file)
    return len(content)
