"""The test knobs: slow, refusing and absent registries, turned while it runs."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from lab.standin.knobs import Knobs, OpenRegistrations
from tests.lab.standin.client import Client, Identity, Standin, standin, wait_for, whitelist


def opened(running: Standin) -> int:
    found = running.http("/knobs").json["registrations"]["open"]
    assert isinstance(found, int)
    return found


def test_a_delay_delays_registrations_and_nothing_else(running: Standin) -> None:
    running.knobs(delay=600)
    with running.client() as slow, running.client() as other:
        slow.send(Identity(owner="slow").register())
        wait_for(lambda: opened(running) == 1, "the registration")
        assert other.ask({"type": "beacon_list"})["type"] == "beacon_list_ok"
        assert running.stats()["total_nodes"] == 0
    wait_for(lambda: opened(running) == 0, "its being given up")
    assert running.stats()["total_nodes"] == 0
    running.knobs(delay=0.3)
    with running.client() as client:
        # what is asked behind a registration is answered after it
        client.send(Identity(owner="first").register())
        client.send({"type": "beacon_list"})
        client.send(Identity(owner="second").register())
        kinds = [client.receive()["type"] for _ in range(3)]
    assert kinds == ["register_ok", "beacon_list_ok", "register_ok"]


def test_the_peak_of_open_registrations_is_known(running: Standin) -> None:
    running.knobs(delay=600)
    with contextlib.ExitStack() as stack:
        for index in range(7):
            source = "127.0.0.1" if index < 5 else "127.0.0.2"
            client = stack.enter_context(running.client(source))
            client.send(Identity(owner=f"o{index}").register())
        wait_for(lambda: opened(running) == 7, "seven registrations")
    wait_for(lambda: opened(running) == 0, "none")
    peaks = running.http("/knobs").json["registrations"]
    assert peaks == {"open": 0, "peak": 7, "peak_by_source": {"127.0.0.1": 5, "127.0.0.2": 2}}
    assert running.knobs(reset_peak=True)["registrations"] == {
        "open": 0,
        "peak": 0,
        "peak_by_source": {},
    }


def test_refusals(running: Standin) -> None:
    known = Identity(owner="known")
    with running.client() as client:
        node = client.ask(known.register())["node_id"]
        running.knobs(refuse="error")
        assert client.ask(known.register())["type"] == "error"
        assert client.ask(known.signed("heartbeat", node))["type"] == "heartbeat_ok"
        running.knobs(refuse="disconnect")
        client.send(known.register())
        with pytest.raises(EOFError):
            client.receive()
    running.knobs(refuse="hang")
    with running.client() as client:
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.ask(known.register())
        wait_for(lambda: opened(running) == 1, "an open registration")
    running.knobs(refuse="no")
    with running.client() as client:
        assert client.ask(known.register())["node_id"] == node
    assert opened(running) == 0


def test_away_closes_the_port_and_back_opens_the_same(running: Standin) -> None:
    with running.client() as client:
        client.ask(Identity().register())
        running.knobs(away=True)
        with pytest.raises(EOFError):
            client.ask({"type": "beacon_list"})
        with pytest.raises(ConnectionRefusedError):
            Client(running.registry)
        assert running.stats()["total_nodes"] == 1
    running.knobs(away=False)
    with running.client() as client:
        assert client.ask({"type": "beacon_list"})["type"] == "beacon_list_ok"


def test_new_keys_can_be_limited_in_spite_of_the_whitelist(running: Standin) -> None:
    with running.client() as client:
        running.knobs(ignore_whitelist=True, new_keys_per_minute=2)
        kinds = [client.ask(Identity(owner=f"o{i}").register())["type"] for i in range(4)]
        assert kinds == ["register_ok"] * 2 + ["error"] * 2
        running.knobs(ignore_whitelist=False)
        assert client.ask(Identity(owner="more").register())["type"] == "register_ok"


def test_flags_turn_them_at_the_start(tmp_path: Path) -> None:
    whitelist(tmp_path)
    with standin(tmp_path, "-refuse", "error", "-delay", "0.1") as running:
        assert running.http("/knobs").json["knobs"]["delay"] == 0.1
        with running.client() as client:
            assert client.ask(Identity().register())["type"] == "error"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"delay": -1}, "delay"),
        ({"delay": "soon"}, "delay"),
        ({"delay": True}, "delay"),
        ({"refuse": "maybe"}, "refuse"),
        ({"new_keys_per_minute": 1.5}, "new_keys_per_minute"),
        ({"away": "yes", "speed": 1}, "away: must be true or false; speed: there is no such knob"),
    ],
)
def test_a_knob_that_cannot_be_turned_so_turns_nothing(
    running: Standin, wanted: dict[str, object], said: str
) -> None:
    answer = running.http("/knobs", "POST", {"ignore_whitelist": True, **wanted})
    assert answer.status == 400
    assert said in answer.json["error"]
    assert running.http("/knobs").json["knobs"] == Knobs().shown()
    assert running.http("/knobs", "POST", b"{").status == 400
    assert running.http("/knobs", "POST", []).status == 400


def test_knobs_can_be_turned_amid_a_crowd(running: Standin) -> None:
    """Registrations that wait when a knob is turned are answered by what it is then."""
    running.knobs(delay=0.5)
    kinds: list[str] = []

    def register(index: int) -> None:
        with running.client() as client:
            kinds.append(client.ask(Identity(owner=f"o{index}").register())["type"])

    crowd = [threading.Thread(target=register, args=(index,)) for index in range(10)]
    for one in crowd:
        one.start()
    running.knobs(refuse="error", delay=0)
    running.knobs(refuse="no")
    for one in crowd:
        one.join()
    assert len(kinds) == 10
    assert opened(running) == 0


def test_counting_open_registrations() -> None:
    counter = OpenRegistrations()
    for source in ("a", "a", "b"):
        counter.begin(source)
    counter.end("a")
    assert counter.shown() == {"open": 2, "peak": 3, "peak_by_source": {"a": 2, "b": 1}}
    counter.reset()
    assert counter.shown() == {"open": 2, "peak": 2, "peak_by_source": {"a": 1, "b": 1}}
    counter.end("a")
    counter.end("b")
    counter.begin("b")
    assert counter.shown() == {"open": 1, "peak": 2, "peak_by_source": {"a": 1, "b": 1}}
