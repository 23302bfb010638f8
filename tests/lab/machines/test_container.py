"""Containers: command lines, disks and cgroups. No container is started."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lab.machines import container, host
from lab.machines.cgroups import Group, Hierarchies, hierarchies
from lab.machines.container import Container
from lab.machines.driver import Disk, MachineError
from lab.machines.qemu import Qemu
from tests.lab.machines.prepared import put_disks
from tests.lab.machines.site import machine

V1 = "cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"


def test_a_machine_with_cgroup_v1_alone_has_no_containers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They would show a VM what no VM at Google has."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_TRIAL", ("true",))
    (tmp_path / "mounts").write_text(V1)
    assert "need cgroup v2" in host.no_containers(tmp_path)
    monkeypatch.setattr(container, "hierarchies", lambda _: hierarchies(V1))
    with pytest.raises(MachineError, match=r"need cgroup v2, .* qemu driver"):
        Container(tmp_path, metadata_endpoint=lambda _: ("127.0.0.1", 1), api_port=1)
    (tmp_path / "mounts").write_text(V1 + V2)
    assert host.no_containers(tmp_path) == ""


def test_a_kernel_that_is_stuck_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "mounts").write_text(V2)
    monkeypatch.setattr("time.sleep", lambda _: None)
    for number in range(1, 1101):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/wchan").write_text("bpf_prog_pack_free")
    assert "restart the machine" in host.no_containers(tmp_path)

    def some_end(_: float) -> None:
        for number in range(1, 200):
            (tmp_path / f"{number}/wchan").write_text("0")

    monkeypatch.setattr("time.sleep", some_end)
    monkeypatch.setattr(host, "_TRIAL", ("true",))
    assert host.no_containers(tmp_path) == ""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "need root" in host.no_containers(tmp_path)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (
            ("sh", "-c", "echo 'unshare failed: Operation not permitted' >&2; exit 1"),
            "not permitted",
        ),
        (("no-such-program",), "No such file"),
        (("sh", "-c", "exit 1"), "exit status 1"),
    ],
)
def test_root_that_may_make_no_containers_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...], why: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_TRIAL", command)
    (tmp_path / "mounts").write_text(V2)
    said = host.no_containers(tmp_path)
    assert said.startswith("this machine lets root make no container (")
    assert why in said


def test_containers_need_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MachineError, match="need root"):
        Container(tmp_path, metadata_endpoint=lambda _: ("127.0.0.1", 1), api_port=1)


def test_a_container_is_what_its_machine_is(
    qemu: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    vm = machine(1)
    vm = replace(vm, disks=(*vm.disks, replace(vm.disks[1], device_name="ro", read_only=True)))
    put_disks(tmp_path, vm, "tree")
    driver = Container(tmp_path, metadata_endpoint=lambda _: ("127.0.0.1", 1), api_port=1)
    command = driver.command(vm)
    launcher = command.index(str(container.LAUNCHER))
    folder, _, groups, layers, nics, disks = command[launcher + 1 : launcher + 7]
    assert folder == str(tmp_path / "machines/p_z_vm-1")
    assert all(each.endswith(groups.rsplit("/", 1)[-1]) for each in groups.splitlines())
    assert layers.splitlines()[0] == str(tmp_path / "images/b1/root.raw")
    assert layers.splitlines()[1] == str(tmp_path / "disks/p_z_vm-1.tree/upper")
    assert nics.split()[0] == "ens4"
    assert len(nics.split()[1]) < 16, "an interface's name has 15 letters"
    raw = tmp_path / "disks/p_z_vm-1-data.raw"
    assert disks.splitlines() == [f"/dev/sdb rw {raw}", f"/dev/sdc ro {raw}"]
    assert "--hostname=vm-1" in command
    (links,) = [each for each in command if each.startswith("--set-credential=tmpfiles.extra:")]
    assert "\\nL+ /dev/disk/by-id/google-data - - - - /dev/sdb\\n" in links
    (network,) = [each for each in command if "=instance.network:" in each]
    assert network.endswith(":42:01:0a:4d:00:02,10.77.0.2/24,1460,169.254.169.0/24")
    image_as_data = replace(vm, disks=(vm.disks[0], replace(vm.disks[0], boot=False)))
    with pytest.raises(MachineError, match="is not a blank disk"):
        driver.command(image_as_data)
    (tmp_path / "disks/p_z_vm-1.tree").rmdir()
    with pytest.raises(MachineError, match="was it made by another driver"):
        driver.command(vm)
    driver.close()


def test_disks_of_images_are_layers(
    qemu: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    driver = Container(tmp_path, metadata_endpoint=lambda _: ("127.0.0.1", 1), api_port=1)
    disk = Disk(path="projects/p/zones/z/disks/d", size_gb=10, image="i")
    driver.create_disk(disk)
    (tmp_path / "disks/p_z_d.tree/upper/kept").touch()
    driver.create_disk(disk)
    assert (tmp_path / "disks/p_z_d.tree/upper/kept").exists()
    driver.resize_disk(replace(disk, size_gb=20))
    driver.delete_disk(disk)
    driver.delete_disk(disk)
    assert list((tmp_path / "disks").iterdir()) == []
    driver.close()


@pytest.mark.parametrize(
    ("index", "letters"), [(0, "a"), (25, "z"), (26, "aa"), (51, "az"), (52, "ba"), (701, "zz")]
)
def test_letters_of_disks(index: int, letters: str) -> None:
    assert container._letters(index) == letters


HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0
cgroup2 {unified} cgroup2 rw 0 0
"""


def test_hierarchies_of_cgroups(tmp_path: Path) -> None:
    hybrid = hierarchies(HYBRID.format(unified=tmp_path))
    assert hybrid.unified == tmp_path
    assert sorted(hybrid.legacy) == ["memory", "name=systemd"]
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    assert hybrid.description == "cgroup v2 without controllers"
    assert not hybrid.limits_tasks
    # One that version 1 does not have comes by itself.
    (tmp_path / "cgroup.controllers").write_text("hugetlb pids\n")
    given = hierarchies(HYBRID.format(unified=tmp_path))
    assert given.description == "cgroup v2 with pids alone"
    assert given.limits_tasks
    assert hybrid.limits_memory
    assert hierarchies(V2).description == "cgroup v2"
    legacy = hierarchies(V1)
    assert legacy.description == "cgroup v1 alone"
    assert not legacy.limits_memory
    assert not legacy.limits_tasks


def test_a_container_may_have_the_tasks_of_a_machine_of_its_size(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb pids\n")
    memory = tmp_path / "memory"
    group = Group(Hierarchies(unified=tmp_path, legacy={"memory": memory}), "lab/vm")
    group.make(1024)
    # What a kernel with a GiB says of `threads-max`, but for what it keeps for itself.
    assert (tmp_path / "lab/vm/pids.max").read_text() == "8192"
    assert (memory / "lab/vm/memory.limit_in_bytes").read_text() == str(1 << 30)
    assert not (tmp_path / "lab/vm/memory.max").exists()
