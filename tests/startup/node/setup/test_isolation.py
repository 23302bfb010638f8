"""Paths are closed to agents, and to nobody else."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.machines.host import stuck_kernel
from startup.node.machine.agent_units import LAYOUTS
from startup.node.machine.errors import NotReadyError
from startup.node.machine.paths import Paths
from startup.node.machine.user import GID, UID
from startup.node.setup import isolation
from tests.components.fleet import ROOT
from tests.startup.conftest import Vm

SOCKETS = (
    "systemd/journal/socket",
    "systemd/journal/stdout",
    "systemd/journal/dev-log",
    "systemd/notify",
    "systemd/private",
    "systemd/io.system.ManagedOOM",
    "systemd/io.systemd.ManagedOOM",
    "dbus/system_bus_socket",
)
TRY = """
import os, socket, sys
root, user, group, *sockets = sys.argv[1:]
os.chdir(root)
os.setgroups([]); os.setgid(int(group)); os.setuid(int(user))
def can(what):
    try:
        what()
        return True
    except PermissionError:
        return False
for name in sockets:
    print(can(lambda: socket.socket(socket.AF_UNIX).connect("run/" + name)))
print(can(lambda: os.listdir("run/systemd/userdb")))
for name in ("dev/shm", "run/lock"):
    print(can(lambda: os.listdir(name)), can(lambda: os.mkdir(f"{name}/{os.getuid()}")))
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    paths = Paths(root=tmp_path)
    # Short: a socket's name has 108 bytes.
    monkeypatch.chdir(tmp_path)
    for name in ("systemd/journal", "systemd/userdb", "dbus"):
        (tmp_path / "run" / name).mkdir(parents=True)
    opened = []
    for name in SOCKETS:
        opened.append(socket.socket(socket.AF_UNIX))
        opened[-1].bind(f"run/{name}")
        opened[-1].listen(8)
        Path("run", name).chmod(0o666)
    for name in ("dev/shm", "run/lock"):
        Path(name).mkdir(parents=True)
        Path(name).chmod(0o1777)
    yield paths
    for each in opened:
        each.close()


def test_closed_to_agents_and_to_nobody_else(paths: Paths) -> None:
    if os.geteuid():
        pytest.skip("only root may become another user")
    paths.root.chmod(0o711)
    said: list[str] = []
    # Twice, as a second run of the script does.
    for _ in range(2):
        isolation.close(paths, said.append)
    if any("not supported" in line for line in said):
        pytest.skip(f"no ACLs on the file system of {paths.root}")
    assert said == []

    def seen(user: int, group: int) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-IS", "-c", TRY, str(paths.root), str(user), str(group), *SOCKETS],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout.split()

    for layout in LAYOUTS:
        closed = ["False"] * (len(SOCKETS) + 1) + ["True", "False"] * 2
        assert seen(layout.user(10001), GID) == closed
    assert seen(UID + 1, GID + 1) == ["True"] * (len(SOCKETS) + 5)
    assert (paths.root / "dev/shm").stat().st_mode & 0o7777 == 0o1777
    assert (paths.root / "run/systemd/notify").stat().st_mode & 0o7777 == 0o666


def test_a_path_that_cannot_be_closed_is_logged_and_no_failure(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(isolation, "setxattr", refused)
    (paths.root / "run/lock").rmdir()
    said: list[str] = []
    isolation.close(paths, said.append)
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


# In a network of its own where the metadata server's addresses are the machine's. `argv`: the
# project, and the directory that is the root of a VM, with a cgroup of the machine in it.
_SHUT = """
import encodings.idna, os, socket, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from startup.node.machine.paths import Paths
from startup.node.setup import isolation
paths = Paths(root=Path(sys.argv[2]))
slice_ = paths.at("/sys/fs/cgroup/pilot.slice")
(slice_ / "an-agent").mkdir(parents=True)
V4, V6 = isolation.METADATA
run = lambda line: subprocess.run(line.split(), check=True)
run("ip link set lo up")
# The next ones are others.
for address in (V4, "169.254.169.253"):
    run(f"ip addr add {address}/32 dev lo")
for address in (V6, "fd20:ce::253"):
    run(f"ip addr add {address}/128 dev lo nodad")
def sends(to, device):
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as packet:
        if device:
            packet.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        try:
            return packet.sendto(b"x", (to, 53)) == 1
        except PermissionError:
            return False
def reaches(where, *addresses):
    child = os.fork()
    if not child:
        (where / "cgroup.procs").write_text(str(os.getpid()))
        print(*(sends(to, device) for to in addresses for device in (False, True)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
reaches(slice_ / "an-agent", V4, V6, f"::ffff:{V4}")
for _ in range(2):
    isolation.shut_metadata(paths)
reaches(slice_ / "an-agent", V4, V6, f"::ffff:{V4}")
reaches(slice_ / "an-agent", "169.254.169.253", "fd20:ce::253")
reaches(slice_.parent, V4, V6)
print(len(isolation.egress_filter._names(os.open(slice_, os.O_RDONLY))))
# A cgroup that was made anew has none.
(slice_ / "an-agent").rmdir()
slice_.rmdir()
(slice_ / "an-agent").mkdir(parents=True)
reaches(slice_ / "an-agent", V4)
isolation.shut_metadata(paths)
reaches(slice_ / "an-agent", V4)
"""


def test_the_metadata_server_is_shut_to_agents_and_to_nobody_else(tmp_path: Path) -> None:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    found = [Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"]
    if not found:
        pytest.skip("this machine has no cgroup v2")
    if why := stuck_kernel():
        pytest.skip(why)
    cgroup = found[0] / f"pilot-test-{os.getpid()}"
    cgroup.mkdir()
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").symlink_to(cgroup)
    try:
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-Iuc", _SHUT, str(ROOT), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for each in (cgroup / "pilot.slice/an-agent", cgroup / "pilot.slice", cgroup):
            if each.exists():
                each.rmdir()
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "True True True True True True",
        "False False False False False False",
        "True True True True",
        "True True True True",
        "1",
        "True True",
        "False False",
    ]


def test_a_slice_that_takes_no_program_keeps_agents_from_being_started(tmp_path: Path) -> None:
    # A directory like any other.
    (tmp_path / "sys/fs/cgroup/pilot.slice").mkdir(parents=True)
    with pytest.raises(
        NotReadyError, match=r"so none is started: pilot\.slice takes no BPF program"
    ):
        isolation.shut_metadata(Paths(root=tmp_path))


def test_a_slice_that_is_not_there_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "systemctl").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told\n', "utf-8")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(NotReadyError, match=r"`systemctl start pilot\.slice` made no cgroup"):
        isolation.shut_metadata(Paths(root=tmp_path))
    assert (tmp_path / "told").read_text("utf-8") == "start pilot.slice\n"
