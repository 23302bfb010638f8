"""The estimate of the time left, and the line that shows it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios

import pytest

from tests.components.fleet import ROOT
from tools.toolchain.progress import about, clock, seconds_left

# A step that lasts until it is told to end.
STEP = """
import sys
from tools.toolchain.progress import Steps
with Steps([600.0]).step("Fetching a thing whose name is longer than the terminal is wide"):
    sys.stdin.readline()
"""


def test_before_anything_is_known_the_plan_is_the_estimate() -> None:
    assert seconds_left([], 200, 0, [20, 180]) == pytest.approx(400)
    assert seconds_left([], 200, 50, [20, 180]) == pytest.approx(350)


def test_a_machine_twice_as_fast_is_believed_to_stay_so() -> None:
    assert seconds_left([(200, 100)], 20, 0, [180]) == pytest.approx(100)


def test_a_step_that_outlives_its_plan_slows_the_rest() -> None:
    left = seconds_left([], 200, 400, [100])
    assert left == pytest.approx(0.1 * 400 + 100 * 2.2)


def test_the_estimate_is_never_negative() -> None:
    assert seconds_left([(200, 10)], 200, 500, []) > 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "a few seconds"), (43, "about 40 s"), (89, "about 90 s"), (290, "about 5 min")],
)
def test_an_estimate_is_as_precise_as_it_deserves(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_clock() -> None:
    assert [clock(7), clock(80.9), clock(754)] == ["0:07", "1:20", "12:34"]


def test_on_a_terminal_one_line_moves_and_nothing_stays() -> None:
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, 40))
        command = [sys.executable, "-c", STEP]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs
        )
        wrote = b""
        try:
            while wrote.count(b"Fetching") < 2:
                assert select.select([ours], [], [], 60)[0], wrote
                wrote += os.read(ours, 4096)
            process.communicate(b"\n", timeout=60)
        finally:
            process.kill()
            process.wait()
        while select.select([ours], [], [], 0)[0]:
            wrote += os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"\n" not in wrote
    assert wrote.endswith(b"\r\x1b[K")
    lines = wrote.decode().replace("\x1b[K", "").split("\r")
    assert max(map(len, lines)) == 39


def test_in_a_pipe_a_step_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEP], cwd=ROOT, input=b"\n", capture_output=True, check=True
    )
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("Fetching a thing")
    assert line.endswith("… 0:00 so far, about 10 min left")
