"""A metadata server for one machine, with a project-level startup script and nothing else."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PREFIX = "/computeMetadata/v1"


class Stub:
    """Serves on loopback until closed; `said` holds what the machine PUT as guest attributes."""

    def __init__(self, *, name: str, script: str) -> None:
        self.tree: dict[str, Any] = {
            "instance": {
                "attributes": {"enable-guest-attributes": "TRUE"},
                "hostname": f"{name}.c.p.internal",
                "id": abs(hash(name)),
                "name": name,
                "networkInterfaces": [],
                "serviceAccounts": {},
                "zone": "projects/1/zones/z",
            },
            "project": {
                "attributes": {"startup-script": script},
                "numericProjectId": 1,
                "projectId": "p",
            },
        }
        self.said: dict[str, list[str]] = {}
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def endpoint(self) -> tuple[str, int]:
        return "127.0.0.1", self._server.server_address[1]

    def wait_for(self, key: str, count: int, timeout: float) -> list[str]:
        """Return what was put under `key` once that happened `count` times."""
        with self.changed:
            told = self.changed.wait_for(lambda: len(self.said.get(key, [])) >= count, timeout)
            assert told, f"{key}: {count} wanted, after {timeout:.0f} s there is {self.said}"
            return self.said[key]

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], stub: Stub) -> None:
        super().__init__(address, _Handler)
        self.stub = stub

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a machine whose power is cut does not hang up first."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if query.get("last_etag") == ["same"] and "wait_for_change" in query:
            self.server.stub.closing.wait(float(query.get("timeout_sec", ["60"])[0]))
        found: Any = self.server.stub.tree
        for part in url.path.removeprefix(PREFIX).strip("/").split("/"):
            if part:
                found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            self._answer(404, b"not found")
        elif isinstance(found, dict | list):
            self._answer(200, json.dumps(found).encode(), "application/json")
        else:
            self._answer(200, str(found).encode())

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        key = urlsplit(self.path).path.rsplit("/guest-attributes/", 1)[-1]
        stub = self.server.stub
        with stub.changed:
            stub.said.setdefault(key, []).append(body)
            stub.changed.notify_all()
        self._answer(200, b"")

    def _answer(self, status: int, body: bytes, kind: str = "application/text") -> None:
        self.send_response(status)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("ETag", "same")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""
