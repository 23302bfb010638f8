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
_SILENCE_SECONDS = 2.0


def main(endpoint: str) -> int:
    """Relay until the guest has hung up and the server is silent; 1 if there is no server."""
    try:
        host, port = Path(endpoint).read_text().split()
        server = socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)
    except (OSError, ValueError):
        return 1
    server.settimeout(None)
    guest = socket.socket(fileno=os.dup(0))

    carried = 0

    def carry(source: socket.socket, sink: socket.socket) -> None:
        nonlocal carried
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                sink.sendall(data)
                carried += len(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=carry, args=(server, guest), daemon=True)
    back.start()
    carry(guest, server)
    # The guest is done or off; a silent server may be in a long poll.
    before = -1
    while back.is_alive() and carried != before:
        before = carried
        back.join(_SILENCE_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
