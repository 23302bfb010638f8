"""QEMU guests: command lines, ports and refusals. No guest is started."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lab.machines import processes
from lab.machines.driver import Machine, MachineError
from lab.machines.places import Places
from lab.machines.qemu import Qemu
from tests.lab.machines.prepared import put_disks
from tests.lab.machines.site import attach, data_disk, machine


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


def _after(command: list[str], word: str) -> list[str]:
    return [command[index + 1] for index, each in enumerate(command) if each == word]


def test_a_guest_is_what_its_machine_is(qemu: Qemu, tmp_path: Path) -> None:
    vm = machine(1, memory_mb=700, vcpus=3)
    state = tmp_path / "state, of mine"
    put_disks(state, vm)
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
    put_disks(state, vm)
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
