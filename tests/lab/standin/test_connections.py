"""Which connections are closed: the idle, the ones beyond the cap, the ones that flood."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
from collections.abc import Awaitable, Callable

import pytest

from lab.standin.knobs import Knobs
from lab.standin.limiter import Bucket, read_whitelist
from lab.standin.log import Log
from lab.standin.wire import IDLE_SECONDS, MAX_FRAME, Connection, Wire
from tests.conftest import run_async
from tests.lab.standin.client import Identity
from tests.lab.standin.test_registry import World

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask(pair: Pair, message: object) -> dict[str, object]:
    """The answer. IncompleteReadError where the connection is closed instead."""
    body = json.dumps(message).encode()
    pair[1].write(len(body).to_bytes(4, "big") + body)
    size = int.from_bytes(await pair[0].readexactly(4), "big")
    answer = json.loads(await pair[0].readexactly(size))
    assert isinstance(answer, dict)
    return answer


def with_wire(
    test: Callable[[World, Wire, Callable[[], Awaitable[Pair]]], Awaitable[None]],
) -> None:
    """Run `test` with a registry that listens in this process, and a way to connect to it."""

    async def run() -> None:
        world = World()
        log = Log("error", "text", io.StringIO())
        wire = Wire(world.registry, loop=asyncio.get_running_loop(), log=log, most=100)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        wire.listen([listener])
        pairs: list[Pair] = []

        async def connect() -> Pair:
            pair = await asyncio.open_connection("127.0.0.1", port)
            pairs.append(pair)
            return pair

        try:
            async with asyncio.timeout(60):
                await test(world, wire, connect)
        finally:
            wire.close()
            for _, writer in pairs:
                writer.close()

    run_async(run())


def of(wire: Wire, pair: Pair) -> Connection:
    """The registry's end of a connection."""
    own = pair[1].get_extra_info("sockname")
    (found,) = [one for one in wire.connections if one.socket.getpeername() == own]
    return found


def test_only_idle_connections_are_closed() -> None:
    async def idle(_: World, wire: Wire, connect: Callable[[], Awaitable[Pair]]) -> None:
        silent, lively = await connect(), await connect()
        for pair in (silent, lively):
            await ask(pair, {"type": "beacon_list"})
        of(wire, silent).last -= IDLE_SECONDS + 1
        wire.sweep()
        assert await silent[0].read() == b""
        assert (await ask(lively, {"type": "beacon_list"}))["type"] == "beacon_list_ok"
        assert len(wire.connections) == 1

    with_wire(idle)


@pytest.mark.parametrize(
    ("old", "listed", "served"), [(10, False, 2), (0, False, 5), (10, True, 5)]
)
def test_the_process_wide_cap_is_for_old_connections_that_are_not_listed(
    old: float, listed: bool, served: int
) -> None:
    async def capped(world: World, wire: Wire, connect: Callable[[], Awaitable[Pair]]) -> None:
        if listed:
            world.registry.limiter.whitelist = read_whitelist(
                '[{"cidr": "127.0.0.0/8", "rate": 100}]'
            )
        # Two requests, and hardly ever another.
        wire._requests = Bucket(2, 1e9, asyncio.get_running_loop().time())
        pair = await connect()
        await ask(pair, {"type": "beacon_list"})
        of(wire, pair).began -= old
        answered = 0
        try:
            while answered < 5:
                await ask(pair, {"type": "beacon_list"})
                answered += 1
        except (asyncio.IncompleteReadError, ConnectionResetError):
            assert world.registry.events["capped"] == 1
        assert answered == served

    with_wire(capped)


def test_a_client_that_floods_behind_a_waiting_registration_is_dropped() -> None:
    async def flood(world: World, wire: Wire, connect: Callable[[], Awaitable[Pair]]) -> None:
        world.registry.knobs = Knobs(delay=600)
        pair = await connect()
        body = json.dumps(Identity().register()).encode()
        pair[1].write(len(body).to_bytes(4, "big") + body + b"x" * (6 * MAX_FRAME))
        with contextlib.suppress(ConnectionResetError):
            assert await pair[0].read() == b""
        assert wire.connections == set()
        assert wire.open.shown()["open"] == 0

    with_wire(flood)
