"""A metadata server and a bucket on loopback, with failures to order."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

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
        self.objects: dict[str, bytes] = {}
        self.failures: dict[str, list[Failure]] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def put(self, binary: str, data: bytes) -> dict[str, str]:
        """An object for `binary`; what a spec says of it."""
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"releases/{sha256}/{binary}"
        self.objects[name] = data
        return {"object": name, "sha256": sha256}

    def count(self, part: str) -> int:
        return sum(part in path for path in self.requests)

    def _answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        parts = urlsplit(handler.path)
        if parts.path.startswith("/storage/v1/b/"):
            if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
                return 401, b"no token"
            name = unquote(parts.path.removeprefix(f"/storage/v1/b/{BUCKET}/o/"))
            found = self.objects.get(name) if parts.query == "alt=media" else None
            return (404, b"") if found is None else (200, found)
        if handler.headers.get("Metadata-Flavor") != "Google":
            return 403, b"no flavor"
        path = parts.path.removeprefix("/computeMetadata/v1/")
        if path == "instance/service-accounts/default/token":
            return 200, json.dumps({"access_token": TOKEN, "expires_in": 3599}).encode()
        value = self.values.get(path)
        if path.startswith("instance/attributes/"):
            value = self.attributes.get(path.rpartition("/")[2])
        return (404, b"") if value is None else (200, value.encode())

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
                status, body = google._answer(self)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
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
