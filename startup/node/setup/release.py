"""Fetches a release's binary from the bucket, verifies it, and puts it in place in one rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from ..desired.spec import Binary
from ..machine import files, http_client
from ..machine.cloud_storage import what_is_gone
from ..machine.retry import FinalError, TemporaryError
from ..machine.thread_loop import ThreadLoop

# Seconds for one download. The daemon has 12 MB; a binary that takes longer than this is stuck.
DOWNLOAD_SECONDS = 300.0
# Seconds after which a temporary file is of no running fetch: twice what one may take.
_LEFT_SECONDS = 2 * DOWNLOAD_SECONDS
# Most bytes of a binary: the daemon has 12 MB. A larger object is none, and could fill the disk.
SIZE_LIMIT = 256 << 20
# Seconds before a failed fetch is tried again, and the most after doubling.
_PAUSE, _PAUSE_MAX = 1.0, 60.0


class LostError(FinalError):
    """The object is not there, or has other content. Trying again gives the same."""


class Attempts(Protocol):
    """How often an attempt is made (retry.Retry is one)."""

    def __call__(self, what: str, attempt: Callable[[], None]) -> None: ...


def ensure(
    binary: Binary,
    *,
    opt: Path,
    endpoint: str,
    bucket: str,
    token: Callable[[], str],
    retry: Attempts,
) -> bool:
    """Have `binary` verified at `opt/releases/SHA256/NAME`; True when it had to be fetched.

    A file that is there is hashed again, which finds a bad disk at the next boot. Raises FinalError
    with what failed, where and what to do.
    """
    path = path_of(binary, opt)
    if path.is_file() and _sha256(path) == binary.sha256:
        # A wrong mode is corrected. Wrong content is fetched again.
        path.chmod(0o755)
        return False
    where = f"gs://{bucket}/{binary.object}"
    path.parent.mkdir(parents=True, exist_ok=True)
    retry(where, lambda: _fetch(binary, path, endpoint, bucket, token()))
    return True


def use(binary: Binary, opt: Path) -> bool:
    """Make `opt/current` the release of `binary`, in one rename; True when it was another one."""
    return files.link(opt / "current", f"releases/{binary.sha256}")


def path_of(binary: Binary, opt: Path) -> Path:
    return opt / "releases" / binary.sha256 / binary.name


def _fetch(binary: Binary, path: Path, endpoint: str, bucket: str, token: str) -> None:
    where = f"gs://{bucket}/{binary.object}"
    url = f"{endpoint}/storage/v1/b/{quote(bucket, safe='')}/o/{quote(binary.object, safe='')}"
    with http_client.get(f"{url}?alt=media", {"Authorization": f"Bearer {token}"}) as answer:
        gone = what_is_gone(answer)
        if gone == "bucket":
            raise FinalError(
                f"{where} at {endpoint}: 404: there is no bucket {bucket}: run `pulumi up`"
            )
        if gone == "object":
            raise LostError(
                f"{where} at {endpoint}: 404: there is no such object: has `pulumi up` uploaded "
                "this release?"
            )
        _judge(answer.status, answer.reason, where, endpoint)
        # Left by an interrupted run. Fresh files stay: the startup script and the service may both
        # be fetching, each into a file of its own.
        for left in path.parent.glob(f".{binary.name}.*"):
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                left.unlink(missing_ok=True)
        digest, size = hashlib.sha256(), 0
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{binary.name}.", dir=path.parent)
            with os.fdopen(handle, "wb") as stream:
                for chunk in answer.chunks(DOWNLOAD_SECONDS):
                    size += len(chunk)
                    if size > SIZE_LIMIT:
                        raise FinalError(
                            f"{where}: more than {SIZE_LIMIT >> 20} MiB: this is no binary of "
                            "the fleet; nothing was installed. Delete it and run `pulumi up` again"
                        )
                    digest.update(chunk)
                    stream.write(chunk)
                os.fchmod(stream.fileno(), 0o755)
                stream.flush()
                os.fsync(stream.fileno())
            if digest.hexdigest() != binary.sha256:
                raise LostError(
                    f"{where}: sha256 is {digest.hexdigest()}, the spec says {binary.sha256}: "
                    "the object is corrupt or was replaced; nothing was installed. Delete it and "
                    "run `pulumi up` again"
                )
            Path(temporary).replace(path)
        except OSError as error:
            raise OSError(error.errno, files.explained(error), str(path)) from error
        finally:
            if temporary:
                Path(temporary).unlink(missing_ok=True)


def _judge(status: int, reason: str, where: str, endpoint: str) -> None:
    if status == 200:
        return
    if status == 403:
        # Temporary: IAM takes minutes to see the binding that the same `pulumi up` made. The bound
        # of the retry makes it final.
        raise TemporaryError(
            f"{where}: 403 {reason}: the VM's service account may not read it: grant it "
            "roles/storage.objectViewer on the bucket"
        )
    advice = "not an answer of Cloud Storage: check the spec's endpoints.storage"
    if status == 401:
        advice = "the VM's token is not accepted: is this the project's own Cloud Storage?"
    raise FinalError(f"{where} at {endpoint}: {status} {reason}: {advice}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The binaries that should be on disk, and where they are fetched from."""

    binaries: tuple[Binary, ...]
    endpoint: str
    bucket: str


