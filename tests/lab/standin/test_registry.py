"""What the registry answers, and keeps, by a clock of the test's own."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest

from lab.standin.ed25519 import LibcryptoVerifier
from lab.standin.limiter import Limiter
from lab.standin.log import Log
from lab.standin.registry import Registry
from lab.standin.state import State, address_of
from tests.lab.standin.client import Identity

STALE = 180.0


class Counting:
    """A verifier that counts how often it really had to verify."""

    def __init__(self) -> None:
        self.calls = 0
        self._verify = LibcryptoVerifier()

    def __call__(self, key: bytes, message: bytes, signature: bytes, /) -> bool:
        self.calls += 1
        return self._verify(key, message, signature)


class World:
    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.verifier = Counting()
        self.registry = Registry(
            State(started=self.now),
            verifier=self.verifier,
            limiter=Limiter(lambda: self.now),
            log=Log("error", "text", io.StringIO()),
            clock=lambda: self.now,
            stale=STALE,
        )

    def ask(self, message: Mapping[str, object], source: str = "10.10.0.2") -> dict[str, Any]:
        answer = json.loads(self.registry.answer(message, source))
        assert isinstance(answer, dict)
        return answer

    def registered(self, identity: Identity) -> int:
        answer = self.ask(identity.register())
        assert answer["type"] == "register_ok", answer
        number = answer["node_id"]
        assert isinstance(number, int)
        return number


@pytest.fixture
def world() -> World:
    return World()


def test_a_registration_is_answered_as_the_daemon_expects(world: World) -> None:
    identity = Identity()
    assert world.ask(identity.register("127.0.0.1:10001")) == {
        "type": "register_ok",
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "network_id": 0,
        "public_key": identity.key,
        "observed_addr": "10.10.0.2:10001",
    }


def test_a_known_key_keeps_its_id_a_new_one_gets_the_next(world: World) -> None:
    first, second = Identity(owner="a"), Identity(owner="b")
    assert [world.registered(one) for one in (first, second, first, second)] == [1, 2, 1, 2]


def test_a_wrong_signature_is_refused_an_absent_one_is_not(world: World) -> None:
    identity, other = Identity(owner="a"), Identity(owner="b")
    wrong = {**identity.register(), "signature": other.sign("x")}
    assert world.ask(wrong)["error"] == "registration signature verification failed"
    for nonsense in ("!", "AAAA", identity.sign("x") + "="):
        assert world.ask({**identity.register(), "signature": nonsense})["type"] == "error"
    # signed for another address
    moved = {**identity.register("10.10.0.2:1"), "listen_addr": "10.10.0.2:2"}
    assert world.ask(moved)["type"] == "error"
    assert world.registry.state.nodes == {}
    unsigned = {**identity.register(), "signature": ""}
    assert world.ask(unsigned)["node_id"] == 1


def test_a_wrong_signature_is_refused_for_a_known_key_too(world: World) -> None:
    identity = Identity()
    world.registered(identity)
    forged = {**identity.register("10.10.0.9:1"), "signature": Identity().sign("x")}
    assert world.ask(forged)["type"] == "error"
    assert world.registry.state.nodes[1].address == "10.10.0.2:10001"


@pytest.mark.parametrize("key", ["", "AAAA", "not base64!", 7, None])
def test_no_key_no_registration(world: World, key: object) -> None:
    message = {**Identity().register(), "public_key": key}
    assert "public" in world.ask(message)["error"]


def test_one_owner_one_node(world: World) -> None:
    """Two agents with one -email: the second is refused, not merged with the first."""
    first, second = Identity(owner="same@x"), Identity(owner="same@x")
    assert world.registered(first) == 1
    assert "use recover_identity" in world.ask(second.register())["error"]
    assert world.registered(first) == 1
    # Once the first is gone, its owner may come back with a new key, to the same id.
    world.now += STALE + 1
    world.registry.reap()
    assert world.registered(second) == 1


def test_lookup(world: World) -> None:
    identity = Identity()
    world.registered(identity)
    assert world.ask({"type": "lookup", "node_id": 1}) == {
        "type": "lookup_ok",
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "networks": [0],
        "public": False,
        "public_key": identity.key,
        "polo_score": 0,
        "version": "1.18.0",
    }
    for stranger in (2, -1, "1", None, 2**40, True):
        answer = world.ask({"type": "lookup", "node_id": stranger})
        assert answer["error"].endswith("node not found")


def test_the_next_requests_of_a_daemon(world: World) -> None:
    world.registered(Identity())
    assert world.ask({"type": "get_network_policy", "network_id": 0}) == {
        "type": "get_network_policy_ok",
        "network_id": 0,
        "max_members": 0,
        "allowed_ports": [],
        "description": "",
    }
    assert world.ask({"type": "get_network_policy", "network_id": 3})["type"] == "error"
    (backbone,) = world.ask({"type": "list_networks"})["networks"]
    assert backbone == {"id": 0, "name": "backbone", "join_rule": "open", "members": 1}
    assert world.ask({"type": "beacon_list"}) == {"type": "beacon_list_ok", "beacons": []}


@pytest.mark.parametrize("kind", ["no_such_thing", "", None, 7, ["register"], {}])
def test_an_unknown_message_type_gets_an_error(world: World, kind: Any) -> None:
    assert world.ask({"type": kind})["type"] == "error"


@pytest.mark.parametrize("kind", ["heartbeat", "deregister", "poll_handshakes"])
def test_messages_that_must_be_signed(world: World, kind: str) -> None:
    identity, other = Identity(owner="a"), Identity(owner="b")
    node = world.registered(identity)
    world.registered(other)
    bare = {"type": kind, "node_id": node}
    assert world.ask(bare)["error"] == "signature required for authenticated node"
    for signed in (other.signed(kind, node), {**identity.signed(kind, 2), "node_id": node}):
        assert world.ask(signed)["error"] == "signature verification failed"
    assert world.ask(identity.signed(kind, node))["type"] == f"{kind}_ok"


def test_the_same_signature_is_verified_once_any_other_always(world: World) -> None:
    identity = Identity()
    node = world.registered(identity)
    before = world.verifier.calls
    for _ in range(5):
        assert world.ask(identity.signed("heartbeat", node))["type"] == "heartbeat_ok"
    assert world.verifier.calls == before + 1
    forged = {**identity.signed("heartbeat", node), "signature": identity.sign("else")}
    for _ in range(3):
        assert world.ask(forged)["type"] == "error"
    assert world.verifier.calls == before + 4
    # a proof of one kind is none of another
    swapped = {**identity.signed("heartbeat", node), "type": "deregister"}
    assert world.ask(swapped)["type"] == "error"


def test_a_heartbeat_keeps_a_node_active_and_tells_the_time(world: World) -> None:
    quiet, beating = Identity(owner="q"), Identity(owner="b")
    world.registered(quiet)
    node = world.registered(beating)
    world.now += STALE - 1
    answer = world.ask(beating.signed("heartbeat", node))
    assert answer == {"type": "heartbeat_ok", "time": int(world.now)}
    assert world.registry.active() == 2
    world.now += 2
    assert world.registry.active() == 1
    world.registry.reap()
    assert list(world.registry.state.nodes) == [node]
    assert world.ask(quiet.signed("heartbeat", 1))["error"].endswith("node not found")
    assert world.registered(quiet) == 1


def test_a_deregistered_node_is_gone_and_comes_back_as_itself(world: World) -> None:
    identity = Identity()
    node = world.registered(identity)
    assert world.ask(identity.signed("deregister", node))["type"] == "deregister_ok"
    assert world.registry.state.nodes == {}
    assert world.ask(identity.signed("deregister", node))["type"] == "deregister_ok"
    assert world.registered(identity) == node


def test_ten_new_keys_per_minute_and_address(world: World) -> None:
    answers = [world.ask(Identity(owner=f"o{i}").register())["type"] for i in range(12)]
    assert answers == ["register_ok"] * 10 + ["error"] * 2
    late = Identity(owner="late")
    assert world.ask(late.register())["error"].startswith("rate limited")
    assert world.ask(late.register(), "10.10.0.3")["type"] == "register_ok"
    world.now += 6
    assert world.ask(Identity(owner="x").register())["type"] == "register_ok"
    assert world.ask(Identity(owner="y").register())["type"] == "error"


def test_known_keys_are_exempt_from_the_limit(world: World) -> None:
    known = [Identity(owner=f"o{i}") for i in range(10)]
    for identity in known:
        world.registered(identity)
    assert world.ask(Identity(owner="new").register())["type"] == "error"
    world.now += STALE + 1
    world.registry.reap()
    for index in range(10):
        world.ask(Identity(owner=f"n{index}").register())
    assert world.ask(Identity(owner="full").register())["type"] == "error"
    assert [world.registered(identity) for identity in known] == list(range(1, 11))


@pytest.mark.parametrize(
    ("listen", "source", "endpoint"),
    [
        ("127.0.0.1:10001", "10.10.0.2", "10.10.0.2:10001"),
        ("[::]:10001", "10.10.0.2", "10.10.0.2:10001"),
        (":10001", "fd00::1", "[fd00::1]:10001"),
        ("8.8.8.8:10001", "10.10.0.2", "8.8.8.8:10001"),
        ("name.example:10001", "10.10.0.2", "name.example:10001"),
        ("", "10.10.0.2", "10.10.0.2"),
    ],
)
def test_where_a_daemon_is_reached(world: World, listen: str, source: str, endpoint: str) -> None:
    assert world.ask(Identity().register(listen), source)["observed_addr"] == endpoint


def test_addresses() -> None:
    assert address_of(1) == "0:0000.0000.0001"
    assert address_of(0x12AB34CD) == "0:0000.12AB.34CD"
