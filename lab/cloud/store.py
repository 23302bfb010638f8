"""State: JSON documents in collections, in memory and in one SQLite file, under one lock.

A change to several documents is one transaction: after `kill -9` at any moment a restart finds
all of it or none. (SQLite's write-ahead log: a power cut of the host may lose the last commits
but never half of one.) The bytes of uploaded objects are files beside it, because they are large.
They are durable before the document that names them is committed.
"""

import base64
import copy
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TextIO

from lab.cloud import Json

_FIRST_ID: Final = 10**18 + 1  # as many digits as Google's ids have, and below 2**63


class StoreError(Exception):
    """The state directory cannot be used; the message says why and what to do."""


def fingerprint(value: object) -> str:
    """Return the fingerprint of a JSON value: 8 bytes in URL-safe base64, as Google's look."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:8]).decode()


class Transaction:
    """A transaction: the reads and writes of one holder of the lock. Documents are copied."""

    def __init__(self, documents: dict[str, dict[str, Json]], counter: int) -> None:
        self._documents = documents
        self._changes: dict[tuple[str, str], Json | None] = {}
        self.counter = counter

    @property
    def changes(self) -> dict[tuple[str, str], Json | None]:
        """Return what changed: (collection, name) to the new document, None for a deletion."""
        return self._changes

    def get(self, collection: str, name: str) -> Json | None:
        """Return a document, None where there is none."""
        if (collection, name) in self._changes:
            return copy.deepcopy(self._changes[collection, name])
        return copy.deepcopy(self._documents.get(collection, {}).get(name))

    def documents(self, collection: str) -> dict[str, Json]:
        """Return a collection's documents by name, sorted."""
        found = self.look(collection)
        return {name: copy.deepcopy(found[name]) for name in sorted(found)}

    def look(self, collection: str) -> Mapping[str, Json]:
        """Return a collection's documents without copying them, in no order: only to be read.

        They stay as they are after the transaction too, since a change replaces a document.
        """
        changed = [pair for pair in self._changes.items() if pair[0][0] == collection]
        held = self._documents.get(collection, {})
        if not changed:
            return held
        found = dict(held)
        for (_, name), body in changed:
            if body is None:
                found.pop(name, None)
            else:
                found[name] = body
        return found

    def collections(self, prefix: str) -> list[str]:
        """Return the names of collections that start with `prefix` and hold documents, sorted."""
        names = {name for name, held in self._documents.items() if held}
        names |= {where for (where, _), body in self._changes.items() if body is not None}
        return sorted(name for name in names if name.startswith(prefix) and self.look(name))

    def put(self, collection: str, name: str, body: Json) -> None:
        """Write a document."""
        self._changes[collection, name] = copy.deepcopy(body)

    def delete(self, collection: str, name: str) -> None:
        """Delete a document, if it is there."""
        self._changes[collection, name] = None

    def new_id(self) -> str:
        """Return an id that was never given before (decimal digits, as Google's)."""
        self.counter += 1
        return str(self.counter)


class Store:
    """The state in `directory`, for one process at a time."""

    def __init__(self, directory: Path) -> None:
        """Open the state, or begin one; StoreError where another process has it open."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.blobs = Blobs(directory / "blobs")
        self._held = hold(directory / "lock")
        self._changed = threading.Condition(threading.RLock())
        self._documents: dict[str, dict[str, Json]] = {}
        self._generation = 0
        self._open = True
        try:
            self._database = self._load(directory / "state.sqlite3")
        except sqlite3.DatabaseError as error:
            self._held.close()
            message = f"{directory / 'state.sqlite3'}: {error}; delete {directory} to start afresh"
            raise StoreError(message) from error

    def _load(self, path: Path) -> sqlite3.Connection:
        # One connection serves all threads: the lock of this object orders them.
        database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS documents"
            " (collection TEXT, name TEXT, body TEXT, PRIMARY KEY (collection, name))"
        )
        database.execute("CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INT)")
        database.execute("INSERT OR IGNORE INTO counters VALUES ('id', ?)", (_FIRST_ID,))
        for collection, name, body in database.execute("SELECT * FROM documents"):
            self._documents.setdefault(collection, {})[name] = json.loads(body)
        self._counter: int = database.execute("SELECT value FROM counters").fetchone()[0]
        return database

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Hold the lock; commit the writes at the end, drop them on an exception."""
        with self._changed:
            if not self._open:
                message = "the state is closed"
                raise StoreError(message)
            transaction = Transaction(self._documents, self._counter)
            yield transaction
            if transaction.changes or transaction.counter != self._counter:
                self._commit(transaction)

    def _commit(self, transaction: Transaction) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for (collection, name), body in transaction.changes.items():
                if body is None:
                    self._database.execute(
                        "DELETE FROM documents WHERE collection = ? AND name = ?",
                        (collection, name),
                    )
                else:
                    self._database.execute(
                        "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)",
                        (collection, name, json.dumps(body)),
                    )
            self._database.execute("UPDATE counters SET value = ?", (transaction.counter,))
            self._database.execute("COMMIT")
        except sqlite3.Error:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        self._counter = transaction.counter
        for (collection, name), body in transaction.changes.items():
            held = self._documents.setdefault(collection, {})
            if body is None:
                held.pop(name, None)
            else:
                held[name] = body
        self._generation += 1
        self._changed.notify_all()

    @property
    def generation(self) -> int:
        """Return a number that grows with every commit of this process (and with `wake`)."""
        with self._changed:
            return self._generation

    def wait(self, after: int, timeout: float) -> int:
        """Wait until the generation exceeds `after`, at most `timeout` seconds; return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._generation > after or not self._open, timeout)
            return self._generation

    def wake(self) -> None:
        """Wake every `wait`, although nothing was committed."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Release the directory and wake every `wait`; a second call does nothing."""
        with self._changed:
            if self._open:
                self._open = False
                self._database.close()
                self._held.close()
                self._changed.notify_all()


class Blobs:
    """The bytes of uploaded objects: files that never change, under names of their own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def write(self, data: bytes) -> str:
        """Make the bytes durable and return their name."""
        name = uuid.uuid4().hex
        temporary = self._directory / f"{name}.part"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path(name))
        return name

    def path(self, name: str) -> Path:
        """Return where the bytes of `name` are."""
        return self._directory / name

    def delete(self, name: str) -> None:
        """Delete the bytes of `name`, if they are there; an open reader goes on."""
        self.path(name).unlink(missing_ok=True)

    def keep_only(self, names: set[str]) -> None:
        """Delete bytes that no document names: a process died between the two writes."""
        for path in self._directory.iterdir():
            if path.name not in names:
                path.unlink()


def hold(path: Path) -> TextIO:
    """Take the lock of a state, until the file is closed; StoreError where it is taken."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        message = f"{path.parent} is in use by process {owner}; stop it or choose another directory"
        raise StoreError(message) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
