"""The registry's TCP port: frames of four bytes of length, big-endian, and JSON.

Thousands of daemons hold four connections each and say little on them. So connections are sockets
with a callback in the event loop, without asyncio's transports, which cost several times as much
memory and twice the time per message.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from typing import Final

from .knobs import OpenRegistrations
from .limiter import REQUESTS_PER_SECOND, Bucket
from .log import Log
from .peers import Message
from .registry import Registry

# As the real one: a longer frame is no JSON client ("PILT" is the magic of its binary wire).
MAX_FRAME: Final = 64 * 1024
IDLE_SECONDS: Final = 300.0
# A client that lets this much of its answers lie is dropped; they are some 200 bytes each.
MAX_UNSENT: Final = 1 << 20
GRACE_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0
# Connections accepted before anything else gets its turn.
ACCEPTS_AT_ONCE: Final = 64
_RECEIVE: Final = 16 * 1024
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connection:
    """One client. Its requests are answered in their order, one at a time."""

    __slots__ = (
        "began",
        "last",
        "received",
        "socket",
        "source",
        "timer",
        "unsent",
        "waits",
        "wire",
    )

    def __init__(self, wire: Wire, sock: socket.socket, source: str, now: float) -> None:
        self.wire = wire
        self.socket = sock
        self.source = source
        self.began = self.last = now
        self.received = b""
        self.unsent = b""
        # A registration that waits for its answer, and the timer that will give it.
        self.waits = False
        self.timer: asyncio.TimerHandle | None = None

    def readable(self) -> None:
        try:
            data = self.socket.recv(_RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.wire.drop(self)
            return
        self.received = self.received + data if self.received else data
        self.last = self.wire.loop.time()
        self.work()

    def work(self) -> None:
        """Answer every whole frame that is there."""
        while not self.waits and len(self.received) >= 4:
            size = int.from_bytes(self.received[:4], "big")
            if size > MAX_FRAME:
                self.wire.log.warn("frame too large, closed", remote=self.source, bytes=size)
                self.wire.drop(self)
                return
            if len(self.received) < size + 4:
                return
            body, self.received = self.received[4 : size + 4], self.received[size + 4 :]
            if not self.wire.take(self, body):
                return
        if self.waits and len(self.received) > 4 * MAX_FRAME:
            self.wire.drop(self)

    def send(self, body: bytes) -> None:
        data = len(body).to_bytes(4, "big") + body
        if self.unsent:
            self.unsent += data
            if len(self.unsent) > MAX_UNSENT:
                self.wire.drop(self)
            return
        try:
            sent = self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.wire.drop(self)
            return
        if sent < len(data):
            self.unsent = data[sent:]
            self.wire.loop.add_writer(self.socket, self.writable)

    def writable(self) -> None:
        try:
            sent = self.socket.send(self.unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.wire.drop(self)
            return
        self.unsent = self.unsent[sent:]
        if not self.unsent:
            self.wire.loop.remove_writer(self.socket)


class Wire:
    """Listens, keeps the connections, asks the registry. `most` connections are taken at most."""

    def __init__(
        self, registry: Registry, *, loop: asyncio.AbstractEventLoop, log: Log, most: int
    ) -> None:
        self.registry = registry
        self.loop = loop
        self.log = log
        self.most = most
        self.connections: set[Connection] = set()
        self.open = OpenRegistrations()
        self._listeners: list[socket.socket] = []
        self._requests = Bucket(REQUESTS_PER_SECOND, 1.0, loop.time())
        self._full = False

    def listen(self, listeners: list[socket.socket]) -> None:
        """Serve these bound, listening, non-blocking sockets."""
        self._listeners = listeners
        for listener in listeners:
            self.loop.add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Stop listening and drop every connection."""
        for listener in self._listeners:
            self.loop.remove_reader(listener)
            listener.close()
        self._listeners = []
        for connection in list(self.connections):
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None
        if connection.waits:
            self.open.end(connection.source)
        self.loop.remove_reader(connection.socket)
        self.loop.remove_writer(connection.socket)
        connection.socket.close()

    def sweep(self) -> None:
        """Close connections that are silent for five minutes: the client may be gone."""
        old = self.loop.time() - IDLE_SECONDS
        for connection in [one for one in self.connections if one.last < old]:
            self.drop(connection)

    def take(self, connection: Connection, body: bytes) -> bool:
        """Deal with one request. False where the connection is gone or has to wait."""
        if (
            connection.last - connection.began >= GRACE_SECONDS
            and self.registry.limiter.exempt_rate(connection.source) is None
            and not self._requests.take(connection.last)
        ):
            self.registry.events["capped"] += 1
            self.log.warn("process-wide request cap, closed", remote=connection.source)
            self.drop(connection)
            return False
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self.log.debug("no JSON object, closed", remote=connection.source)
            self.drop(connection)
            return False
        if message.get("type") == "register":
            return self._register(connection, message)
        connection.send(self.registry.answer(message, connection.source))
        return connection in self.connections

    def _register(self, connection: Connection, message: Message) -> bool:
        self.open.begin(connection.source)
        connection.waits = True
        knobs = self.registry.knobs
        if knobs.refuse == "disconnect":
            self.drop(connection)
        elif knobs.refuse == "hang":
            pass
        elif knobs.delay:
            # Registered when it is answered: a client that has gone by then is not.
            connection.timer = self.loop.call_later(
                knobs.delay, self._registered_late, connection, message
            )
        else:
            self._registered(connection, message)
            return connection in self.connections
        return False

    def _registered_late(self, connection: Connection, message: Message) -> None:
        connection.timer = None
        self._registered(connection, message)
        if connection in self.connections:
            connection.work()

    def _registered(self, connection: Connection, message: Message) -> None:
        if self.registry.knobs.refuse == "error":
            self.registry.events["refused_by_knob"] += 1
            answer = self.registry.refusal("request failed (test knob: refuse)")
        else:
            answer = self.registry.answer(message, connection.source)
        connection.waits = False
        self.open.end(connection.source)
        connection.send(answer)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                # The real one exits after ten of these. Here they wait in the kernel's queue.
                self._pause(listener, error.strerror or str(error))
                return
            if len(self.connections) >= self.most:
                sock.close()
                self._pause(listener, f"{self.most} connections are open")
                return
            self._full = False
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            source = peer[0].removeprefix("::ffff:").partition("%")[0]
            connection = Connection(self, sock, source, self.loop.time())
            self.connections.add(connection)
            self.loop.add_reader(sock, connection.readable)

    def _pause(self, listener: socket.socket, why: str) -> None:
        """Take no connection for a second; said once until there is room again."""
        if not self._full:
            self._full = True
            self.log.error("cannot accept connections, trying on", err=why)
        self.registry.events["accept_failures"] += 1
        self.loop.remove_reader(listener)
        self.loop.call_later(RETRY_SECONDS, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self.loop.add_reader(listener, self._accept, listener)
