"""The command line: whose a lab is, which driver ends it, and who is asked to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import __main__ as command
from lab.drivers.processes import ending
from lab.machines import MachineError
from lab.server import serve
from tests.lab.client import Client
from tests.lab.fake_drivers import PATIENCE
from tests.lab.test_lab_restart import process

ROOT = Path(__file__).resolve().parents[2]


def lab(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lab", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_status_names_the_state_by_which_a_lab_is_told_from_another(tmp_path: Path) -> None:
    with serve(tmp_path / "state") as serving:
        assert Client(serving.url).get("/lab/status")["state"] == str(tmp_path / "state")


def test_another_driver_does_not_take_over_machines(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("container\n")
    (tmp_path / "machines" / "p_z_vm").mkdir(parents=True)
    (tmp_path / "machines" / "p_z_vm" / "machine.json").write_text("{}")
    refused = lab("serve", "--driver", "qemu", "--state", str(tmp_path))
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "machines of the container driver" in refused.stderr
    assert f"`python -m lab down --state {tmp_path}` ends them" in refused.stderr
    assert (tmp_path / "driver").read_text() == "container\n"


def test_what_a_driver_without_machines_has_left_is_its_own_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str | None] = []
    monkeypatch.setattr(
        command, "_end_machines", lambda state: ended.append(command._driver(state))
    )
    command._choose_driver(tmp_path, "container")
    command._choose_driver(tmp_path, "container")
    assert ended == []
    command._choose_driver(tmp_path, "qemu")
    assert ended == ["container"]
    assert command._driver(tmp_path) == "qemu"


def test_who_finds_a_lab_served_does_not_change_its_driver(tmp_path: Path) -> None:
    with process(tmp_path) as (running, _):
        refused = lab("serve", "--driver", "qemu", "--state", str(tmp_path))
        assert f"is in use by process {running.pid}" in refused.stderr
        assert (tmp_path / "driver").read_text() == "none\n"


def test_down_ends_the_process_and_leaves_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with process(state) as (running, _):
        # Named otherwise than it was when it was started.
        ended = lab("down", "--state", f"{tmp_path}/./state")
        assert ended.returncode == 0, ended.stderr
        assert running.wait(PATIENCE) == 0
    assert not state.exists()
    assert lab("down", "--state", str(state)).returncode == 0


def test_down_ends_no_stranger_that_has_got_the_id(tmp_path: Path) -> None:
    with serve(tmp_path):
        pass
    program = "import sys; print(flush=True); sys.stdin.read()"
    stranger = subprocess.Popen(
        [sys.executable, "-c", program, "-m", "lab", "serve", "--state", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with ending(stranger):
        assert stranger.stdout is not None
        stranger.stdout.readline()
        for name in ("lock", "pid"):
            (tmp_path / name).write_text(f"{stranger.pid}")
        assert lab("down", "--state", str(tmp_path)).returncode == 0
        assert not tmp_path.exists()
        assert stranger.poll() is None
        stranger.communicate(timeout=PATIENCE)
        assert stranger.returncode == 0


def test_an_interrupted_preparation_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> list[str]:
        os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr(command, "ensure_packages", interrupted)
    assert command.main(["prepare", "--driver", "qemu", "--packages"]) == 130
    assert capsys.readouterr().err == "lab: interrupted; the same command goes on from there\n"


def test_packages_are_prepared_alone_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(command, "ensure_packages", done.append)
    monkeypatch.setattr(command, "ensure_image", lambda _: done.append("image"))
    assert command.main(["prepare", "--driver", "qemu", "--packages"]) == 0
    assert done == ["qemu"]
    assert command.main(["prepare", "--driver", "qemu"]) == 0
    assert done == ["qemu", "qemu", "image"]


def test_containers_are_refused_without_root_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def installs(_: str) -> list[str]:
        raise MachineError("packages")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(command, "ensure_packages", installs)
    assert command.main(["prepare", "--driver", "container"]) == 1
    assert "containers need root" in capsys.readouterr().err
