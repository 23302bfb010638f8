"""Keeping agents: what is seen and what is done, on a folder for a VM."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from startup.node.machine import agent_units, errors
from startup.node.machine.agent_units import LAYOUTS, OWN, SHARED, Layout
from startup.node.machine.paths import Paths
from startup.node.machine.systemd import SystemdError, UnitState
from startup.node.machine.user import GID
from startup.node.swarm import supervisor, variants
from startup.node.swarm.decide import START_DEADLINE, STEADY, Goal, SwarmState
from startup.node.swarm.drain import SHUTDOWN_SECONDS, drain_for_shutdown
from startup.node.swarm.supervisor import ASKED, LOG_BYTES, LOOK, TURNS, Keeper


def named(unit: str) -> tuple[int, Layout]:
    """The port and the layout of a unit's name."""
    port = int(unit.partition("@")[2].removesuffix(".service"))
    (layout,) = (each for each in LAYOUTS if each.unit(port) == unit)
    return port, layout


class Pid1:
    """systemd, as far as its effects on a file system go. `behave` says what a start comes to."""

    def __init__(self, paths: Paths, behave: Callable[[int], str]) -> None:
        self.paths = paths
        self.behave = behave
        self.slice = paths.at("/sys/fs/cgroup/pilot.slice")
        self.pending: list[int] = []
        self.started: list[int] = []
        self.dead: dict[str, UnitState] = {}
        self.most = 0
        self.asked = self.calls = 0
        # Called while systemd is asked.
        self.meanwhile: Callable[[], None] = lambda: None
        self.broken = False
        # What it does and gives no answer to.
        self.mute = ""
        self.goes_down = False
        # What each port was started as.
        self.ran: dict[int, list[str]] = {}
        self.layouts: dict[int, Layout] = {}

    def start(self, units: Sequence[str]) -> None:
        if self.broken:
            raise SystemdError("systemctl start: Connection refused")
        for unit in units:
            port, layout = named(unit)
            assert not any(each.socket(self.paths, port).exists() for each in LAYOUTS), "stale"
            assert (self.paths.agents / str(port)).is_dir()
            chosen = self.paths.chosen / str(port)
            self.ran.setdefault(port, []).append(chosen.readlink().name)
            assert agent_units.layout_of(self.paths, port) is None, "started twice"
            self.pending.append(port)
            self.layouts[port] = layout
            self.started.append(port)
        self.most = max(self.most, len(self.pending))
        if self.mute == "start":
            raise SystemdError("systemctl start: no answer in 40 s")

    def stop(self, units: Sequence[str]) -> None:
        for unit in units:
            port, layout = named(unit)
            assert layout is self.layouts[port], "a unit that does not run"
            self.kill(port)
            if self.socket(port).is_socket():
                self.socket(port).unlink()
        if self.mute == "stop":
            raise SystemdError("systemctl stop: no answer in 40 s")

    def states(self, units: Sequence[str]) -> dict[str, UnitState]:
        self.asked += len(units)
        self.calls += 1
        self.meanwhile()
        return {unit: self.dead[unit] for unit in units if unit in self.dead}

    def hurry(self) -> None: ...

    def stopping(self) -> bool:
        return self.goes_down

    def kill(self, port: int) -> None:
        """As SIGKILL does: the socket stays."""
        self.pending = [p for p in self.pending if p != port]
        if self.unit(port).exists():
            shutil.rmtree(self.unit(port))

    def unit(self, port: int) -> Path:
        """The cgroup that its agent has, had last, or would have."""
        return self.slice / self.layouts.get(port, OWN).cgroup(port)

    def socket(self, port: int) -> Path:
        return self.layouts.get(port, OWN).socket(self.paths, port)

    def settle(self) -> None:
        """Started agents get ready, or fail, as `behave` says."""
        for port in list(self.pending):
            unit = self.layouts[port].unit(port)
            self.dead.pop(unit, None)
            outcome = self.behave(port)
            if outcome == "ready":
                self.unit(port).mkdir(parents=True, exist_ok=True)
                os.mknod(self.socket(port), stat.S_IFSOCK | 0o600)
            elif outcome == "hangs":
                self.unit(port).mkdir(parents=True, exist_ok=True)
                continue
            else:
                self.dead[unit] = UnitState(
                    active="failed", job=False, result="exit-code", exit_status="1"
                )
                continue
            self.pending.remove(port)
        self.pending = [p for p in self.pending if self.layouts[p].unit(p) not in self.dead]


