"""Programs that Pulumi ends: with a host as of 2026, which sends SIGINT (tests/engine/host.py)."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.server import Serving, serve
from tests.components.fleet import changed, seed
from tests.engine.project import Answer, Project
from tests.engine.test_update import FLEET, call, instances

pytestmark = pytest.mark.engine

HOST = Path(__file__).parent / "host.py"
# Refused by a policy alone: the program ends only because the engine does.
ACCOUNT = """
import pulumi_gcp as gcp
gcp.compute.Address("open", name="open", region="us-central1")
"""


@pytest.fixture
def says(tmp_path: Path) -> Path:
    """What the host says of the ends of programs."""
    return tmp_path / "host-says"


@pytest.fixture
def current(tmp_path: Path, pulumi_env: dict[str, str], says: Path) -> dict[str, str]:
    """An environment with the host that sends SIGINT."""
    folder = tmp_path / "host"
    folder.mkdir()
    launcher = folder / "pulumi-language-python"
    command = shlex.join([sys.executable, str(HOST)])
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', "utf-8")
    launcher.chmod(0o755)
    real = shutil.which("pulumi-language-python", path=pulumi_env["PATH"])
    assert real
    path = f"{folder}:{pulumi_env['PATH']}"
    return pulumi_env | {"PATH": path, "HOST_REAL": real, "HOST_SAYS": str(says)}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Serving]:
    with serve(tmp_path / "cloud") as serving:
        yield serving


def quiet(answer: Answer) -> Answer:
    assert "KeyboardInterrupt" not in answer.text, answer.text
    return answer.no_traceback()


def test_a_refused_plan_ends_at_once_in_the_words_of_who_refused(
    tmp_path: Path, current: dict[str, str], says: Path
) -> None:
    project = Project(folder=tmp_path / "fleet", environment=current)
    project.configure(seed())
    project.append(ACCOUNT)
    answer = quiet(project.preview())
    assert answer.code != 0
    assert "stateful-protected" in answer.text
    assert says.read_text("utf-8").splitlines() == ["interrupted 32"]


def test_a_fleet_that_is_not_refused_ends_by_itself(
    tmp_path: Path, current: dict[str, str], says: Path
) -> None:
    project = Project(folder=tmp_path / "fleet", environment=current)
    project.configure(seed())
    assert project.preview().code == 0
    assert says.read_text("utf-8").splitlines() == ["ended 0"]


def test_ctrl_c_during_an_update_loses_nothing(
    tmp_path: Path, current: dict[str, str], cloud: Serving, says: Path
) -> None:
    """What is under way is finished and written down, nothing else begins, and `up` goes on."""
    project = Project(folder=tmp_path / "fleet", environment=current, extra=cloud.settings())
    project.configure(changed(**FLEET))
    command = ["pulumi", "up", "--yes", "--skip-preview", "-s", project.stack]
    said: list[str] = []
    sent: list[int] = []
    with subprocess.Popen(
        [*command, "--non-interactive", "--color=never"],
        cwd=project.folder,
        env=dict(project.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            # A disk that is being made: its VM, and much else, is not begun.
            if "-disk creating" in line and signal.SIGINT not in sent:
                process.send_signal(signal.SIGINT)
                sent.append(signal.SIGINT)
    answer = quiet(Answer(code=process.returncode, text="".join(said)))
    assert sent
    assert says.read_text("utf-8").splitlines() == ["interrupted 32"]
    assert answer.code != 0
    assert "cancel" in answer.text, answer.text
    exported: dict[str, Any] = json.loads(project.pulumi("stack", "export").text)
    assert not exported["deployment"].get("pending_operations")
    kept = {one["type"] for one in exported["deployment"]["resources"]}
    assert "gcp:compute/disk:Disk" in kept
    assert len(instances(cloud)) < 4
    again = project.up(policies=False)
    assert again.code == 0, again.text
    assert len(instances(cloud)) == 4
    assert call(cloud, "projects/project-1/zones/us-central1-a/disks")["items"]
