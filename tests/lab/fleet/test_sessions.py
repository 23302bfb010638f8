"""`make lab` is interrupted or killed while a command runs."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fleet import checkout, sessions
from lab.machines import processes
from tests.lab.cloud.fake_drivers import PATIENCE

HARNESS = """\
import fcntl, signal, sys
from lab import __main__ as demo
from lab.fleet import sessions
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` has it ignored
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
demo.up = lambda: sessions.run([sys.executable, *sys.argv[2:]], holding=lock)
sys.exit(demo.main(["up"]))
"""

# As Pulumi: a plugin in a process group of its own, which a signal to the group does not reach,
# and an end that takes its time: as long as nothing is written into the pipe.
ENGINE = """\
import os, signal, subprocess, sys
def say(line):  # in one piece: others write, too
    os.write(1, f"{line}\\n".encode())
program = "import os, signal; os.write(1, b'plugin' + bytes([10])); signal.pause()"
plugin = subprocess.Popen(
    [sys.executable, "-c", program],
    process_group=0, close_fds=False,
)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
say(f"engine {os.getpid()} {plugin.pid}")
while signal.sigwait({signal.SIGINT}):
    say("asked")
    if sys.argv[1] != "stubborn":
        break
with open(sys.argv[2], "rb", buffering=0) as pipe:
    pipe.read(1)
if sys.argv[1] == "tidy":
    plugin.kill()
say("ended orderly")
sys.exit(1)
"""


class Harness:
    """`sessions.run` in a process of its own, with a program below it."""

    def __init__(self, folder: Path, how: str) -> None:
        engine = folder / "engine.py"
        engine.write_text(ENGINE)
        self.lock = folder / "demo.lock"
        os.mkfifo(folder / "pipe")
        self.pipe = os.open(folder / "pipe", os.O_RDWR)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HARNESS, str(self.lock), str(engine), how, str(folder / "pipe")],
            cwd=checkout.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.said = ""
        words = self.until("engine")[-1].split()
        self.until("plugin")
        # Taken now, so that what is waited for is these processes and nobody else.
        self.others = [os.pidfd_open(int(pid)) for pid in words[1:]]

    def until(self, word: str) -> list[str]:
        """Read on until a line has `word`; return the lines that have it."""
        assert self.process.stdout is not None
        while not (found := [line for line in self.said.split("\n")[:-1] if word in line]):
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            more = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert more, self.said
            self.said += more.decode()
        return found

    def let_end(self) -> None:
        """Let what was asked to end do so."""
        os.write(self.pipe, b".")

    def ended(self) -> int:
        """Wait for the end of all; return the exit code."""
        code = self.process.wait(PATIENCE)
        for each in self.others:
            assert select.select([each], [], [], PATIENCE)[0], "outlives it"
        assert self.process.stdout is not None
        self.said += self.process.stdout.read().decode()
        assert "Traceback" not in self.said
        return code

    def close(self) -> None:
        for each in self.others:
            if not select.select([each], [], [], 0)[0]:
                signal.pidfd_send_signal(each, signal.SIGKILL)
            os.close(each)
        os.close(self.pipe)
        processes.end(self.process, signal.SIGKILL)


@pytest.fixture
def harness(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Harness]:
    started = Harness(tmp_path, request.param)
    yield started
    started.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("harness", ["tidy", "careless"], indirect=True)
def test_an_interrupted_command_ends_by_itself_and_with_its_plugins(
    harness: Harness, number: signal.Signals
) -> None:
    harness.process.send_signal(number)
    harness.until("asked")
    harness.until("Ctrl-C again kills it")
    assert harness.process.poll() is None
    harness.let_end()
    assert harness.ended() == 130
    assert "ended orderly" in harness.said
    assert harness.said.count("asked") == 1
    assert "`make lab` continues, `make lab-down` ends it" in harness.said


@pytest.mark.parametrize("harness", ["stubborn"], indirect=True)
def test_a_second_interrupt_cuts_it_off(harness: Harness) -> None:
    harness.process.send_signal(signal.SIGINT)
    harness.until("asked")
    harness.until("Ctrl-C again kills it")
    harness.process.send_signal(signal.SIGINT)
    assert harness.ended() == 130
    assert "ended orderly" not in harness.said


@pytest.mark.parametrize("harness", ["tidy"], indirect=True)
def test_after_a_kill_the_lock_stays_with_the_command_that_runs_on(harness: Harness) -> None:
    harness.process.kill()
    harness.process.wait(PATIENCE)
    with harness.lock.open("a+") as lock:
        assert not sessions.take(lock)
        signal.pidfd_send_signal(harness.others[0], signal.SIGINT)
        harness.let_end()
        harness.ended()
        assert sessions.take(lock)


@pytest.mark.parametrize("harness", ["tidy"], indirect=True)
def test_plugins_that_outlive_a_pulumi_that_was_killed_too_are_ended(harness: Harness) -> None:
    engine, plugin = harness.others
    harness.process.kill()
    harness.process.wait(PATIENCE)
    signal.pidfd_send_signal(engine, signal.SIGKILL)
    assert select.select([engine], [], [], PATIENCE)[0]
    with harness.lock.open("a+") as lock:
        assert not select.select([plugin], [], [], 0)[0]
        # Whoever reaps it does so some time after its end.
        assert processes.until(lambda: sessions.take(lock), PATIENCE)
    harness.ended()


@pytest.mark.parametrize("harness", ["stubborn"], indirect=True)
def test_a_pulumi_that_outlives_its_make_lab_is_cut_off_on_request(
    harness: Harness,
) -> None:
    with harness.lock.open("a+") as lock:
        # Its `make lab` is at work.
        assert not sessions.take(lock, cut=True)
        harness.process.kill()
        harness.process.wait(PATIENCE)
        assert not sessions.take(lock)
        assert sessions.take(lock, cut=True)
    harness.ended()