OLD, NEW = "0" * 16, "f" * 16


def goal(count: int, variant: str = OLD) -> Goal:
    return Goal(variants=dict.fromkeys(range(10001, 10001 + count), variant), window=15)


class World:
    """A keeper, its systemd, and a clock that a round moves."""

    def __init__(self, root: Path, count: int) -> None:
        self.paths = Paths(root=root)
        self.paths.logs.mkdir(parents=True)
        self.paths.state.mkdir(parents=True)
        self.now = 0.0
        self.said: list[str] = []
        self.mounted = True
        self.open = ""
        # Seconds of the processor that a round takes, and that all have taken.
        self.costs = self.used = 0.0
        # Seconds until systemd answers.
        self.answers = 0.0
        self.behave: Callable[[int], str] = lambda port: "ready"
        self.pid1 = Pid1(self.paths, self._behave)
        self.pid1.meanwhile = self._wait
        self.keeper = Keeper(
            paths=self.paths,
            goal=goal(count),
            systemd=self.pid1,
            say=self.said.append,
            mounted=lambda path: self.mounted,
            shut=self._shut,
            clock=lambda: self.now,
            processor=self._processor,
        )

    def _processor(self) -> float:
        self.used += self.costs
        return self.used

    def _wait(self) -> None:
        self.now += self.answers

    def _behave(self, port: int) -> str:
        return self.behave(port)

    def _shut(self) -> None:
        if self.open:
            raise errors.NotReadyError(self.open)

    def until(self, done: Callable[[], bool], limit: float = 1000.0) -> None:
        end = self.now + limit
        while not done():
            assert self.now < end, self.said[-3:]
            self.now += self.keeper.round()
            self.pid1.settle()

    def running(self) -> set[int]:
        return set(agent_units.running(self.paths))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, 40)


