"""A power-off of a booted system drains the agents, and has the registry written, before systemd
gets to them.

The units are ours, only what they execute is not: agents that write down when they were told to end
and when they ended, a rendezvous that writes down what it was told, and a pilot-node that does
nothing but what the real one does at its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from components.startup import STARTUP_DIR
from lab.machines import processes
from lab.machines.host import ensure_packages, no_containers
from startup.node.desired.spec import RendezvousSpec, SwarmSpec, parse
from startup.node.machine.agent_units import OWN
from startup.node.setup import units
from startup.node.setup.limits import KernelFacts
from tests.conftest import measured
from tests.startup import specs
from tools.bench.units import booted, inside

pytestmark = pytest.mark.engine

AGENTS = 60
WINDOW = 15
ROOT = Path("/var/lib/pilot")
# A daemon stops in well under a second; this one takes its time, so that those that end at once
# are seen to.
AGENT = """#!/bin/bash
note() { echo "$EPOCHREALTIME" >"/var/lib/pilot/$1/${HOME##*/}"; }
trap 'note told; sleep 0.3; note ended; exit' TERM
note began
while true; do sleep 1000 & wait; done
"""
NODE = """#!/usr/bin/python3 -IS
import signal, sys
sys.path.insert(0, "/usr/local/lib/pilot")
from node.machine.paths import Paths
from node.machine.systemd import Systemctl
from node.swarm.drain import drain_for_shutdown
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
open("/var/lib/pilot/keeps", "w").close()
signal.sigwait({signal.SIGTERM})
if Systemctl().stopping():
    said = []
    left = drain_for_shutdown(Paths(), limit=15, say=said.append)
    open("/var/lib/pilot/said", "w").write("\\n".join(said))
"""
RENDEZVOUS_UNIT = "pilot-rendezvous.service"
# One that answers for a moment after it was told to end, as one that still writes its store does:
# who asks it too late is seen to.
RENDEZVOUS = """#!/usr/bin/python3 -IS
import http.server, signal, threading, time

def note(word):
    with open("/var/lib/pilot/registry/told", "a") as stream:
        stream.write(word + "\\n")

