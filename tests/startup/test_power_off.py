"""A power-off of a booted system drains the agents before systemd gets to them.

The units are ours, only what they execute is not: agents that write down when they were told to end
and when they ended, and a pilot-node that does nothing but what the real one does at its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.units import booted, inside
from components.startup import STARTUP_DIR
from lab.drivers import processes
from lab.drivers.host import ensure_packages, no_containers
from startup.node import units
from startup.node.limits import Machine
from startup.node.spec import SwarmSpec, parse
from tests.startup import specs

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
from node.agents import drain_for_shutdown
from node.place import Place
from node.systemd import Systemctl
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
signal.sigwait({signal.SIGTERM})
if Systemctl().stopping():
    said = []
    left = drain_for_shutdown(Place(), limit=15, say=said.append)
    open("/var/lib/pilot/said", "w").write("\\n".join(said))
"""


def unit_files() -> dict[str, str]:
    spec = parse(specs.text(specs.swarm()))
    assert isinstance(spec, SwarmSpec)
    machine = Machine(ram=4 << 30, page=4096, threads_max=31000)
    found = units.unit_files(machine, spec)
    agent = "/etc/systemd/system/pilot-agent@.service"
    lines = [
        "ExecStart=/usr/local/sbin/agent" if line.startswith("ExecStart=") else line
        for line in found[agent].splitlines()
        if not line.startswith(("User=", "EnvironmentFile=", "OOMScoreAdjust=", "StandardError="))
    ]
    return found | {agent: "\n".join(lines) + "\n"}


@contextmanager
def system(folder: Path, files: dict[str, str]) -> Iterator[tuple[int, Path]]:
    """A booted container with `AGENTS` agents and a pilot-node: its first process, its files."""
    with booted(folder) as first:
        for path, text in files.items():
            inside(first, "mkdir", "-p", str(Path(path).parent))
            inside(first, "tee", path, text=text)
            inside(first, "chmod", "755" if "/sbin/" in path else "644", path)
        for name in ("began", "told", "ended"):
            inside(first, "mkdir", "-p", str(ROOT / name))
        inside(first, "systemctl", "daemon-reload")
        names = [f"pilot-agent@{10001 + i}.service" for i in range(AGENTS)]
        inside(first, "systemctl", "start", "pilot-node.service", *names)
        upper = folder / "upper" / str(ROOT).lstrip("/")
        assert processes.until(lambda: len(moments(upper, "began")) == AGENTS, 60)
        yield first, upper


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


def files() -> dict[str, str]:
    found = unit_files()
    found |= {
        f"/usr/local/lib/pilot/node/{path.name}": path.read_text(encoding="utf-8")
        for path in sorted((STARTUP_DIR / "node").glob("*.py"))
    }
    return found | {"/usr/local/sbin/agent": AGENT, "/usr/local/sbin/pilot-node": NODE}


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
    print(f"  power-off with {AGENTS} agents: {took:.1f} s")
    assert len(moments(upper, "ended")) == AGENTS, "some were killed"
    assert 1 < most_at_once(upper) <= WINDOW
    said = (upper / "said").read_text(encoding="ascii")
    assert f"{AGENTS} of {AGENTS} agents ended" in said


def test_without_the_order_they_end_at_once(folder: Path) -> None:
    """The control: what the one directive is for."""
    agent = "/etc/systemd/system/pilot-agent@.service"
    found = files()
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
        done = inside(first, "systemctl", "list-units", "--plain", "--no-legend", "pilot-agent@*")
        assert done.count(" active running") == AGENTS