def test_all_come_up_within_the_window(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    assert world.pid1.started == list(range(10001, 10041))
    assert world.pid1.most == 15
    assert (world.paths.agents / "10040").stat().st_mode & 0o777 == 0o700
    world.until(lambda: world.said[-1:] == ["40 of 40 agents ready"])
    # Prompt starts: systemd was asked nothing about them.
    assert world.pid1.asked == 0


def test_thousands_come_up(tmp_path: Path) -> None:
    world = World(tmp_path, 1500)
    world.until(lambda: len(world.pid1.started) == 1500)
    assert world.pid1.most == 15
    # 15 each tick, at best: the window is the limit, not the looking.
    assert world.now <= 1500 / 15 * supervisor.TICK + supervisor.LOOK


def test_looking_leaves_most_of_a_slow_processor_to_the_agents(world: World) -> None:
    assert world.keeper.round() == supervisor.TICK
    for costs, pause in ((0.004, supervisor.TICK), (0.1, 0.3), (30.0, supervisor.TICK_MOST)):
        world.costs = costs
        assert world.keeper.round() == pytest.approx(pause)


def test_systemd_is_asked_more_rarely_where_it_takes_long_to_answer(world: World) -> None:
    world.behave = lambda port: "hangs"

    def calls(answers: float) -> int:
        world.answers, before, end = answers, world.pid1.calls, world.now + 30.0
        world.until(lambda: world.now >= end)
        return world.pid1.calls - before

    assert calls(0.0) >= 25
    assert 6 <= calls(1.0) <= 8
    assert calls(9.0) in (2, 3)


def test_systemd_is_asked_at_once_about_a_death_while_starts_are_silent(world: World) -> None:
    world.behave = lambda port: "hangs" if port == 10002 else "ready"
    world.until(lambda: len(world.keeper.view().up_since) == 39)
    world.answers = 2.0
    before = world.pid1.calls
    world.until(lambda: world.pid1.calls > before, limit=20)
    unit = OWN.unit(10007)
    world.pid1.dead[unit] = UnitState(active="failed", job=False, result="signal", exit_status="9")
    world.pid1.kill(10007)
    world.until(lambda: any("10007: ended (signal" in each for each in world.said), limit=LOOK + 1)


def test_an_answer_of_systemd_is_kept_until_a_round_decides(world: World) -> None:
    world.behave = lambda port: "dies" if port == 10003 else "ready"
    world.keeper.round()
    world.pid1.settle()
    world.now += 1.0
    # For somebody else than the round: it asks, and the round does not ask again.
    assert 10003 in world.keeper.look().ended
    assert not world.keeper.view().trouble
    asked = world.pid1.calls
    world.keeper.round()
    assert world.pid1.calls == asked
    assert world.keeper.view().trouble[10003].why.startswith("ended (exit-code")
    world.now += 1.0
    assert not world.keeper.look().ended


def test_a_slow_processor_is_not_taken_for_a_slow_registry(world: World) -> None:
    world.costs = 30.0
    world.until(lambda: len(world.keeper.view().ready) == 40)
    assert world.keeper.view().window.size == 15
    assert world.keeper.view().window.why == ""


def test_another_keeper_finds_them_and_leaves_them_alone(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    started = list(world.pid1.started)
    world.keeper = replace(world.keeper, memory=SwarmState(), _seen=None, _must_look_at_all=True)
    world.until(lambda: world.now > 100)
    assert world.pid1.started == started


def test_agents_of_the_release_before_are_adopted_and_left_a_window_at_a_time(
    world: World,
) -> None:
    """As in an update: they run on as one user, until the new unit's variant restarts them."""
    paths, ports = world.paths, range(10001, 10041)
    paths.sockets.mkdir()
    for port in ports:
        world.pid1.layouts[port] = SHARED
        world.pid1.unit(port).mkdir(parents=True)
        os.mknod(world.pid1.socket(port), stat.S_IFSOCK | 0o600)
        variants.choose(paths, port, OLD)
    world.until(lambda: len(world.keeper.view().ready) == 40)
    world.until(lambda: world.now > 100)
    assert world.pid1.started == []
    # One that dies comes back with a user of its own.
    world.pid1.kill(10007)
    world.until(lambda: world.pid1.started == [10007], limit=10)
    world.until(lambda: len(world.keeper.view().ready) == 40)
    assert agent_units.layout_of(paths, 10007) is OWN
    world.pid1.most = 0
    world.keeper.goal = goal(40, NEW)
    world.until(lambda: agent_units.running(paths) == dict.fromkeys(ports, OWN))
    assert world.pid1.most <= 15
    assert not list(paths.sockets.iterdir())
    world.keeper.goal = goal(0)
    world.until(lambda: not world.running())


def test_the_socket_of_an_agent_that_removed_it_is_missed(world: World) -> None:
    world.until(lambda: len(world.keeper.view().ready) == 40)
    world.pid1.socket(10007).unlink()
    world.until(lambda: 10007 not in world.keeper.view().ready, limit=TURNS * LOOK + LOOK)
    world.until(lambda: 10007 in world.keeper.view().ready, limit=STEADY + 10)


def test_a_home_belongs_to_the_user_of_its_unit(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give files away")
    world = World(tmp_path, 2)
    home = world.paths.home(10001)
    (home / "deep").mkdir(parents=True)
    (home / "identity.json").write_text("{}", encoding="ascii")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("root's", encoding="ascii")
    elsewhere.chmod(0o600)
    (home / "link").symlink_to(elsewhere)
    for each in (home, home / "identity.json"):
        os.chown(each, 12345, 12345)
    (home / "second").hardlink_to(elsewhere)
    world.keeper.round()
    # It is another's, which its user may not even read: the agent waits, and nothing has changed.
    assert any("10001/second has a second name, and could not be" in e for e in world.said)
    assert (home / "identity.json").stat().st_uid == 12345
    # A neighbour of the same user has made it, for instance.
    elsewhere.chmod(0o644)
    world.until(lambda: len(world.keeper.view().ready) == 2)
    for path in (home, home / "deep", home / "identity.json", home / "link", home / "second"):
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (OWN.user(10001), GID), path
    assert elsewhere.stat().st_uid == 0
    assert elsewhere.stat().st_nlink == 1
    assert (home / "second").read_text(encoding="ascii") == "root's"
    assert not list(home.glob("*.own"))
    other = world.paths.home(10002).stat()
    assert (other.st_uid, other.st_gid, other.st_mode & 0o777) == (OWN.user(10002), GID, 0o700)


def test_root_copies_nothing_into_a_home(tmp_path: Path) -> None:
    """A home that root owns, as one that somebody has put back: what has a second name stays."""
    if os.geteuid():
        pytest.skip("only root may give files away")
    world = World(tmp_path, 1)
    home = world.paths.home(10001)
    home.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("root's", encoding="ascii")
    elsewhere.chmod(0o600)
    (home / "second").hardlink_to(elsewhere)
    world.keeper.round()
    assert any("10001/second has a second name, and could not be" in e for e in world.said)
    assert elsewhere.stat().st_nlink == 2
    assert home.stat().st_uid == 0


def test_a_killed_agent_comes_back_though_its_socket_stayed(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.until(lambda: world.now > 100)
    world.pid1.kill(10007)
    assert world.pid1.socket(10007).exists()
    world.until(lambda: 10007 in world.running(), limit=10)
    assert world.pid1.started.count(10007) == 2
    assert "agent 10007: died; starting it again" in world.said


def test_one_that_exits_at_once_is_told_by_systemd_and_holds_up_nobody(world: World) -> None:

    def behave(port: int) -> str:
        if port != 10003:
            return "ready"
        (world.paths.logs / "10003").write_text("one\nregistry: refused\n\n", encoding="utf-8")
        return "dies"

    world.behave = behave
    world.until(lambda: len(world.running()) == 39)
    # Long before the deadline of a start.
    assert world.now < START_DEADLINE
    first = "agent 10003: ended (exit-code, status 1): registry: refused (failure 1); again in 1 s"
    world.until(lambda: first in world.said)
    world.until(lambda: world.now > 600)
    # 1 + 2 + 4 ... + 256: ten minutes hold nine or ten tries, not hundreds.
    assert 8 <= world.pid1.started.count(10003) <= 11
    world.behave = lambda port: "ready"
    world.until(lambda: 10003 in world.running())


def a_directory(path: Path) -> None:
    (path / "kept").mkdir(parents=True)


def a_file(path: Path) -> None:
    path.write_text("", encoding="utf-8")


def a_link(path: Path) -> None:
    path.symlink_to("/dev/log")


@pytest.mark.parametrize("plant", [a_directory, a_file, a_link])
def test_another_file_than_a_socket_is_no_readiness(
    world: World, plant: Callable[[Path], None]
) -> None:
    world.behave = lambda port: "hangs" if port == 10003 else "ready"
    world.until(lambda: len(world.running()) == 40)
    plant(world.pid1.socket(10003))
    world.until(lambda: world.now > START_DEADLINE)
    assert any(line.startswith("agent 10003: no socket after") for line in world.said)


def test_one_port_that_cannot_be_prepared_holds_up_nobody(world: World) -> None:
    world.paths.agents.mkdir()
    # No home can be made where a file has the name.
    a_file(world.paths.agents / "10002")
    world.until(lambda: len(world.running()) == 39)
    assert world.now < START_DEADLINE
    lines = [line for line in world.said if line.startswith("agent 10002: ")]
    assert re.search("exists|Not a directory", lines[0])
    assert lines[0].endswith("(failure 1); again in 1 s")
    (world.paths.agents / "10002").unlink()
    world.until(lambda: 10002 in world.running())
    assert world.pid1.most <= 15


def test_a_directory_in_a_sockets_place_is_moved_out_of_the_way(world: World) -> None:
    """An agent can do this to itself."""
    path = OWN.socket(world.paths, 10001)
    a_directory(path)
    world.until(lambda: len(world.running()) == 40)
    assert not any("10001" in line for line in world.said)
    beside = [each for each in path.parent.iterdir() if each.name.startswith("daemon.sock.")]
    assert [(each / "kept").is_dir() for each in beside] == [True]


def test_those_that_hang_are_stopped_and_tried_again(world: World) -> None:
    world.behave = lambda port: "hangs" if port in (10001, 10002) else "ready"
    world.until(lambda: len(world.running()) == 40)
    assert world.now < START_DEADLINE
    world.until(lambda: world.pid1.started.count(10001) >= 2)
    world.until(lambda: world.pid1.started.count(10002) >= 2)
    assert any("no socket after 10 s (failure 1)" in line for line in world.said)
    # Longer each time, and not for ever: ten minutes hold some seven tries.
    world.until(lambda: world.now > 600)
    assert 5 <= world.pid1.started.count(10001) <= 10
    assert world.keeper.view().trouble[10001].failures >= 4


def test_fewer_and_more(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.keeper.goal = goal(10)
    world.until(lambda: world.running() == set(range(10001, 10011)))
    world.keeper.goal = goal(20)
    world.until(lambda: world.running() == set(range(10001, 10021)))


def test_no_agent_is_started_while_the_metadata_server_is_open(world: World) -> None:
    world.open = "open"
    for _ in range(2):
        with pytest.raises(errors.NotReadyError, match="open"):
            world.keeper.round()
    assert world.running() == set()
    world.open = ""
    world.until(lambda: len(world.running()) == 40)
    # Later it is looked at again, and what is drained is drained all the same.
    world.open = "open"
    with pytest.raises(errors.NotReadyError, match="open"):
        world.until(lambda: False)
    world.keeper.goal = goal(0)
    world.until(lambda: not world.running())


def test_without_the_state_disk_nothing_is_started(world: World) -> None:
    world.mounted = False
    with pytest.raises(errors.NotReadyError, match="is not mounted"):
        world.keeper.round()
    assert world.pid1.started == []


def test_running_agents_are_seen_also_while_none_may_be_started(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.mounted = False
    world.pid1.kill(10007)
    world.now += LOOK
    with pytest.raises(errors.NotReadyError):
        world.keeper.round()
    assert len(world.keeper.view().ready) == 39


def test_an_agent_without_a_known_variant_is_not_started(world: World) -> None:
    world.keeper.goal = goal(3, "")
    world.until(lambda: len(world.keeper.view().trouble) == 3)
    assert world.pid1.started == []
    assert "is not known" in world.keeper.view().trouble[10001].why


def test_systemd_that_does_not_answer_is_asked_again(world: World) -> None:
    world.pid1.broken = True
    with pytest.raises(SystemdError):
        world.keeper.round()
    world.pid1.broken = False
    world.until(lambda: len(world.running()) == 40)
    assert world.pid1.most == 15


@pytest.mark.parametrize("meanwhile", ["ready", "hangs"])
def test_jobs_after_a_timeout_are_not_undone(world: World, meanwhile: str) -> None:
    """A systemctl that runs out of time has told PID 1 all the same."""
    world.until(lambda: len(world.running()) == 40)
    world.keeper.goal = goal(43)
    world.pid1.mute = "start"
    with pytest.raises(SystemdError):
        world.until(lambda: len(world.pid1.started) > 40)
    assert len(world.keeper.view().ready) == 40, "known all the while"
    world.pid1.mute = ""
    world.behave = lambda port: meanwhile
    world.pid1.settle()
    world.keeper.round()
    world.behave = lambda port: "ready"
    world.until(lambda: len(world.running()) == 43)
    world.until(lambda: world.now > 100)
    assert {tuple(ran) for ran in world.pid1.ran.values()} == {(OLD,)}
    assert world.keeper.view().stops == 0


def test_a_mass_death_at_a_systemd_without_answers_keeps_to_the_window(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.now += 100
    for port in range(10001, 10031):
        world.pid1.kill(port)
    world.pid1.mute, world.behave = "start", lambda port: "hangs"
    for _ in range(5):
        with suppress(SystemdError):
            world.keeper.round()
        world.now += supervisor.LOOK
        world.pid1.settle()
    assert 0 < len(world.pid1.pending) <= 15
    world.pid1.mute, world.behave = "", lambda port: "ready"
    world.until(lambda: len(world.running()) == 40)
    assert world.pid1.most == 15


@pytest.mark.parametrize(("mute", "died"), [("stop", []), ("start", [10040])])
def test_an_agent_stopped_after_a_timeout_has_not_failed(
    world: World, mute: str, died: list[int]
) -> None:
    """Also where the stop was answered for, and the start of one that died, after it, was not."""
    world.until(lambda: len(world.running()) == 40)
    world.now += 100
    world.keeper.round()
    world.keeper.goal = goal(40, NEW)
    for port in died:
        world.pid1.kill(port)
    world.now += supervisor.LOOK
    world.pid1.mute = mute
    for _ in range(200):
        with suppress(SystemdError):
            world.keeper.round()
        world.now += supervisor.TICK_MOST
        world.pid1.settle()
    world.pid1.mute = ""
    world.until(lambda: all(ran[-1] == NEW for ran in world.pid1.ran.values()))
    world.until(lambda: len(world.running()) == 40)
    assert world.keeper.view().failures == 0
    assert not world.keeper.view().trouble
    assert world.pid1.most <= 15


def test_another_variant_reaches_all_and_no_more_than_the_window_are_down(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.keeper.goal = goal(40, NEW)
    least = 40

    def done() -> bool:
        nonlocal least
        least = min(least, len(world.running()))
        return all(world.pid1.ran[port][-1] == NEW for port in range(10001, 10041))

    world.until(done)
    world.until(lambda: len(world.running()) == 40)
    assert least >= 40 - 15
    assert {tuple(ran) for ran in world.pid1.ran.values()} == {(OLD, NEW)}


def test_a_new_keeper_knows_the_running_variants(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    started = list(world.pid1.started)
    world.keeper = replace(world.keeper, memory=SwarmState(), _seen=None, _must_look_at_all=True)
    world.until(lambda: world.now > 100)
    assert world.pid1.started == started
    assert set(world.keeper.view().variant.values()) == {OLD}
    assert set(world.keeper.view().variant) == set(range(10001, 10041))


def test_an_unwanted_agent_that_ended_is_forgotten(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.keeper.goal = goal(10)
    world.until(lambda: set(variants.read(world.paths)) == set(range(10001, 10011)))
    assert world.running() == set(range(10001, 10011))


def test_the_view(world: World) -> None:
    world.behave = lambda port: "dies" if port == 10003 else "ready"
    world.keeper.round()
    view = world.keeper.view()
    assert set(view.starting) == set(range(10001, 10016))
    assert (view.starts, view.stops, view.failures) == (15, 0, 0)
    world.pid1.settle()
    world.until(lambda: len(world.running()) == 39)
    world.until(lambda: 10003 in world.keeper.view().trouble)
    world.keeper.goal = goal(38)
    world.until(lambda: len(world.keeper.view().ready) == 37)
    view = world.keeper.view()
    assert view.ready == frozenset(world.running())
    assert view.ready == frozenset(view.up_since)
    assert view.stops == 2
    assert view.failures >= 1
    assert view.window.limit == 15


def test_a_failure_is_explained(world: World) -> None:
    world.keeper.explain = lambda text: f"pids.max: {text}"
    world.behave = lambda port: "dies" if port == 10003 else "ready"
    world.until(lambda: any("10003: pids.max: ended (exit-code" in line for line in world.said))


def test_those_that_die_are_asked_about(world: World) -> None:
    world.until(lambda: len(world.keeper.view().up_since) == 40)
    for port in range(10001, 10041):
        unit = OWN.unit(port)
        world.pid1.dead[unit] = UnitState(
            active="failed", job=False, result="signal", exit_status="9"
        )
        world.pid1.kill(port)
    before = world.pid1.asked
    world.now += LOOK
    world.keeper.round()
    # One call to PID 1 for each, so not of all.
    assert world.pid1.asked - before == ASKED
    died = [line for line in world.said if "ended (signal, status 9)" in line]
    assert len(died) == ASKED


class Shutdown:
    """A slice whose agents end two looks after their SIGTERM; the clock moves with each look."""

    def __init__(self, paths: Paths, count: int, layout: Layout = OWN) -> None:
        self.paths = paths
        self.layout = layout
        self.base = paths.at("/sys/fs/cgroup/pilot.slice")
        self.said: list[str] = []
        self.now = 0.0
        self.told: list[int] = []
        self.dying: dict[int, int] = {}
        self.most = 0
        self.deaf: set[int] = set()
        for port in range(10001, 10001 + count):
            folder = self.base / self.layout.cgroup(port)
            folder.mkdir(parents=True)
            (folder / "cgroup.procs").write_text(f"{port * 10}\n", encoding="ascii")

    def kill(self, process: int, number: int) -> None:
        assert number == signal.SIGTERM
        self.told.append(process)
        self.dying[process] = 2
        self.most = max(self.most, len(self.dying))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for process in list(self.dying):
            self.dying[process] -= 1
            if self.dying[process] <= 0 and process not in self.deaf:
                del self.dying[process]
                folder = self.base / self.layout.cgroup(process // 10)
                (folder / "cgroup.procs").unlink()
                folder.rmdir()

    def drain(self, limit: int, seconds: float = SHUTDOWN_SECONDS) -> int:
        return drain_for_shutdown(
            self.paths,
            limit=limit,
            say=self.said.append,
            seconds=seconds,
            clock=lambda: self.now,
            sleep=self.sleep,
            kill=self.kill,
        )


@pytest.mark.parametrize("layout", LAYOUTS, ids=["shared", "own"])
def test_a_power_off_ends_the_agents_a_window_at_a_time(tmp_path: Path, layout: Layout) -> None:
    system = Shutdown(Paths(root=tmp_path), 100, layout)
    left = system.drain(15)
    assert (left, system.most) == (0, 15)
    assert len(set(system.told)) == len(system.told) == 100
    assert system.said[0] == "the system goes down: ending 100 agents, 15 at a time"
    assert system.said[1].startswith("100 of 100 agents ended in ")


def test_a_power_off_does_not_wait_for_ever(tmp_path: Path) -> None:
    system = Shutdown(Paths(root=tmp_path), 20)
    system.deaf = {100010, 100020}
    left = system.drain(15)
    assert left == 2
    assert SHUTDOWN_SECONDS <= system.now < SHUTDOWN_SECONDS + 1
    # Each is told once, whatever it makes of it.
    assert len(system.told) == 20


def test_a_power_off_ends_thousands_though_some_ignore_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = Shutdown(Paths(root=tmp_path), 5000)
    system.deaf = {port * 10 for port in range(10001, 10016)}
    lists, looks = list[int](), list[int]()
    running, members = agent_units.running, agent_units._members

    def listed(paths: Paths) -> dict[int, Layout]:
        lists.append(1)
        return running(paths)

    def looked(folder: Path) -> list[int]:
        looks.append(1)
        return members(folder)

    monkeypatch.setattr(agent_units, "running", listed)
    monkeypatch.setattr(agent_units, "_members", looked)
    left = system.drain(15, 40)
    assert left == 15
    assert len(set(system.told)) == len(system.told) == 5000
    # Those that end are at most the window and, where that is too slow, as many as it takes.
    assert system.most <= 15 + 3 * 15
    assert system.said[1] == "4985 of 5000 agents ended in 40.0 s"
    # All are looked at once a second, and in between only those that were told just now.
    assert len(lists) <= 42
    assert len(looks) < 42 * 5000


def test_a_power_off_with_little_time_left_tells_more_at_a_time(tmp_path: Path) -> None:
    system = Shutdown(Paths(root=tmp_path), 1000)
    left = system.drain(1, 10)
    assert left == 0
    # 1,000 in 8 s are 6.25 in each look, and each takes two to end.
    assert system.most <= 20
    assert system.now < 10


def test_a_power_off_without_agents_is_quick_and_quiet(tmp_path: Path) -> None:
    said = list[str]()
    assert drain_for_shutdown(Paths(root=tmp_path), limit=15, say=said.append) == 0
    assert said == []


def test_an_idle_vm_looks_at_few_sockets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.until(lambda: world.now > 100)
    seen: list[str] = []
    lstat = Path.lstat

    def counted(path: Path) -> os.stat_result:
        seen.append(path.parent.name)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", counted)
    end = world.now + TURNS * LOOK
    world.until(lambda: world.now >= end)
    # Each once.
    assert sorted(seen) == [str(port) for port in range(10001, 10041)]
    # What takes a socket's name is another file, and no socket.
    path = world.pid1.socket(10007)
    path.with_name("beside").touch()
    path.with_name("beside").replace(path)
    world.until(lambda: 10007 not in world.keeper.view().ready, limit=TURNS * LOOK + LOOK)


def test_the_log_of_an_earlier_process_is_cut_at_a_start(world: World) -> None:
    (world.paths.logs / "10001").write_text("the end of another one\n", encoding="utf-8")
    world.until(lambda: 10001 in world.keeper.view().ready, limit=20)
    assert (world.paths.logs / "10001").read_text(encoding="utf-8") == ""


def test_logs_are_cut(world: World) -> None:
    (world.paths.logs / "10041").write_bytes(b"x" * (LOG_BYTES + 1))
    (world.paths.logs / "10042").write_bytes(b"x" * LOG_BYTES)
    world.keeper.round()
    assert (world.paths.logs / "10041").stat().st_size == 0
    assert (world.paths.logs / "10042").stat().st_size == LOG_BYTES
    (world.paths.logs / "10041").write_bytes(b"x" * (LOG_BYTES + 1))
    world.until(lambda: (world.paths.logs / "10041").stat().st_size == 0, limit=20)


def test_logs_are_looked_at_only_where_they_may_have_outgrown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = 10 * LOG_BYTES
    monkeypatch.setattr(supervisor, "_used", lambda _: used)
    world.until(lambda: len(world.keeper.view().ready) == 40)
    world.until(lambda: world.now > 100)
    path = world.paths.logs / "10041"
    path.write_bytes(b"x" * (LOG_BYTES + 1))
    used -= LOG_BYTES
    world.until(lambda: world.now > 150)
    used += LOG_BYTES - 1
    world.until(lambda: world.now > 200)
    assert path.stat().st_size
    used += 1
    world.until(lambda: path.stat().st_size == 0, limit=20)


def test_an_empty_log_that_holds_blocks_is_cut(world: World) -> None:
    path = world.paths.logs / "10041"
    with path.open("wb") as stream:
        # FALLOC_FL_KEEP_SIZE, which Python does not have.
        length = ctypes.c_long(LOG_BYTES + 65536)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(stream.fileno(), 1, ctypes.c_long(0), length):
            pytest.skip(os.strerror(ctypes.get_errno()))
    assert path.stat().st_size == 0
    assert path.stat().st_blocks * 512 > LOG_BYTES
    world.keeper.round()
    assert path.stat().st_blocks == 0
