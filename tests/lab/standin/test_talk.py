"""Two real daemons talk through the stand-in: directly, and by its beacon's relay."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lab.fleet.talk import Agent, TalkError, ping, wait_for_trust
from tests.lab.standin.client import Standin, standin, wait_for, whitelist
from tests.lab.standin.test_daemons import Fleet

pytestmark = pytest.mark.engine
_CLONE_NEWNET = 0x40000000  # sched.h


@pytest.fixture
def pair(artifacts: Path, tmp_path: Path) -> Fleet:
    return Fleet(artifacts, tmp_path / "agents", 2)


def start(fleet: Fleet, running: Standin) -> list[Agent]:
    """Both daemons, one after the other: the first is node 1."""
    address, beacon = "{}:{}".format(*running.registry), str(running.running["beacon"])
    for daemon in fleet.daemons:
        daemon.start(address, beacon)
        wait_for(daemon.ready, "its socket")
    return [Agent(str(daemon.socket)) for daemon in fleet.daemons]


def trusting(one: Agent, other: Agent) -> None:
    one.ask_for_trust(2)
    other.ask_for_trust(1)
    wait_for_trust(one, 2, 120)
    wait_for_trust(other, 1, 120)


def relayed(running: Standin) -> int:
    return int(running.stats().get("relay_forwarded", 0))


def test_directly(pair: Fleet, tmp_path: Path) -> None:
    whitelist(tmp_path / "registry")
    with standin(tmp_path / "registry") as running:
        try:
            one, other = start(pair, running)
            with closing(one), closing(other):
                with pytest.raises(TalkError):
                    one.dial(2)
                trusting(one, other)
                assert running.stats()["total_trust_links"] == 1
                took, way = ping(one, 2)
                assert (took > 0, way) == (True, "direct")
                assert ping(other, 1)[1] == "direct"
                assert running.count('pilot_requests_total{type="unknown"}') == 0
                assert running.count('pilot_events_total{event="signatures_wrong"}') == 0
        finally:
            pair.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own needs root")
def test_by_the_relay_where_the_direct_path_is_closed(pair: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    whitelist(folder, "0.0.0.0/0")
    # Addresses that the registry believes: of a private one it takes the connection's.
    here, *hosts = "1.0.0.1", "1.0.0.2", "1.0.0.3"
    with own_network():
        for host in (here, *hosts):
            ip("address", "add", host, "dev", "lo")
        # The rule that finds the machine's own addresses, behind those that forbid.
        ip("rule", "add", "pref", "9", "lookup", "local")
        ip("rule", "del", "pref", "0")
        for daemon, host, other in zip(pair.daemons, hosts, reversed(hosts), strict=True):
            daemon.host = host
            ip("rule", "add", "pref", "1", "from", host, "to", other, "prohibit")
        with standin(folder, "-beacon-addr", f"{here}:0", registry=f"{here}:0") as running:
            try:
                one, other_one = start(pair, running)
                with closing(one), closing(other_one):
                    trusting(one, other_one)
                    before = relayed(running)
                    assert ping(one, 2)[1] == "relayed"
                    assert ping(other_one, 1)[1] == "relayed"
                    # Two echoes of each, there and back.
                    assert relayed(running) >= before + 8
            finally:
                pair.stop()


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network that has a loopback and nothing else."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            pytest.skip(f"no network of its own: {os.strerror(ctypes.get_errno())}")
        ip("link", "set", "lo", "up")
        yield
    finally:
        assert libc.setns(before, _CLONE_NEWNET) == 0
        os.close(before)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