class Dashboard(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        note(self.path)
        self.send_response(200)
        self.end_headers()

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
server = http.server.HTTPServer(("127.0.0.1", 3000), Dashboard)
threading.Thread(target=server.serve_forever, daemon=True).start()
note("began")
signal.sigwait({signal.SIGTERM})
note("SIGTERM")
time.sleep(3)
"""
RENDEZVOUS_NODE = """#!/usr/bin/python3 -IS
import os, signal, sys
sys.path.insert(0, "/usr/local/lib/pilot")
from node.machine.systemd import Systemctl
from node.rendezvous.process import SystemdUnit, post
from node.rendezvous_loop import LAST_SNAPSHOT
if sys.argv[1] == "store":
    print("pilot:   registry.json: 5 keys", flush=True)
    if not os.path.isdir("/var/lib/pilot/registry"):
        print("pilot: store: no registry here: make it", flush=True)
        sys.exit(1)
elif sys.argv[1] == "why":
    print(SystemdUnit().last_end())
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    open("/var/lib/pilot/keeps", "w").close()
    signal.sigwait({signal.SIGTERM})
    if Systemctl().stopping():
        post("http://127.0.0.1:3000/api/snapshot", LAST_SNAPSHOT)
"""
MACHINE = KernelFacts(ram=4 << 30, page=4096)


def ours(
    name: str, spec: SwarmSpec | RendezvousSpec, does: str, without: tuple[str, ...]
) -> dict[str, str]:
    """The units of a VM, those whose names begin with `name` with another command, as root."""
    found = units.unit_files(MACHINE, spec)
    for path in (path for path in found if path.startswith(f"/etc/systemd/system/{name}")):
        lines = [
            f"ExecStart={does}" if line.startswith("ExecStart=") else line
            for line in found[path].splitlines()
            if not line.startswith(("User=", "EnvironmentFile=", *without))
        ]
        found[path] = "\n".join(lines) + "\n"
    return found


def unit_files() -> dict[str, str]:
    return ours(
        "pilot-agent-",
        parse(specs.text(specs.swarm())),
        "/usr/local/sbin/agent",
        ("OOMScoreAdjust=", "StandardError="),
    )


@contextmanager
def system(folder: Path, files: dict[str, str]) -> Iterator[tuple[int, Path]]:
    """A booted container with `AGENTS` agents and a pilot-node: its first process, its files."""
    with booted(folder) as first:
        put(first, files)
        for name in ("began", "told", "ended"):
            inside(first, "mkdir", "-p", str(ROOT / name))
        names = [OWN.unit(10001 + index) for index in range(AGENTS)]
        inside(first, "systemctl", "start", "pilot-node.service", *names)
        upper = folder / "upper" / str(ROOT).lstrip("/")
        assert processes.until(
            lambda: len(moments(upper, "began")) == AGENTS and (upper / "keeps").is_file(), 60
        )
        yield first, upper


def put(first: int, files: dict[str, str]) -> None:
    for path, text in files.items():
        inside(first, "mkdir", "-p", str(Path(path).parent))
        inside(first, "tee", path, text=text)
        inside(first, "chmod", "755" if "/sbin/" in path else "644", path)
    inside(first, "systemctl", "daemon-reload")


def moments(upper: Path, name: str) -> list[float]:
    texts = [path.read_text(encoding="ascii") for path in (upper / name).glob("*")]
    return sorted(float(text) for text in texts if text.strip())


def most_at_once(upper: Path) -> int:
    """Most agents that had been told to end and had not ended."""
    events = [(moment, 1) for moment in moments(upper, "told")]
    events += [(moment, -1) for moment in moments(upper, "ended")]
    now = most = 0
    for _, change in sorted(events):
        now += change
        most = max(most, now)
    return most


def library() -> dict[str, str]:
    return {
        f"/usr/local/lib/pilot/{path.relative_to(STARTUP_DIR)}": path.read_text(encoding="utf-8")
        for path in sorted((STARTUP_DIR / "node").rglob("*.py"))
    }


def files() -> dict[str, str]:
    programs = {"/usr/local/sbin/agent": AGENT, "/usr/local/sbin/pilot-node": NODE}
    return unit_files() | library() | programs


def rendezvous_files() -> dict[str, str]:
    programs = {
        "/usr/local/sbin/rendezvous": RENDEZVOUS,
        "/usr/local/sbin/pilot-node": RENDEZVOUS_NODE,
    }
    spec = parse(specs.text(specs.rendezvous()))
    return ours(RENDEZVOUS_UNIT, spec, "/usr/local/sbin/rendezvous", ()) | library() | programs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if why := no_containers():
        pytest.skip(why)
    ensure_packages("container")
    return tmp_path


def power_off(first: int) -> float:
    """Power off and wait for the end of the container; the seconds that it took."""
    begun = time.monotonic()
    inside(first, "systemctl", "--no-block", "poweroff")
    assert processes.wait(first, 90)
    return time.monotonic() - begun


def test_a_power_off_drains(folder: Path) -> None:
    with system(folder, files()) as (first, upper):
        took = power_off(first)
    measured(f"power-off with {AGENTS} agents: {took:.1f} s")
    assert len(moments(upper, "ended")) == AGENTS, "some were killed"
    assert 1 < most_at_once(upper) <= WINDOW
    said = (upper / "said").read_text(encoding="ascii")
    assert f"{AGENTS} of {AGENTS} agents ended" in said


def test_without_the_order_they_end_at_once(folder: Path) -> None:
    """The control: what the one directive is for."""
    found = files()
    for agent in (f"/etc/systemd/system/{name}" for name in OWN.templates):
        assert "Before=pilot-node.service\n" in found[agent]
        found[agent] = found[agent].replace("Before=pilot-node.service\n", "")
    with system(folder, found) as (first, upper):
        power_off(first)
    assert most_at_once(upper) > WINDOW


def test_a_stop_of_pilot_node_alone_ends_nobody(folder: Path) -> None:
    with system(folder, files()) as (first, upper):
        inside(first, "systemctl", "restart", "pilot-node.service")
        inside(first, "systemctl", "stop", "pilot-node.service")
        assert moments(upper, "told") == []
        done = inside(first, "systemctl", "list-units", "--plain", "--no-legend", "pilot-agent-*")
        assert done.count(" active running") == AGENTS


def told(first: int, folder: Path, files: dict[str, str]) -> list[str]:
    """The signals and requests that a rendezvous got from its start to a power-off, in order."""
    disk = folder / "upper" / str(ROOT).lstrip("/")
    notes = disk / "registry" / "told"
    put(first, files)
    inside(first, "mkdir", "-p", str(ROOT / "registry"))
    inside(first, "systemctl", "start", "pilot-node.service", RENDEZVOUS_UNIT)
    assert processes.until(lambda: notes.is_file() and (disk / "keeps").is_file(), 60)
    assert notes.read_text() == "began\n"
    power_off(first)
    return notes.read_text().split()[1:]


def test_a_power_off_has_the_registry_written_first(folder: Path) -> None:
    with booted(folder) as first:
        assert told(first, folder, rendezvous_files()) == ["/api/snapshot", "SIGTERM"]


def test_without_the_order_the_rendezvous_is_told_to_end_first(folder: Path) -> None:
    found = rendezvous_files()
    unit = f"/etc/systemd/system/{RENDEZVOUS_UNIT}"
    assert "Before=pilot-node.service\n" in found[unit]
    found[unit] = found[unit].replace("Before=pilot-node.service\n", "")
    with booted(folder) as first:
        assert told(first, folder, found)[0] == "SIGTERM"


def test_why_store_let_the_rendezvous_not_start_is_known(folder: Path) -> None:
    def why() -> str:
        return inside(first, "/usr/local/sbin/pilot-node", "why").strip()

    with booted(folder) as first:
        put(first, rendezvous_files())
        inside(first, "systemctl", "start", RENDEZVOUS_UNIT, check=False)
        assert processes.until(lambda: bool(why()), 60)
        assert why() == "exit status 1: pilot: store: no registry here: make it"
        power_off(first)


def test_the_signal_that_killed_the_rendezvous_is_known_once_it_runs_again(folder: Path) -> None:
    """By then `systemctl show` says "success", of the process that runs."""

    def show(what: str) -> str:
        return inside(first, "systemctl", "show", "--value", f"-p{what}", RENDEZVOUS_UNIT).strip()

    def runs(restarts: int) -> bool:
        return (show("NRestarts"), show("SubState")) == (str(restarts), "running")

    with booted(folder) as first:
        put(first, rendezvous_files())
        inside(first, "mkdir", "-p", str(ROOT / "registry"))
        inside(first, "systemctl", "start", RENDEZVOUS_UNIT)
        for number, name in enumerate(("SIGKILL", "SIGABRT", "SIGUSR1"), start=1):
            kill = ("systemctl", "kill", "--kill-whom=main", f"--signal={name}")
            inside(first, *kill, RENDEZVOUS_UNIT)
            assert processes.until(partial(runs, number), 60)
            assert show("Result") == "success"
            said = inside(first, "/usr/local/sbin/pilot-node", "why").strip()
            assert said.startswith(f"killed by {name}")
        power_off(first)
