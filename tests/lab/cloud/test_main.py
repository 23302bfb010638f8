"""The command line: whose a lab is, which driver ends it, and who is asked to."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.cloud import __main__ as command
from lab.cloud.server import serve
from lab.machines.cgroups import Group
from lab.machines.driver import MachineError
from lab.machines.processes import ending
from tests.lab.cloud.client import Client
from tests.lab.cloud.fake_drivers import PATIENCE
from tests.lab.cloud.test_restart import process

ROOT = Path(__file__).resolve().parents[3]


def lab(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lab.cloud", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_status_names_the_state_directory(tmp_path: Path) -> None:
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
    assert f"`python -m lab.cloud down --state {tmp_path}` ends them" in refused.stderr
    assert (tmp_path / "driver").read_text() == "container\n"


def test_choosing_another_driver_removes_what_the_last_one_left(
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


def test_a_second_serve_does_not_change_the_driver_of_a_lab(tmp_path: Path) -> None:
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


def test_down_ends_no_other_process_with_the_same_id(tmp_path: Path) -> None:
    with serve(tmp_path):
        pass
    program = "import sys; print(flush=True); sys.stdin.read()"
    stranger = subprocess.Popen(
        [sys.executable, "-c", program, "-m", "lab.cloud", "serve", "--state", str(tmp_path)],
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


# As a driver has just started it: its command line, and no pid file yet.
STARTING = {
    "container": ["/bin/bash", "{folder}/container.sh", "{state}/machines/p_z_vm"],
    "qemu": ["/bin/bash", "{folder}/container.sh", "-pidfile", "{state}/machines/p_z_vm/pid"],
}


@contextmanager
def starting(folder: Path, state: Path, driver: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A machine of the lab in `state` that is just being started, until the block ends."""
    if driver == "container" and os.geteuid() != 0:
        pytest.skip("containers need root")
    (folder / "container.sh").write_text("echo; read -r\n")
    (state / "machines" / "p_z_vm").mkdir(parents=True)
    (state / "driver").write_text(f"{driver}\n")
    line = [word.format(folder=folder, state=state) for word in STARTING[driver]]
    machine = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with ending(machine):
        assert machine.stdout is not None
        machine.stdout.readline()
        yield machine


@pytest.mark.parametrize("driver", STARTING)
@pytest.mark.parametrize("removed", ["nothing", "driver", "."])
def test_down_ends_a_machine_that_is_just_being_started(
    tmp_path: Path, driver: str, removed: str
) -> None:
    """Whatever of the state somebody has removed before."""
    state = tmp_path / "state"
    with starting(tmp_path, state, driver) as machine:
        if removed == ".":
            shutil.rmtree(state)
        elif removed == "driver":
            (state / "driver").unlink()
        done = lab("down", "--state", str(state))
        assert done.returncode == 0, done.stderr
        assert machine.poll() == -signal.SIGKILL
    assert not state.exists()


def test_down_removes_nothing_where_a_container_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with starting(tmp_path, tmp_path / "state", "container"):
        monkeypatch.setattr(Group, "remove", lambda _: False)
        monkeypatch.setattr(Group, "processes", lambda _: [])
        assert command.main(["down", "--state", str(tmp_path / "state")]) == 1
    assert "do not end: end them, and try again" in capsys.readouterr().err
    assert (tmp_path / "state" / "driver").exists()


def test_down_knows_the_machines_by_whatever_name_the_state_has(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (tmp_path / "link").symlink_to(state)
    with starting(tmp_path, state, "qemu") as machine:
        assert lab("down", "--state", str(tmp_path / "link")).returncode == 0
        assert machine.poll() == -signal.SIGKILL
    assert not state.exists()


def test_down_refuses_a_state_that_was_moved_while_its_machines_ran(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with starting(tmp_path, old, "qemu") as machine:
        (old / "machines" / "p_z_vm" / "pid").write_text(str(machine.pid))
        old.rename(new)
        refused = lab("down", "--state", str(new))
        assert machine.poll() is None
    assert refused.returncode == 1
    assert f"process {machine.pid} runs p_z_vm" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (new / "driver").exists()


def test_down_removes_nothing_from_under_a_server_that_has_just_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path / "state"):
        monkeypatch.setattr(command, "_server", lambda _: None)
        assert command.main(["down", "--state", str(tmp_path / "state")]) == 1
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
        assert (tmp_path / "state" / "state.sqlite3").exists()


def test_an_interrupted_preparation_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> list[str]:
        os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr(command, "ensure_packages", interrupted)
    assert command.main(["prepare", "--driver", "qemu", "--packages"]) == 130
    assert capsys.readouterr().err == "lab: interrupted; the same command continues from there\n"


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
