"""Cloud Storage's JSON API: buckets, objects with generations, uploads, conditional downloads."""

import base64
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import partial
from typing import Any, Final

import google_crc32c

from lab.cloud import Json
from lab.cloud.compute import project_number
from lab.cloud.errors import ApiError, invalid, required, stale
from lab.cloud.iam import Policies
from lab.cloud.store import Blobs, Store, Transaction
from lab.cloud.web import FileSlice, Request, Response, Route

_BUCKETS: Final = "storage/buckets"
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_MOST_OBJECTS: Final = 1000  # Cloud Storage's own limit and default for a page
_MULTI_REGIONS: Final = ("US", "EU", "ASIA")
_SOFT_DELETE_SECONDS: Final = "604800"  # Google's default: seven days; recorded, not acted on
_FAILED: Final = "At least one of the pre-conditions you specified did not hold."
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class _Upload:
    """A resumable upload that is under way; it does not outlive the process."""

    bucket: str
    name: str
    metadata: Json
    query: dict[str, str]
    data: bytearray = field(default_factory=bytearray)


class Storage:
    """Answers below `/storage/v1/`, `/upload/storage/v1/` and `/download/storage/v1/`."""

    def __init__(self, store: Store, policies: Policies) -> None:
        self._store = store
        self._policies = policies
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()
        self._last_generation = 0

    @property
    def _blobs(self) -> Blobs:
        return self._store.blobs

    def recover(self) -> None:
        """Delete bytes that no object names: left by a process that died during an upload."""
        with self._store.transaction() as tx:
            held = {
                each["blob"]
                for collection in tx.collections("storage/objects/")
                for record in tx.documents(collection).values()
                for each in [record["live"], *record["old"]]
                if each is not None
            }
        self._blobs.keep_only(held)

    def routes(self) -> list[Route]:
        """Return the routes."""
        base = "/storage/v1/b"
        bucket = f"{base}/{{bucket}}"
        one = f"{bucket}/o/{{object*}}"
        upload = "/upload/storage/v1/b/{bucket}/o"
        table: list[tuple[str, str, Any]] = [
            ("GET", base, self._list_buckets),
            ("POST", base, self._insert_bucket),
            ("GET", bucket, self._get_bucket),
            ("PATCH", bucket, partial(self._change_bucket, merge=True)),
            ("PUT", bucket, partial(self._change_bucket, merge=False)),
            ("DELETE", bucket, self._delete_bucket),
            ("GET", f"{bucket}/iam", self._get_policy),
            ("PUT", f"{bucket}/iam", self._set_policy),
            ("GET", f"{bucket}/iam/testPermissions", self._test_permissions),
            # Google's provider asks, with the slash, before it deletes a bucket.
            ("GET", f"{bucket}/anywhereCaches", self._list_caches),
            ("GET", f"{bucket}/anywhereCaches/", self._list_caches),
            ("GET", f"{bucket}/o", self._list_objects),
            ("GET", one, self._get_object),
            ("GET", f"/download{one}", self._download),
            ("PATCH", one, self._change_object),
            ("PUT", one, self._change_object),
            ("DELETE", one, self._delete_object),
            ("POST", upload, self._upload),
            ("PUT", upload, self._resume),
            ("DELETE", upload, self._cancel),
        ]
        return [Route(method=m, template=t, handler=h) for m, t, h in table]

    # Buckets

    def _bucket(self, tx: Transaction, name: str) -> Json:
        body = tx.get(_BUCKETS, name)
        if body is None:
            raise ApiError(404, "notFound", "The specified bucket does not exist.")
        return body

    def _shown(self, body: Json, base: str) -> Json:
        return {**body, "selfLink": f"{base}/storage/v1/b/{body['name']}"}

    def _list_buckets(self, request: Request) -> Json:
        project = request.query.get("project", "")
        prefix = request.query.get("prefix", "")
        number = project_number(project)
        with self._store.transaction() as tx:
            held = tx.documents(_BUCKETS)
        items = [
            self._shown(body, request.base)
            for name, body in held.items()
            if body["projectNumber"] == number and name.startswith(prefix)
        ]
        return {"kind": "storage#buckets", **({"items": items} if items else {})}

    def _insert_bucket(self, request: Request) -> Json:
        given = request.json()
        name = given.get("name")
        if not isinstance(name, str) or not _BUCKET_NAME.fullmatch(name):
            raise ApiError(400, "invalid", f"Invalid bucket name: '{name}'")
        if not request.query.get("project"):
            raise required("project")
        with self._store.transaction() as tx:
            if tx.get(_BUCKETS, name) is not None:
                message = (
                    "Your previous request to create the named bucket succeeded and you already"
                    " own it."
                )
                raise ApiError(409, "conflict", message)
            body = _new_bucket(name, request.query["project"], given)
            tx.put(_BUCKETS, name, body)
        return self._shown(body, request.base)

    def _get_bucket(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            body = self._bucket(tx, request.params["bucket"])
        _check_metageneration(body, request.query)
        return self._shown(body, request.base)

    def _change_bucket(self, request: Request, *, merge: bool) -> Json:
        given = request.json()
        name = request.params["bucket"]
        with self._store.transaction() as tx:
            held = self._bucket(tx, name)
            _check_metageneration(held, request.query)
            start = held if merge else {k: held[k] for k in _KEPT if k in held}
            body = _completed_bucket({**_merged(start, given), **{k: held[k] for k in _KEPT}})
            body["metageneration"] = str(int(held["metageneration"]) + 1)
            body["updated"] = _now()
            body["etag"] = _etag(body["metageneration"])
            tx.put(_BUCKETS, name, body)
        return self._shown(body, request.base)

    def _delete_bucket(self, request: Request) -> Response:
        name = request.params["bucket"]
        with self._store.transaction() as tx:
            _check_metageneration(self._bucket(tx, name), request.query)
            if tx.documents(f"storage/objects/{name}"):
                raise ApiError(409, "conflict", "The bucket you tried to delete is not empty.")
            tx.delete(_BUCKETS, name)
            self._policies.forget(tx, f"projects/_/buckets/{name}")
        return Response(status=204)

    def _get_policy(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            return self._policy(tx, self._bucket(tx, request.params["bucket"]))

    def _policy(self, tx: Transaction, bucket: Json) -> Json:
        resource = f"projects/_/buckets/{bucket['name']}"
        number = bucket["projectNumber"]
        default: list[Json] = [
            {
                "role": "roles/storage.legacyBucketOwner",
                "members": [f"projectEditor:{number}", f"projectOwner:{number}"],
            },
            {"role": "roles/storage.legacyBucketReader", "members": [f"projectViewer:{number}"]},
        ]
        policy = self._policies.get(tx, resource, default)
        return {"kind": "storage#policy", "resourceId": resource, **policy}

    def _set_policy(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            bucket = self._bucket(tx, request.params["bucket"])
            resource = f"projects/_/buckets/{bucket['name']}"
            self._policies.set(tx, resource, request.json(), conflict=412)
            return self._policy(tx, bucket)

    def _test_permissions(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            self._bucket(tx, request.params["bucket"])
        asked = [each for each in request.query.get("permissions", "").split(",") if each]
        return {"kind": "storage#testIamPermissionsResponse", "permissions": asked}

    def _list_caches(self, request: Request) -> Json:
        with self._store.transaction() as tx:
            self._bucket(tx, request.params["bucket"])
        # None can be made here.
        return {"kind": "storage#anywhereCaches"}

    # Objects: a record of a name holds the live generation and the noncurrent ones.

    def _record(self, tx: Transaction, bucket: str, name: str) -> Json:
        held = tx.get(f"storage/objects/{bucket}", name)
        return held or {"live": None, "old": []}

    def _find(self, tx: Transaction, request: Request) -> Json:
        bucket, name = request.params["bucket"], request.params["object"]
        self._bucket(tx, bucket)
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

    def _object_shown(self, held: Json, base: str) -> Json:
        shown: Json = held["shown"]
        path = f"{shown['bucket']}/o/{_quoted(shown['name'])}"
        media = f"{base}/download/storage/v1/b/{path}?generation={shown['generation']}&alt=media"
        return {**shown, "selfLink": f"{base}/storage/v1/b/{path}", "mediaLink": media}

    def _get_object(self, request: Request) -> Json | Response:
        if request.query.get("alt") == "media":
            return self._download(request)
        with self._store.transaction() as tx:
            held = self._find(tx, request)
        unchanged = _unchanged(held["shown"], request)
        return unchanged or self._object_shown(held, request.base)

    def _download(self, request: Request) -> Response:
        with self._store.transaction() as tx:
            held = self._find(tx, request)
            unchanged = _unchanged(held["shown"], request)
            if unchanged is not None:
                return unchanged
            # Opened under the lock: whoever deletes the object now no longer disturbs this.
            file = self._blobs.path(held["blob"]).open("rb")
        size = int(held["shown"]["size"])
        try:
            start, length, partial_answer = _slice(request.header("range"), size)
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

    def _list_objects(self, request: Request) -> Json:
        bucket = request.params["bucket"]
        query = request.query
        with self._store.transaction() as tx:
            self._bucket(tx, bucket)
            held = tx.documents(f"storage/objects/{bucket}")
        versions = query.get("versions") == "true"
        found: list[tuple[str, Json]] = []
        for name, record in held.items():
            old = record["old"] if versions else []
            found += [(name, each) for each in [*old, record["live"]] if each is not None]
        names, prefixes = _chosen([name for name, _ in found], query)
        items = [self._object_shown(each, request.base) for name, each in found if name in names]
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

    def _change_object(self, request: Request) -> Json:
        bucket, name = request.params["bucket"], request.params["object"]
        given = {k: v for k, v in request.json().items() if k in _OBJECT_CHANGEABLE}
        with self._store.transaction() as tx:
            held = self._find(tx, request)
            _check_object(held["shown"], request.query)
            shown = _merged(held["shown"], given)
            shown["metageneration"] = str(int(shown["metageneration"]) + 1)
            shown["updated"] = _now()
            shown["etag"] = _etag(f"{shown['generation']}/{shown['metageneration']}")
            record = self._record(tx, bucket, name)
            changed = {**held, "shown": shown}
            if record["live"] == held:
                record["live"] = changed
            record["old"] = [changed if each == held else each for each in record["old"]]
            tx.put(f"storage/objects/{bucket}", name, record)
        return self._object_shown(changed, request.base)

    def _delete_object(self, request: Request) -> Response:
        bucket, name = request.params["bucket"], request.params["object"]
        gone = None
        with self._store.transaction() as tx:
            held = self._find(tx, request)
            _check_object(held["shown"], request.query)
            record = self._record(tx, bucket, name)
            if record["live"] == held:
                record["live"] = None
            record["old"] = [each for each in record["old"] if each != held]
            if "generation" not in request.query and self._versioned(tx, bucket):
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

    def _versioned(self, tx: Transaction, bucket: str) -> bool:
        return bool((self._bucket(tx, bucket).get("versioning") or {}).get("enabled"))

    # Uploads

    def _upload(self, request: Request) -> Json | Response:
        kind = request.query.get("uploadType", "")
        if kind == "multipart":
            metadata, media, content_type = _multipart(request)
            metadata.setdefault("contentType", content_type)
            return self._store_object(request, metadata, media)
        if kind == "media":
            metadata = {"contentType": request.header("content-type")}
            return self._store_object(request, metadata, request.body)
        if kind == "resumable":
            return self._begin(request)
        raise invalid("uploadType", kind, "Use 'media', 'multipart' or 'resumable'.")

    def _begin(self, request: Request) -> Response:
        metadata = request.json()
        metadata.setdefault("contentType", request.header("x-upload-content-type"))
        name = request.query.get("name") or metadata.get("name")
        if not name:
            raise required("name")
        with self._store.transaction() as tx:
            self._bucket(tx, request.params["bucket"])
        identity = uuid.uuid4().hex
        with self._lock:
            self._uploads[identity] = _Upload(
                bucket=request.params["bucket"], name=name, metadata=metadata, query=request.query
            )
        location = f"{request.base}{request.path}?uploadType=resumable&upload_id={identity}"
        return Response(headers={"Location": location, "X-GUploader-UploadID": identity})

    def _resume(self, request: Request) -> Json | Response:
        identity = request.query.get("upload_id", "")
        with self._lock:
            upload = self._uploads.get(identity)
        if upload is None:
            raise ApiError(404, "notFound", f"No such upload: '{identity}'; start it again.")
        match = _CONTENT_RANGE.fullmatch(request.header("content-range"))
        total: str | None = str(len(request.body))
        if match:
            total = None if match[3] == "*" else match[3]
            if match[1] is not None and int(match[1]) != len(upload.data):
                return _incomplete(upload)
        upload.data += request.body
        if total is None or len(upload.data) < int(total):
            return _incomplete(upload)
        with self._lock:
            self._uploads.pop(identity, None)
        first = Request(
            method="POST",
            path=request.path,
            query={**upload.query, "name": upload.name},
            base=request.base,
            params={"bucket": upload.bucket},
        )
        return self._store_object(first, upload.metadata, bytes(upload.data))

    def _cancel(self, request: Request) -> Response:
        with self._lock:
            self._uploads.pop(request.query.get("upload_id", ""), None)
        return Response(status=499)

    def _store_object(self, request: Request, metadata: Json, data: bytes) -> Json:
        bucket = request.params["bucket"]
        name = request.query.get("name") or metadata.get("name")
        if not isinstance(name, str) or not name:
            raise required("name")
        with self._store.transaction() as tx:
            self._bucket(tx, bucket)
        digests = _digests(data)
        for key, digest in digests.items():
            if metadata.get(key) not in (None, "", digest):
                message = f"Provided {key} '{metadata[key]}' doesn't match calculated '{digest}'."
                raise ApiError(400, "invalid", message)
        blob = self._blobs.write(data)
        gone = None
        try:
            with self._store.transaction() as tx:
                storage_class = self._bucket(tx, bucket)["storageClass"]
                record = self._record(tx, bucket, name)
                before = record["live"]
                _check_object(before["shown"] if before else None, request.query)
                shown = _new_object(bucket, name, metadata, storage_class, self._generation(record))
                shown.update(size=str(len(data)), **digests)
                if before and self._versioned(tx, bucket):
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
        return self._object_shown(record["live"], request.base)

    def _generation(self, record: Json) -> str:
        """Return a new generation: microseconds, and more than all before (called locked)."""
        held = [
            int(each["shown"]["generation"]) for each in [record["live"], *record["old"]] if each
        ]
        self._last_generation = max(
            time.time_ns() // 1000, self._last_generation + 1, max(held, default=0) + 1
        )
        return str(self._last_generation)


_KEPT: Final = [
    "kind",
    "id",
    "name",
    "projectNumber",
    "location",
    "locationType",
    "timeCreated",
    "metageneration",
    "updated",
    "etag",
    "softDeletePolicy",
]
_OBJECT_CHANGEABLE: Final = frozenset(
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


def _new_bucket(name: str, project: str, given: Json) -> Json:
    location = str(given.get("location") or "US").upper()
    when = _now()
    fixed = {
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "projectNumber": project_number(project),
        "location": location,
        "locationType": "multi-region" if location in _MULTI_REGIONS else "region",
        "timeCreated": when,
        "updated": when,
        "metageneration": "1",
        "etag": _etag("1"),
        "softDeletePolicy": {
            "retentionDurationSeconds": _SOFT_DELETE_SECONDS,
            "effectiveTime": when,
            **(given.get("softDeletePolicy") or {}),
        },
    }
    return _completed_bucket({**given, **fixed})


def _completed_bucket(body: Json) -> Json:
    result = {key: each for key, each in body.items() if each is not None}
    access = dict(result.get("iamConfiguration") or {})
    uniform = {"enabled": False, **(access.get("uniformBucketLevelAccess") or {})}
    access["uniformBucketLevelAccess"] = uniform
    access["bucketPolicyOnly"] = uniform
    access.setdefault("publicAccessPrevention", "inherited")
    result["iamConfiguration"] = access
    result.setdefault("storageClass", "STANDARD")
    # What is empty is not shown.
    if not (result.get("lifecycle") or {}).get("rule"):
        result.pop("lifecycle", None)
    for key in ("labels", "cors"):
        if not result.get(key):
            result.pop(key, None)
    return result


def _merged(body: Json, given: Json) -> Json:
    """Return a resource after JSON merge patch: null deletes, objects are merged."""
    result = dict(body)
    for key, value in given.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        elif isinstance(value, dict):
            result[key] = _merged({}, value)
        else:
            result[key] = value
    return result


def _new_object(bucket: str, name: str, given: Json, storage_class: str, generation: str) -> Json:
    when = _now()
    kept = {k: v for k, v in given.items() if k in _OBJECT_CHANGEABLE and v not in (None, "")}
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
        "etag": _etag(f"{generation}/1"),
        "timeCreated": when,
        "updated": when,
        "timeStorageClassUpdated": when,
    }


def _retired(held: Json) -> Json:
    return {**held, "shown": {**held["shown"], "timeDeleted": _now()}}


def _digests(data: bytes) -> dict[str, str]:
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return {
        "md5Hash": base64.b64encode(md5).decode(),
        "crc32c": base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode(),
    }


def _etag(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()[:9]).decode()


def _quoted(name: str) -> str:
    return "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or chr(byte) in "-._~" else f"%{byte:02X}"
        for byte in name.encode()
    )


def _check_metageneration(body: Json, query: Mapping[str, str]) -> None:
    wanted = query.get("ifMetagenerationMatch")
    unwanted = query.get("ifMetagenerationNotMatch")
    held = body["metageneration"]
    if wanted not in (None, held) or (unwanted is not None and unwanted == held):
        raise stale(_FAILED)


def _check_object(shown: Json | None, query: Mapping[str, str]) -> None:
    """Refuse (412) a change whose conditions on generations do not hold; 0 is "not there"."""
    generation = shown["generation"] if shown else "0"
    wanted = query.get("ifGenerationMatch")
    unwanted = query.get("ifGenerationNotMatch")
    if wanted not in (None, generation) or (unwanted is not None and unwanted == generation):
        raise stale(_FAILED)
    if shown:
        _check_metageneration(shown, query)


def _unchanged(shown: Json, request: Request) -> Response | None:
    """Return the 304 for a reader who has this generation; raise 412 where one is demanded."""
    wanted = request.query.get("ifGenerationMatch")
    match = request.header("if-match").strip('"')
    if wanted not in (None, shown["generation"]) or match not in ("", "*", shown["etag"]):
        raise stale(_FAILED)
    if request.query.get("ifMetagenerationMatch") not in (None, shown["metageneration"]):
        raise stale(_FAILED)
    known = [each.strip().strip('"') for each in request.header("if-none-match").split(",")]
    same = request.query.get("ifGenerationNotMatch") == shown["generation"]
    same = same or request.query.get("ifMetagenerationNotMatch") == shown["metageneration"]
    if same or shown["etag"] in known or "*" in known:
        return Response(status=304, headers={"ETag": shown["etag"]})
    return None


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


def _slice(text: str, size: int) -> tuple[int, int, bool]:
    """Return start, length and whether it is a part, of a Range header; 416 out of range."""
    match = _RANGE.fullmatch(text)
    if not match or match.groups() == ("", ""):
        return 0, size, False  # what is no range of bytes is ignored (RFC 9110)
    first, final = match.groups()
    if first == "":
        start, end = max(0, size - int(final)), size - 1
    else:
        start, end = int(first), min(int(final) if final else size - 1, size - 1)
    if start >= size or end < start:
        raise ApiError(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
    return start, end - start + 1, True


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
    """Return how many objects a page holds and at which it starts; 400 where that is unreadable."""
    try:
        most = int(query.get("maxResults") or _MOST_OBJECTS)
        start = int(base64.b64decode(query.get("pageToken", ""), b"-_", validate=True) or 0)
    except ValueError as error:
        asked = f"{query.get('maxResults')}, {query.get('pageToken')}"
        raise invalid("maxResults, pageToken", asked, "Must be a number and a token.") from error
    return min(most, _MOST_OBJECTS), start


def _multipart(request: Request) -> tuple[Json, bytes, str]:
    """Return the metadata, the bytes and their type from a multipart/related body."""
    match = re.search(r'boundary="?([^";]+)"?', request.header("content-type"))
    if not match:
        raise invalid("Content-Type", request.header("content-type"), "No boundary in it.")
    mark = b"--" + match[1].encode()
    body = request.body
    # The marks are found from both ends: what is between may be anything.
    first = body.find(mark)
    second = body.find(b"\r\n" + mark, first + len(mark))
    final = body.rfind(b"\r\n" + mark + b"--")
    if first < 0 or second < 0 or final <= second:
        raise ApiError(400, "badContent", "Malformed multipart body.")
    head = body[first + len(mark) : second]
    tail = body[second + 2 + len(mark) : final]
    _, metadata = _part(head)
    content_type, media = _part(tail)
    try:
        given = json.loads(metadata or b"{}")
    except ValueError as error:
        raise ApiError(400, "parseError", f"Parse Error: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(400, "parseError", "Parse Error: metadata must be a JSON object")
    return given, media, content_type


def _part(data: bytes) -> tuple[str, bytes]:
    # A part starts right after its boundary's line end; without headers it is empty lines.
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.search(rb"(?im)^content-type:\s*(.*?)\s*$", head)
    return (match[1].decode("latin-1") if match else ""), body


def _incomplete(upload: _Upload) -> Response:
    headers = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
    return Response(status=308, headers=headers)
