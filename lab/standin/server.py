"""One rendezvous process: ports, timers, signals, and the store's comings and goings."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from . import NOTICE, VERSION, store
from .beacon import Beacon
from .dashboard import MAX_HEAD, Dashboard
from .ed25519 import LibcryptoVerifier
from .flags import Address, RegistryOptions
from .limiter import Limiter, read_whitelist
from .log import Log
from .registry import Registry
from .state import State
from .wire import Wire

# The public source, 2026: the store is written at most this often, stale nodes are looked for
# every ten seconds, the whitelist every two.
SAVE_SECONDS: Final = 5.0
REAP_SECONDS: Final = 10.0
WHITELIST_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 60.0
BACKLOG: Final = 4096
# Where no host is named, as in Go. The fleet's firewall rules say who reaches it.
ANYWHERE: Final = "0.0.0.0"  # noqa: S104
# Descriptors kept for the store, the dashboard and the listeners.
RESERVED_DESCRIPTORS: Final = 64


class CannotStartError(Exception):
    """A port or a folder cannot be used; the text says which and why."""


def raise_descriptor_limit() -> int:
    """Raise this process' RLIMIT_NOFILE to its hard limit; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


class Server:
    """The process between its start and a SIGTERM."""

    def __init__(self, options: RegistryOptions, log: Log, *, descriptors: int) -> None:
        self._options = options
        self._log = log
        self._loop = asyncio.get_running_loop()
        try:
            self._verifier = LibcryptoVerifier()
        except OSError as error:
            raise CannotStartError(error) from error
        started = time.time()
        file = options.store
        state = store.load(file, log, started=started) if file else State(started=started)
        self.registry = Registry(
            state,
            verifier=self._verifier,
            limiter=Limiter(time.monotonic),
            log=log,
            clock=time.time,
            stale=options.stale_threshold,
        )
        self.registry.knobs = options.knobs
        self.wire = Wire(
            self.registry,
            loop=self._loop,
            log=log,
            most=max(16, descriptors - RESERVED_DESCRIPTORS),
        )
        self.beacon = Beacon(self._loop.time)
        self._descriptors = descriptors
        self._saving = asyncio.Lock()
        self._whitelist_seen: object = None
        self._ports: Mapping[str, str] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then write the store a last time.

        CannotStartError where a port or the store's folder cannot be used.
        """
        options = self._options
        if options.store is not None and not options.store.parent.is_dir():
            raise CannotStartError(f"-store {options.store}: its folder does not exist")
        self._watch_whitelist()
        tasks: list[asyncio.Task[None]] = []
        async with contextlib.AsyncExitStack() as cleanup:
            registry = self._listen()
            cleanup.callback(self.wire.close)
            beacon = await self._open_beacon()
            cleanup.callback(beacon.close)
            ports = {
                "registry": registry,
                "beacon": _shown(beacon.get_extra_info("sockname")),
            }
            if options.http is not None:
                http = await self._open_dashboard(options.http)
                cleanup.callback(http.close)
                ports["http"] = _shown(http.sockets[0].getsockname())
            self._log.info(
                "rendezvous running",
                **ports,
                store=options.store or "",
                stale_seconds=options.stale_threshold,
                descriptors=self._descriptors,
                verifier=self._verifier.name,
            )
            tasks = [
                asyncio.create_task(self._every(SAVE_SECONDS, self._save_if_dirty)),
                asyncio.create_task(
                    self._every(min(REAP_SECONDS, options.stale_threshold or 1), self._reap)
                ),
                asyncio.create_task(self._every(WHITELIST_SECONDS, self._reread_whitelist)),
                asyncio.create_task(self._every(SWEEP_SECONDS, self._sweep)),
            ]
            # The present objects stay, so that collections need not walk them. Cycles are rare.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 100)
            await stop.wait()
            self._log.info("shutting down")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if options.store is not None:
            try:
                await self.save()
            except OSError as error:
                self._log.error("last snapshot failed", store=options.store, err=error)

    async def save(self) -> int:
        """Write a snapshot now; returns its bytes (0 without a store). OSError where it fails."""
        file = self._options.store
        if file is None:
            return 0
        async with self._saving:
            self.registry.dirty = False
            knobs = self.registry.knobs
            document = self.registry.state.snapshot(knobs.padding)
            try:
                return await asyncio.to_thread(store.save, file, document, in_place=knobs.in_place)
            except OSError:
                self.registry.dirty = True
                raise

    def turn(self, wanted: Mapping[str, object]) -> None:
        """Turn knobs. ValueError where one cannot be turned so."""
        before = self.registry.knobs
        self.registry.knobs = before.changed(wanted)
        if self.registry.knobs == before:
            return
        self._log.warn("test knobs turned", **self.registry.knobs.shown())
        if self.registry.knobs.away and not before.away:
            self.wire.close()
        elif before.away and not self.registry.knobs.away:
            try:
                self._listen()
            except CannotStartError as error:
                self.registry.knobs = before
                raise ValueError(str(error)) from None

    # -- ports ------------------------------------------------------------------------------

    def _listen(self) -> str:
        """Listen for daemons. A port that the system chose is taken again later."""
        wanted = self._options.registry
        port = wanted.port or int(self._ports.get("registry", ":0").rpartition(":")[2])
        listeners: list[socket.socket] = []
        try:
            for family, host in _families(wanted):
                listener = socket.socket(family, socket.SOCK_STREAM)
                listeners.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((host, port))
                port = listener.getsockname()[1]
                listener.listen(BACKLOG)
                listener.setblocking(False)
        except OSError as error:
            for listener in listeners:
                listener.close()
            raise CannotStartError(f"-registry-addr {wanted}: {error.strerror or error}") from None
        self.wire.listen(listeners)
        shown = _shown(listeners[0].getsockname())
        self._ports = {"registry": shown}
        return shown

    async def _open_beacon(self) -> asyncio.DatagramTransport:
        wanted = self._options.beacon
        try:
            transport, _ = await self._loop.create_datagram_endpoint(
                lambda: self.beacon, local_addr=(wanted.host or ANYWHERE, wanted.port)
            )
        except OSError as error:
            raise CannotStartError(f"-beacon-addr {wanted}: {error.strerror or error}") from None
        return transport

    async def _open_dashboard(self, wanted: Address) -> asyncio.Server:
        file = self._options.store
        dashboard = Dashboard(
            self.registry,
            self.wire,
            self.beacon,
            log=self._log,
            snapshot=self.save,
            turn=self.turn,
            banner=file.with_name("banner.txt") if file else None,
            admin_token=self._options.admin_token,
            dashboard_token=self._options.dashboard_token,
        )
        try:
            return await asyncio.start_server(
                dashboard.serve, wanted.host or None, wanted.port, limit=MAX_HEAD
            )
        except OSError as error:
            raise CannotStartError(f"-http {wanted}: {error.strerror or error}") from None

    # -- timers -----------------------------------------------------------------------------

    async def _every(self, seconds: float, act: object) -> None:
        assert callable(act)
        while True:
            await asyncio.sleep(seconds)
            await act()

    async def _save_if_dirty(self) -> None:
        if not self.registry.dirty or self._options.store is None:
            return
        try:
            await self.save()
        except OSError as error:
            self.registry.events["save_failures"] += 1
            self._log.error("snapshot failed", store=self._options.store, err=error)

    async def _reap(self) -> None:
        self.registry.reap()

    async def _sweep(self) -> None:
        self.wire.sweep()
        self.registry.limiter.sweep()
        self.beacon.reap()

    async def _reread_whitelist(self) -> None:
        self._watch_whitelist()

    def _watch_whitelist(self) -> None:
        """Read the whitelist if its file has changed; a wrong file changes nothing."""
        if self._options.store is None:
            return
        file = self._options.store.with_name("rate-limit-whitelist.json")
        seen, text = _look(file)
        if seen == self._whitelist_seen:
            return
        self._whitelist_seen = seen
        try:
            self.registry.limiter.whitelist = read_whitelist(text) if seen else ()
        except ValueError as error:
            self._log.warn("whitelist not taken", file=file, err=error)
            return
        self._log.info("whitelist", file=file, ranges=len(self.registry.limiter.whitelist))


def _look(file: Path) -> tuple[object, str]:
    """What tells this version of a file from others (None where there is none), and its text."""
    try:
        stat = file.stat()
        return (stat.st_ino, stat.st_mtime_ns, stat.st_size), file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None, ""


def _families(wanted: Address) -> list[tuple[int, str]]:
    """Address families and hosts to bind: every address of the machine where none is named."""
    if not wanted.host:
        both = [(int(socket.AF_INET), ANYWHERE)]
        if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
            both.append((int(socket.AF_INET6), "::"))
        return both
    found = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    return [(int(found[0][0]), str(found[0][4][0]))]


def _shown(name: tuple[object, ...]) -> str:
    host, port = str(name[0]), name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _run(options: RegistryOptions, log: Log) -> None:
    descriptors = raise_descriptor_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Server(options, log, descriptors=descriptors).run(stop)


def main(options: RegistryOptions) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code."""
    if options.version:
        sys.stdout.write(f"pilot-rendezvous stand-in {VERSION}: {NOTICE}\n")
        return 0
    log = Log(options.log_level, options.log_format)
    # At every log level: the reader of the log must know.
    Log("info", options.log_format).warn(f"this is {NOTICE}", version=VERSION)
    try:
        asyncio.run(_run(options, log))
    except CannotStartError as error:
        log.error("cannot start", err=error)
        return 1
    return 0
