"""The real daemon against the stand-in: what all of this is for."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.machines.processes import end
from lab.standin.state import read_snapshot
from tests.lab.standin.client import Standin, standin, wait_for, whitelist

# Real programs, and their own timers: too slow for what is run at every change.
pytestmark = pytest.mark.engine

AGENTS = 20
WINDOW = 15
# A daemon's heartbeats are a minute apart (docs/FACTS.md).
STALE = "75s"


def free_ports(count: int) -> list[int]:
    """UDP ports of loopback that nobody has just now, and that the kernel gives to nobody by
    itself: other programs take those all the while."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.sample(range(low // 2, low), low // 2):
            one = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"no {count} ports of {low // 2} to {low} are free")


class Daemon:
    """One agent with a unit's flags and environment: loopback, and nothing phones home."""

    def __init__(self, artifacts: Path, home: Path, email: str, port: int) -> None:
        self.artifacts = artifacts
        self.home = home
        self.email = email
        self.port = port
        self.host = "127.0.0.1"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.home / "s"

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def start(self, registry: str, beacon: str = "127.0.0.1:9") -> None:
        self.home.mkdir(exist_ok=True)
        self.socket.unlink(missing_ok=True)
        here = f"{self.host}:{self.port}"
        command = [
            str(self.artifacts / "pilot-daemon"),
            *("-registry", registry, "-beacon", beacon),
            *("-listen", here, "-endpoint", here, "-socket", str(self.socket)),
            *("-identity", str(self.home / "identity.json"), "-email", self.email),
            *("-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject"),
            *("-no-path-watch", "-no-addr-watch", "-log-level", "info"),
        ]
        environ = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "GOMAXPROCS": "1",
            "PILOT_APPSTORE_CATALOG_URL": "http://127.0.0.1:9/none",
        }
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        return self.socket.exists()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            end(self.process, number, 30)

    def info(self) -> Any:
        """What the daemon says of itself, through pilotctl."""
        run = subprocess.run(
            [str(self.artifacts / "pilotctl"), "--json", "info"],
            env={"HOME": str(self.home), "PILOT_SOCKET": str(self.socket)},
            capture_output=True,
            check=True,
            timeout=60,
        )
        found = json.loads(run.stdout)
        return found.get("data", found)


class Fleet:
    def __init__(self, artifacts: Path, folder: Path, count: int) -> None:
        folder.mkdir()
        self.daemons = [
            Daemon(artifacts, folder / str(index), f"agent-{index}@example.com", port)
            for index, port in enumerate(free_ports(count))
        ]

    def start(self, running: Standin) -> None:
        """All of them, at most WINDOW at a time, the next when one is ready."""
        host, port = running.registry
        waiting = list(self.daemons)
        starting: list[Daemon] = []
        end = time.monotonic() + 120
        while waiting or starting:
            starting = [daemon for daemon in starting if not daemon.ready()]
            while waiting and len(starting) < WINDOW:
                starting.append(waiting.pop())
                starting[-1].start(f"{host}:{port}")
            assert time.monotonic() < end, f"{len(starting)} daemons are not ready"
            time.sleep(0.01)

    def stop(self) -> None:
        for daemon in self.daemons:
            if daemon.process is not None:
                daemon.process.terminate()
        for daemon in self.daemons:
            daemon.stop()


