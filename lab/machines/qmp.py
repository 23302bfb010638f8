"""QEMU's machine protocol: one command at a time over the guest's own socket."""

import json
import os
import socket
from pathlib import Path
from typing import Any, Final, Self

from lab.machines.driver import MachineError

_SECONDS: Final = 30.0  # QEMU answers at once, unless the host is overloaded


class Monitor:
    """A connection to the monitor of one guest; a context manager."""

    def __init__(self, path: Path) -> None:
        """Connect; OSError where nothing listens."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_SECONDS)
        # A socket's path has at most 107 bytes; this one may be longer.
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self._socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        except OSError:
            self._socket.close()
            raise
        finally:
            os.close(folder)
        self._lines = self._socket.makefile("r")
        self._next()
        self.do("qmp_capabilities")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()

    def do(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result; MachineError with what QEMU says against it."""
        request = {"execute": command}
        if arguments:
            request["arguments"] = arguments  # type: ignore[assignment]
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._next()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                message = f"QEMU refuses {command}: {answer['error']['desc']}"
                raise MachineError(message)

    def human(self, line: str) -> str:
        """Run a human monitor command and return what it prints; nothing means success."""
        return str(self.do("human-monitor-command", **{"command-line": line})).strip()

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            message = "QEMU closed its monitor"
            raise ConnectionResetError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer
