"""Decisions of the drivers and the image: no machine is started here."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lab.machines import container, host, image, places, processes, relay
from lab.machines.cgroups import Group, Hierarchies, hierarchies
from lab.machines.container import Container
from lab.machines.driver import Disk, Machine, MachineError
from lab.machines.image import Image
from lab.machines.places import Places, slug
from lab.machines.qemu import Qemu
from tests.lab.machines.site import attach, data_disk, machine

# The image


def test_only_debians_own_suite_becomes_a_source() -> None:
    targets = "\n".join(
        [
            "Debian|bookworm|http://m/debian/|bookworm|main",
            "Debian|bookworm|http://m/debian/|bookworm|contrib",
            "Debian|bookworm-security|http://s/sec/|bookworm-security|main",
            "Debian|trixie|http://m/debian/|trixie|main",
            "Other|bookworm|http://o/|bookworm|main",
            "Debian|bookworm|http://m/debian/|bookworm|main",
        ]
    )
    assert image.source_lines(targets) == [
        "deb http://m/debian/ bookworm main",
        "deb http://s/sec/ bookworm-security main",
    ]


def test_without_the_suite_the_image_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_output", lambda *_: "Debian|trixie|http://m/|trixie|main\n")
    with pytest.raises(image.ImageError, match="knows no Debian bookworm"):
        image._sources()


def test_a_changed_recipe_is_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "files"
    shutil.copytree(image.FILES, files)
    key = image.recipe_key()
    monkeypatch.setattr(image, "FILES", files)
    assert image.recipe_key() == key
    changed = files / "root/etc/hosts"
    changed.write_text(changed.read_text() + "\n")
    other = image.recipe_key()
    assert other != key
    (files / "init").chmod(0o644)
    assert image.recipe_key() not in (key, other)
    monkeypatch.setattr(image, "FILES", Path(image.__file__).parent / "image")
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "one-more"))
    assert image.recipe_key() != key


def test_an_image_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / f"image-{image.recipe_key()}"
    assert image.find_image(tmp_path) is None
    folder.with_name(folder.name + ".part").mkdir()
    assert image.find_image(tmp_path) is None
    folder.mkdir()
    (folder / "image.json").write_text('{"build": "b1"}')
    assert image.find_image(tmp_path) == Image(folder=folder, build="b1")
    assert image.ensure_image(tmp_path) == Image(folder=folder, build="b1")


def test_a_build_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def install(target: Path) -> None:
        steps.append("install")
        target.write_text("packages")

    def pack(*command: str, what: str, stdin: str = "") -> None:
        steps.append("pack")
        if steps.count("pack") == 1:
            raise image.ImageError("power cut")
        (Path(command[-2]) / "root.raw").write_text("disk")

    monkeypatch.setattr(image, "_install", install)
    monkeypatch.setattr(image, "_run", pack)
    with pytest.raises(image.ImageError):
        image.ensure_image(tmp_path)
    assert image.find_image(tmp_path) is None
    built = image.ensure_image(tmp_path)
    assert steps == ["install", "pack", "pack"]
    assert built.root.read_text() == "disk"
    assert built.root.stat().st_mode & 0o222 == 0, "an image is read-only: disks lie over it"
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == [built.folder.name]


def test_the_cache_is_where_the_user_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert image.default_cache() == Path("/somewhere/lab")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the standard says to ignore")
    monkeypatch.setenv("HOME", "/home/me")
    assert image.default_cache() == Path("/home/me/.cache/lab")


# Places


def test_names_of_resources_do_not_meet() -> None:
    assert slug("projects/p/zones/z/disks/a") == "p_z_a"
    assert slug("projects/p/zones/z-a/disks/b") != slug("projects/p/zones/z/disks/a-b")


def test_a_machine_is_read_as_it_was_written(tmp_path: Path) -> None:
    kept = Places(tmp_path)
    kept.record(machine(2))
    kept.record(machine(1))
    assert list(kept.recorded()) == [machine(1), machine(2)]


def test_a_disk_grows_and_never_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "disks" / "d.raw"
    places.make_raw(path, 1)
    with path.open("r+b") as file:
        file.write(b"data")
    places.make_raw(path, 3)
    places.make_raw(path, 2)
    assert path.stat().st_size == 3 * places.GIB
    with path.open("rb") as file:
        assert file.read(4) == b"data"
    assert path.stat().st_blocks * 512 < 1024**2


def test_a_labs_image_outlives_the_cache(tmp_path: Path) -> None:
    cached = _image(tmp_path / "cache")
    kept = Places(tmp_path / "state").keep_image(cached)
    assert kept.name == "b1"
    shutil.rmtree(tmp_path / "cache")
    assert (kept / "root.raw").read_text() == "root.raw"
    assert Places(tmp_path / "state").keep_image(cached) == kept
    assert [each.name for each in kept.parent.iterdir()] == ["b1"]


def test_a_taken_port_is_another_one() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert places.free_port(port) != port
    assert places.free_port(port) == port


def test_the_key_is_made_once(tmp_path: Path) -> None:
    key = Places(tmp_path).ssh_key()
    text = key.read_text()
    assert key.stat().st_mode & 0o077 == 0
    assert Places(tmp_path).ssh_key().read_text() == text
    assert key.with_suffix(".pub").read_text().startswith("ssh-ed25519 ")


# Processes


def test_a_process_is_known_by_its_command_line(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert processes.find(pid_file, "x") is None
    pid_file.write_text("not a number")
    assert processes.find(pid_file, "x") is None
    marker = str(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()", marker], stdin=subprocess.PIPE)
    with processes.ending(child):
        pid_file.write_text(f"{child.pid}\n")
        assert processes.until(lambda: processes.find(pid_file, marker) == child.pid, 10)
        assert processes.find(pid_file, "somebody else's") is None
        assert not processes.wait(child.pid, 0)
        processes.kill(child.pid)
        assert processes.find(pid_file, marker) is None
    processes.kill(child.pid)


def test_a_process_that_ends_meanwhile_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def ended(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        # What the kernel says where the folder of a process was found before it ended.
        if path.name == "cmdline":
            raise ProcessLookupError(3, "No such process")
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", ended)
    marker = str(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()", marker], stdin=subprocess.PIPE)
    with processes.ending(child):
        assert processes.until(lambda: processes.having(marker) == [child.pid], 10)


# QEMU


def _image(folder: Path) -> Image:
    folder.mkdir(parents=True)
    for name in ("root.raw", "vmlinuz", "initrd"):
        (folder / name).write_text(name)
    return Image(folder=folder, build="b1")


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    cached = _image(tmp_path / "cache")
    monkeypatch.setattr("lab.machines.qemu.ensure_image", lambda _: cached)
    monkeypatch.setattr("lab.machines.container.ensure_image", lambda _: cached)
    return Qemu(tmp_path / "state, of mine", metadata_endpoint=lambda _: ("127.0.0.1", 1))


def test_a_guest_is_not_taken_for_one_whose_name_begins_its_own(tmp_path: Path, qemu: Qemu) -> None:
    """After a boot of this machine an old id may be another guest's."""
    places = Places(tmp_path / "state, of mine")
    for number in (1, 10):
        places.record(machine(number))
    one, ten = (places.machine(machine(number).path) for number in (1, 10))
    guest = subprocess.Popen(
        [sys.executable, "-c", "input()", f"-pidfile={ten / 'pid'}"], stdin=subprocess.PIPE
    )
    with processes.ending(guest):
        for folder in (one, ten):
            (folder / "pid").write_text(f"{guest.pid}\n")
        assert processes.until(lambda: qemu.is_running(machine(10)) is True, 10)
        assert qemu.is_running(machine(1)) is False
        qemu.power_cut(machine(1))
        assert not processes.wait(guest.pid, 0)


