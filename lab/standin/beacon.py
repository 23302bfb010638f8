"""The beacon's UDP port: tells a daemon its address, opens paths, and relays where none opens.

A datagram is one byte for its kind, then node ids of four bytes, big-endian. A daemon that is
heard of (a discover, which it repeats every minute, or a punch request) can be reached for ten
minutes at the address that it was heard from.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, cast

DISCOVER: Final = 0x01
DISCOVERED: Final = 0x02
PUNCH_REQUEST: Final = 0x03
PUNCH: Final = 0x04
RELAY: Final = 0x05
RELAYED: Final = 0x06
# The real one's: an address lives ten minutes without a discover.
NODE_SECONDS: Final = 600.0

UdpAddress = tuple[str | Any, int]


def endpoint(kind: int, host: str, port: int) -> bytes:
    """A datagram that names an address: kind, length of the address, address, port."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    packed = address.packed
    return bytes((kind, len(packed))) + packed + port.to_bytes(2, "big")


class Beacon(asyncio.DatagramProtocol):
    """`seen` counts datagrams by their first byte. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seen: Counter[int] = Counter()
        self.forwarded = 0
        self.not_found = 0
        self._clock = clock
        self._nodes: dict[int, tuple[UdpAddress, float]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: UdpAddress) -> None:
        kind = data[0] if data else -1
        self.seen[kind] += 1
        if kind == DISCOVER and len(data) >= 5:
            self._heard(data[1:5], addr)
            self._send(endpoint(DISCOVERED, *addr[:2]), addr)
        elif kind == PUNCH_REQUEST and len(data) >= 9:
            self._heard(data[1:5], addr)
            if (target := self._address(data[5:9])) is not None:
                # Both send to the other at once: each opens its own side of a firewall or NAT.
                self._send(endpoint(PUNCH, *target[:2]), addr)
                self._send(endpoint(PUNCH, *addr[:2]), target)
        elif kind == RELAY and len(data) >= 9:
            if (target := self._address(data[5:9])) is None:
                self.not_found += 1
                return
            self.forwarded += 1
            self._send(bytes((RELAYED,)) + data[1:5] + data[9:], target)

    def reap(self) -> None:
        """Forget the addresses of nodes that were not heard of for ten minutes."""
        since = self._clock() - NODE_SECONDS
        self._nodes = {node: seen for node, seen in self._nodes.items() if seen[1] >= since}

    def _heard(self, node: bytes, addr: UdpAddress) -> None:
        self._nodes[int.from_bytes(node, "big")] = addr, self._clock()

    def _address(self, node: bytes) -> UdpAddress | None:
        seen = self._nodes.get(int.from_bytes(node, "big"))
        return seen[0] if seen is not None else None

    def _send(self, data: bytes, addr: UdpAddress) -> None:
        assert self._transport is not None
        self._transport.sendto(data, addr)
