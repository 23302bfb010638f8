"""Objects with generations: reading, listing, changing, deleting and storing them.

The record of a name holds the live generation and the noncurrent ones.
"""

import base64
import hashlib
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import formatdate
from typing import Any, Final

import google_crc32c

from lab.cloud import Json
from lab.cloud.errors import ApiError, invalid, required
from lab.cloud.storage.buckets import Buckets
from lab.cloud.storage.conditions import byte_range, check_object, unchanged_answer
from lab.cloud.storage.records import etag, merged, now
from lab.cloud.store import Blobs, Store, Transaction
from lab.cloud.web import FileSlice, Request, Response, Route

_MOST_OBJECTS: Final = 1000  # Cloud Storage's own limit and default for a page


class Objects:
    """Answers for objects, but for their uploads."""

    def __init__(self, store: Store, buckets: Buckets) -> None:
        self._store = store
        self._buckets = buckets
        self._last_generation = 0

    @property
    def _blobs(self) -> Blobs:
        return self._store.blobs

    def routes(self) -> list[Route]:
        """Return the routes."""
        every = "/storage/v1/b/{bucket}/o"
        one = f"{every}/{{object*}}"
        table: list[tuple[str, str, Any]] = [
            ("GET", every, self._list),
            ("GET", one, self._get),
            ("GET", f"/download{one}", self._download),
            ("PATCH", one, self._change),
            ("PUT", one, self._change),
            ("DELETE", one, self._delete),
        ]
        return [Route(method=m, template=t, handler=h) for m, t, h in table]

    def recover(self) -> None:
        """Delete bytes that no object names: a process died during an upload."""
        with self._store.transaction() as tx:
            held = {
                each["blob"]
                for collection in tx.collections("storage/objects/")
                for record in tx.documents(collection).values()
                for each in [record["live"], *record["old"]]
                if each is not None
            }
        self._blobs.keep_only(held)

    def _record(self, tx: Transaction, bucket: str, name: str) -> Json:
        held = tx.get(f"storage/objects/{bucket}", name)
        return held or {"live": None, "old": []}

    def _find(self, tx: Transaction, request: Request, permission: str) -> Json:
        bucket, name = request.params["bucket"], request.params["object"]
        self._buckets.open(tx, request, permission, name)
        record = self._record(tx, bucket, name)
        found = record["live"]
        wanted = request.query.get("generation")
        if wanted:
            every = [each for each in [record["live"], *record["old"]] if each]
            found = next((each for each in every if each["shown"]["generation"] == wanted), None)
        if found is None:
            raise ApiError(404, "notFound", f"No such object: {bucket}/{name}")
        result: Json = found
        return result

    def _shown(self, held: Json, base: str) -> Json:
        shown: Json = held["shown"]
        path = f"{shown['bucket']}/o/{_quoted(shown['name'])}"
        media = f"{base}/download/storage/v1/b/{path}?generation={shown['generation']}&alt=media"
        return {**shown, "selfLink": f"{base}/storage/v1/b/{path}", "mediaLink": media}

    def _get(self, request: Request) -> Json | Response:
        if request.query.get("alt") == "media":
            return self._download(request)
        with self._store.transaction() as tx:
            held = self._find(tx, request, "storage.objects.get")
        unchanged = unchanged_answer(held["shown"], request)
        return unchanged or self._shown(held, request.base)

    def _download(self, request: Request) -> Response:
        with self._store.transaction() as tx:
            held = self._find(tx, request, "storage.objects.get")
            unchanged = unchanged_answer(held["shown"], request)
            if unchanged is not None:
                return unchanged
            # Opened under the lock: a later deletion of the object does not disturb this.
            file = self._blobs.path(held["blob"]).open("rb")
        size = int(held["shown"]["size"])
        try:
            start, length, partial_answer = byte_range(request.header("range"), size)
        except ApiError:
            file.close()
            raise
        headers = _media_headers(held["shown"])
        if partial_answer:
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        return Response(
            body=FileSlice(file=file, start=start, length=length),
            status=206 if partial_answer else 200,
            headers=headers,
        )

    def _list(self, request: Request) -> Json:
        bucket = request.params["bucket"]
        query = request.query
        with self._store.transaction() as tx:
            self._buckets.open(tx, request, "storage.objects.list")
            held = tx.documents(f"storage/objects/{bucket}")
        versions = query.get("versions") == "true"
        found: list[tuple[str, Json]] = []
        for name, record in held.items():
            old = record["old"] if versions else []
            found += [(name, each) for each in [*old, record["live"]] if each is not None]
        names, prefixes = _chosen([name for name, _ in found], query)
        items = [self._shown(each, request.base) for name, each in found if name in names]
        most, start = _page(query)
        answer: Json = {"kind": "storage#objects"}
        if items[start : start + most]:
            answer["items"] = items[start : start + most]
        if prefixes:
            answer["prefixes"] = prefixes
        if start + most < len(items):
            token = base64.urlsafe_b64encode(str(start + most).encode()).decode()
            answer["nextPageToken"] = token
        return answer

    def _change(self, request: Request) -> Json:
        bucket, name = request.params["bucket"], request.params["object"]
        given = {k: v for k, v in request.json().items() if k in _CHANGEABLE}
        with self._store.transaction() as tx:
            held = self._find(tx, request, "storage.objects.update")
            check_object(held["shown"], request.query)
            shown = merged(held["shown"], given)
            shown["metageneration"] = str(int(shown["metageneration"]) + 1)
            shown["updated"] = now()
            shown["etag"] = etag(f"{shown['generation']}/{shown['metageneration']}")
            record = self._record(tx, bucket, name)
            changed = {**held, "shown": shown}
            if record["live"] == held:
                record["live"] = changed
            record["old"] = [changed if each == held else each for each in record["old"]]
            tx.put(f"storage/objects/{bucket}", name, record)
        return self._shown(changed, request.base)

    def _delete(self, request: Request) -> Response:
        bucket, name = request.params["bucket"], request.params["object"]
        gone = None
        with self._store.transaction() as tx:
            held = self._find(tx, request, "storage.objects.delete")
            check_object(held["shown"], request.query)
            record = self._record(tx, bucket, name)
            if record["live"] == held:
                record["live"] = None
            record["old"] = [each for each in record["old"] if each != held]
            if "generation" not in request.query and self._buckets.is_versioned(tx, bucket):
                record["old"].append(_retired(held))
            else:
                gone = held["blob"]
            self._put_record(tx, bucket, name, record)
        if gone:
            self._blobs.delete(gone)
        return Response(status=204)

    def _put_record(self, tx: Transaction, bucket: str, name: str, record: Json) -> None:
        if record["live"] is None and not record["old"]:
            tx.delete(f"storage/objects/{bucket}", name)
        else:
            tx.put(f"storage/objects/{bucket}", name, record)

    def store(self, request: Request, metadata: Json, data: bytes) -> Json:
        """Store an object, with the name and the conditions of the request."""
        bucket = request.params["bucket"]
        name = request.query.get("name") or metadata.get("name")
        if not isinstance(name, str) or not name:
            raise required("name")
        with self._store.transaction() as tx:
            self._buckets.open(tx, request, "storage.objects.create", name)
        digests = _digests(data)
        for key, digest in digests.items():
            if metadata.get(key) not in (None, "", digest):
                message = f"Provided {key} '{metadata[key]}' doesn't match calculated '{digest}'."
                raise ApiError(400, "invalid", message)
        blob = self._blobs.write(data)
        gone = None
        try:
            with self._store.transaction() as tx:
                storage_class = self._buckets.find(tx, bucket)["storageClass"]
                record = self._record(tx, bucket, name)
                before = record["live"]
                if before:
                    # Google asks for this too where an object takes another's place.
                    self._buckets.open(tx, request, "storage.objects.delete", name)
                check_object(before["shown"] if before else None, request.query)
                shown = _new_object(bucket, name, metadata, storage_class, self._generation(record))
                shown.update(size=str(len(data)), **digests)
                if before and self._buckets.is_versioned(tx, bucket):
                    record["old"].append(_retired(before))
                elif before:
                    gone = before["blob"]
                record["live"] = {"shown": shown, "blob": blob}
                tx.put(f"storage/objects/{bucket}", name, record)
        except Exception:
            self._blobs.delete(blob)
            raise
        if gone:
            self._blobs.delete(gone)
        return self._shown(record["live"], request.base)

    def _generation(self, record: Json) -> str:
        """Return a new generation: microseconds, and more than all before (called locked)."""
        held = [
            int(each["shown"]["generation"]) for each in [record["live"], *record["old"]] if each
        ]
        self._last_generation = max(
            time.time_ns() // 1000, self._last_generation + 1, max(held, default=0) + 1
        )
        return str(self._last_generation)