def _put_disks(state: Path, vm: Machine, kind: str = "qcow2") -> None:
    kept = Places(state)
    for each in vm.disks:
        path = kept.disk(each.disk.path, kind if each.boot else "raw")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if kind == "tree" and each.boot else path.touch()
        if each.boot:
            kept.disk(each.disk.path, "json").write_text('{"build": "b1"}')


def _after(command: list[str], word: str) -> list[str]:
    return [command[index + 1] for index, each in enumerate(command) if each == word]


def test_a_guest_is_what_its_machine_is(qemu: Qemu, tmp_path: Path) -> None:
    vm = machine(1, memory_mb=700, vcpus=3)
    state = tmp_path / "state, of mine"
    _put_disks(state, vm)
    command = qemu.command(vm, {22: 2222, 3000: 3333})
    assert _after(command, "-m") == ["700M"]
    assert _after(command, "-smp") == ["3"]
    assert _after(command, "-kernel") == [str(state / "images/b1/vmlinuz")]
    assert _after(command, "-initrd") == [str(state / "images/b1/initrd")]
    disks = [json.loads(each) for each in _after(command, "-device") if each.startswith("{")]
    assert [each["device_id"] for each in disks] == ["boot", "data"]
    files = [json.loads(each) for each in _after(command, "-blockdev")]
    assert [each["driver"] for each in files] == ["qcow2", "raw"]
    service, lan = _after(command, "-netdev")
    assert "hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:3333-:3000" in service
    assert "host=169.254.169.1," in service
    assert "guestfwd=tcp:169.254.169.254:80-cmd:" in service
    assert "state,, of mine" in service, "a comma in a value is doubled"
    assert lan == f"socket,id=lan0,mcast={qemu.lan()},localaddr=127.0.0.1"
    (cards,) = [[each for each in _after(command, "-device") if "net-pci" in each]]
    assert cards[1] == "virtio-net-pci,netdev=lan0,addr=0x4,mac=42:01:0a:4d:00:02"
    (console,) = _after(command, "-chardev")
    assert console.endswith(",append=on")
    (append,) = _after(command, "-append")
    assert f"{cards[0].partition('mac=')[2]},169.254.169.100/24,1460;" in append
    assert ";42:01:0a:4d:00:02,10.77.0.2/24,1460" in append
    assert "instance.hosts:10.77.0.2 vm-1.z.c.p.internal vm-1" in append
    assert "systemd.hostname=vm-1 " in append
    assert len(append) < 2048, "the kernel takes no more"


