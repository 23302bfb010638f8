"""Keeps the registry's copies in the bucket: each good one is stored, old ones are removed, and one
is fetched where the VM has none.

It works in a thread of its own: a bucket that is away holds up nothing but the start of a registry
that would be empty otherwise.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..machine.paths import Paths
from ..machine.polling import Source, Wake
from ..machine.retry import FinalError, TemporaryError
from . import registry_copies, registry_file
from .copies_bucket import CopiesBucket, Place, StoredCopy
from .next_node import VERSIONS
from .registry_copies import Copy, cleaned_by

# Bytes of the copies that stay in the bucket.
MOST_BYTES: Final = 4 << 30
# Seconds between two looks at what there is to do; after a copy that could not be stored, and after
# a search that found none.
EVERY: Final = 1.0
_STORE_AGAIN: Final = 60.0
_SEARCH_AGAIN: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search for a copy to start from has come to."""

    ready: bool = False
    """A good copy is on the disk."""
    empty: bool = False
    """Nothing is there: the registry may start empty."""
    why: str = ""
    """Why neither."""


@dataclass(frozen=True, kw_only=True)
class InBucket:
    """The copies in the bucket, as last seen. None where that is not known."""

    copies: int | None = None
    newest: float | None = None
    """When it was taken, in seconds since the epoch."""
    error: str = ""
    """Why the last copy is not there."""


