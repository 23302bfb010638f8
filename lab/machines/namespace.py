"""A network namespace of the lab's own, and relays between it and the machine's loopback.

Nothing of the containers' network is in the machine's own namespace: they hang on a bridge in
theirs, which also has the metadata server's address and the lab's. What arrives there is carried
to a server on loopback by a thread of the lab's process, and forwards the other way.
"""

import asyncio
import contextlib
import ctypes
import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from lab.machines.driver import MachineError, Nic
from lab.machines.places import HOST_ADDRESS, METADATA_ADDRESS, run

LOG = logging.getLogger("lab.namespace")

BRIDGE: Final = "lan"
_BRIDGE_MAC: Final = "52:54:01:00:00:01"
_CLONE_NEWNET: Final = 0x40000000
_CHUNK: Final = 65536
_CONNECT_SECONDS: Final = 10.0

Made = TypeVar("Made")


class Namespace:
    """A named network namespace with a bridge; the name is all that is kept of it."""

    def __init__(self, name: str) -> None:
        """Take the namespace `name`, which `ensure` makes."""
        self.name = name
        self._path = Path("/run/netns") / name
        self._lock = threading.Lock()

    def exists(self) -> bool:
        """Tell whether it is there."""
        return self._path.exists()

    def ensure(self) -> None:
        """Make it with its bridge and addresses, as far as that is not done."""
        with self._lock:
            if not self.exists():
                run("ip", "netns", "add", self.name)
            if (BRIDGE,) not in {tuple(line.split()[1:2]) for line in self._links()}:
                # Left to itself a bridge takes one of its ports' addresses, and another one when
                # that machine goes: the others would talk to the old one for half a minute.
                self._ip("link", "add", BRIDGE, "address", _BRIDGE_MAC, "type", "bridge")
            for address in (METADATA_ADDRESS, HOST_ADDRESS):
                self._ip("address", "replace", f"{address}/32", "dev", BRIDGE)
            self._ip("link", "set", "lo", "up")
            self._ip("link", "set", BRIDGE, "up")

    def add_gateway(self, nic: Nic) -> None:
        """Give the bridge the gateway's address in a network: answers go back through it."""
        prefix = ipaddress.ip_network(nic.cidr).prefixlen
        self._ip("address", "replace", f"{nic.gateway}/{prefix}", "dev", BRIDGE)

    def delete(self) -> None:
        """Delete it with all that is in it."""
        with self._lock:
            if self.exists():
                run("ip", "netns", "delete", self.name)

    def inside(self, make: Callable[[], Made]) -> Made:
        """Call `make` in a thread that has entered the namespace; its sockets stay in there."""

        def enter() -> Made:
            try:
                handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                message = f"the network namespace {self.name} is gone"
                raise MachineError(message) from None
            try:
                if _LIBC.setns(handle, _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            finally:
                os.close(handle)
            return make()

        # A new thread, which ends: no other thread of this process enters the namespace.
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(enter).result()

    def _links(self) -> list[str]:
        said = run("ip", "-n", self.name, "-oneline", "link", "show")
        return [line.replace(":", " ").replace("@", " ") for line in said.splitlines()]

    def _ip(self, *words: str) -> None:
        run("ip", "-n", self.name, *words)


_LIBC: Final = ctypes.CDLL(None, use_errno=True)

Dial = Callable[[str], "tuple[socket.socket, tuple[str, int]] | None"]
"""Returns, for a peer's address, a fresh socket and where to connect it; None to refuse."""


def listener(host: str, port: int) -> socket.socket:
    """Return a listening socket that does not block."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    listening.listen(128)
    listening.setblocking(False)
    return listening


def unconnected() -> socket.socket:
    """Return a TCP socket that does not block."""
    made = socket.socket()
    made.setblocking(False)
    return made


class Relays:
    """Carries connections in one thread, however many there are."""

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._thread.start()

    def serve(self, listening: socket.socket, dial: Dial) -> None:
        """Carry what arrives at `listening` to where `dial` says, until closed."""
        self._loop.call_soon_threadsafe(self._begin, self._accept(listening, dial))

    def close(self) -> None:
        """Close all listeners and connections, and end the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket, dial: Dial) -> None:
        with listening:
            while True:
                try:
                    peer, address = await self._loop.sock_accept(listening)
                except OSError as error:  # out of descriptors: others will end
                    LOG.warning("no connection can be accepted: %s", error)
                    await asyncio.sleep(0.5)
                    continue
                self._begin(self._carry(peer, address[0], dial))

    async def _carry(self, peer: socket.socket, address: str, dial: Dial) -> None:
        with peer:
            try:
                dialled = await self._loop.run_in_executor(None, dial, address)
            except (OSError, MachineError) as error:
                LOG.debug("%s is not carried: %s", address, error)
                return
            if dialled is None:
                return
            other, where = dialled
            with other:
                try:
                    async with asyncio.timeout(_CONNECT_SECONDS):
                        await self._loop.sock_connect(other, where)
                except (OSError, TimeoutError) as error:
                    LOG.debug("%s is not carried to %s: %s", address, where, error)
                    return
                await asyncio.gather(self._pump(peer, other), self._pump(other, peer))

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := await self._loop.sock_recv(source, _CHUNK):
                await self._loop.sock_sendall(sink, data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
