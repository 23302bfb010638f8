"""What the tests speak to a stand-in with: a daemon's side of the wire, and HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.machines.processes import ending

ROOT = Path(__file__).resolve().parents[3]
# Seconds, of a machine that has other things to do, too.
PATIENCE = 120.0


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Until the condition holds; fails with what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@dataclass
class Identity:
    """A daemon's key, and what it signs."""

    owner: str = "agent@example.com"
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def key(self) -> str:
        return base64.b64encode(self.private.public_key().public_bytes_raw()).decode()

    def sign(self, text: str) -> str:
        return base64.b64encode(self.private.sign(text.encode())).decode()

    def register(self, listen: str = "10.10.0.2:10001", **more: object) -> dict[str, object]:
        return {
            "type": "register",
            "listen_addr": listen,
            "owner": self.owner,
            "public_key": self.key,
            "signature": self.sign(f"register:{listen}:{self.key}"),
            "version": "1.18.0",
            **more,
        }

    def signed(self, kind: str, node: int) -> dict[str, object]:
        return {"type": kind, "node_id": node, "signature": self.sign(f"{kind}:{node}")}


class Client:
    """One connection to the registry."""

    def __init__(self, address: tuple[str, int], source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(address, PATIENCE, (source, 0))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, message: Mapping[str, object]) -> None:
        body = json.dumps(message).encode()
        self.socket.sendall(len(body).to_bytes(4, "big") + body)

    def receive(self) -> dict[str, Any]:
        """The next answer. EOFError where the connection is closed instead."""
        content = self._read(int.from_bytes(self._read(4), "big"))
        answer = json.loads(content)
        assert isinstance(answer, dict)
        return answer

    def ask(self, message: Mapping[str, object]) -> dict[str, Any]:
        self.send(message)
        return self.receive()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                raise EOFError
            data += more
        return data


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Standin:
    """A stand-in as a process, on ports of the system's choice."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.running: Mapping[str, Any] = {}

    def lines(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in self.log.read_text().splitlines(keepends=False) if line
        ]

    def started(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(ValueError, OSError):
            for line in self.lines():
                if line["msg"] == "rendezvous running":
                    self.running = line
                    return True
        return False

    @property
    def registry(self) -> tuple[str, int]:
        host, _, port = str(self.running["registry"]).rpartition(":")
        return host, int(port)

    def client(self, source: str = "127.0.0.1") -> Client:
        return Client(self.registry, source)

    def http(
        self,
        path: str,
        method: str = "GET",
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection(self.running["http"], timeout=PATIENCE)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())

    def stats(self) -> Any:
        return self.http("/api/stats").json

    def knobs(self, **wanted: object) -> Any:
        answer = self.http("/knobs", "POST", wanted)
        assert answer.status == 200, answer.body
        return answer.json

    def count(self, metric: str) -> int:
        """A number of /metrics; 0 for one that is not there."""
        for line in self.http("/metrics").body.decode().splitlines():
            if line.startswith(metric + " "):
                return int(line.split()[-1])
        return 0

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def standin(
    folder: Path,
    *flags: str,
    registry: str = "127.0.0.1:0",
    store: bool = True,
    program: Sequence[str] = (sys.executable, "-m", "lab.standin"),
) -> Iterator[Standin]:
    """A running stand-in with its store in `folder`; stopped by its id at the end."""
    folder.mkdir(exist_ok=True)
    log = folder / f"log-{time.monotonic_ns()}"
    command = [
        *program,
        *("-registry-addr", registry, "-beacon-addr", "127.0.0.1:0", "-http", "127.0.0.1:0"),
        *(("-store", str(folder / "registry.json")) if store else ()),
        *("-log-format", "json", *flags),
    ]
    with log.open("wb") as err:
        process = subprocess.Popen(command, cwd=ROOT, stderr=err, env={**os.environ, "TZ": "UTC"})
    found = Standin(process, log)
    with ending(process):
        wait_for(found.started, "the stand-in's start")
        yield found


def whitelist(folder: Path, cidr: str = "127.0.0.0/8", rate: int = 100_000) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / "rate-limit-whitelist.json"
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps([{"cidr": cidr, "rate": rate}]))
    temporary.replace(file)
