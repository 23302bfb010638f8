"""The whitelist: how it is read, whom it exempts, and that a running one follows its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.standin.limiter import Limiter, read_whitelist
from tests.lab.standin.client import Identity, standin, wait_for, whitelist


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(limiter: Limiter, source: str, tries: int) -> int:
    return sum(limiter.allow(source, 10) for _ in range(tries))


def test_a_listed_range_has_its_own_rate_for_each_address() -> None:
    limiter = Limiter(Clock())
    limiter.whitelist = read_whitelist(
        '[{"cidr": "10.10.0.0/20", "rate": 30}, {"cidr": "192.0.2.7", "rate": 20}]'
    )
    assert taken(limiter, "10.10.0.2", 50) == 30
    assert taken(limiter, "10.10.0.3", 50) == 30
    assert taken(limiter, "10.10.16.1", 50) == 10
    assert taken(limiter, "192.0.2.7", 50) == 20
    assert taken(limiter, "::ffff:192.0.2.7", 50) == 20
    assert taken(limiter, "no address", 50) == 10


def test_tokens_come_back_evenly_and_never_beyond_full() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    assert taken(limiter, "10.0.0.1", 20) == 10
    clock.now = 12
    assert taken(limiter, "10.0.0.1", 20) == 2
    clock.now = 10_000
    assert taken(limiter, "10.0.0.1", 20) == 10


def test_a_change_holds_from_the_next_key_on() -> None:
    limiter = Limiter(Clock())
    assert taken(limiter, "10.0.0.1", 20) == 10
    limiter.whitelist = read_whitelist('[{"cidr": "10.0.0.0/8", "rate": 100}]')
    assert taken(limiter, "10.0.0.1", 200) == 100
    assert not limiter.allow("10.0.0.1", 0, ignore_whitelist=True)


def test_a_sweep_removes_silent_nodes_only() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    assert taken(limiter, "10.0.0.1", 20) == 10
    clock.now = 1
    limiter.sweep()
    assert taken(limiter, "10.0.0.1", 20) == 0
    clock.now = 200
    limiter.sweep()
    assert taken(limiter, "10.0.0.1", 20) == 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"rate": 1}]',
        '[{"cidr": "x", "rate": 1}]',
        '[{"cidr": "10.0.0.0/8"}]',
        '[{"cidr": "10.0.0.0/8", "rate": 0}]',
        '[{"cidr": "10.0.0.0/8", "rate": true}]',
        '[{"cidr": "10.0.0.0/99", "rate": 1}]',
    ],
)
def test_a_whitelist_that_is_wrong_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_whitelist(text)


@pytest.mark.engine  # waits for real timers
def test_a_running_one_follows_the_file_and_keeps_a_good_one_over_a_bad(tmp_path: Path) -> None:
    with standin(tmp_path) as running, running.client() as client:

        def registers() -> bool:
            answer = client.ask(Identity(owner=f"o{len(running.stats()['nodes'])}").register())
            return bool(answer["type"] == "register_ok")

        assert [registers() for _ in range(11)] == [True] * 10 + [False]
        whitelist(tmp_path)
        wait_for(registers, "the whitelist's being read")
        file = tmp_path / "rate-limit-whitelist.json"
        file.write_text("[{")
        wait_for(lambda: "whitelist not taken" in running.log.read_text(), "its being refused")
        assert all(registers() for _ in range(20))
        file.unlink()
        wait_for(lambda: running.lines()[-1].get("ranges") == 0, "the whitelist's being gone")
        assert not all(registers() for _ in range(11))


def test_the_whitelist_is_there_before_the_first_connection(tmp_path: Path) -> None:
    whitelist(tmp_path)
    with standin(tmp_path) as running, running.client() as client:
        for index in range(40):
            answer = client.ask(Identity(owner=f"o{index}").register())
            assert answer["type"] == "register_ok"
        assert json.loads((tmp_path / "rate-limit-whitelist.json").read_text())


def test_the_limit_counts_by_source_address(tmp_path: Path) -> None:
    with standin(tmp_path) as running:
        for source in ("127.0.0.1", "127.0.0.2"):
            with running.client(source) as client:
                answers = [
                    client.ask(Identity(owner=f"{source}-{i}").register())["type"]
                    for i in range(11)
                ]
            assert answers == ["register_ok"] * 10 + ["error"]
