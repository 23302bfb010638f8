"""A metadata server and a bucket on loopback, with failures to order."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN = "ya29.token-that-must-never-be-seen"
BUCKET = "fleet-bucket"

# What a request is answered with instead of the real thing: a status, or something done to it.
Failure = int | Callable[[BaseHTTPRequestHandler], None]


class Google:
    """Serves `attributes`, a token and `objects`. `failures[PATH]` are played first, in order."""

    def __init__(self, port: int = 0) -> None:
        self.attributes: dict[str, str] = {}
        self.values: dict[str, str] = {"instance/network-interfaces/0/ip": "10.10.0.7"}
        self.guest_attributes: dict[str, str] = {}
        self.project: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.changed = threading.Condition()
        self.stopping = False
        self.failures: dict[str, list[Failure]] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def put(self, binary: str, data: bytes) -> dict[str, str]:
        """An object for `binary`; what a spec says of it."""
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"releases/{sha256}/{binary}"
        self.objects[name] = data
        return {"object": name, "sha256": sha256}

    def set(self, key: str, value: str | None, *, project: bool = False) -> None:
        """Set metadata, of the instance or the project; None removes it. Ends long polls."""
        with self.changed:
            where = self.project if project else self.attributes
            if value is None:
                where.pop(key, None)
            else:
                where[key] = value
            self.changed.notify_all()

    def event(self, event: str) -> None:
        """The instance's maintenance event."""
        with self.changed:
            self.values["instance/maintenance-event"] = event
            self.changed.notify_all()

    def order(self, vm: str, text: str | None) -> None:
        """The orders object of `vm`; None removes it."""
        name = f"orders/{vm}.json"
        self.generations[name] = self.generations.get(name, 1000) + 1
        if text is None:
            self.objects.pop(name, None)
        else:
            self.objects[name] = text.encode()

    def count(self, part: str) -> int:
        return sum(part in path for path in self.requests)

    def _answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, bytes, dict[str, str]]:
        parts = urlsplit(handler.path)
        query = dict(parse_qsl(parts.query))
        if parts.path.startswith("/storage/v1/b/"):
            if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
                return 401, b"no token", {}
            return self._object(parts.path, query)
        if handler.headers.get("Metadata-Flavor") != "Google":
            return 403, b"no flavor", {}
        path = parts.path.removeprefix("/computeMetadata/v1/")
        if path == "instance/service-accounts/default/token":
            return 200, json.dumps({"access_token": TOKEN, "expires_in": 3599}).encode(), {}
        value = self._value(path)
        if value is None:
            return 404, b"", {}
        if query.get("wait_for_change") == "true":
            # As Google's: until it is another one, at most so long.
            limit = time.monotonic() + float(query.get("timeout_sec", "3600"))
            with self.changed:
                while (
                    not self.stopping
                    and value is not None
                    and _etag(value) == query.get("last_etag")
                    and (left := limit - time.monotonic()) > 0
                ):
                    self.changed.wait(left)
                    value = self._value(path)
        if value is None or self.stopping:
            return 503, b"", {}
        return 200, value.encode(), {"ETag": _etag(value)}

    def _object(self, path: str, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        name = unquote(path.removeprefix(f"/storage/v1/b/{BUCKET}/o/"))
        found = self.objects.get(name) if query.pop("alt", "") == "media" else None
        if found is None:
            return 404, f"No such object: {BUCKET}/{name}".encode(), {}
        generation = str(self.generations.get(name, 1))
        if query.pop("ifGenerationNotMatch", "") == generation:
            return 304, b"", {}
        assert not query, f"not known here: {query}"
        return 200, found, {"X-Goog-Generation": generation}

    def _value(self, path: str) -> str | None:
        if path == "instance/attributes/":
            return json.dumps(self.attributes)
        if path == "project/attributes/":
            return json.dumps(self.project)
        if path.startswith("instance/attributes/"):
            return self.attributes.get(path.rpartition("/")[2])
        return self.values.get(path)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        google = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                google.requests.append(self.path)
                for part, failures in google.failures.items():
                    if part in self.path and failures:
                        failure = failures.pop(0)
                        if callable(failure):
                            failure(self)
                        else:
                            self.send_error(failure)
                        return
                status, body, headers = google._answer(self)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name, value)
                # Who waits may have gone.
                with suppress(OSError):
                    self.end_headers()
                    self.wfile.write(body)

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                prefix = "/computeMetadata/v1/instance/guest-attributes/"
                if self.path.startswith(prefix) and self.headers["Metadata-Flavor"] == "Google":
                    google.guest_attributes[self.path.removeprefix(prefix)] = body.decode()
                    self.send_response(200)
                    self.end_headers()
                else:
                    self.send_error(403)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        return Handler


def _etag(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    """Promise more than is sent, and close."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close without a word."""
    handler.close_connection = True
