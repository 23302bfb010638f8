"""Real connections between real agents: what pilot-node counts, and what they explain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from lab.fleet.talk import Agent, wait_for_trust
from startup.node.machine import agent_units
from startup.node.pressure import leak_detection
from startup.node.pressure.agent_ipc import Info, info
from startup.node.pressure.sampler import Planning, Walk
from tests.lab.standin.client import standin, wait_for, whitelist
from tests.lab.standin.conftest import artifacts
from tests.lab.standin.test_daemons import Daemon, free_ports
from tests.startup.node.pressure.test_sampler import PLANNING, World

__all__ = ["artifacts"]
pytestmark = pytest.mark.engine

LOOKS = 6
EACH = 40


class Talkers:
    """Two agents on a VM that trust each other."""

    def __init__(self, world: World, agents: list[tuple[Daemon, Agent]]) -> None:
        self.world = world
        (self.one, self.asks), (self.other, _) = agents

    def connect(self, count: int, total: int) -> None:
        """So many more connections, each of which has carried something; until both agents have
        counted the total."""
        for _ in range(count):
            self.asks.echo(self.asks.dial(2), b"x" * 1000)
        both = (self.one.socket, self.other.socket)
        wait_for(
            lambda: all(info(path).connections >= total for path in both), f"{total} connections"
        )


@pytest.fixture
def talkers(artifacts: Path, tmp_path: Path) -> Iterator[Talkers]:
    world = World(tmp_path / "vm")
    whitelist(tmp_path / "registry")
    with ExitStack() as stack:
        running = stack.enter_context(standin(tmp_path / "registry"))
        agents = []
        for name, port in zip("ab", free_ports(2), strict=True):
            daemon = Daemon(artifacts, tmp_path / name, f"{name}@example.com", port)
            stack.callback(daemon.stop)
            daemon.start("{}:{}".format(*running.registry), str(running.running["beacon"]))
            wait_for(daemon.ready, "its socket")
            assert daemon.process is not None
            world.holds(port, daemon.process.pid)
            there = agent_units.socket_of(world.paths, port)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.hardlink_to(daemon.socket)
            agents.append((daemon, stack.enter_context(closing(Agent(str(daemon.socket))))))
        for (_, agent), node in zip(agents, (2, 1), strict=True):
            agent.ask_for_trust(node)
        for (_, agent), node in zip(agents, (2, 1), strict=True):
            wait_for_trust(agent, node, 120)
        yield Talkers(world, agents)


def test_growth_is_explained_by_connections_and_by_nothing_else(
    talkers: Talkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 connections at once, at the end; some 35 KB each. Twice the same looks at the same
    agents: by one that counts connections, and by one that is told that there is always one."""
    # Of two agents instead of thousands.
    monkeypatch.setattr(leak_detection, "FAST", 5e6)
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    # An agent's first minutes are not compared.
    talkers.world.write("proc/uptime", f"{uptime + 2 * leak_detection.WARM} 1.0\n")
    now = 0.0
    counts = Walk(paths=talkers.world.paths, planning=PLANNING, clock=lambda: now)
    told = Walk(
        paths=talkers.world.paths,
        planning=PLANNING,
        clock=lambda: now,
        ask=lambda path: Info(node_id=1, connections=1),
    )
    for look in range(LOOKS):
        now = look * leak_detection.LOOK
        if look:
            talkers.connect(EACH, look * EACH)
        counts.step()
        told.step()
        assert counts.latest.asked == 2
        assert counts.latest.connections == pytest.approx(look * EACH, abs=2)
        if not look:
            # Half as much again as an idle agent here: its share of the program's text depends on
            # how many of them this machine runs.
            idle = counts.latest.agent_mean
            assert idle is not None
            counts.planning = Planning(agent=int(idle * 3 / 4), connection=PLANNING.connection)
    assert counts.latest.connections == pytest.approx(200, abs=2)
    # Agents that are busy are named with the node IDs that they have at the registry.
    assert counts.latest.over == 2
    assert {heavy.node_id for heavy in counts.latest.top} == {1, 2}
    for walk in (counts, told):
        assert walk.latest.growth is not None
        assert walk.latest.growth > 5e6
    assert counts.latest.leak == ""
    assert "without as many more connections" in told.latest.leak