@pytest.fixture
def fleet(artifacts: Path, tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(artifacts, tmp_path / "agents", AGENTS)
    try:
        yield found
    finally:
        found.stop()


def ids(running: Standin) -> dict[str, int]:
    """Node id by owner."""
    return {agent["owner"]: agent["node_id"] for agent in running.http("/agents").json}


def test_twenty_daemons_register_and_are_themselves_after_a_restart(
    fleet: Fleet, tmp_path: Path
) -> None:
    folder = tmp_path / "registry"
    whitelist(folder)
    with standin(folder) as running:
        fleet.start(running)
        stats = running.stats()
        assert (stats["total_nodes"], stats["active_nodes"]) == (AGENTS, AGENTS)
        before = ids(running)
        assert sorted(before.values()) == list(range(1, AGENTS + 1))
        # Every registration was signed, and no signature was found wrong.
        assert running.count('pilot_events_total{event="signatures_verified"}') >= AGENTS
        assert running.count('pilot_events_total{event="signatures_wrong"}') == 0
        assert running.count('pilot_requests_total{type="unknown"}') == 0
        for daemon in fleet.daemons[:3]:
            assert daemon.info()["node_id"] == before[daemon.email]
        for agent in running.http("/agents").json:
            assert agent["version"] == "1.18.0"
        fleet.stop()
        assert running.stop() == 0
    # Twenty keys that are known need no whitelist.
    (folder / "rate-limit-whitelist.json").unlink()
    with standin(folder) as running:
        assert ids(running) == before
        fleet.start(running)
        assert ids(running) == before
        assert running.stats()["active_nodes"] == AGENTS


def test_a_killed_daemon_stops_counting_and_an_empty_registry_fills_again(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Some four minutes, nearly all of them waiting for daemons' timers (docs/FACTS.md: 165 s)."""
    folder = tmp_path / "registry"
    whitelist(folder)
    with standin(folder, "-stale-threshold", STALE) as running:
        fleet.start(running)
        killed, *living = fleet.daemons
        killed.stop(signal.SIGKILL)
        wait_for(
            lambda: running.count("pilot_connections") < 4 * AGENTS, "its connections being gone"
        )
        assert running.stats()["active_nodes"] == AGENTS
        wait_for(lambda: running.stats()["active_nodes"] == len(living), "its being gone", 150)
        assert killed.email in {
            a["owner"] for a in running.http("/agents").json if not a["online"]
        } or (killed.email not in ids(running))
        assert running.count('pilot_requests_total{type="heartbeat"}') >= len(living)
        address = running.registry
        running.stop()
    store = folder / "registry.json"
    assert len(read_snapshot(store.read_bytes(), started=1).ids) == AGENTS
    store.unlink()
    with standin(folder, registry=f"{address[0]}:{address[1]}") as running:
        assert running.stats()["total_nodes"] == 0
        wait_for(lambda: running.stats()["active_nodes"] == len(living), "all being back", 400)
        assert sorted(ids(running)) == sorted(daemon.email for daemon in living)
        for daemon in living:
            assert daemon.process is not None
            assert daemon.process.poll() is None, daemon.log
            assert daemon.info()["node_id"] == ids(running)[daemon.email]


def test_two_daemons_with_one_email_are_refused_as_one(fleet: Fleet, tmp_path: Path) -> None:
    """The owner is the -email: agents of one fleet need one each, on all VMs together."""
    whitelist(tmp_path / "registry")
    first, second = fleet.daemons[:2]
    second.email = first.email
    with standin(tmp_path / "registry") as running:
        address = "{}:{}".format(*running.registry)
        first.start(address)
        wait_for(first.ready, "the first daemon")
        second.start(address)
        process = second.process
        assert process is not None
        wait_for(lambda: process.poll() is not None, "the second daemon's end", 120)
        assert process.returncode != 0
        assert "recover_identity" in second.log
        assert running.stats()["total_nodes"] == 1


def test_a_daemon_waits_for_a_slow_registry_and_ends_when_it_is_refused(
    fleet: Fleet, tmp_path: Path
) -> None:
    whitelist(tmp_path / "registry")
    patient, refused = fleet.daemons[:2]
    with standin(tmp_path / "registry", "-delay", "2") as running:
        address = "{}:{}".format(*running.registry)
        patient.start(address)
        wait_for(patient.ready, "the registration")
        assert running.http("/knobs").json["registrations"]["peak"] == 1
        running.knobs(delay=0, refuse="error")
        refused.start(address)
        process = refused.process
        assert process is not None
        wait_for(lambda: process.poll() is not None, "the refused daemon's end", 120)
        assert process.returncode != 0
        assert not refused.socket.exists()
        assert patient.ready()
