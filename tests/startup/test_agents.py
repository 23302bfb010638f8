"""Bringing agents up and keeping them: the decision in tables, the acting on a folder for a VM."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from startup.node import agents
from startup.node.agents import (
    BACK_OFF_MAX,
    LOG_BYTES,
    START_DEADLINE,
    STEADY,
    Decision,
    Keeper,
    Memory,
    Observed,
    Trouble,
    decide,
    serve,
)
from startup.node.place import Place
from startup.node.spec import SpecError, SwarmSpec, parse
from startup.node.systemd import SystemdError, UnitState
from tests.startup import specs

PORTS = range(10001, 10006)
NOW = 1000.0


def seen(
    running: Sequence[int] = (), sockets: Sequence[int] | None = None, **more: object
) -> Observed:
    """What runs; each has its socket unless `sockets` says otherwise."""
    return Observed(
        now=NOW,
        running=frozenset(running),
        sockets=frozenset(running if sockets is None else sockets),
        **more,  # type: ignore[arg-type]
    )


def on(memory: Memory, observed: Observed, *, window: int = 2, wanted: range = PORTS) -> Decision:
    return decide(wanted, window, memory, observed)


def test_the_first_starts_are_the_window() -> None:
    decision = on(Memory(), seen())
    assert (decision.start, decision.stop, decision.said) == ((10001, 10002), (), ())
    assert decision.memory.starting == {10001: NOW, 10002: NOW}


def test_the_next_when_ones_socket_is_there() -> None:
    memory = Memory(starting={10001: NOW - 1, 10002: NOW - 1})
    decision = on(memory, seen([10001, 10002], sockets=[10002]))
    assert decision.start == (10003,)
    assert decision.memory.starting == {10001: NOW - 1, 10003: NOW}
    assert decision.memory.up_since == {10002: NOW}


def test_a_window_that_is_full_starts_nothing() -> None:
    memory = Memory(starting={10001: NOW - 1, 10002: NOW - 1})
    assert on(memory, seen([10001, 10002], sockets=[])).start == ()


def test_those_that_run_are_left_alone() -> None:
    decision = on(Memory(), seen(list(PORTS)))
    assert (decision.start, decision.stop, decision.said) == ((), (), ())
    assert set(decision.memory.up_since) == set(PORTS)


def test_a_start_of_an_earlier_process_is_adopted_and_counts() -> None:
    decision = on(Memory(), seen([10001, 10002], sockets=[]))
    assert decision.start == ()
    assert decision.memory.starting == {10001: NOW, 10002: NOW}


def test_a_stale_socket_is_not_ready() -> None:
    decision = on(Memory(), seen([], sockets=list(PORTS)))
    assert decision.start == (10001, 10002)
    memory = Memory(starting={10001: NOW - 1})
    assert 10001 in on(memory, seen([], sockets=[10001])).memory.starting


@pytest.mark.parametrize(
    ("up", "failures", "started_at_once"),
    [(STEADY, 0, True), (STEADY - 1, 1, False)],
)
def test_one_that_died(up: float, failures: int, started_at_once: bool) -> None:
    memory = Memory(up_since=dict.fromkeys(PORTS, NOW - up))
    decision = on(memory, seen(PORTS[1:]))
    assert (10001 in decision.start) == started_at_once
    assert len(decision.said) == 1
    trouble = decision.memory.trouble.get(10001)
    assert (trouble.failures if trouble else 0) == failures


def test_a_failed_start_rests_and_does_not_hold_up_the_rest() -> None:
    memory = Memory(starting={10001: NOW - 1, 10002: NOW - 1})
    decision = on(memory, seen([10002], sockets=[], ended={10001: "ended (exit-code, status 1)"}))
    assert decision.start == (10003,)
    assert decision.memory.trouble == {10001: Trouble(failures=1, until=NOW + 1)}
    assert decision.said == ("agent 10001: ended (exit-code, status 1) (failure 1); again in 1 s",)


@pytest.mark.parametrize(
    ("failures", "pause"), [(0, 1), (1, 2), (2, 4), (7, 128), (8, 256), (9, BACK_OFF_MAX)]
)
def test_it_rests_longer_each_time(failures: int, pause: float) -> None:
    memory = Memory(starting={10001: NOW - 1}, trouble={10001: Trouble(failures=failures, until=0)})
    decision = on(memory, seen(ended={10001: "ended"}))
    assert decision.memory.trouble[10001] == Trouble(failures=failures + 1, until=NOW + pause)


def test_it_rests_for_ever_longer_without_overflow() -> None:
    memory = Memory(starting={10001: 0}, trouble={10001: Trouble(failures=10**6, until=0)})
    decision = on(memory, seen(ended={10001: "ended"}))
    assert decision.memory.trouble[10001].until == NOW + BACK_OFF_MAX


def test_those_that_never_failed_go_first() -> None:
    memory = Memory(
        trouble={
            10001: Trouble(failures=3, until=NOW - 9),
            10002: Trouble(failures=1, until=NOW),
            10003: Trouble(failures=1, until=NOW + 0.1),
        }
    )
    assert on(memory, seen(), window=9).start == (10004, 10005, 10002, 10001)


def test_failures_are_forgotten_once_it_is_steady() -> None:
    trouble = {10001: Trouble(failures=3, until=0)}
    for up, left in ((STEADY - 1, trouble), (STEADY, {})):
        memory = Memory(up_since={10001: NOW - up}, trouble=trouble)
        assert on(memory, seen([10001])).memory.trouble == left


def test_a_start_that_hangs_is_stopped_and_started_again_later() -> None:
    memory = Memory(starting={10001: NOW - START_DEADLINE - 1, 10002: NOW - START_DEADLINE})
    decision = on(memory, seen([10001, 10002], sockets=[]))
    assert decision.stop == (10001,)
    # It keeps its place in the window until it is gone.
    assert decision.start == ()
    assert decision.said == ("agent 10001: no socket after 60 s (failure 1); again in 1 s",)
    # While it is being stopped it is not started, however long that takes.
    later = replace(seen([10001, 10002], sockets=[]), now=NOW + 30)
    after = on(decision.memory, later, window=9)
    assert 10001 not in (*after.start, *after.stop)
    # Gone: now it is.
    gone = replace(seen([10002], sockets=[]), now=NOW + 31)
    assert 10001 in on(after.memory, gone, window=9).start


def test_fewer_agents_are_wanted() -> None:
    memory = Memory(up_since=dict.fromkeys(PORTS, NOW - 1))
    decision = on(memory, seen(list(PORTS)), wanted=range(10001, 10003))
    assert (decision.stop, decision.start) == ((10005, 10004), ())
    # No more than the window are being stopped, and one that is gone makes room.
    after = on(decision.memory, seen(PORTS[:4]), wanted=range(10001, 10003))
    assert after.stop == (10003,)
    assert after.said == ()
    assert on(after.memory, seen(PORTS[:2]), wanted=range(10001, 10003)).said == ()


def test_a_start_that_is_no_longer_wanted_is_stopped() -> None:
    memory = Memory(starting={10005: NOW - 1})
    decision = on(memory, seen([10005], sockets=[]), wanted=range(10001, 10003))
    assert decision.stop == (10005,)
    assert 10005 not in decision.memory.starting


ports = st.sets(st.sampled_from(list(range(10001, 10009))))
times = st.floats(0, 2000)


@settings(max_examples=300)
@given(
    st.integers(0, 8),
    st.integers(1, 4),
    st.dictionaries(st.integers(10001, 10008), times),
    st.dictionaries(st.integers(10001, 10008), times),
    st.dictionaries(st.integers(10001, 10008), times),
    ports,
    ports,
    ports,
)
def test_whatever_was_seen(
    count: int,
    window: int,
    starting: dict[int, float],
    stopping: dict[int, float],
    up_since: dict[int, float],
    running: set[int],
    sockets: set[int],
    ended: set[int],
) -> None:
    """Never past the window, never a start of what runs, never a stop of a healthy agent."""
    wanted = range(10001, 10001 + count)
    memory = Memory(starting=starting, stopping=stopping, up_since=up_since)
    decision = decide(
        wanted,
        window,
        memory,
        Observed(
            now=NOW,
            running=frozenset(running),
            sockets=frozenset(sockets),
            ended=dict.fromkeys(ended - running, "ended"),
        ),
    )
    assert not set(decision.start) & running
    assert set(decision.start) <= set(wanted)
    assert len(decision.start) <= window
    if decision.start:
        assert len(decision.memory.starting) <= window
    assert set(decision.stop) <= running | set(starting)
    for port in decision.stop:
        assert port not in wanted or NOW - starting[port] > START_DEADLINE
    assert len(set(decision.start)) == len(decision.start)


# Acting.


class Pid1:
    """systemd, as far as its effects on a file system go. `behave` says what a start comes to."""

    def __init__(self, place: Place, behave: Callable[[int], str]) -> None:
        self.place = place
        self.behave = behave
        self.slice = place.at("/sys/fs/cgroup/pilot.slice")
        self.pending: list[int] = []
        self.started: list[int] = []
        self.dead: dict[str, UnitState] = {}
        self.most = 0
        self.asked = 0
        self.broken = False

    def start(self, units: Sequence[str]) -> None:
        if self.broken:
            raise SystemdError("systemctl start: Connection refused")
        for unit in units:
            port = int(unit.removeprefix("pilot-agent@").removesuffix(".service"))
            assert not self.place.socket(port).exists(), "started beside a stale socket"
            assert (self.place.agents / str(port)).is_dir()
            assert not (self.slice / unit).exists(), "started twice"
            self.pending.append(port)
            self.started.append(port)
        self.most = max(self.most, len(self.pending))

    def stop(self, units: Sequence[str]) -> None:
        for unit in units:
            port = int(unit.removeprefix("pilot-agent@").removesuffix(".service"))
            self.kill(port)
            if self.place.socket(port).is_socket():
                self.place.socket(port).unlink()

    def states(self, units: Sequence[str]) -> dict[str, UnitState]:
        self.asked += len(units)
        return {unit: self.dead[unit] for unit in units if unit in self.dead}

    def kill(self, port: int) -> None:
        """As SIGKILL does: the socket stays."""
        self.pending = [p for p in self.pending if p != port]
        unit = self.slice / agents.UNIT.format(port)
        if unit.exists():
            unit.rmdir()

    def settle(self) -> None:
        """What was started comes to what it comes to."""
        for port in list(self.pending):
            unit = agents.UNIT.format(port)
            self.dead.pop(unit, None)
            outcome = self.behave(port)
            if outcome == "ready":
                (self.slice / unit).mkdir(parents=True)
                os.mknod(self.place.socket(port), stat.S_IFSOCK | 0o600)
            elif outcome == "hangs":
                (self.slice / unit).mkdir(parents=True, exist_ok=True)
                continue
            else:
                self.dead[unit] = UnitState(
                    active="failed", job=False, result="exit-code", exit_status="1"
                )
                continue
            self.pending.remove(port)
        self.pending = [p for p in self.pending if agents.UNIT.format(p) not in self.dead]


class World:
    """A keeper, its systemd, and a clock that a round moves."""

    def __init__(self, root: Path, count: int) -> None:
        self.place = Place(root=root)
        self.place.sockets.mkdir(parents=True)
        self.place.logs.mkdir()
        self.place.state.mkdir(parents=True)
        self.now = 0.0
        self.said: list[str] = []
        self.mounted = True
        self.behave: Callable[[int], str] = lambda port: "ready"
        self.pid1 = Pid1(self.place, self._behave)
        spec = parse(specs.text(specs.swarm(agents=count)))
        assert isinstance(spec, SwarmSpec)
        self.keeper = Keeper(
            place=self.place,
            spec=spec,
            systemd=self.pid1,
            say=self.said.append,
            mounted=lambda path: self.mounted,
            clock=lambda: self.now,
        )

    def _behave(self, port: int) -> str:
        return self.behave(port)

    def until(self, done: Callable[[], bool], limit: float = 1000.0) -> None:
        end = self.now + limit
        while not done():
            assert self.now < end, self.said[-3:]
            self.now += self.keeper.round()
            self.pid1.settle()

    def running(self) -> set[int]:
        return {
            int(path.name.removeprefix("pilot-agent@").removesuffix(".service"))
            for path in self.pid1.slice.glob("*")
        }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, 40)


def test_all_come_up_within_the_window(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    assert world.pid1.started == list(range(10001, 10041))
    assert world.pid1.most == 15
    assert (world.place.agents / "10040").stat().st_mode & 0o777 == 0o700
    world.until(lambda: world.said[-1:] == ["40 of 40 agents ready"])
    # Prompt starts: systemd was asked nothing about them.
    assert world.pid1.asked == 0


def test_thousands_come_up(tmp_path: Path) -> None:
    world = World(tmp_path, 1500)
    world.until(lambda: len(world.pid1.started) == 1500)
    assert world.pid1.most == 15
    # 15 each tick of 50 ms, at best: the window is the limit, not the looking.
    assert world.now <= 1500 / 15 * agents.TICK + agents.LOOK


def test_another_keeper_finds_them_and_leaves_them_alone(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    started = list(world.pid1.started)
    world.keeper = replace(world.keeper, memory=Memory(), _seen=None)
    world.until(lambda: world.now > 100)
    assert world.pid1.started == started


def test_a_killed_agent_comes_back_though_its_socket_stayed(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.until(lambda: world.now > 100)
    world.pid1.kill(10007)
    assert world.place.socket(10007).exists()
    world.until(lambda: 10007 in world.running(), limit=10)
    assert world.pid1.started.count(10007) == 2
    assert "agent 10007: died; starting it again" in world.said


def test_one_that_exits_at_once_is_told_by_systemd_and_holds_up_nobody(world: World) -> None:
    (world.place.logs / "10003").write_text("one\nregistry: refused\n\n", encoding="utf-8")
    world.behave = lambda port: "dies" if port == 10003 else "ready"
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
def test_what_is_no_socket_is_no_readiness(world: World, plant: Callable[[Path], None]) -> None:
    world.behave = lambda port: "hangs" if port == 10003 else "ready"
    world.until(lambda: len(world.running()) == 40)
    plant(world.place.socket(10003))
    world.until(lambda: world.now > START_DEADLINE + 10)
    assert any(line.startswith("agent 10003: no socket after") for line in world.said)


def test_one_port_that_cannot_be_prepared_holds_up_nobody(world: World) -> None:
    a_directory(world.place.socket(10001))
    world.place.agents.mkdir()
    # No home can be made where a file has the name.
    a_file(world.place.agents / "10002")
    world.until(lambda: len(world.running()) == 38)
    assert world.now < START_DEADLINE
    for port, why in ((10001, "Is a directory"), (10002, "exists|Not a directory")):
        lines = [line for line in world.said if line.startswith(f"agent {port}: ")]
        assert re.search(why, lines[0])
        assert lines[0].endswith("(failure 1); again in 1 s")
    shutil.rmtree(world.place.socket(10001))
    world.until(lambda: 10001 in world.running())
    assert world.pid1.most <= 15


def test_those_that_hang_are_stopped_and_tried_again(world: World) -> None:
    world.behave = lambda port: "hangs" if port in (10001, 10002) else "ready"
    world.until(lambda: len(world.running()) == 40)
    assert world.now < START_DEADLINE
    world.until(lambda: world.pid1.started.count(10001) == 2)
    assert any("no socket after 60 s" in line for line in world.said)


def test_fewer_and_more(world: World) -> None:
    world.until(lambda: len(world.running()) == 40)
    world.keeper.spec = replace(world.keeper.spec, agents=10)
    world.until(lambda: world.running() == set(range(10001, 10011)))
    world.keeper.spec = replace(world.keeper.spec, agents=20)
    world.until(lambda: world.running() == set(range(10001, 10021)))


def test_without_the_state_disk_nothing_is_started(world: World) -> None:
    world.mounted = False
    with pytest.raises(agents.NotReadyError, match="is not mounted"):
        world.keeper.round()
    assert world.pid1.started == []


def test_systemd_that_does_not_answer_is_asked_again(world: World) -> None:
    world.pid1.broken = True
    with pytest.raises(SystemdError):
        world.keeper.round()
    world.pid1.broken = False
    world.until(lambda: len(world.running()) == 40)
    assert world.pid1.most == 15


class EnoughError(Exception):
    pass


def test_trouble_is_said_once_and_ends_nothing(world: World) -> None:
    world.mounted = False
    rounds = 0

    def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        world.now += seconds
        world.pid1.settle()
        if rounds == 3:
            world.mounted = True
        if rounds == 30:
            raise EnoughError

    with pytest.raises(EnoughError):
        serve(world.keeper, refresh=lambda: None, sleep=sleep)
    assert [line for line in world.said if "is not mounted" in line] == world.said[:1]
    assert len(world.running()) == 40


def test_a_spec_that_went_bad_leaves_the_last_good_one(world: World) -> None:
    rounds = 0

    def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        world.now += seconds
        world.pid1.settle()
        if rounds == 30:
            raise EnoughError

    bad = iter([False, True, True])

    def refresh() -> None:
        if next(bad, False):
            raise SpecError(["window: is missing"])

    with pytest.raises(EnoughError):
        serve(world.keeper, refresh=refresh, sleep=sleep)
    assert world.said.count("window: is missing") == 1
    assert len(world.running()) == 40


def test_logs_are_cut(world: World) -> None:
    (world.place.logs / "10001").write_bytes(b"x" * (LOG_BYTES + 1))
    (world.place.logs / "10002").write_bytes(b"x" * LOG_BYTES)
    world.keeper.round()
    assert (world.place.logs / "10001").stat().st_size == 0
    assert (world.place.logs / "10002").stat().st_size == LOG_BYTES


def test_in_a_container_with_its_hosts_cgroup_v1(world: World) -> None:
    world.pid1.slice = world.place.at("/sys/fs/cgroup/systemd/pilot.slice")
    world.until(lambda: len(world.running()) == 40)
    world.until(lambda: world.said[-1:] == ["40 of 40 agents ready"])
