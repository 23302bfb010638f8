"""Fixtures: a stand-in per test, and the real daemon."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.standin.client import ROOT, Standin, standin, whitelist


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Standin]:
    """A stand-in whose store is in tmp_path, with loopback whitelisted."""
    whitelist(tmp_path)
    with standin(tmp_path, "-log-level", "debug") as found:
        yield found


@pytest.fixture(scope="module")
def artifacts() -> Path:
    """The folder with the real pilot-daemon and pilotctl, fetched if they are not there yet."""
    fetch = [sys.executable, str(ROOT / "tools" / "toolchain" / "toolchain.py"), "artifacts"]
    subprocess.run(fetch, check=True, stdout=subprocess.DEVNULL)
    (daemon,) = (ROOT / "artifacts").glob("*/pilot-daemon")
    return daemon.parent
