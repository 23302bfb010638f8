"""A guest under QEMU, from its first power-on to its last power-off."""

import socket
import struct
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.machines.driver import Machine, MachineError
from lab.machines.qemu import Qemu
from tests.lab.machines.site import SCRIPT, attach, boot_count, data_disk, machine, make_disks, ssh
from tests.lab.machines.stub import Stub

pytestmark = pytest.mark.engine


def test_a_guest_lives(
    tmp_path: Path, image_cache: Path, programs: Callable[[str], None], nothing_left: None
) -> None:
    programs("qemu")
    vm = machine(1, memory_mb=700, vcpus=2)
    stubs = [Stub(name="vm-1", script=SCRIPT)]
    stopped: list[str] = []

    def lab() -> Qemu:
        return Qemu(
            tmp_path,
            metadata_endpoint=lambda _: stubs[-1].endpoint,
            cache=image_cache,
            stopped=stopped.append,
        )

    driver = lab()
    try:
        make_disks(driver, vm)
        driver.start(vm)
        driver.start(vm)  # as after a lab that was killed: it runs, so there is nothing to do
        boot_count(stubs[-1], 1)
        first = _boot(driver, vm)

        # What it is.
        assert ssh(driver, vm, "hostname -f; nproc") == "vm-1.z.c.p.internal\n2"
        total = int(ssh(driver, vm, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
        assert 600 * 1024 < total < 700 * 1024
        size = int(ssh(driver, vm, "df --output=size -B1M / | tail -1"))
        assert size > 9000, "the root file system was not grown to its disk"
        assert ssh(driver, vm, "systemctl is-system-running --wait") == "running"
        clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        assert ssh(driver, vm, f"cat {clock}") == "hpet"
        began = _clocks(driver, vm)
        _answers_arp(driver.lan(), vm.nics[0].address, vm.nics[0].mac)

        # Another process of the lab finds it, and its metadata server may have moved.
        port = driver.forward(vm, 22)
        driver.close()
        stubs.append(Stub(name="moved", script=SCRIPT))
        driver = lab()
        assert driver.is_running(vm) is True
        assert driver.forward(vm, 22) == port
        url = "http://169.254.169.254/computeMetadata/v1/instance/name"
        assert ssh(driver, vm, f"curl -s -H 'Metadata-Flavor: Google' {url}") == "moved"

        # A disk comes, grows and goes while it runs.
        hot = data_disk("hot")
        driver.create_disk(hot)
        name = "a-name-longer-than-any-virtio-serial-number"
        driver.change_disks(replace(vm, disks=(*vm.disks, attach(hot, name))))
        link = f"/dev/disk/by-id/google-{name}"
        grown = f"udevadm wait --timeout=60 {link} && blockdev --getsize64 {link}"
        assert ssh(driver, vm, grown) == str(1024**3)
        driver.resize_disk(replace(hot, size_gb=2))
        until = f"until [ $(blockdev --getsize64 {link}) = {2 * 1024**3} ]; do sleep 0.2; done"
        ssh(driver, vm, f"timeout 60 sh -c '{until}'")
        driver.change_disks(vm)
        ssh(driver, vm, f"udevadm wait --removed --timeout=60 {link}")
        driver.delete_disk(hot)

        # A second is a second there: at least what passed between the two answers, at most what
        # passed around them.
        ended = _clocks(driver, vm)
        least, most = ended.before - began.after, ended.after - began.before
        assert 0.99 * least <= ended.guest - began.guest <= 1.01 * most

        # A power cut: what was written is there, nobody was told.
        ssh(driver, vm, "echo kept >/srv/kept && sync")
        stubs.append(Stub(name="vm-1", script=SCRIPT))
        driver.close()
        driver = lab()
        driver.reset(vm)
        stubs[-1].wait_for("lab/boots", 1, 240)
        assert ssh(driver, vm, "cat /srv/kept; wc -l </mnt/data/boots") == "kept\n2"
        assert _boot(driver, vm) != first
        assert stopped == []

        # It is stopped by its power button: its own kernel says so.
        driver.stop(vm)
        assert driver.is_running(vm) is False
        driver.stop(vm)
        assert stopped == []
        console = driver.serial_output(vm).decode()
        assert console.count("startup-script: hello from vm-1.z.c.p.internal") == 2
        assert console.count("startup-script: the last line") == 2
        assert console.count("reboot: Power down") == 1
        driver.delete(vm)
        assert list((tmp_path / "machines").iterdir()) == []
    except BaseException:
        print(driver.serial_output(vm).decode(errors="replace"))
        raise
    finally:
        driver.shutdown()
        for stub in stubs:
            stub.close()


def test_a_guest_that_does_not_start_says_why(
    tmp_path: Path, image_cache: Path, programs: Callable[[str], None]
) -> None:
    programs("qemu")
    vm = machine(1)
    driver = Qemu(tmp_path, metadata_endpoint=lambda _: ("127.0.0.1", 1), cache=image_cache)
    try:
        make_disks(driver, vm)
        (tmp_path / "disks" / "p_z_vm-1.qcow2").write_bytes(b"no disk")
        with pytest.raises(MachineError, match=r"does not start: .*not in qcow2 format"):
            driver.start(vm)
        assert driver.is_running(vm) is False
    finally:
        driver.shutdown()


def _boot(driver: Qemu, vm: Machine) -> str:
    return ssh(driver, vm, "cat /proc/sys/kernel/random/boot_id")


class Clocks(NamedTuple):
    """A guest's clock, and this machine's before and after it was asked, in seconds."""

    before: float
    guest: float
    after: float


def _clocks(driver: Qemu, vm: Machine) -> Clocks:
    return Clocks(time.time(), float(ssh(driver, vm, "date +%s.%N")), time.time())


def _answers_arp(lan: str, address: str, mac: str) -> None:
    """Be another machine on the LAN: ask who has `address`."""
    group, port = lan.rsplit(":", 1)
    mine = bytes.fromhex("42010a4d00fe")
    question = struct.pack(
        "!6s6sHHHBBH6s4s6s4s",
        *(b"\xff" * 6, mine, 0x0806, 1, 0x0800, 6, 4, 1, mine),
        *(socket.inet_aton("10.77.0.254"), bytes(6), socket.inet_aton(address)),
    )
    with closing(socket.socket(type=socket.SOCK_DGRAM)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wire.bind((group, int(port)))
        member = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
        wire.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        local = socket.inet_aton("127.0.0.1")
        wire.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local)
        wire.settimeout(30)
        wire.sendto(question.ljust(60, b"\0"), (group, int(port)))
        theirs = bytes.fromhex(mac.replace(":", ""))
        while True:  # the time-out ends it
            frame = wire.recv(2000)
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2" and frame[22:28] == theirs:
                assert frame[28:32] == socket.inet_aton(address)
                return
