"""The beacon's UDP port: tells a daemon its address, relays nothing.

A daemon with -endpoint, which is how the fleet starts them, needs no answer from here. One without
asks for its own address (a discover of five bytes) and is told; all else is counted and dropped.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from typing import Any, Final, cast

DISCOVER: Final = 0x01
DISCOVERED: Final = 0x02


def discovered(host: str, port: int) -> bytes:
    """The answer to a discover: kind, length of the address, address, port."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    packed = address.packed
    return bytes((DISCOVERED, len(packed))) + packed + port.to_bytes(2, "big")


class Beacon(asyncio.DatagramProtocol):
    """Answers discovers. `seen` counts datagrams by their first byte."""

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        kind = data[0] if data else -1
        self.seen[kind] += 1
        if kind == DISCOVER and len(data) >= 5 and self._transport is not None:
            self._transport.sendto(discovered(str(addr[0]), addr[1]), addr)
