"""A journal and a Secret Manager for the rendezvous."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from startup.node.machine.paths import Paths


@dataclass(frozen=True, kw_only=True)
class Journal:
    """A journal: systemd's records of ends, the unit's lines, and what it was asked."""

    records: Path
    lines: Path
    asked: Path


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    records, lines = tmp_path / "records", tmp_path / "lines"
    found = Journal(records=records, lines=lines, asked=tmp_path / "asked")
    journalctl = tmp_path / "journalctl"
    journalctl.write_text(
        f'#!/bin/sh\necho "$@" " " >>{found.asked}\n'
        f'case "$*" in *--output=json*) /bin/cat {records};; *) /bin/cat {lines};; esac\n'
    )
    journalctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return found


class SecretManager:
    """Answers `:access` of `held`; 404 for others, 401 without the VM's token."""

    def __init__(self) -> None:
        held: dict[str, bytes] = {}
        self.held = held

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/v1/").removesuffix(":access")
                status, body = 404, b"{}"
                if self.headers["Authorization"] != "Bearer vm-token":
                    status = 401
                elif name in held:
                    data = base64.b64encode(held[name]).decode()
                    status, body = 200, json.dumps({"payload": {"data": data}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def manager() -> Iterator[SecretManager]:
    found = SecretManager()
    yield found
    found.stop()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(root=tmp_path)
    found.registry.mkdir(parents=True)
    return found
