"""What tests measured is shown where `make test` ends, also of tests that pass."""

import os
import subprocess
import sys
from pathlib import Path

from tests.components.fleet import ROOT

TESTS = """
import pytest
from tests.conftest import measured

@pytest.fixture(scope="module")
def fleet():
    measured("boot: 70 s")

def test_one(fleet):
    print("of no interest")
    measured("until 40 agents: 3.1 s")

def test_other(fleet):
    pass
"""


def test_it_is_told_once_and_by_whom(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", "1", str(tmp_path)]
    env = {name: text for name, text in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()
    assert [line for line in told if line.startswith("test_some.py")] == [
        "test_some.py::test_one: boot: 70 s",
        "test_some.py::test_one: until 40 agents: 3.1 s",
    ]
    assert "of no interest" not in done.stdout
