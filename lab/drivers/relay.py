"""Carries one connection of a guest to its metadata server: QEMU starts this for each.

The connection is standard input and output. The file that is named holds the server's `host port`
and is read each time, so that the server may move while the guest runs.
"""

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

_CHUNK = 65536
_CONNECT_SECONDS = 10.0


def main(endpoint: str) -> int:
    """Carry until both sides have closed; 1 if the server cannot be reached."""
    try:
        host, port = Path(endpoint).read_text().split()
        server = socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)
    except (OSError, ValueError):
        return 1
    server.settimeout(None)
    guest = socket.socket(fileno=os.dup(0))

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=carry, args=(server, guest))
    back.start()
    carry(guest, server)
    back.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
