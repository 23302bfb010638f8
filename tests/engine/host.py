"""A test-only language host that ends programs as those of 2026 do; the toolchain's is older.

When a run is cancelled (the engine stops listening, or asks with `Cancel`) they send the program
SIGINT, and kill it when it has not ended 5 s later (pulumi's pull request 22374). All else is asked
of the host named by `HOST_REAL`. Each end of a program is a line in the file named by `HOST_SAYS`:
`ended STATUS`, `interrupted STATUS`, or `killed`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2
from pulumi.runtime.proto import language_pb2, language_pb2_grpc

_PATIENCE_S = 5.0
_TOLD = 32


class Host:
    """The language host's protocol."""

    def __init__(self, real: Path, engine: str) -> None:
        self._executor, self._engine = f"{real}-exec", engine
        self._says = Path(os.environ["HOST_SAYS"])
        self._cancels: set[threading.Event] = set()
        host = subprocess.Popen([real, engine], stdout=subprocess.PIPE, text=True)
        assert host.stdout
        self.process = host
        channel = grpc.insecure_channel(f"127.0.0.1:{host.stdout.readline().strip()}")
        self._stub = language_pb2_grpc.LanguageRuntimeStub(channel)

    def __getattr__(self, method: str) -> Callable[[Any, Any], Any]:
        ask = getattr(self._stub, method)

        def passed_on(request: Any, context: Any) -> Any:
            try:
                return ask(request)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return passed_on

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        for cancelled in list(self._cancels):
            cancelled.set()
        return empty_pb2.Empty()

    def Run(self, request: Any, context: Any) -> Any:  # noqa: N802
        options = {
            "monitor": request.monitor_address,
            "engine": self._engine,
            "project": request.project,
            "stack": request.stack,
            "pwd": request.pwd,
            "dry_run": str(request.dryRun).lower(),
            "parallel": str(request.parallel),
            "organization": request.organization,
        }
        words = [word for name, value in options.items() if value for word in (f"--{name}", value)]
        program = subprocess.Popen(
            ["python", self._executor, *words, request.program or "."],
            env=os.environ
            | {
                "PULUMI_CONFIG": json.dumps(dict(request.config)),
                "PULUMI_CONFIG_SECRET_KEYS": json.dumps(list(request.configSecretKeys)),
            },
        )
        over = threading.Event()
        self._cancels.add(over)
        context.add_callback(over.set)

        def watch() -> None:
            program.wait()
            over.set()

        threading.Thread(target=watch, daemon=True).start()
        over.wait()
        self._cancels.discard(over)
        status = program.poll()
        if status is None:
            program.send_signal(signal.SIGINT)
            try:
                self._say(f"interrupted {program.wait(_PATIENCE_S)}")
            except subprocess.TimeoutExpired:
                program.kill()
                self._say("killed")
            status = program.wait()
        else:
            self._say(f"ended {status}")
        error = "" if status in (0, _TOLD) else f"program exited with status {status}"
        return language_pb2.RunResponse(error=error, bail=status == _TOLD)

    def _say(self, line: str) -> None:
        with self._says.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def main() -> None:
    """Serve on a free loopback port, print it, and run until the engine ends the process."""
    host = Host(Path(os.environ["HOST_REAL"]), sys.argv[-1])
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    servicer: Any = host
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    stop = threading.Event()
    # The engine ends a host, and all that is of its process group, with SIGINT.
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server.start()
    print(port, flush=True)
    stop.wait()
    host.Cancel(None, None)
    server.stop(_PATIENCE_S + 1).wait()
    host.process.terminate()
    host.process.wait()


if __name__ == "__main__":
    main()
