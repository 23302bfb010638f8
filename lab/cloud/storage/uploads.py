"""Uploads of objects: in one request, with metadata before the bytes, and resumable."""

import json
import re
import threading
import uuid
from dataclasses import dataclass, field

from lab.cloud import Json
from lab.cloud.errors import ApiError, invalid, required
from lab.cloud.storage.buckets import Buckets
from lab.cloud.storage.objects import Objects
from lab.cloud.store import Store
from lab.cloud.web import Request, Response, Route

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass
class _Upload:
    """A resumable upload that is under way; it does not outlive the process."""

    bucket: str
    name: str
    metadata: Json
    query: dict[str, str]
    caller: str
    data: bytearray = field(default_factory=bytearray)


class Uploads:
    """Answers below `/upload/storage/v1/`."""

    def __init__(self, store: Store, buckets: Buckets, objects: Objects) -> None:
        self._store = store
        self._buckets = buckets
        self._objects = objects
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()

    def routes(self) -> list[Route]:
        """Return the routes."""
        base = "/upload/storage/v1/b/{bucket}/o"
        return [
            Route(method="POST", template=base, handler=self._upload),
            Route(method="PUT", template=base, handler=self._resume),
            Route(method="DELETE", template=base, handler=self._cancel),
        ]

    def _upload(self, request: Request) -> Json | Response:
        kind = request.query.get("uploadType", "")
        if kind == "multipart":
            metadata, media, content_type = _multipart(request)
            metadata.setdefault("contentType", content_type)
            return self._objects.store(request, metadata, media)
        if kind == "media":
            metadata = {"contentType": request.header("content-type")}
            return self._objects.store(request, metadata, request.body)
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
            self._buckets.open(tx, request, "storage.objects.create", name)
        identity = uuid.uuid4().hex
        with self._lock:
            self._uploads[identity] = _Upload(
                bucket=request.params["bucket"],
                name=name,
                metadata=metadata,
                query=request.query,
                caller=request.caller,
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
            caller=upload.caller,
        )
        return self._objects.store(first, upload.metadata, bytes(upload.data))

    def _cancel(self, request: Request) -> Response:
        with self._lock:
            self._uploads.pop(request.query.get("upload_id", ""), None)
        return Response(status=499)


def _multipart(request: Request) -> tuple[Json, bytes, str]:
    """Return the metadata, the bytes and their type from a multipart/related body."""
    match = re.search(r'boundary="?([^";]+)"?', request.header("content-type"))
    if not match:
        raise invalid("Content-Type", request.header("content-type"), "No boundary in it.")
    mark = b"--" + match[1].encode()
    body = request.body
    # Search from both ends: the bytes in between may contain the mark.
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
    # A part without headers begins with empty lines.
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.search(rb"(?im)^content-type:\s*(.*?)\s*$", head)
    return (match[1].decode("latin-1") if match else ""), body


def _incomplete(upload: _Upload) -> Response:
    headers = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
    return Response(status=308, headers=headers)
