"""What two daemons need to meet: trust, addresses, names; and the beacon between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from lab.standin import beacon
from lab.standin.beacon import Beacon
from lab.standin.state import CorruptSnapshotError, read_snapshot, sealed
from tests.lab.standin.client import Identity
from tests.lab.standin.test_registry import STALE, World

HERE, THERE = ("10.0.0.1", 1001), ("10.0.0.2", 1002)


class Pair(World):
    """A registry with two nodes, 1 and 2, and a third that is no part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.third = (Identity(owner=name) for name in "abc")
        for identity, port in ((self.one, 1), (self.other, 2), (self.third, 3)):
            self.ask(identity.register(f"10.10.0.2:{port}"))

    def request(self) -> dict[str, object]:
        signature = self.one.sign("handshake:1:2")
        asked = {"from_node_id": 1, "to_node_id": 2, "justification": "why not"}
        return self.ask({"type": "request_handshake", "signature": signature, **asked})

    def respond(self, accept: bool) -> dict[str, object]:
        signature = self.other.sign("respond:2:1")
        answer = {"node_id": 2, "peer_id": 1, "accept": accept}
        return self.ask({"type": "respond_handshake", "signature": signature, **answer})

    def resolve(self, by: Identity, asks: int, wanted: int) -> dict[str, object]:
        message = {"type": "resolve", "node_id": wanted, "requester_id": asks}
        return self.ask({**message, "signature": by.sign(f"resolve:{asks}:{wanted}")})


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_trust_is_asked_for_given_and_told(pair: Pair) -> None:
    assert "is private" in str(pair.resolve(pair.one, 1, 2)["error"])
    assert pair.request() == {"type": "request_handshake_ok", "status": "delivered"}
    assert "already pending" in str(pair.request()["error"])
    polled = pair.ask(pair.other.signed("poll_handshakes", 2))
    when = int(pair.now)
    asked = {"from_node_id": 1, "justification": "why not", "timestamp": when}
    assert (polled["requests"], polled["responses"]) == ([asked], [])
    # A poll empties the inbox, and the request can be answered all the same: once.
    assert pair.ask(pair.other.signed("poll_handshakes", 2))["requests"] == []
    assert pair.respond(True) == {"type": "respond_handshake_ok", "accept": True, "peer_id": 1}
    assert "no pending handshake" in str(pair.respond(True)["error"])
    polled = pair.ask(pair.one.signed("poll_handshakes", 1))
    told = {"from_node_id": 2, "accept": True, "timestamp": when}
    assert (polled["requests"], polled["responses"]) == ([], [told])
    found = {"type": "resolve_ok", "node_id": 2, "real_addr": "10.10.0.2:2"}
    assert pair.resolve(pair.one, 1, 2) == found
    assert pair.resolve(pair.other, 2, 1)["real_addr"] == "10.10.0.2:1"
    assert "is private" in str(pair.resolve(pair.third, 3, 2)["error"])


def test_a_refusal_gives_no_trust(pair: Pair) -> None:
    pair.request()
    assert pair.respond(False)["accept"] is False
    assert pair.ask({"type": "check_trust", "node_id": 1, "peer_id": 2})["trusted"] is False
    (told,) = pair.ask(pair.one.signed("poll_handshakes", 1))["responses"]
    assert told["accept"] is False
    # Nobody is told yes who did not ask.
    assert "no pending handshake" in str(pair.respond(True)["error"])


def test_reported_and_revoked(pair: Pair) -> None:
    def send(kind: str) -> dict[str, object]:
        message = {"type": kind, "node_id": 1, "peer_id": 2}
        return pair.ask({**message, "signature": pair.one.sign(f"{kind}:1:2")})

    pair.registry.dirty = False
    assert send("report_trust") == {"type": "report_trust_ok"}
    assert pair.registry.dirty
    assert pair.ask({"type": "check_trust", "node_id": 2, "peer_id": 1})["trusted"] is True
    assert send("revoke_trust") == {"type": "revoke_trust_ok"}
    assert "no trust pair" in str(send("revoke_trust")["error"])
    assert "is private" in str(pair.resolve(pair.one, 1, 2)["error"])


def test_punch_tells_both_addresses_to_one_of_them(pair: Pair) -> None:
    message = {"type": "punch", "requester_id": 1, "node_a": 1, "node_b": 2}
    message["signature"] = pair.one.sign("punch:1:2")
    answer = pair.ask(message)
    assert answer["type"] == "punch_ok"
    assert (answer["node_a_addr"], answer["node_b_addr"]) == ("10.10.0.2:1", "10.10.0.2:2")
    stranger = {**message, "requester_id": 3, "signature": pair.third.sign("punch:1:2")}
    assert "must be participant" in pair.ask(stranger)["error"]