def test_each_lab_has_a_network_of_its_own(qemu: Qemu, tmp_path: Path) -> None:
    other = Qemu(tmp_path / "other", metadata_endpoint=lambda _: ("127.0.0.1", 1))
    assert qemu.lan() != other.lan()
    assert qemu.lan().startswith("239.192.")


def _without_its_data(state: Path, vm: Machine) -> Machine:
    Places(state).disk(vm.disks[1].disk.path, "raw").unlink()
    return vm


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda state, vm: replace(vm, disks=vm.disks[1:]), "has no boot disk"),
        (
            lambda state, vm: replace(vm, disks=(attach(data_disk("vm-1"), "boot", boot=True),)),
            "is made of no image",
        ),
        (
            _without_its_data,
            "was it made by another driver",
        ),
    ],
)
def test_machines_that_cannot_boot_are_refused(
    qemu: Qemu,
    tmp_path: Path,
    break_it: Callable[[Path, Machine], Machine],
    message: str,
) -> None:
    state = tmp_path / "state, of mine"
    vm = machine(1)
    _put_disks(state, vm)
    with pytest.raises(MachineError, match=message):
        qemu.start(break_it(state, vm))


def test_forwards_move_only_from_ports_that_are_taken(qemu: Qemu, tmp_path: Path) -> None:
    vm = machine(1)
    port = qemu.forward(vm, 22)
    assert qemu.forward(vm, 22) == port
    assert qemu._forwards(vm.path) == {22: port}
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert qemu._forwards(vm.path)[22] != port
    assert qemu.forward(vm, 22) != port


# The relay of a QEMU guest


