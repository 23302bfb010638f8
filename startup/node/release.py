"""The release: a binary fetched from the bucket, verified, put in place in one rename."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from . import files, web
from .retry import FinalError, Retry, TemporaryError
from .spec import Binary

# Seconds for one download. The daemon has 12 MB; a binary that takes longer than this is stuck.
DOWNLOAD_SECONDS = 300.0


def ensure(
    binary: Binary,
    *,
    opt: Path,
    endpoint: str,
    bucket: str,
    token: Callable[[], str],
    retry: Retry,
) -> bool:
    """Have `binary` verified at `opt/releases/SHA256/NAME`; True when it had to be fetched.

    A file that is there is hashed again: a disk that lies is found at the next boot, not never.
    Raises FinalError with what failed, where and what to do.
    """
    path = path_of(binary, opt)
    if path.is_file() and _sha256(path) == binary.sha256:
        # A mode lost to a crash or a person is mended; content never is, it is fetched again.
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
    with web.get(f"{url}?alt=media", {"Authorization": f"Bearer {token}"}) as answer:
        _judge(answer.status, answer.reason, where, endpoint)
        # Of a run that was cut off; the script's lock keeps two from being here.
        for left in path.parent.glob(f".{binary.name}.*"):
            left.unlink()
        digest = hashlib.sha256()
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{binary.name}.", dir=path.parent)
            with os.fdopen(handle, "wb") as stream:
                for chunk in answer.chunks(DOWNLOAD_SECONDS):
                    digest.update(chunk)
                    stream.write(chunk)
                os.fchmod(stream.fileno(), 0o755)
                stream.flush()
                os.fsync(stream.fileno())
            if digest.hexdigest() != binary.sha256:
                raise FinalError(
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
        # Temporary, because IAM is eventually consistent: the binding that the same `pulumi up`
        # made for this VM takes minutes to be seen. The bound of the retry makes it final.
        raise TemporaryError(
            f"{where}: 403 {reason}: the VM's service account may not read it: grant it "
            "roles/storage.objectViewer on the bucket"
        )
    advice = {
        401: "the VM's token is not accepted: is this the project's own Cloud Storage?",
        404: "there is no such object: has `pulumi up` uploaded this release?",
    }.get(status, "not an answer of Cloud Storage: check the spec's endpoints.storage")
    raise FinalError(f"{where} at {endpoint}: {status} {reason}: {advice}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