def test_a_name_is_one_nodes(pair: Pair) -> None:
    def rename(by: Identity, node: int, name: str) -> dict[str, object]:
        return pair.ask({**by.signed("set_hostname", node), "hostname": name})

    named = {"type": "set_hostname_ok", "node_id": 1, "hostname": "hugo"}
    assert rename(pair.one, 1, "hugo") == named == rename(pair.one, 1, "hugo")
    assert pair.ask({"type": "lookup", "node_id": 1})["hostname"] == "hugo"
    assert "in use by node 1" in str(rename(pair.other, 2, "hugo")["error"])
    for bad in ("Hugo", "-hugo", "hu go", "x" * 64):
        assert "invalid hostname" in str(rename(pair.other, 2, bad)["error"])
    assert b'"hostname":"hugo"' in pair.registry.state.snapshot()
    rename(pair.one, 1, "")
    assert rename(pair.other, 2, "hugo")["type"] == "set_hostname_ok"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("resolve", {"node_id": 2, "requester_id": 1}),
        ("request_handshake", {"from_node_id": 1, "to_node_id": 2}),
        ("respond_handshake", {"node_id": 1, "peer_id": 2, "accept": True}),
        ("report_trust", {"node_id": 1, "peer_id": 2}),
        ("revoke_trust", {"node_id": 1, "peer_id": 2}),
        ("punch", {"requester_id": 1, "node_a": 1, "node_b": 2}),
        ("set_hostname", {"node_id": 1, "hostname": "hugo"}),
        ("poll_handshakes", {"node_id": 1}),
    ],
)
def test_nothing_goes_unsigned(pair: Pair, kind: str, fields: dict[str, object]) -> None:
    message = {"type": kind, **fields}
    assert "signature required" in pair.ask(message)["error"]
    forged = {**message, "signature": pair.third.sign(f"{kind}:1:2")}
    assert "verification failed" in pair.ask(forged)["error"]
    assert pair.registry.state.trust_pairs == set()


def test_a_node_that_is_gone_leaves_no_request(pair: Pair) -> None:
    pair.request()
    pair.now += STALE + 1
    for identity in (pair.other, pair.third):
        pair.ask(identity.register())
    pair.registry.reap()
    assert "node not found" in str(pair.respond(True)["error"])
    pair.ask(pair.one.register())
    assert "no pending handshake" in str(pair.respond(True)["error"])


def test_refusals_in_the_words_of_february(pair: Pair) -> None:
    pair.registry.knobs = replace(pair.registry.knobs, plain_refusals=True)
    assert pair.resolve(pair.one, 1, 2) == {"type": "error", "error": "request failed"}
    assert pair.ask({"type": "whatever"})["error"] == "request failed"


def test_trust_is_in_the_store(pair: Pair) -> None:
    assert b"trust_pairs" not in pair.registry.state.snapshot()
    pair.request()
    pair.respond(True)
    document = pair.registry.state.snapshot()
    assert json.loads(document)["trust_pairs"] == ["1:2"]
    found = read_snapshot(sealed(document), started=1)
    assert (found.trusted(2, 1), found.trusted(1, 3)) == (True, False)
    for bad in (b'"1:2:3"', b'"one:two"', b"7"):
        with pytest.raises(CorruptSnapshotError, match="trust_pairs"):
            read_snapshot(sealed(document.replace(b'"1:2"', bad)), started=1)


class Wire:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, tuple[str, int]]] = []

    def sendto(self, data: bytes, addr: tuple[str, int]) -> None:
        self.sent.append((data, addr))


@pytest.fixture
def wire() -> Wire:
    return Wire()


def connected(wire: Wire, clock: Callable[[], float]) -> Beacon:
    found = Beacon(clock)
    found.connection_made(cast(asyncio.BaseTransport, wire))
    return found


def ids(*nodes: int) -> bytes:
    return b"".join(node.to_bytes(4, "big") for node in nodes)


def test_the_beacon_opens_a_path_from_both_sides(wire: Wire) -> None:
    one = connected(wire, lambda: 0.0)
    one.datagram_received(b"\x03" + ids(1, 2), HERE)
    assert wire.sent == []
    one.datagram_received(b"\x01" + ids(2), THERE)
    assert wire.sent.pop() == (b"\x02\x04\x0a\x00\x00\x02\x03\xea", THERE)
    one.datagram_received(b"\x03" + ids(1, 2), HERE)
    assert wire.sent == [
        (b"\x04\x04\x0a\x00\x00\x02\x03\xea", HERE),
        (b"\x04\x04\x0a\x00\x00\x01\x03\xe9", THERE),
    ]


def test_the_beacon_relays_to_whom_it_heard(wire: Wire) -> None:
    now = 0.0
    one = connected(wire, lambda: now)
    one.datagram_received(b"\x05" + ids(1, 2) + b"hello", HERE)
    assert (wire.sent, one.not_found) == ([], 1)
    one.datagram_received(b"\x01" + ids(2), THERE)
    wire.sent.clear()
    one.datagram_received(b"\x05" + ids(1, 2) + b"hello", HERE)
    assert wire.sent == [(b"\x06" + ids(1) + b"hello", THERE)]
    assert one.forwarded == 1
    # Ten minutes later it is not known whether anybody is there.
    now = beacon.NODE_SECONDS + 1
    one.reap()
    one.datagram_received(b"\x05" + ids(1, 2) + b"hello", HERE)
    assert (len(wire.sent), one.not_found) == (1, 2)


@pytest.mark.parametrize("data", [b"", b"\x01abc", b"\x03" + bytes(7), b"\x05" + bytes(7), b"\x09"])
def test_the_beacon_drops_what_it_does_not_know(wire: Wire, data: bytes) -> None:
    one = connected(wire, lambda: 0.0)
    one.datagram_received(data, HERE)
    assert wire.sent == []