class BucketCopies:
    """The copies of `paths` in `bucket`. `uploads` tells whether this VM may write there."""

    def __init__(
        self,
        paths: Paths,
        bucket: CopiesBucket,
        *,
        uploads: Callable[[], bool],
        say: Callable[[str], None],
        wake: Wake,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = InBucket()
        self.found: Found | None = None
        """The result of the search, None before there is one."""
        self._paths = paths
        self._bucket = bucket
        self._uploads = uploads
        self._say = say
        self._clock = clock
        self._searching, self._name = False, ""
        self._stored = ""
        self._store_at = self._search_at = float("-inf")
        self._source: Source[bool] = Source("registry copies", self.step, wake=wake, every=EVERY)

    def start(self) -> None:
        self._source.start()

    def stop(self) -> None:
        self._source.stop()

    def search(self, name: str = "") -> None:
        """Begin to search for a copy to start from, or go on with that. `name`: for this one."""
        if not self._searching or self._name != name:
            self.found, self._search_at = None, float("-inf")
            self._searching, self._name = True, name

    def end_search(self) -> None:
        self._searching, self.found = False, None

    def step(self) -> bool:
        """Search while that is asked for, else store the newest copy. The value is for the source,
        which wakes the loop where it changes."""
        now = self._clock()
        if self._searching:
            if now >= self._search_at:
                try:
                    self.found = self._search_named() if self._name else self._search()
                except (TemporaryError, FinalError, OSError) as error:
                    self.found = Found(why=str(error))
                self._search_at = now + _SEARCH_AGAIN
            return self.found is not None
        if self._uploads() and now >= self._store_at:
            self._store()
        return False

    def _store(self) -> None:
        """Store the newest copy where it is not there yet, and remove the surplus."""
        newest = next(reversed(registry_copies.copies(self._paths)), None)
        if newest is None or newest.name == self._stored:
            return
        try:
            if newest.size > registry_file.MOST_PARSED:
                raise FinalError(f"{newest.name}: {newest.size} bytes are too many for a restore")
            place = self._bucket.place()
            if not any(each.copy.name == newest.name for each in self._mine(place)):
                path = self._paths.registry / "copies" / newest.name
                with registry_file.opened(path) as source:
                    content = source.read(registry_file.MOST_PARSED)
                self._bucket.store(newest.name, content, cleaned_by(self._paths) or "")
            kept = self._thin(self._mine(place))
        except (TemporaryError, FinalError, OSError, registry_file.BadRegistryError) as error:
            self._store_at = self._clock() + _STORE_AGAIN
            self.state = replace(self.state, error=str(error))
            return
        self._stored = newest.name
        self.state = InBucket(copies=len(kept), newest=kept[-1].copy.time if kept else None)

    def _mine(self, place: Place) -> list[StoredCopy]:
        return [each for each in self._bucket.copies()[0] if each.is_of(place)]

    def _thin(self, mine: Sequence[StoredCopy]) -> list[StoredCopy]:
        """Remove what need not stay of `mine`, oldest first; what stays."""
        stored = [each.copy for each in mine]
        gone = {copy.name for copy in registry_copies.surplus(stored, MOST_BYTES)}
        for each in mine:
            if each.copy.name in gone:
                self._bucket.remove(each)
        return [each for each in mine if each.copy.name not in gone]

    def _search(self) -> Found:
        place = self._bucket.place()
        stored, others = self._bucket.copies()
        mine = usable(stored, place, cleaned_by(self._paths))
        # An earlier registry's were set aside by order: they are no reason to wait.
        strange = others + sum(not each.is_of(place) for each in stored)
        # What was bad and set aside was there all the same.
        strange += registry_copies.set_aside_as_bad(self._paths)
        bad: list[str] = []
        by_name = {each.copy.name: each for each in mine}
        here = {copy.name: copy for copy in registry_copies.copies(self._paths)}
        every = [each.copy for each in mine]
        if here:
            # The disk's have no generation. take_copy() keeps their names in order.
            every = sorted({**{each.name: each for each in every}, **here}.values(), key=_name)
        for copy in registry_copies.in_order(every):
            try:
                if copy.name in here:
                    self._examine(self._paths.registry / "copies" / copy.name)
                else:
                    self._fetch(by_name[copy.name])
            except (registry_file.BadRegistryError, FinalError) as error:
                bad.append(f"{copy.name}: {error}")
            else:
                return Found(ready=True)
        if mine or strange or bad:
            # There was a registry: a snapshot of its disk may have it, or what is bad be mended.
            what = "; ".join(bad[-2:]) or f"{strange} objects of another fleet or VM, or no copies"
            return Found(why=f"{place}: no good copy of this VM's registry ({what})")
        return Found(empty=True)

    def _search_named(self) -> Found:
        """For a copy that an order names, of whatever fleet and format."""
        stored, _ = self._bucket.copies()
        for each in stored:
            if each.copy.name == self._name:
                self._fetch(each, by_order=True)
                return Found(ready=True)
        return Found(why=f"{self._bucket.place()}: there is no copy {self._name}")

    def _fetch(self, stored: StoredCopy, *, by_order: bool = False) -> None:
        """Have a copy of the bucket on the disk, beside those that were taken here."""
        folder = registry_copies.copies_folder(self._paths)
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as out:
                self._bucket.fetch(stored, out)
                out.flush()
                os.fsync(out.fileno())
            if not by_order:
                self._examine(Path(temporary))
            if stored.cleaned and not by_order:
                registry_copies.remember_cleaned(self._paths, stored.cleaned)
            Path(temporary).replace(folder / stored.copy.name)
        finally:
            with suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        registry_copies.sync_directory(folder)
        self._say(f"{stored.copy.name}: fetched from {self._bucket.place()}")

    @staticmethod
    def _examine(path: Path) -> None:
        """Raises BadRegistryError where the copy at `path` cannot be put back."""
        found = registry_file.examine(path)
        if found is None:
            raise registry_file.BadRegistryError("it is gone")
        if found.version not in VERSIONS:
            raise registry_file.UnknownVersionError(found.version)


def usable(stored: Sequence[StoredCopy], place: Place, cleaned: str | None) -> list[StoredCopy]:
    """The copies of this VM's registry since it was last set aside by order: `cleaned`, None on a
    disk that does not know, where the newest copy tells."""
    mine = [each for each in stored if each.is_of(place)]
    if cleaned is None and mine:
        # By the bucket's clock: this VM's may have been wrong.
        cleaned = max(mine, key=lambda each: each.generation).cleaned
    return [each for each in mine if each.cleaned == cleaned]


def _name(copy: Copy) -> str:
    return copy.name
