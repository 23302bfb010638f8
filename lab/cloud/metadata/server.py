"""The sockets of VMs' metadata servers: listening, connections, being out of reach.

`lab.cloud.metadata.answers` says what they answer.
"""

import logging
import select
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, Protocol, Self

from lab.cloud.metadata.answers import (
    MOST_GUEST_VALUE,
    GoneError,
    Metadata,
    MetadataAnswer,
    MetadataRefusedError,
    refusal,
)
from lab.cloud.store import Store
from lab.machines.driver import Machine

LOG = logging.getLogger("lab.cloud.metadata")

_MOST_BODY: Final = 1024 * 1024  # bytes that are read of a request before it is refused
_IDLE_SECONDS: Final = 120.0  # a connection that says nothing for so long is closed


class HasStore(Protocol):
    """The part of a lab that is needed here: its state."""

    @property
    def store(self) -> Store:
        """The state."""
        ...


Instance = str | Callable[[str], str | None]
"""The instance that is served: its path, or a function from a peer's address to it."""


class _MetadataServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, metadata: Metadata, instance: Instance, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), _MetadataHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.metadata = metadata
        self.unavailable = False
        self._instance = instance
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()

    def instance(self, peer: str) -> str | None:
        return self._instance if isinstance(self._instance, str) else self._instance(peer)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = super().get_request()
        with self._changed:
            self._open.add(connection)
        return connection, peer

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        super().shutdown_request(request)
        if isinstance(request, socket.socket):
            with self._changed:
                self._open.discard(request)
                self._changed.notify_all()

    def cut(self) -> None:
        """End all connections, whatever they are waiting for."""
        with self._changed:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def wait_until_idle(self) -> None:
        """Wait until the threads of all connections are done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        # Guests lose power while they are being answered.
        LOG.debug("%s: connection lost", client_address, exc_info=True)


class _MetadataHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _MetadataServer

    def version_string(self) -> str:
        # Guests recognise Google's server by this name.
        return "Metadata Server for VM"

    def _handle(self) -> None:
        try:
            body = self._read_body()
        except MetadataRefusedError as refused:
            self.close_connection = True
            self._send(refusal(refused.status, self.path, refused.why))
            return
        if self.server.unavailable:
            self._send(refusal(503, self.path, "Try again later."))
            return
        try:
            answer = self.server.metadata.answer(
                self.server.instance(self.client_address[0]),
                self.command,
                self.path,
                {key.lower(): value for key, value in self.headers.items()},
                body,
                gone=self._gone,
            )
        except GoneError:
            self.close_connection = True
            return
        except Exception as error:
            LOG.exception("%s %s", self.command, self.path)
            why = f"{type(error).__name__}; the log has the traceback"
            answer = replace(refusal(503, self.path, why), status=500)
        self._send(answer)

    # The names that http.server looks for.
    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = do_PATCH = _handle  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            raise MetadataRefusedError(411, "send the value with a Content-Length")
        length = self.headers.get("Content-Length") or "0"
        if not length.isdigit():
            raise MetadataRefusedError(400, f"Content-Length is no number: {length}")
        if int(length) > _MOST_BODY:
            raise MetadataRefusedError(
                413, f"a body of {length} bytes; at most {MOST_GUEST_VALUE} are allowed"
            )
        data = self.rfile.read(int(length))
        if len(data) != int(length):
            raise MetadataRefusedError(400, f"the body ends after {len(data)} of {length} bytes")
        return data

    def _gone(self) -> bool:
        # poll first: on a socket with a time-out, recv waits that long whatever its flags say.
        poller = select.poll()
        poller.register(self.connection, select.POLLIN)
        try:
            return bool(poller.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _send(self, answer: MetadataAnswer) -> None:
        data = answer.text.encode()
        self.send_response(answer.status)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", answer.content_type)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-XSS-Protection", "0")
        self.send_header("X-Frame-Options", "SAMEORIGIN")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
        LOG.debug(format, *args)


class MetadataServing:
    """A metadata server that is being served at `address` (host, port)."""

    def __init__(self, store: Store, instance: Instance, listener: socket.socket) -> None:
        self._store = store
        self._listener = listener
        # Connections inherit it. Without it, closed ones would block the port for `back` for a
        # minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server = _MetadataServer(Metadata(store), instance, listener)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        host, port = listener.getsockname()[:2]
        self.address: tuple[str, int] = (str(host), int(port))
        self._listen()

    @property
    def url(self) -> str:
        """Return `http://HOST:PORT`."""
        return f"http://{self.address[0]}:{self.address[1]}"

    def away(self, *, unavailable: bool = False) -> None:
        """Be out of reach until `back`: refuse connections, cut open ones and long polls.

        With `unavailable`, take connections and answer every request with 503, as Google's server
        does for moments during a host's maintenance.
        """
        with self._lock:
            self._server.unavailable = unavailable
            if not unavailable:
                self._hush()
            self._cut()

    def back(self) -> None:
        """Be there again, at the same address; does nothing once closed."""
        with self._lock:
            self._server.unavailable = False
            if self._thread is None and self._listener.fileno() >= 0:
                self._listen()

    def close(self) -> None:
        """Stop serving and close the socket; no thread is left. A second call does nothing."""
        with self._lock:
            self._hush()
            self._cut()
            self._listener.close()

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self.close()

    def _listen(self) -> None:
        self._listener.listen(_MetadataServer.request_queue_size)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name=f"metadata {self.address[1]}",
            daemon=True,
        )
        self._thread.start()

    def _hush(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
            # On Linux a listening socket then refuses connections and keeps its port. This process
            # could not make another socket in another network namespace.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)

    def _cut(self) -> None:
        self._server.cut()
        self._store.wake()
        if self._thread is None:
            self._server.wait_until_idle()


def serve_metadata(
    lab: HasStore, instance: Instance, listen: tuple[str, int] | socket.socket
) -> MetadataServing:
    """Serve a VM's metadata until the result is closed.

    `listen` is an address to bind (port 0 takes a free one), or a bound TCP socket of any network
    namespace, which is closed at the end. `instance` is the VM's path
    (`projects/P/zones/Z/instances/I`), or returns it for a peer's address; an unknown peer gets
    404. OSError where the address cannot be bound.
    """
    listener = listen if isinstance(listen, socket.socket) else _bound(listen)
    return MetadataServing(lab.store, instance, listener)


class MetadataServers:
    """A metadata server per VM, on the loopback interface, made at its first use.

    A lab needs its driver, the driver needs the servers' addresses, and the servers need the lab's
    state. So make this first, give `endpoint` to the driver, and call `attach` with the lab. Until
    then the addresses are taken and refuse connections, as while a server is away.
    """

    def __init__(self) -> None:
        self._lab: HasStore | None = None
        self._waiting: dict[str, socket.socket] = {}
        self._serving: dict[str, MetadataServing] = {}
        self._lock = threading.Lock()

    def attach(self, lab: HasStore) -> None:
        """Serve all VMs, now and later, from the state of `lab`."""
        with self._lock:
            self._lab = lab
            for path, listener in self._waiting.items():
                self._serving[path] = serve_metadata(lab, path, listener)
            self._waiting.clear()

    def endpoint(self, machine: Machine) -> tuple[str, int]:
        """Return (host, port) of the machine's metadata server."""
        with self._lock:
            path = machine.path
            if path not in self._serving and path not in self._waiting:
                listener = _bound(("127.0.0.1", 0))
                if self._lab is None:
                    self._waiting[path] = listener
                else:
                    self._serving[path] = serve_metadata(self._lab, path, listener)
            if path in self._serving:
                return self._serving[path].address
            host, port = self._waiting[path].getsockname()
            return str(host), int(port)

    def of(self, path: str) -> MetadataServing:
        """Return the server of the instance at `path`; KeyError where there is none yet."""
        with self._lock:
            return self._serving[path]

    def close(self) -> None:
        """Stop them all; a second call does nothing."""
        with self._lock:
            for listener in self._waiting.values():
                listener.close()
            for serving in self._serving.values():
                serving.close()
            self._waiting.clear()
            self._serving.clear()


def _bound(address: tuple[str, int]) -> socket.socket:
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(address)
        # Bound again by number: only then does the port stay ours while nothing listens on it.
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(first.getsockname())
        except OSError:
            listener.close()
            raise
    return listener
