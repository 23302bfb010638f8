"""What is closed to agents: for whom, and that nobody else notices."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.node import doors
from startup.node.agents import UID
from startup.node.place import Place
from tests.components.fleet import ROOT
from tests.startup.conftest import Vm

SOCKETS = ("journal/socket", "journal/stdout", "journal/dev-log", "notify")
TRY = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
def can(what):
    try:
        what()
        return True
    except PermissionError:
        return False
for name in ("journal/socket", "journal/stdout", "journal/dev-log", "notify"):
    print(can(lambda: socket.socket(socket.AF_UNIX).connect("run/systemd/" + name)))
for name in ("dev/shm", "run/lock"):
    print(can(lambda: os.listdir(name)), can(lambda: os.mkdir(f"{name}/{os.getuid()}")))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(root=tmp_path)
    # Short: a socket's name has 108 bytes.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/systemd/journal").mkdir(parents=True)
    opened = []
    for name in SOCKETS:
        opened.append(socket.socket(socket.AF_UNIX))
        opened[-1].bind(f"run/systemd/{name}")
        opened[-1].listen(8)
        Path("run/systemd", name).chmod(0o666)
    for name in ("dev/shm", "run/lock"):
        Path(name).mkdir(parents=True)
        Path(name).chmod(0o1777)
    yield place
    for each in opened:
        each.close()


def test_closed_to_agents_and_to_nobody_else(place: Place) -> None:
    if os.geteuid():
        pytest.skip("only root may become another user")
    place.root.chmod(0o711)
    said: list[str] = []
    # Twice, as a second run of the script does.
    for _ in range(2):
        doors.close(place, said.append)
    if any("not supported" in line for line in said):
        pytest.skip(f"no ACLs on the file system of {place.root}")
    assert said == []

    def seen(user: int) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-IS", "-c", TRY, str(place.root), str(user)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout.split()

    assert seen(UID) == ["False"] * 4 + ["True", "False"] * 2
    assert seen(UID + 1) == ["True"] * 8
    assert (place.root / "dev/shm").stat().st_mode & 0o7777 == 0o1777
    assert (place.root / "run/systemd/notify").stat().st_mode & 0o7777 == 0o666


def test_what_cannot_be_closed_is_said_and_no_failure(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(doors, "setxattr", refused)
    (place.root / "run/lock").rmdir()
    said: list[str] = []
    doors.close(place, said.append)
    assert len(said) == 1
    assert said[0].startswith("not closed to agents: /run/systemd/journal/socket (Operation not")
    assert "/run/lock" not in said[0]


@pytest.mark.parametrize("role", ["swarm", "rendezvous"])
def test_the_script_closes_them_where_agents_run(vm: Vm, role: str) -> None:
    """The rendezvous is that user, and its output goes to the journal."""
    (vm.root / "dev/shm").mkdir(parents=True)
    vm.attach_disk()
    vm.use_swarm() if role == "swarm" else vm.use_rendezvous()
    status, output = vm.run()
    assert status == 0, output
    if "not closed" in output:
        pytest.skip(output)
    closed = "system.posix_acl_access" in os.listxattr(vm.root / "dev/shm")
    assert closed == (role == "swarm")


# In a network of its own where the metadata server's address is the machine's.
_SHUT = """
import encodings.idna, os, socket, subprocess, sys
sys.path.insert(0, sys.argv[1])
from startup.node import doors
from startup.node.agents import UID, NotReadyError
run = lambda line: subprocess.run(line.split(), check=True)
there = doors.METADATA[0]
def reached(user):
    child = os.fork()
    if not child:
        try:
            os.setgroups([]); os.setgid(user); os.setuid(user)
            socket.create_connection((there, 80), timeout=5)
            os._exit(0)
        except BaseException as error:
            print(user, type(error).__name__, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
run("ip link set lo up")
print("no way there, and open:", not doors.is_shut(there))
run(f"ip addr add {there}/32 dev lo")
# Addresses of the machine's own are in a table of their own, before all others.
run("ip rule add pref 5000 lookup local")
run("ip rule del pref 0")
listener = socket.create_server((there, 80))
print("open:", reached(UID), not doors.is_shut(there))
for _ in range(2):
    doors.shut_metadata()
print("shut:", not reached(UID), *map(doors.is_shut, doors.METADATA))
print("nobody else:", reached(UID + 1), reached(UID - 1), reached(0))
rules = subprocess.run(["ip", "rule"], capture_output=True, text=True).stdout
print("rules:", rules.count("prohibit"))
run("ip rule del pref 610")
print("open again:", not doors.is_shut(there))
os.environ["PATH"] = "/nowhere"
try:
    doors.shut_metadata()
except NotReadyError as error:
    print(error)
"""


def test_the_metadata_server_is_shut_to_agents_and_to_nobody_else() -> None:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-Iuc", _SHUT, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    *said, problem = done.stdout.splitlines()
    assert said == [
        "no way there, and open: True",
        "open: True True",
        f"{UID} PermissionError",
        "shut: True True True",
        "nobody else: True True True",
        "rules: 1",
        "open again: True",
    ]
    assert problem.startswith("agents could take the VM's service account from 169.254.169.254, so")
    assert "No such file or directory: 'ip'" in problem