def test_the_relay_carries_both_ways(tmp_path: Path) -> None:
    endpoint = tmp_path / "endpoint"
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(20)
        port = server.getsockname()[1]
        endpoint.write_text(f"127.0.0.1 {port}\n")

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                asked = b""
                while data := peer.recv(100):  # until the guest has said all
                    asked += data
                peer.sendall(b"you said " + asked)

        answering = threading.Thread(target=answer)
        answering.start()
        guest, end = socket.socketpair()
        command = [sys.executable, "-I", "-S", relay.__file__, str(endpoint)]
        relaying = subprocess.Popen(command, stdin=end.fileno(), stdout=end.fileno())
        with guest, processes.ending(relaying) as process:
            end.close()
            guest.settimeout(20)
            guest.sendall(b"x" * 70000)
            guest.shutdown(socket.SHUT_WR)
            heard = b""
            while data := guest.recv(65536):
                heard += data
            assert process.wait(20) == 0
        answering.join()
    assert heard == b"you said " + b"x" * 70000


def test_the_relay_does_not_wait_for_a_server_in_a_long_poll(tmp_path: Path) -> None:
    endpoint = tmp_path / "endpoint"
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        endpoint.write_text(f"127.0.0.1 {server.getsockname()[1]}\n")
        guest, end = socket.socketpair()
        command = [sys.executable, "-I", "-S", relay.__file__, str(endpoint)]
        relaying = subprocess.Popen(command, stdin=end.fileno(), stdout=end.fileno())
        with processes.ending(relaying) as process:
            end.close()
            peer, _ = server.accept()
            with peer:
                guest.close()
                assert process.wait(20) == 0


def test_the_relay_hangs_up_where_nobody_listens(tmp_path: Path) -> None:
    endpoint = tmp_path / "endpoint"
    assert relay.main(str(endpoint)) == 1
    endpoint.write_text(f"127.0.0.1 {places.free_port()}\n")
    assert relay.main(str(endpoint)) == 1


# Containers


def test_a_kernel_that_is_stuck_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    for number in range(1, 1101):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/wchan").write_text("bpf_prog_pack_free")
    assert "restart the machine" in host.no_containers(tmp_path)

    def some_end(_: float) -> None:
        for number in range(1, 200):
            (tmp_path / f"{number}/wchan").write_text("0")

    monkeypatch.setattr("time.sleep", some_end)
    assert host.no_containers(tmp_path) == ""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "need root" in host.no_containers(tmp_path)


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
    _put_disks(tmp_path, vm, "tree")
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
    assert hierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").description == "cgroup v2"
    legacy = hierarchies("cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n")
    assert legacy.description == "cgroup v1"
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


# This machine


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "_PLACES", ())
    assert "qemu-system-x86" in host.missing_packages("qemu", root=True)
    assert "systemd-container" not in host.missing_packages("qemu", root=True)
    assert "systemd-container" in host.missing_packages("container", root=True)
    assert "uidmap" in host.missing_packages("qemu", root=False)
    assert "uidmap" not in host.missing_packages("qemu", root=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    line = "as root, type: apt-get update && apt-get install --yes .*qemu-utils"
    with pytest.raises(MachineError, match=line):
        host.ensure_packages("qemu")
    for name in ("mmdebstrap", "mke2fs", "truncate", "tar", "ssh-keygen", "newuidmap"):
        (tmp_path / name).symlink_to("/bin/true")
    for name in ("qemu-system-x86_64", "qemu-img"):
        (tmp_path / name).symlink_to("/bin/true")
    assert host.ensure_packages("qemu") == []


APT = """#!/bin/sh
mkdir "$HERE/locked" || { echo "E: Could not get lock" >&2; exit 100; }
sleep 0.3
[ "$1" = update ] || for each in qemu-system-x86_64 qemu-img; do ln -s /bin/true "$HERE/$each"; done
rmdir "$HERE/locked"
"""


def test_packages_are_installed_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_PLACES", ())
    monkeypatch.setattr(host, "_TURN", tmp_path / "turn")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_IMAGE", {})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    for name in ("sh", "sleep", "ln", "mkdir", "rmdir"):
        (tmp_path / name).symlink_to(f"/bin/{name}")
    (tmp_path / "apt-get").write_text(APT)
    (tmp_path / "apt-get").chmod(0o755)
    with ThreadPoolExecutor() as pool:
        installed = [*pool.map(host.ensure_packages, ["qemu"] * 3)]
    assert sorted(installed) == [[], [], ["qemu-system-x86", "qemu-utils"]]