_CHANGEABLE: Final = frozenset(
    [
        "cacheControl",
        "contentDisposition",
        "contentEncoding",
        "contentLanguage",
        "contentType",
        "customTime",
        "eventBasedHold",
        "temporaryHold",
        "metadata",
    ]
)


def _new_object(bucket: str, name: str, given: Json, storage_class: str, generation: str) -> Json:
    when = now()
    kept = {k: v for k, v in given.items() if k in _CHANGEABLE and v not in (None, "")}
    return {
        "contentType": "application/octet-stream",
        **kept,
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{generation}",
        "name": name,
        "bucket": bucket,
        "generation": generation,
        "metageneration": "1",
        "storageClass": given.get("storageClass") or storage_class,
        "etag": etag(f"{generation}/1"),
        "timeCreated": when,
        "updated": when,
        "timeStorageClassUpdated": when,
    }


def _retired(held: Json) -> Json:
    return {**held, "shown": {**held["shown"], "timeDeleted": now()}}


def _digests(data: bytes) -> dict[str, str]:
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return {
        "md5Hash": base64.b64encode(md5).decode(),
        "crc32c": base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode(),
    }


def _quoted(name: str) -> str:
    return "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or chr(byte) in "-._~" else f"%{byte:02X}"
        for byte in name.encode()
    )


