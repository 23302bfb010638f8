"""The registry's file while the loop runs: saved, copied, emptied, mended."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..machine import console, files
from ..machine.retry import FinalError, TemporaryError
from . import next_node, registry_copies, registry_file, runs, trials
from .bucket_copies import BucketCopies
from .context import LoopContext
from .process import post

# Seconds. A forced snapshot writes the whole registry: 45 MB, on a slow disk.
SNAPSHOT = 60.0
# Seconds. The nodes of a younger file are not stale yet: the oldest binaries drop a node after
# 3 minutes (docs/FACTS.md).
FRESH: Final = 60.0


@dataclass(kw_only=True)
class RegistryKeeper:
    """Reads and copies the registry's file. The process itself writes it."""

    loop: LoopContext
    bucket: BucketCopies
    waits: bool = False
    """Whether a start waits for a copy that is not to be had."""
    _told: bool = False
    """Whether the console was told of that."""

    def save(self, seconds: float = SNAPSHOT, *, active: bool) -> None:
        """Have the registry's file as new as can be, and a copy of it. The process, where it is
        `active`, may take `seconds` to begin its answer. A failure is logged only: a stop writes
        the file as well."""
        if active:
            try:
                url = f"http://127.0.0.1:{self.loop.spec.dashboard_port}/api/snapshot"
                answered = post(url, seconds)
                if answered not in (200, 404, 405):
                    self.loop.say(f"forced snapshot: {answered}")
            except (TemporaryError, FinalError) as error:
                self.loop.say(f"forced snapshot: {error}")
        self.loop.attempt(self.copy)

    def copy(self) -> None:
        """Copy the registry's file where it is good. Not during a trial: the newest copy is the
        way back from it. Raises OSError."""
        if self.is_suspect():
            return
        loop = self.loop
        try:
            taken = registry_copies.take_copy(loop.paths, loop.wall_clock())
        except registry_file.BadRegistryError as error:
            loop.fault(f"{registry_file.NAME}: {error}: not copied; the rendezvous will replace it")
            return
        known = registry_copies.best(registry_copies.copies(loop.paths))
        if taken and known and taken.keys < known[0].keys * registry_copies.SHRUNK:
            loop.fault(
                f"the registry knows {taken.keys} keys, and knew {known[0].keys} "
                f"({known[0].name}): has it started empty?"
            )

    def is_suspect(self) -> bool:
        """Whether a release that is not accepted may have written the registry's file: one was on
        trial, and what was started last is not known to be the accepted one."""
        if trials.current(self.loop.paths) is None:
            return False
        running = runs.running(self.loop.paths)
        accepted = self.loop.roll.accepted if self.loop.roll else None
        return running is None or accepted is None or running.release != accepted.sha256

    def nodes_to_read(self, now: float) -> int:
        """How many nodes a process knows once it has read the registry's file. Nodes that were
        silent for too long are dropped, so an old file promises none. A file that lost its keys in
        a trial promises all that the trial was started with."""
        paths = self.loop.paths
        path = paths.registry / registry_file.NAME
        trial = trials.current(paths)
        try:
            found = registry_file.examine(path)
            if found and trial and found.keys < trial.keys * registry_copies.SHRUNK:
                return trial.keys
            if found is not None and now - path.stat().st_mtime < FRESH:
                return found.nodes
        except registry_file.BadRegistryError:
            # `pilot-node store` replaces it before the start.
            pass
        return 0

    def clean(self, restart: str, now: float) -> bool:
        """Set the registry aside for the ordered restart `restart`, once. Whether it did so now.
        Raises OSError."""
        if not self.is_to_clean(restart):
            return False
        registry_copies.clean(self.loop.paths, now, self.loop.say)
        registry_copies.remember_cleaned(self.loop.paths, restart)
        self._permit_empty("as ordered")
        return True

    def restore(self, restart: str, name: str, now: float) -> None:
        """Put the copy `name` back, and set the registry aside, for the ordered restart `restart`.
        Raises BadRegistryError, OSError."""
        paths = self.loop.paths
        registry_copies.put_back_by_order(paths, name, now, self.loop.say)
        registry_copies.remember_cleaned(paths, restart)
        self.started()

    def has(self, name: str) -> bool:
        """Whether the copy `name` is on the disk. It is fetched from the bucket meanwhile."""
        if (self.loop.paths.registry / "copies" / name).exists():
            return True
        self.bucket.search(name)
        found = self.bucket.found
        if found is not None and not found.ready:
            self.loop.fault(f"the copy {name} that is ordered is not on the disk, and {found.why}")
        return False

    def is_to_clean(self, restart: str) -> bool:
        """Whether the registry is still to be set aside for the ordered restart `restart`."""
        return registry_copies.cleaned_by(self.loop.paths) != restart

    def is_ready(self) -> bool:
        """Whether a start finds a good registry file, or a good copy, or may begin empty. A copy is
        searched in the bucket meanwhile; a bucket that does not answer is asked again and again.

        The unit's own start must not: it is closed to the metadata server, and has no token.
        """
        paths, bucket = self.loop.paths, self.bucket
        try:
            good = registry_file.examine(paths.registry / registry_file.NAME) is not None
        except registry_file.BadRegistryError:
            good = False
        if good or registry_copies.empty_permit(paths).exists():
            self.started()
            return True
        bucket.search()
        found = bucket.found
        self.waits = found is not None and not (found.ready or found.empty)
        if found is None:
            return False
        if found.empty:
            self._permit_empty("there is no copy of it on the disk or in the bucket")
        elif not found.ready and not self._has_copy():
            self.loop.fault(
                f"the registry's file is gone or bad, the disk has no good copy, and {found.why}. "
                "It is not started empty: node IDs would be given twice. `ops restart --rendezvous "
                "--clean --insist` starts it empty all the same"
            )
            if not self._told:
                self._told = True
                console.tell(self.loop.paths, f"pilot: no registry: {found.why}")
            return False
        self.started()
        return True

    def end_permit(self) -> None:
        """With its first file, a registry may not start empty any more. Raises OSError."""
        if (self.loop.paths.registry / registry_file.NAME).exists():
            registry_copies.empty_permit(self.loop.paths).unlink(missing_ok=True)

    def started(self) -> None:
        """No copy is needed any more."""
        self.waits = self._told = False
        self.bucket.end_search()

    def _has_copy(self) -> bool:
        """Whether the disk has a copy that can be put back. It is used while the bucket is away."""
        for copy in registry_copies.copies(self.loop.paths):
            with suppress(registry_file.BadRegistryError):
                path = self.loop.paths.registry / "copies" / copy.name
                found = registry_file.examine(path)
                if found is not None and found.version in next_node.VERSIONS:
                    return True
        return False

    def _permit_empty(self, why: str) -> None:
        text = f"THE REGISTRY MAY START EMPTY: {why}"
        self.loop.say(text)
        console.tell(self.loop.paths, f"pilot: {text}")
        files.write(registry_copies.empty_permit(self.loop.paths), "", 0o600)

    def mend(self, now: float) -> None:
        """Put the registry back as it was before a trial, where the trial lost part of it or wrote
        another format. The newest copy is from before: none is taken during a trial. The log is
        set aside in any case: replayed, it would give keys the ids that the trial gave them."""
        paths, say = self.loop.paths, self.loop.say
        self.loop.attempt(partial(registry_copies.set_log_aside, paths, "bad", now, say))
        try:
            found = registry_file.examine(paths.registry / registry_file.NAME)
        except registry_file.BadRegistryError:
            found = None
        for copy in reversed(registry_copies.copies(paths)):
            try:
                known = registry_file.examine(paths.registry / "copies" / copy.name)
            except registry_file.BadRegistryError as error:
                self.loop.fault(f"copy {copy.name}: {error}: it is not used")
                continue
            if known is not None and (
                found is None or found.keys < known.keys or found.version != known.version
            ):
                if known.version in next_node.VERSIONS:
                    registry_copies.put_back(paths, copy, now, say)
                else:
                    unknown = registry_file.UnknownVersionError(known.version)
                    self.loop.fault(f"copy {copy.name}: {unknown}")
            return
