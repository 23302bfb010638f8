"""Benchmarks: when they are frozen, and with what; on a folder for a cgroup, and real processes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.machines.processes import ending
from startup.node.machine.paths import Paths
from startup.node.machine.retry import FinalError
from startup.node.pressure import benchmarks
from startup.node.pressure.benchmarks import CgroupFreezer, Governor, command, short

ROOT = Path(__file__).parents[4]
V2 = "sys/fs/cgroup/pilotbench.slice"


@pytest.mark.parametrize(
    ("was", "available", "now"),
    [
        (False, 100, False),
        (False, 20, False),
        (False, 19, True),
        (True, 19, True),
        (True, 25, True),
        (True, 26, False),
        (False, 0, True),
        (False, None, False),
        (True, None, True),
    ],
)
def test_short(was: bool, available: int | None, now: bool) -> None:
    assert short(was, available=available, total=100) == now


@given(st.lists(st.integers(201, 250), max_size=50), st.booleans())
def test_within_the_gap_nothing_ever_changes(memory: list[int], was: bool) -> None:
    for available in memory:
        assert short(was, available=available, total=1000) == was


class Slice:
    """A freezer that notes what it is told."""

    def __init__(self) -> None:
        self.there = True
        self.is_frozen = False
        self.told: list[bool] = []

    def populated(self) -> bool:
        return self.there

    def frozen(self) -> bool:
        return self.is_frozen

    def set(self, frozen: bool) -> None:
        self.told.append(frozen)
        self.is_frozen = frozen


class Governed:
    def __init__(self) -> None:
        self.slice = Slice()
        self.said: list[str] = []
        self.governor = Governor(freezer=self.slice, say=self.said.append)

    def step(self, available: int, *, paused: bool = False) -> str:
        return self.governor.step(paused=paused, available=available, total=100)


def test_frozen_and_thawed_with_a_gap() -> None:
    one = Governed()
    assert [one.step(m) for m in (90, 21, 19, 22, 25, 26, 21, 19)] == [
        "running",
        "running",
        "frozen",
        "frozen",
        "frozen",
        "running",
        "running",
        "frozen",
    ]
    assert one.said == [
        "benchmarks frozen: 19% of memory is available",
        "benchmarks go on: 26% of memory is available",
        "benchmarks frozen: 19% of memory is available",
    ]


def test_paused_by_order_with_any_amount_of_memory() -> None:
    one = Governed()
    assert one.step(90, paused=True) == "paused"
    assert one.slice.is_frozen
    assert one.step(10, paused=True) == "paused"
    # The order is gone, and memory is short.
    assert one.step(10) == "frozen"
    assert one.step(90) == "running"
    assert not one.slice.is_frozen


def test_no_benchmarks() -> None:
    one = Governed()
    one.slice.there = False
    assert one.step(5) == "none"
    assert one.slice.told == []
    # One that is started now is frozen at the next step.
    one.slice.there = True
    assert one.step(5) == "frozen"
    # What would be started while an order stands is frozen at once.
    one.slice.there = False
    assert one.step(50, paused=True) == "paused"


def test_the_next_pilot_node_goes_on() -> None:
    one = Governed()
    one.slice.is_frozen = True
    assert one.step(22) == "frozen"
    assert one.step(30) == "running"


def test_the_end_thaws() -> None:
    one = Governed()
    one.step(10)
    one.governor.close()
    assert not one.slice.is_frozen


def folder(root: Path, name: str, processes: str = "4242\n", freeze: str | None = "0\n") -> Path:
    path = root / name
    (path / "pilotbench-7.service").mkdir(parents=True)
    (path / "cgroup.procs").write_text("")
    (path / "pilotbench-7.service/cgroup.procs").write_text(processes)
    if freeze is not None:
        (path / "cgroup.freeze").write_text(freeze)
    return path


def test_the_kernel_freezes(tmp_path: Path) -> None:
    path = folder(tmp_path, V2)
    freezer = CgroupFreezer(paths=Paths(root=tmp_path))
    assert freezer.populated()
    assert not freezer.frozen()
    freezer.set(True)
    # As a kernel's file: it is not emptied before.
    assert (path / "cgroup.freeze").read_text().startswith("1")
    (path / "cgroup.freeze").write_text("1\n")
    assert freezer.frozen()
    freezer.set(False)
    assert (path / "cgroup.freeze").read_text().startswith("0")


def test_no_slice_at_all(tmp_path: Path) -> None:
    freezer = CgroupFreezer(paths=Paths(root=tmp_path))
    assert not freezer.populated()
    assert not freezer.frozen()
    freezer.set(True)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_slice(tmp_path: Path) -> None:
    folder(tmp_path, V2, processes="")
    assert not CgroupFreezer(paths=Paths(root=tmp_path)).populated()


def test_the_command() -> None:
    found = command(
        ["/bin/sh", "-c", "echo $HOME $$"],
        unit="pilotbench-1.service",
        terminal=False,
        environment={"PATH": "/usr/bin", "SECRET": "x", "TERM": ""},
    )
    assert found[0] == "systemd-run"
    assert "--pipe" in found
    assert "--pty" not in found
    for option in ("--slice=pilotbench.slice", "--property=OOMScoreAdjust=1000", "--wait"):
        assert option in found
    assert [word for word in found if word.startswith("--setenv")] == ["--setenv=PATH=/usr/bin"]
    assert not any(word.startswith("--uid") for word in found)
    # systemd makes one dollar of two.
    assert found[-4:] == ["--", "/bin/sh", "-c", "echo $$HOME $$$$"]


def test_it_runs_as_the_user_who_called_sudo() -> None:
    def users(**environment: str) -> list[str]:
        words = command(["x"], unit="u", terminal=True, environment=environment)
        return [word for word in words if word.startswith(("--uid", "--gid", "--pty"))]

    assert users(SUDO_UID="1001", SUDO_GID="1002") == ["--pty", "--uid=1001", "--gid=1002"]
    assert users(SUDO_UID="0", SUDO_GID="0") == ["--pty"]
    assert users(SUDO_UID="root; x") == ["--pty"]


def test_no_command() -> None:
    with pytest.raises(FinalError, match="no command"):
        benchmarks.run([], environment={})


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FinalError, match="with sudo"):
        benchmarks.run(["true"], environment={})


def test_no_systemd_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FinalError, match="systemd-run"):
        benchmarks.run(["true"], environment={})


def stub(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("body", "status"), [("exit 7", 7), ("kill -KILL $$", 137)])
def test_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, status: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stub(tmp_path / "systemd-run", body)
    before = signal.getsignal(signal.SIGTERM)
    assert benchmarks.run(["true"], environment={}) == status
    assert signal.getsignal(signal.SIGTERM) is before


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_signal_ends_the_benchmark_as_well(tmp_path: Path) -> None:
    """As when the SSH connection is cut: systemd-run alone would leave it running."""
    started, stopped = tmp_path / "started", tmp_path / "stopped"
    unit = shlex.quote(str(stopped))
    stub(
        tmp_path / "systemd-run",
        f'trap "" HUP; touch {started}; until [ -e {unit} ]; do sleep 0.01; done; exit 1',
    )
    stub(tmp_path / "systemctl", f'echo "$@" > {unit}')
    code = (
        "import os, sys; os.geteuid = lambda: 0;"
        " from startup.node.pressure import benchmarks;"
        " sys.exit(benchmarks.run(['true'], environment={}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    with ending(process):
        until(started.exists)
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 128 + signal.SIGHUP
    assert stopped.read_text().strip() == f"stop pilotbench-{process.pid}.service"
