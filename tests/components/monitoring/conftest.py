"""promtool: the installed one, or Debian's, unpacked for a test and not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SECONDS = 300


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if found := shutil.which("promtool"):
        return Path(found)
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"promtool is not installed, and there is no {tool} to fetch it with")
    folder = tmp_path_factory.mktemp("prometheus")
    folder.chmod(0o777)  # apt downloads as a user of its own
    fetch = ["apt-get", "download", "-qq", "prometheus"]
    done = run(fetch, folder)
    if done.returncode:
        run(["apt-get", "update", "-qq"], folder)
        done = run(fetch, folder)
    packages = list(folder.glob("*.deb"))
    if done.returncode or not packages:
        pytest.skip(f"Debian's prometheus cannot be fetched: {done.stderr.strip()}")
    unpack = ["dpkg-deb", "--fsys-tarfile", str(packages[0])]
    with subprocess.Popen(unpack, stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["tar", "-x", "-C", folder, "./usr/bin/promtool"], stdin=tar.stdout, check=True
        )
    return folder / "usr" / "bin" / "promtool"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS
    )
