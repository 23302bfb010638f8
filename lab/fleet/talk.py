"""Asks an agent to talk to another one, through its IPC socket.

Frames are as in `startup/node/pressure/agent_ipc.py`: four bytes of length, big-endian, then the
kind and its content. Kinds and contents are those of pilotctl 1.18.0 (seen with strace). The daemon
answers its own user only, so this runs as that user, on the machine where the agent runs:

    python3 talk.py SOCKET node                  print the agent's node ID
    python3 talk.py SOCKET trust NODE SECONDS    ask for the other's trust (asked by both, it is
                                                 given), and wait for it so many seconds
    python3 talk.py SOCKET ping NODE             print milliseconds to the other's echo, and the way

Standard library only, one file: on a VM it is given to Python's standard input.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from contextlib import closing
from typing import Any

_DIAL, _DIALLED, _SEND, _RECEIVED, _CLOSE, _ERROR = 0x03, 0x04, 0x06, 0x07, 0x08, 0x0A
_INFO, _INFO_OK, _HANDSHAKE, _HANDSHAKE_OK = 0x0D, 0x0E, 0x0F, 0x10
_REQUEST, _TRUSTED = 0x01, 0x05
# The daemon's own service, which sends back what it is sent.
_ECHO_PORT = 7
# Seconds for one answer. A dial that finds no way takes the daemon half a minute.
_TIMEOUT = 60.0


class TalkError(Exception):
    """The agent refused, or did not answer as it should."""


class Agent:
    """A connection to an agent's IPC socket. OSError where it does not answer."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_TIMEOUT)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def info(self) -> dict[str, Any]:
        return self._object(bytes((_INFO,)), _INFO_OK)

    def ask_for_trust(self, node: int) -> None:
        self._object(bytes((_HANDSHAKE, _REQUEST)) + node.to_bytes(4, "big"), _HANDSHAKE_OK)

    def trusts(self, node: int) -> bool:
        """Whether both trust each other."""
        found = self._object(bytes((_HANDSHAKE, _TRUSTED)), _HANDSHAKE_OK).get("trusted") or []
        return any(each["node_id"] == node for each in found)

    def dial(self, node: int) -> int:
        """Connect to another agent's echo; the connection's number."""
        # Two bytes of network: 0 is the backbone, which all are in.
        address = bytes(2) + node.to_bytes(4, "big") + _ECHO_PORT.to_bytes(2, "big")
        return int.from_bytes(self._ask(bytes((_DIAL,)) + address, _DIALLED)[:4], "big")

    def echo(self, connection: int, data: bytes) -> None:
        """Send `data` to the echo and take it back. TalkError where other bytes come."""
        number = connection.to_bytes(4, "big")
        got = self._ask(bytes((_SEND,)) + number + data, _RECEIVED)
        if got != number + data:
            raise TalkError(f"echo of {data!r}: {got!r}")

    def hang_up(self, connection: int) -> None:
        self._send(bytes((_CLOSE,)) + connection.to_bytes(4, "big"))

    def _object(self, request: bytes, kind: int) -> dict[str, Any]:
        found = json.loads(self._ask(request, kind))
        if not isinstance(found, dict):
            raise TalkError(f"the answer is no object: {found!r}")
        return found

    def _ask(self, request: bytes, kind: int) -> bytes:
        """The next frame of a kind; others are about other connections."""
        self._send(request)
        while True:
            frame = self._exactly(int.from_bytes(self._exactly(4), "big"))
            if frame[:1] == bytes((kind,)):
                return frame[1:]
            if frame[:1] == bytes((_ERROR,)):
                raise TalkError(frame[3:].decode(errors="replace"))

    def _send(self, frame: bytes) -> None:
        self._socket.sendall(len(frame).to_bytes(4, "big") + frame)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise TalkError("the agent hung up")
            data += more
        return data


def wait_for_trust(agent: Agent, node: int, seconds: float) -> None:
    """Until both trust each other, as this agent knows it: the other may learn it later, and
    answers nothing before. TalkError where that takes longer."""
    deadline = time.monotonic() + seconds
    while not agent.trusts(node):
        if time.monotonic() > deadline:
            raise TalkError(f"node {node} gave no trust within {seconds:.0f} s")
        time.sleep(0.2)


def ping(agent: Agent, node: int) -> tuple[float, str]:
    """Milliseconds to another agent's echo and back over an open connection, and "direct" or
    "relayed"."""
    connection = agent.dial(node)
    # The first one also opens the way.
    for data in (b"first", b"ping"):
        start = time.monotonic()
        agent.echo(connection, data)
        took = time.monotonic() - start
    peers = agent.info()["peer_list"]
    agent.hang_up(connection)
    relayed = any(each["node_id"] == node and each["relay"] for each in peers)
    return 1000 * took, "relayed" if relayed else "direct"


def main(arguments: list[str]) -> int:
    """Runs the command line; 0, 1 with a sentence on stderr, or 2 for one that cannot be used."""
    path, what, *rest = arguments if len(arguments) > 1 else ("", "")
    if (what, len(rest)) not in (("node", 0), ("trust", 2), ("ping", 1)) or not all(
        word.isdigit() for word in rest
    ):
        print(__doc__, file=sys.stderr)
        return 2
    numbers = [int(word) for word in rest]
    try:
        with closing(Agent(path)) as agent:
            if what == "node":
                print(agent.info()["node_id"])
            elif what == "trust":
                agent.ask_for_trust(numbers[0])
                wait_for_trust(agent, *numbers)
            else:
                took, way = ping(agent, *numbers)
                print(f"{took:.1f} {way}")
    except (TalkError, OSError, OverflowError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
