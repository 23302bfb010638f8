"""The registry's copies in the fleet's bucket, by Cloud Storage's JSON API."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final
from urllib.parse import quote, urlencode

from ..machine import http_client
from ..machine.retry import FinalError, TemporaryError
from .registry_copies import Copy, named

# How their names begin. The rendezvous' account may write nothing else.
PREFIX: Final = "registry/"
# Seconds for one copy on its way: 60 MB, by a slow line.
_TRANSFER: Final = 120.0
# Objects are asked for 1,000 at a time; the writer keeps a few dozen.
_PAGES: Final = 10
_LIST_LIMIT: Final = 8 << 20
_FIELDS: Final = "nextPageToken,items(name,generation,size,metadata)"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the copies of a VM are."""

    endpoint: str
    """Of Cloud Storage."""
    bucket: str
    vm: str
    """The VM's name."""

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{PREFIX}"


@dataclass(frozen=True, kw_only=True)
class StoredCopy:
    """A copy in the bucket, as it says of itself. A copy without these words is nobody's."""

    copy: Copy
    generation: int
    """When it was stored, in microseconds of the bucket's clock."""
    bucket: str
    vm: str
    sha256: str
    cleaned: str
    """The ordered restart with which the registry was last set aside before, "" for none."""

    def is_of(self, place: Place) -> bool:
        return (self.bucket, self.vm) == (place.bucket, place.vm) and bool(self.sha256)


@dataclass(frozen=True, kw_only=True)
class CopiesBucket:
    """The bucket. `place` follows the spec. All calls raise TemporaryError and FinalError."""

    place: Callable[[], Place]
    token: Callable[[], str]

    def copies(self) -> tuple[list[StoredCopy], int]:
        """The copies, oldest first by the bucket's clock, and the number of objects beside them
        that are none."""
        place, page, items = self.place(), "", []
        for _ in range(_PAGES):
            query = {"prefix": PREFIX, "fields": _FIELDS} | ({"pageToken": page} if page else {})
            url = f"{self._objects(place)}?{urlencode(query)}"
            with http_client.get(url, self._headers()) as answer:
                self._check(answer, place, "list them")
                body = answer.body(_LIST_LIMIT)
            try:
                found = json.loads(body)
                items += found.get("items", [])
                page = found.get("nextPageToken", "")
            except (ValueError, RecursionError, AttributeError, TypeError):
                raise TemporaryError(f"{place}: the list of copies cannot be read") from None
            if not page:
                break
        copies = [copy for item in items if (copy := _stored(item))]
        return sorted(copies, key=lambda each: each.generation), len(items) - len(copies)

    def store(self, name: str, content: bytes, cleaned: str) -> None:
        """Store a copy. One of that name that is there already is left as it is."""
        place, boundary = self.place(), secrets.token_hex(16)
        about = {
            "name": PREFIX + name,
            "contentType": "application/json",
            "metadata": {
                "bucket": place.bucket,
                "vm": place.vm,
                "sha256": hashlib.sha256(content).hexdigest(),
                "cleaned": cleaned,
            },
        }
        part = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n"
        body = b"".join(
            (
                f"{part}{json.dumps(about)}\r\n{part}".encode(),
                content,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        url = self._objects(place).replace("/storage/v1/", "/upload/storage/v1/", 1)
        url += "?uploadType=multipart&ifGenerationMatch=0"
        headers = {
            **self._headers(),
            "Content-Type": f"multipart/related; boundary={boundary}",
        }
        with http_client.request("POST", url, headers, body, timeout=_TRANSFER) as answer:
            # 412: an earlier attempt came through, and its answer did not.
            if answer.status != 412:
                self._check(answer, place, "write there")

    def fetch(self, stored: StoredCopy, out: IO[bytes]) -> None:
        """Write a copy's bytes to `out`. Raises FinalError where they are not what was stored."""
        place, digest, size = self.place(), hashlib.sha256(), 0
        url = f"{self._object(place, stored)}&alt=media"
        with http_client.get(url, self._headers()) as answer:
            self._check(answer, place, "read them")
            for chunk in answer.chunks(2 * _TRANSFER):
                digest.update(chunk)
                size += len(chunk)
                if size > stored.copy.size:
                    break
                out.write(chunk)
        if size != stored.copy.size or digest.hexdigest() != stored.sha256:
            raise FinalError("its bytes are not those that its sha256 is of")

    def remove(self, stored: StoredCopy) -> None:
        """Remove a copy for good: by its generation, so no noncurrent version stays."""
        place = self.place()
        url = self._object(place, stored)
        with http_client.request("DELETE", url, self._headers()) as answer:
            if answer.status != 404:
                self._check(answer, place, "remove them")

    def _objects(self, place: Place) -> str:
        return f"{place.endpoint}/storage/v1/b/{quote(place.bucket, safe='')}/o"

    def _object(self, place: Place, stored: StoredCopy) -> str:
        name = quote(PREFIX + stored.copy.name, safe="")
        return f"{self._objects(place)}/{name}?generation={stored.generation}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()}"}

    @staticmethod
    def _check(answer: http_client.HttpAnswer, place: Place, what: str) -> None:
        if answer.status in (200, 204):
            return
        advice = {
            401: "the VM's token is not accepted",
            403: f"the VM's service account may not {what} (docs/ACCESS.md)",
            404: "there is no such bucket: run `pulumi up`, or check the spec's bucket",
        }.get(answer.status, "not an answer of Cloud Storage: check the spec's endpoints.storage")
        # Temporary: rights take minutes to hold, and a bucket can be made again.
        raise TemporaryError(f"{place}: {answer.status} {answer.reason}: {advice}")


def _stored(item: Any) -> StoredCopy | None:
    """The copy that an object is, None where its name or size is not that of a copy."""
    try:
        name, size = str(item["name"]), int(item["size"])
        generation = int(item["generation"])
        about: Mapping[str, Any] = item.get("metadata") or {}
        words = {key: str(about.get(key, "")) for key in ("bucket", "vm", "sha256", "cleaned")}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    copy = named(name.removeprefix(PREFIX), size) if name.startswith(PREFIX) else None
    return StoredCopy(copy=copy, generation=generation, **words) if copy else None
