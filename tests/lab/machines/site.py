"""Machines for tests, what they run at boot, and ways to talk to them."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lab.machines.driver import Attachment, Disk, Driver, Machine, Nic
from tests.lab.machines.stub import Stub

ZONE = "projects/p/zones/z"

SCRIPT = """#!/bin/bash
echo "hello from $(hostname -f), boot $(cat /proc/sys/kernel/random/boot_id)"
disk=/dev/disk/by-id/google-data
blkid "$disk" || mkfs.ext4 -q "$disk"
mkdir -p /mnt/data /run/www
mount "$disk" /mnt/data
cat /proc/sys/kernel/random/boot_id >>/mnt/data/boots
sync
hostname >/run/www/name
systemd-run --quiet --working-directory=/run/www python3 -m http.server 8000
systemd-run --quiet python3 -c "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 8001))
while True:
    data, peer = s.recvfrom(100)
    s.sendto(socket.gethostname().encode() + b' got ' + data, peer)
"
url=http://metadata.google.internal/computeMetadata/v1/instance
curl -s -H 'Metadata-Flavor: Google' "$url/name" >/run/www/metadata-name
curl -s -X PUT -H 'Metadata-Flavor: Google' --data "$(wc -l </mnt/data/boots)" \\
  "$url/guest-attributes/lab/boots"
echo "the last line"
"""

ASK_UDP = (
    'python3 -c "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(20);'
    " s.sendto(b'hi', ('{address}', 8001)); print(s.recv(100).decode())\""
)


SOON = "systemd-run --quiet --on-active=1s --timer-property=AccuracySec=100ms"
"""For what ends the connection: ssh would not know whether it was done, and do it again."""


class Forwarding(Driver, Protocol):
    """A driver with what both have beyond the interface."""

    def forward(self, machine: Machine, guest_port: int) -> int: ...
    def ssh_key(self) -> Path: ...


def boot_disk(name: str) -> Disk:
    return Disk(path=f"{ZONE}/disks/{name}", size_gb=10, image="projects/d/global/images/debian-12")


def data_disk(name: str, size_gb: int = 1) -> Disk:
    return Disk(path=f"{ZONE}/disks/{name}-data", size_gb=size_gb, image=None)


def attach(disk: Disk, device_name: str, *, boot: bool = False) -> Attachment:
    return Attachment(disk=disk, device_name=device_name, boot=boot, read_only=False)


def machine(number: int, *, memory_mb: int = 768, vcpus: int = 1) -> Machine:
    name = f"vm-{number}"
    return Machine(
        path=f"{ZONE}/instances/{name}",
        id=1000 + number,
        hostname=f"{name}.z.c.p.internal",
        vcpus=vcpus,
        memory_mb=memory_mb,
        disks=(attach(boot_disk(name), "boot", boot=True), attach(data_disk(name), "data")),
        nics=(
            Nic(
                address=f"10.77.0.{number + 1}",
                cidr="10.77.0.0/24",
                gateway="10.77.0.1",
                mac=f"42:01:0a:4d:00:{number + 1:02x}",
                external=None,
            ),
        ),
    )


def make_disks(driver: Driver, owner: Machine) -> None:
    for each in owner.disks:
        driver.create_disk(each.disk)


def ssh(driver: Forwarding, owner: Machine, command: str, timeout: float = 120) -> str:
    """Run a command on a machine as root; it may take a while until its sshd is up."""
    options = ["-q", "-i", str(driver.ssh_key()), "-o", "StrictHostKeyChecking=no"]
    options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10"]
    options += ["-p", str(driver.forward(owner, 22)), "root@127.0.0.1"]
    end = time.monotonic() + timeout
    while True:
        done = subprocess.run(
            ["ssh", *options, command], capture_output=True, text=True, timeout=timeout, check=False
        )
        # 255 is ssh's own: not connected.
        if done.returncode != 255 or time.monotonic() > end:
            assert done.returncode == 0, f"{command}: {done.returncode}, {done.stdout}{done.stderr}"
            return done.stdout.strip()
        time.sleep(0.5)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.1)


def boot_count(stub: Stub, count: int, timeout: float = 240) -> None:
    """Wait until the machine's script has run `count` times, and its disk has seen them all."""
    seen = stub.wait_for("lab/boots", count, timeout)
    assert seen == [str(number + 1) for number in range(count)], seen