@dataclass(kw_only=True)
class Fetcher:
    """Fetches the wanted binaries in a thread of its own, so that a slow bucket never delays the
    agents."""

    opt: Path
    token: Callable[[], str]
    say: Callable[[str], None]
    wake: Callable[[], None]
    """Called when a binary was fetched, or cannot be."""
    _wanted: Wanted | None = None
    _there: dict[str, Path] = field(default_factory=dict)
    _lost: dict[str, str] = field(default_factory=dict)
    _problems: dict[str, str] = field(default_factory=dict)
    _pause: float = _PAUSE

    def __post_init__(self) -> None:
        self._loop = ThreadLoop("fetch", self._step)

    def start(self) -> None:
        self._loop.start()

    def want(self, wanted: Wanted) -> None:
        if wanted != self._wanted:
            self._wanted = wanted
            self._loop.again()

    def there(self) -> frozenset[str]:
        """The binaries, by sha256, that were verified and are still there."""
        return frozenset(sha256 for sha256, path in self._there.copy().items() if path.is_file())

    def lost(self) -> Mapping[str, str]:
        """The binaries that the bucket does not have, or has with other content, and why. They are
        tried again all the same. A refused token, or an unreachable bucket, is no loss."""
        return self._lost.copy()

    def problems(self) -> Mapping[str, str]:
        """Why the last attempt failed, for each binary that it failed for."""
        return self._problems.copy()

    def _step(self) -> float:
        if self.once():
            self._pause = _PAUSE
            # Asked again also where all are there: a file may be removed.
            return _PAUSE_MAX
        self._pause = min(self._pause * 2, _PAUSE_MAX)
        return self._pause

    def once(self) -> bool:
        """One attempt for each missing binary; whether all are there."""
        wanted, there = self._wanted, self.there()
        if wanted is None:
            return True
        missing = [each for each in wanted.binaries if each.sha256 not in there]
        # All of them, also after one that failed.
        done = [self._attempt(binary, wanted) for binary in missing]
        return all(done)

    def _attempt(self, binary: Binary, wanted: Wanted) -> bool:
        problem, final, lost = "", False, False
        try:
            fetched = ensure(
                binary,
                opt=self.opt,
                endpoint=wanted.endpoint,
                bucket=wanted.bucket,
                token=self.token,
                retry=lambda _, attempt: attempt(),
            )
        except FinalError as error:
            problem, final, lost = str(error), True, isinstance(error, LostError)
        except (TemporaryError, OSError) as error:
            problem = str(error)
        before = self._problems.get(binary.sha256)
        if lost:
            self._lost[binary.sha256] = problem
        elif final or not problem:
            self._lost.pop(binary.sha256, None)
        if not problem:
            self._there[binary.sha256] = path_of(binary, self.opt)
            self._problems.pop(binary.sha256, None)
            if fetched:
                self.say(f"{binary.name} {binary.sha256[:12]} fetched and verified")
        else:
            self._problems[binary.sha256] = problem
        if problem and problem != before:
            self.say(f"{problem}; it is tried again")
        if not problem or final:
            self.wake()
        return not problem


def prune(opt: Path, keep: Collection[str]) -> list[str]:
    """Remove the releases that are not in `keep` (sha256), and return them. Raises OSError.

    A fresh directory stays: the startup script may be about to put a binary into it.
    """
    gone: list[str] = []
    try:
        folders = sorted((opt / "releases").iterdir())
    except FileNotFoundError:
        return gone
    for folder in folders:
        # Only directories that are named like a release.
        name = folder.name
        ours = len(name) == 64 and name.isalnum() and not folder.is_symlink() and folder.is_dir()
        if ours and name not in keep and time.time() - folder.stat().st_mtime > _LEFT_SECONDS:
            shutil.rmtree(folder)
            gone.append(name)
    return gone