def _media_headers(shown: Json) -> dict[str, str]:
    updated = datetime.fromisoformat(shown["updated"])
    headers = {
        "Content-Type": shown["contentType"],
        "ETag": shown["etag"],
        "Last-Modified": formatdate(updated.timestamp(), usegmt=True),
        "Accept-Ranges": "bytes",
        "X-Goog-Generation": shown["generation"],
        "X-Goog-Metageneration": shown["metageneration"],
        "X-Goog-Hash": f"crc32c={shown['crc32c']},md5={shown['md5Hash']}",
        "X-Goog-Storage-Class": shown["storageClass"],
        "X-Goog-Stored-Content-Length": shown["size"],
    }
    for key, header in (
        ("cacheControl", "Cache-Control"),
        ("contentEncoding", "Content-Encoding"),
        ("contentDisposition", "Content-Disposition"),
    ):
        if key in shown:
            headers[header] = shown[key]
    return headers


def _chosen(names: list[str], query: Mapping[str, str]) -> tuple[set[str], list[str]]:
    """Return the names that a list shows, and the prefixes that stand for the others."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    start, end = query.get("startOffset", ""), query.get("endOffset", "")
    shown: set[str] = set()
    prefixes: set[str] = set()
    for name in names:
        if not name.startswith(prefix) or name < start or (end and name >= end):
            continue
        rest = name[len(prefix) :]
        if delimiter and delimiter in rest:
            prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
        else:
            shown.add(name)
    return shown, sorted(prefixes)


def _page(query: Mapping[str, str]) -> tuple[int, int]:
    """Return the size of a page and its first index; 400 where they cannot be read."""
    try:
        most = int(query.get("maxResults") or _MOST_OBJECTS)
        start = int(base64.b64decode(query.get("pageToken", ""), b"-_", validate=True) or 0)
    except ValueError as error:
        asked = f"{query.get('maxResults')}, {query.get('pageToken')}"
        raise invalid("maxResults, pageToken", asked, "Must be a number and a token.") from error
    return min(most, _MOST_OBJECTS), start
