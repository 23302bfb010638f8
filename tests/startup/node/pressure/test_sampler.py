"""Measuring a VM and its agents, on a folder with real processes as agents."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.machines import processes
from startup.node.machine.agent_units import OWN
from startup.node.machine.paths import Paths
from startup.node.pressure import leak_detection
from startup.node.pressure import sampler as pressure
from startup.node.pressure.agent_ipc import Info, IpcError
from startup.node.pressure.agent_memory import held, pages, private_bytes, spread
from startup.node.pressure.benchmarks import Governor
from startup.node.pressure.kernel_limits import LimitUse
from startup.node.pressure.leak_detection import History, Look
from startup.node.pressure.sampler import ALL, Planning, PressureWatch, Sample, Sampler, Walk
from tests.startup.node.pressure.test_benchmarks import Slice

SLICE = "sys/fs/cgroup/pilot.slice"
MIB = 1 << 20
PLANNING = Planning(agent=10 * MIB, connection=4 * MIB)


class World:
    """A root whose agents are processes that hold as many MiB as they are told."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root=root)
        self.root = root
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        (root / "proc/self").mkdir(parents=True)
        self.write("proc/uptime", "10000.50 1.0\n")
        self.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 600 kB\n")
        (root / SLICE).mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text, encoding="ascii")

    def agent(self, port: int, mebibytes: int) -> int:
        code = (
            f"import sys; x = bytearray(b'x' * ({mebibytes} << 20)); print(1, flush=True);"
            " sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        self.processes[port] = process
        self.holds(port, process.pid)
        return process.pid

    def holds(self, port: int, process: int) -> None:
        """The process is the agent of that port."""
        self.write(f"{SLICE}/{OWN.cgroup(port)}/cgroup.procs", f"{process}\n")
        (self.root / f"proc/{process}").symlink_to(f"/proc/{process}")

    def close(self) -> None:
        for process in self.processes.values():
            processes.end(process, signal.SIGKILL)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def walk(world: World, ask: Callable[[Path], Info], **more: object) -> Walk:
    return Walk(paths=world.paths, planning=PLANNING, ask=ask, **more)  # type: ignore[arg-type]


def answers(path: Path) -> Info:
    return Info(node_id=int(path.parent.name) + 1_000_000, connections=int(path.parent.name) % 10)


@pytest.mark.parametrize(
    ("found", "mean"),
    [
        ([], None),
        ([6], 6.0),
        ([2, 4], 3.0),
        ([4, 4, 1_000_000], 4.0),
        # One that lies, among those of a fleet of which a tenth is busy.
        ([4] * 28 + [100] * 3 + [1_000_000], 16.0),
        ([4] * 29 + [100] * 3, 13.0),
    ],
)
def test_one_answer_makes_no_mean(found: list[int], mean: float | None) -> None:
    assert pressure._mean(found) == mean


def test_spread() -> None:
    assert spread([3, 1, 2], 3) == [1, 2, 3]
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread([], 4) == []


def test_a_processs_memory(world: World) -> None:
    big, small = world.agent(10001, 30), world.agent(10002, 1)
    two = pages(world.paths, big), pages(world.paths, small)
    # The same program but for 29 MiB, which are private; the rest they share.
    assert two[0].private - two[1].private == pytest.approx(29 * MIB, rel=0.05)
    assert two[0].pss >= two[0].private
    with pytest.raises(OSError, match="999999999"):
        pages(world.paths, 999999999)


def test_cheaply(world: World) -> None:
    process = world.agent(10001, 30)
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    found = held(world.paths, [process, 999999999], uptime)
    assert found is not None
    assert found.bytes == pytest.approx(pages(world.paths, process).private, rel=0.1)
    assert found.since[1] == process
    assert 0 <= found.age < 600
    assert held(world.paths, [999999999], uptime) is None


def test_the_mean_of_a_batch(world: World) -> None:
    world.agent(10001, 30)
    world.agent(10002, 10)
    world.agent(10003, 90)
    mean = private_bytes(world.paths, [10001, 10002])
    alone = private_bytes(world.paths, [10001])
    assert mean is not None
    assert alone is not None
    assert alone - mean == pytest.approx(10 * MIB, rel=0.05)
    # Those that do not run do not count.
    assert private_bytes(world.paths, [10001, 10009]) == alone
    assert private_bytes(world.paths, [10009]) is None
    assert private_bytes(world.paths, []) is None


def test_no_agents(tmp_path: Path) -> None:
    world = World(tmp_path)
    one = walk(world, answers)
    one.step()
    assert one.latest == pressure._Walked(over=0, top=[], grown=0.0)
    (tmp_path / SLICE).rmdir()
    one = walk(world, answers)
    one.step()
    assert one.latest.agent_mean is None


def test_agents_above_the_limit(world: World) -> None:
    """Twice the planning size is 20 MiB."""
    world.agent(10001, 40)
    world.agent(10002, 60)
    world.agent(10003, 1)
    one = walk(world, answers)
    one.step()
    assert one.latest.over == 2
    assert [(heavy.port, heavy.node_id) for heavy in one.latest.top] == [
        (10002, 1_010_002),
        (10001, 1_010_001),
    ]
    assert 60 * MIB < one.latest.top[0].bytes < 80 * MIB
    assert one.latest.agent_mean is not None
    assert 100 * MIB / 3 < one.latest.agent_mean < 130 * MIB / 3


def test_a_heavy_agent_that_does_not_answer_is_listed_without_its_id(world: World) -> None:
    world.agent(10001, 40)
    now = 0.0

    def silent(path: Path) -> Info:
        raise IpcError(f"{path}: timed out")

    one = walk(world, silent, clock=lambda: now)
    one.step()
    assert [(heavy.port, heavy.node_id) for heavy in one.latest.top] == [(10001, None)]
    assert (one.latest.asked, one.latest.connections) == (0, None)
    # It answers later, and is not asked again for what does not change.
    one.ask = answers
    now += ALL
    one.step()
    assert one.latest.top[0].node_id == 1_010_001
    asked: list[Path] = []

    def noted(path: Path) -> Info:
        asked.append(path)
        return answers(path)

    one.ask = noted
    now += ALL
    one.step()
    assert len(asked) == 1
    assert one.latest.top[0].node_id == 1_010_001


def test_all_are_looked_at_every_five_minutes_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.agent(10001, 1)
    looks: list[Look] = []
    real = leak_detection.seen

    def seen(history: History, look: Look) -> History:
        looks.append(look)
        return real(history, look)

    monkeypatch.setattr(leak_detection, "seen", seen)
    now = 0.0
    one = walk(world, answers, clock=lambda: now)
    for at in (0.0, 60.0, 299.0, 300.0, 360.0):
        now = at
        one.step()
    assert [look.at for look in looks] == [0.0, 300.0]
    assert set(looks[0].agents) == {10001}
    assert looks[0].connections == 1.0
    assert looks[0].overhead is None


def test_kernel_memory_per_agent(world: World) -> None:
    world.agent(10001, 1)
    world.agent(10002, 1)
    world.write(f"{SLICE}/memory.current", "1000\n")
    assert pressure._overhead(world.paths, 2) is None
    world.write(f"{SLICE}/memory.stat", "anon 400\nfile 200\nkernel 400\n")
    assert pressure._overhead(world.paths, 2) == 200
    assert pressure._overhead(world.paths, 0) is None


def fake_agents(world: World, count: int) -> None:
    """Agents without processes: who asks them does not care."""
    for port in range(10001, 10001 + count):
        world.write(f"{SLICE}/{OWN.cgroup(port)}/cgroup.procs", "999999999\n")


def test_the_same_ones_are_asked_each_time(world: World) -> None:
    fake_agents(world, 100)
    asked: list[int] = []

    def ask(path: Path) -> Info:
        asked.append(int(path.parent.name))
        return Info(node_id=1, connections=2)

    one = walk(world, ask)
    one.step()
    first = list(asked)
    assert len(first) == one.latest.asked == pressure.ASKED
    assert one.latest.connections == 2.0
    # Two of them are gone, and others are there.
    for port in first[:2]:
        shutil.rmtree(world.root / f"{SLICE}/{OWN.cgroup(port)}")
    asked.clear()
    one.step()
    assert asked == first[2:]
    # Half of them: others are chosen.
    for port in first[2:16]:
        shutil.rmtree(world.root / f"{SLICE}/{OWN.cgroup(port)}")
    asked.clear()
    one.step()
    assert len(asked) == pressure.ASKED


def test_the_more_there_are_the_more_are_asked(world: World) -> None:
    fake_agents(world, 3)
    one = walk(world, answers)
    one.step()
    assert one.latest.asked == 3
    fake_agents(world, 9)
    one.step()
    assert one.latest.asked == 9


def test_agents_that_hang_do_not_hold_it_up(world: World) -> None:
    fake_agents(world, 100)
    now = 0.0

    def hangs(path: Path) -> Info:
        nonlocal now
        now += 2.0
        raise IpcError(f"{path}: timed out")

    walk(world, hangs, clock=lambda: now).step()
    assert now == pressure.BUDGET


def test_the_vm(world: World) -> None:
    world.write("proc/net/sockstat", "TCP: inuse 1 tw 1\nUDP: inuse 30 mem 900\n")
    world.write("proc/net/sockstat6", "UDP6: inuse 12\n")
    world.write("proc/sys/net/ipv4/udp_mem", "1000 2000 3000\n")
    world.write(f"{SLICE}/memory.current", "123456\n")
    bench = Slice()
    now = 0.0
    watch = PressureWatch(world.paths, Governor(freezer=bench, say=print), clock=lambda: now)
    watch.step()
    found = watch.latest
    assert (found.total, found.available, found.slice) == (1000 << 10, 600 << 10, 123456)
    assert found.udp_sockets == 42
    assert found.limits == (LimitUse(name="udp_mem", used=900, limit=1000),)
    assert found.benchmarks == "running"
    world.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 100 kB\n")
    world.write("proc/net/sockstat", "UDP: inuse 31 mem 0\n")
    watch.step()
    assert watch.latest.benchmarks == "frozen"
    # Walls less often.
    assert watch.latest.udp_sockets == 42
    now += pressure.LIMITS
    watch.step()
    assert watch.latest.udp_sockets == 43
    watch.paused = True
    watch.step()
    assert watch.latest.benchmarks == "paused"


def test_a_vm_that_says_nothing(tmp_path: Path) -> None:
    bench = Slice()
    bench.is_frozen = True
    watch = PressureWatch(Paths(root=tmp_path), Governor(freezer=bench, say=print))
    watch.step()
    assert watch.latest == pressure._Watched(benchmarks="frozen")


def test_the_sampler(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads, and that the end thaws."""
    world.agent(10001, 40)
    world.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 100 kB\n")
    bench = world.root / "sys/fs/cgroup/pilotbench.slice"
    world.write("sys/fs/cgroup/pilotbench.slice/cgroup.procs", f"{os.getpid()}\n")
    (bench / "cgroup.freeze").write_text("0")
    walked, frozen = threading.Event(), threading.Event()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("benchmarks frozen"):
            frozen.set()

    real = Walk.step

    def step(self: Walk) -> None:
        real(self)
        walked.set()

    monkeypatch.setattr(Walk, "step", step)
    sampler = Sampler(paths=world.paths, planning=PLANNING, say=say)
    assert sampler.latest() == Sample(agent_limit=20 * MIB)
    sampler.start()
    try:
        assert walked.wait(20)
        assert frozen.wait(20)
        assert (bench / "cgroup.freeze").read_text() == "1"
        found = sampler.latest()
        assert found.over == 1
        sampler.planning = Planning(agent=30 * MIB, connection=1)
        assert sampler.latest().agent_limit == 60 * MIB
        assert sampler.mean_private_bytes([10001]) == private_bytes(world.paths, [10001])
    finally:
        sampler.close()
    assert (bench / "cgroup.freeze").read_text() == "0"
    assert said == ["benchmarks frozen: 10% of memory is available"]


def test_a_leak_is_said_when_it_begins_and_when_it_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sampler = Sampler(paths=world.paths, planning=PLANNING, say=said.append)
    for leak in ("", "agents grow by 200 MB", "agents grow by 210 MB", "", ""):
        monkeypatch.setattr(Walk, "step", lambda self: None)
        sampler._walk.latest = pressure._Walked(leak=leak)
        sampler._walked()
    assert said == ["memory leaks: agents grow by 200 MB", "memory leaks no more"]


def test_an_unreadable_file_is_logged_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "SOME", 0.01)
    again = threading.Event()
    calls = 0

    def away(self: Walk) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            again.set()
        raise OSError("no such thing")

    monkeypatch.setattr(Walk, "step", away)
    said: list[str] = []
    sampler = Sampler(paths=world.paths, planning=PLANNING, say=said.append)
    sampler.start()
    assert again.wait(20)
    sampler.close()
    assert said == ["pressure: no such thing"]
