"""Processes are found by their command line, and ended in one way, even if gone already."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.machines import processes
from lab.machines.host import ensure_packages, no_containers
from tests.conftest import ROOT
from tools.bench.units import booted

# It says when it can be told; SIGTERM does nothing to it.
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"


def gone() -> int:
    """The id of a process that has ended and is reaped."""
    with subprocess.Popen(["true"]) as child:
        return child.pid


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def deaf() -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"\n"
    return child


def test_a_process_that_is_gone_already_hides_no_other() -> None:
    with processes.ending(sleeping()) as child:
        processes.kill(gone(), child.pid, gone())
        assert child.wait(0) == -signal.SIGKILL
    assert processes.tell(gone(), signal.SIGTERM) is False
    processes.stop(gone())
    processes.kill_session(gone())
    processes.kill_container(gone())


def test_a_process_that_ends_between_the_look_and_the_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As systemd-nspawn goes with the container's first process."""
    first, second = sleeping(), sleeping()
    tell = signal.pidfd_send_signal

    def ends_the_other(watched: int, number: int) -> None:
        if second.returncode is None:
            second.kill()
            second.wait()
        tell(watched, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", ends_the_other)
    with processes.ending(first), processes.ending(second):
        processes.kill(first.pid, second.pid)
        assert first.wait(0) == -signal.SIGKILL


def test_a_process_that_ignores_the_request_to_end_is_killed() -> None:
    with processes.ending(deaf()) as child:
        processes.stop(child.pid, 0.1)
        assert child.wait(0) == -signal.SIGKILL
    assert processes.end(deaf(), seconds=0.1) == -signal.SIGKILL
    child = sleeping()
    assert processes.end(child) == -signal.SIGTERM
    assert processes.end(child) == -signal.SIGTERM, "one that has ended is told nothing"


def test_a_session_ends_with_what_changed_its_group() -> None:
    code = (
        "import subprocess; below = subprocess.Popen(['sleep', '600'], process_group=0);"
        " print(below.pid, flush=True); below.wait()"
    )
    line = [sys.executable, "-c", code]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, start_new_session=True)
    with processes.ending(child):
        assert child.stdout is not None
        below = int(child.stdout.readline())
        assert os.getpgid(below) != child.pid
        processes.kill_session(child.pid)
        assert processes.wait(below, 0)


@pytest.mark.engine
def test_a_container_whose_processes_end_one_another(tmp_path: Path) -> None:
    """It powered off a moment ago: nspawn and the launcher are on their way out, too."""
    if why := no_containers():
        pytest.skip(why)
    ensure_packages("container")
    for name in ("whole", "ended"):
        with booted(tmp_path / name) as first:
            if name == "ended":
                processes.kill(first)
    assert processes.having(str(tmp_path)) == []


# Popen's own methods mind a child that is gone, and are for children alone.
BY_ID = re.compile(r"os\.kill(pg)?\(")
# Itself; the toolchain, which takes nothing of the lab's and ends a child that it has not reaped;
# the VM's side, which takes nothing from here; programs that tests have run; a process that signals
# itself or asks whether another is there.
ALLOWED = {"lab/machines/processes.py", "tools/toolchain/official.py"}
HARMLESS = re.compile(r"os\.kill\(os\.getpid\(\)|os\.kill\(\w+, 0\)")


def test_processes_are_ended_in_one_module_only() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for room in ("lab", "ops", "tests", "tools")
        for file in (ROOT / room).rglob("*.py")
        if str(file.relative_to(ROOT)) not in ALLOWED
        for line in file.read_text(encoding="utf-8").splitlines()
        if BY_ID.search(line) and not HARMLESS.search(line)
    ]
    assert found == []


def test_a_process_is_known_by_its_command_line(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert processes.find(pid_file, "x") is None
    pid_file.write_text("not a number")
    assert processes.find(pid_file, "x") is None
    marker = str(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()", marker], stdin=subprocess.PIPE)
    with processes.ending(child):
        pid_file.write_text(f"{child.pid}\n")
        assert processes.until(lambda: processes.find(pid_file, marker) == child.pid, 10)
        assert processes.find(pid_file, "somebody else's") is None
        assert not processes.wait(child.pid, 0)
        processes.kill(child.pid)
        assert processes.find(pid_file, marker) is None
    processes.kill(child.pid)


def test_a_process_that_ends_meanwhile_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def ended(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        # What the kernel says where the folder of a process was found before it ended.
        if path.name == "cmdline":
            raise ProcessLookupError(3, "No such process")
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", ended)
    marker = str(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()", marker], stdin=subprocess.PIPE)
    with processes.ending(child):
        assert processes.until(lambda: processes.having(marker) == [child.pid], 10)
