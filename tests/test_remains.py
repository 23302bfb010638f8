"""A test's remains fail that test and no other (tests/remains.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.machines.processes import until
from tests.conftest import ROOT

BEGIN = """
import gc, os, socket, subprocess, threading
import pytest

def sleep():
    return subprocess.Popen(["sleep", "600"])
"""

INNOCENT = """
def test_innocent():
    gc.collect()

def test_innocent_too():
    gc.collect()
"""

# What is left -> the tests that leave it; how the guilty one ends.
GUILTY = {
    "a child that runs": ("def test_guilty(): kept.append(sleep())\nkept = []", "leaves behind"),
    "a child that nobody reaps": (
        "def test_guilty():\n    child = sleep()\n    child.kill()",
        "is still running",
    ),
    "what a failure still holds": (
        "def test_guilty():\n    child = sleep()\n    child.kill()\n    assert not child",
        "is still running",
    ),
    "what a failure in the making of another still holds": (
        """def test_guilty():
    try:
        child = sleep()
        child.kill()
        raise OSError
    except OSError:
        raise ValueError from None
""",
        "is still running",
    ),
    "what a fixture that cannot end still holds": (
        """@pytest.fixture
def made():
    child = sleep()
    yield
    child.kill()
    assert not child
def test_guilty(made): pass
""",
        "is still running",
    ),
    "what a fixture has given": (
        "@pytest.fixture\ndef made(): return socket.socket()\ndef test_guilty(made): pass",
        "unclosed <socket",
    ),
    "a socket in a circle": (
        "def test_guilty():\n    circle = [socket.socket()]\n    circle.append(circle)",
        "unclosed <socket",
    ),
    "an open file": ("def test_guilty(): open('/dev/null')", "unclosed file"),
}

# What is told at the end of a file, with the name of the test where that is known.
SHARED = {
    "a process that is nobody's child any more": (
        "def test_guilty(): subprocess.run(['setsid', '--fork', 'sleep', '600'], check=True)",
        r"leaves behind: process \d+: sleep 600 .*::test_guilty",
    ),
    "a thread": (
        """def test_guilty():
    threading.Thread(target=threading.Event().wait, name='idle', daemon=True).start()
""",
        "leaves behind: thread idle",
    ),
}


def run(folder: Path, *flags: str) -> str:
    """The summary of the tests in a folder, in a pytest that has none of this one's settings."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")
    } | {"TESTS_REMAINS_SECONDS": "0.2"}
    command = [sys.executable, "-m", "pytest", "-rA", "-c", str(folder / "pytest.ini"), *flags]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-p", "no:xdist", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def verdicts(said: str) -> dict[str, set[str]]:
    """What is said of each test: a test that passes and leaves something has two."""
    found: dict[str, set[str]] = {}
    for verdict, name in re.findall(r"^(PASSED|FAILED|ERROR) \S+::(test_\w+)", said, re.MULTILINE):
        found.setdefault(name, set()).add(verdict)
    return found


@pytest.mark.parametrize("what", GUILTY)
def test_what_a_test_leaves_fails_it_alone(what: str, tmp_path: Path) -> None:
    code, told = GUILTY[what]
    (tmp_path / "test_it.py").write_text(BEGIN + code + INNOCENT)
    said = run(tmp_path, "-p", "tests.remains")
    found = verdicts(said)
    assert found.pop("test_guilty") & {"FAILED", "ERROR"}, said
    assert told in said, said
    assert found == {"test_innocent": {"PASSED"}, "test_innocent_too": {"PASSED"}}, said


@pytest.mark.parametrize("what", SHARED)
def test_what_the_tests_of_a_file_leave_fails_its_last(what: str, tmp_path: Path) -> None:
    code, told = SHARED[what]
    (tmp_path / "test_it.py").write_text(BEGIN + code)
    (tmp_path / "test_other.py").write_text(BEGIN + INNOCENT)
    said = run(tmp_path, "-p", "tests.remains")
    found = verdicts(said)
    assert found.pop("test_guilty") == {"PASSED", "ERROR"}, said
    assert re.search(told, said), said
    assert found == {"test_innocent": {"PASSED"}, "test_innocent_too": {"PASSED"}}, said
    assert until(lambda: "sleep 600" not in _commands_of(said), 10)


def _commands_of(said: str) -> str:
    found = re.search(r"process (\d+): ", said)
    command = Path(f"/proc/{found[1]}/cmdline") if found else Path("/nowhere")
    return command.read_text().replace("\0", " ") if command.exists() else ""


def test_without_it_an_innocent_one_fails(tmp_path: Path) -> None:
    """The control: this is how it was met."""
    code, told = GUILTY["what a failure still holds"]
    (tmp_path / "test_it.py").write_text(BEGIN + code + INNOCENT)
    said = run(tmp_path)
    assert told in said
    assert verdicts(said)["test_innocent"] != {"PASSED"}, said
