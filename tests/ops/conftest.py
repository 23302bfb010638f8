"""A simulated fleet, and the command line against it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.server import serve
from ops import run
from ops.cli import main
from tests.components.fleet import ROOT
from tests.ops.simulated import Simulated
from tests.vm.conftest import booted
from tools.toolchain import checkout

__all__ = ["booted"]

AGENTS = {"swarm-1": 120, "swarm-2": 200, "swarm-3": 60}


@dataclass(frozen=True, kw_only=True)
class Said:
    """The output of a command, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ops = Callable[..., Said]


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[Simulated]:
    with serve(tmp_path / "state") as serving:
        made = Simulated(serving, AGENTS)
        made.tick()
        yield made


@pytest.fixture
def ops(
    simulated: Simulated, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Ops:
    """Runs a command line against the simulated fleet."""
    for name in os.environ:
        if name.startswith("PILOT_") or name in ("CLOUDSDK_CORE_PROJECT", "GOOGLE_CLOUD_PROJECT"):
            monkeypatch.delenv(name)

    def run(*arguments: str) -> Said:
        before = ["--endpoint", simulated.serving.url, "--project", "p1", "--by", "tester"]
        capfd.readouterr()
        code = main([*before, "--poll", "0.02", *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Said(code=code, out=out, err=err)

    return run


@pytest.fixture
def ticking(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiting of a command line is the fleet's working, and its clock."""
    given: dict[str, Any] = {
        "clock": lambda: float(simulated.ticks),
        "pause": lambda _: simulated.tick(),
    }
    monkeypatch.setattr(run, "Runner", partial(run.Runner, **given))


class _Stats(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        networks = [{"id": 1, "name": "backbone", "members": 400, "online_members": 380}]
        body = json.dumps({"active_nodes": 381, "total_nodes": 500, "networks": networks}).encode()
        self.send_response(200 if self.path == "/api/stats" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def stats() -> Iterator[str]:
    """A dashboard that counts 381 agents online."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Stats) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The command `pilot-fleet` of a checkout with a blank in its path."""
    venv = tmp_path / "my fleet" / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv.parent / "ops").symlink_to(ROOT / "ops")
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    checkout.ensure_command(venv)
    return venv / "bin" / "pilot-fleet"
