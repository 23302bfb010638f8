"""Machines as QEMU guests: own kernel, own memory; no root and no KVM is needed.

A guest is a process that outlives the lab's. Its pid file and monitor are in the machine's folder,
where the next lab process finds them. A power cut ends the guest's process: its memory is lost;
what it had written is in the host's cache and is kept.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from lab.machines import processes
from lab.machines.driver import Attachment, Disk, Machine, MachineError
from lab.machines.image import default_cache, ensure_image
from lab.machines.local import LocalDriver
from lab.machines.places import (
    GIB,
    HOST_ADDRESS,
    METADATA_ADDRESS,
    MTU,
    SERVICE_NETWORK,
    Endpoint,
    Places,
    boot_disk,
    credentials,
    free_port,
    lan_interface,
    make_raw,
    run,
    write_whole,
)
from lab.machines.qmp import Monitor

LOG = logging.getLogger("lab.qemu")

PROGRAM: Final = "qemu-system-x86_64"

SERVICE_GUEST: Final = "169.254.169.100"
"""A guest's own address on the network that carries metadata, API and forwards."""

STOP_SECONDS: Final = 90.0
"""Time that Compute Engine gives a guest to power off before it cuts its power."""

_PRESS_SECONDS: Final = 5.0  # a guest whose init is not up yet does not hear the power button
_CODE_CACHE_MIB: Final = 256  # of translated code per guest; QEMU's own default is up to 1 GiB

_RELAY: Final = Path(__file__).parent / "relay.py"

# As on Compute Engine the network is `ens4`; the lab's own interface stands before it.
_SLOT_SERVICE: Final = 3
_SLOT_LAN: Final = 4
_SLOT_DISKS: Final = 24

_KERNEL: Final = (
    "root=LABEL=root rw console=ttyS0 quiet"
    # An emulated processor leaks nothing to anyone, and pays for each indirect jump.
    " mitigations=off"
    # Calibrated on a busy machine it runs at any speed; the guest's HPET does not.
    " tsc=unstable"
    # A boot waits dozens of times for grace periods of RCU.
    " rcupdate.rcu_expedited=1"
)


class Qemu(LocalDriver):
    """Runs machines as QEMU guests; see `lab.machines.driver.Driver`."""

    def __init__(
        self,
        state: Path,
        *,
        metadata_endpoint: Endpoint,
        cache: Path | None = None,
        stopped: Callable[[str], None] | None = None,
        accelerator: str = "tcg,thread=multi",
    ) -> None:
        """Adopt the guests of the lab in `state` that run.

        `metadata_endpoint` says where a machine's metadata server listens; it is asked whenever a
        machine starts and, for those that run, now. `cache` is where the image is kept,
        `stopped(path)` is called (from a thread) when a guest ends by itself. `accelerator` is
        QEMU's: `kvm` where it works.
        """
        self._places = Places(state)
        self._endpoint = metadata_endpoint
        self._cache = cache or default_cache()
        self._accelerator = accelerator
        self._watch = processes.ProcessWatch(stopped or (lambda _: None))
        for machine in self._places.recorded():
            pid = self._pid(machine.path)
            if pid is not None:
                self._write_endpoint(machine)
                self._watch.add(machine.path, pid)

    @property
    def description(self) -> str:
        """What this driver is, and how its machines differ from Google's."""
        how = "emulated (slow)" if self._accelerator.startswith("tcg") else self._accelerator
        return (
            f"QEMU guests, {how}: own kernel and memory; one network for all, firewall rules are"
            " recorded and not enforced; no way out to the internet and no name service"
        )

    # Disks

    def create_disk(self, disk: Disk) -> None:
        """Make a disk: an overlay of its image, or a blank sparse file."""
        if disk.image is None:
            self._create_blank_disk(disk)
            return
        base = self._places.keep_image(ensure_image(self._cache))
        target = self._places.disk(disk.path, "qcow2")
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        backing = os.path.relpath(base / "root.raw", target.parent)
        create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing)
        run(*create, str(part), f"{disk.size_gb}G")
        write_whole(self._places.disk(disk.path, "json"), json.dumps({"build": base.name}))
        part.rename(target)

    def resize_disk(self, disk: Disk) -> None:
        """Grow a disk, under a running guest too."""
        for machine in self._places.recorded():
            used = any(each.disk.path == disk.path for each in machine.disks)
            if used and self._pid(machine.path) is not None:
                with self._monitor(machine) as monitor:
                    node, size = _node(disk), disk.size_gb * GIB
                    monitor.do("block_resize", **{"node-name": node, "size": size})
                return
        qcow2 = self._places.disk(disk.path, "qcow2")
        if qcow2.exists():
            run("qemu-img", "resize", "-q", str(qcow2), f"{disk.size_gb}G")
        else:
            make_raw(self._places.disk(disk.path, "raw"), disk.size_gb)

    def delete_disk(self, disk: Disk) -> None:
        """Delete a disk's data."""
        for kind in ("raw", "qcow2", "json"):
            self._places.disk(disk.path, kind).unlink(missing_ok=True)

    # Machines

    def start(self, machine: Machine) -> None:
        """Power a machine on; it boots after this has returned."""
        if self._pid(machine.path) is not None:
            return
        self._places.record(machine)
        self._write_endpoint(machine)
        folder = self._places.machine(machine.path)
        forwards = self._forwards(machine.path)
        command = self.command(machine, forwards)
        LOG.debug("%s", shlex.join(command))
        try:
            # In the machine's folder, because the monitor's socket has a path of 107 bytes at most.
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            message = f"{PROGRAM} is not installed: apt-get install qemu-system-x86"
            raise MachineError(message) from None
        except subprocess.CalledProcessError as error:
            message = f"{machine.path} does not start: {error.stderr.strip()}"
            raise MachineError(message) from None
        pid = self._pid(machine.path)
        if pid is not None:
            self._watch.add(machine.path, pid)

    def stop(self, machine: Machine) -> None:
        """Press the power button; cut the power of a guest that does not go in time."""
        pid = self._pid(machine.path)
        self._watch.forget(machine.path)
        if pid is None:
            return
        waited = 0.0
        while waited < STOP_SECONDS:
            try:
                with self._monitor(machine) as monitor:
                    monitor.do("system_powerdown")
            except OSError:  # it is on its way out, or hangs: both end below
                LOG.debug("%s: no monitor", machine.path)
            if processes.wait(pid, _PRESS_SECONDS):
                return
            waited += _PRESS_SECONDS
        LOG.warning("%s did not power off in %.0f s: cut", machine.path, STOP_SECONDS)
        processes.kill(pid)

    def power_cut(self, machine: Machine) -> None:
        """End a machine without telling it."""
        self._watch.forget(machine.path)
        pid = self._pid(machine.path)
        if pid is not None:
            processes.kill(pid)

    def delete(self, machine: Machine) -> None:
        """Stop a machine and forget it."""
        self.stop(machine)
        shutil.rmtree(self._places.machine(machine.path), ignore_errors=True)

    def change_disks(self, machine: Machine) -> None:
        """Give a machine the disks that it now has, while it runs if it does."""
        self._places.record(machine)
        if self._pid(machine.path) is None:
            return
        wanted = {_node(each.disk): each for each in machine.disks}
        with self._monitor(machine) as monitor:
            found = monitor.do("qom-list", path="/machine/peripheral")
            there = {str(each["name"]) for each in found if each["name"].startswith("disk-")}
            for node in there - set(wanted):
                monitor.do("device_del", id=node)
            for node in there - set(wanted):
                if not processes.until(lambda gone=node: self._let_go(monitor, gone), 10):  # type: ignore[misc]
                    message = f"{machine.path}: the guest does not let go of {node}"
                    raise MachineError(message)
            for node, attachment in wanted.items():
                if node not in there:
                    monitor.do("blockdev-add", **self._blockdev(attachment))
                    monitor.do("device_add", **_scsi_disk(attachment))

    def forward(self, machine: Machine, guest_port: int) -> int:
        """Forward a TCP port of this machine's loopback to a port of the guest; return it.

        It stays the same over stops and starts. In the guest the connection arrives at the lab's
        own interface: a service that listens on its LAN address alone is not reached.
        """
        forwards = self._places.forwards(machine.path)
        if guest_port in forwards:
            return forwards[guest_port]
        port = free_port()
        if self._pid(machine.path) is not None:
            with self._monitor(machine) as monitor:
                said = monitor.human(f"hostfwd_add service {_forward(port, guest_port)}")
            if said:
                message = f"{machine.path}: port {guest_port} cannot be forwarded: {said}"
                raise MachineError(message)
        self._places.keep_forwards(machine.path, {**forwards, guest_port: port})
        return port

    def close(self) -> None:
        """Let go of the guests; they go on running."""
        self._watch.close()

    def shutdown(self) -> None:
        """End all guests of this lab without asking them; MachineError where one stays.

        They are found by their command lines: a new guest has no pid file yet.
        """
        while guests := processes.having(f"-pidfile\0{self._places.state}/machines/"):
            processes.kill(*guests)
        # Also relays of forgotten machines: a relay outlives its guest by a second or two.
        for relay in processes.having(f"{_RELAY}\0{self._places.state}/"):
            processes.kill(relay)
        self.close()

    # What a guest is made of

    def command(self, machine: Machine, forwards: Mapping[int, int]) -> list[str]:
        """Return QEMU's command line; `forwards` are loopback ports by guest port."""
        folder = self._places.machine(machine.path)
        image = self._places.build_of(boot_disk(machine).path)
        if image is None:
            message = f"{machine.path} cannot boot: {boot_disk(machine).path} is made of no image"
            raise MachineError(message)
        accelerator = self._accelerator
        if accelerator.startswith("tcg"):
            accelerator += f",tb-size={_CODE_CACHE_MIB}"
        command = [PROGRAM, "-name", machine.path.rsplit("/", 1)[-1], "-daemonize"]
        command += ["-pidfile", str(folder / "pid"), "-qmp", "unix:qmp.sock,server=on,wait=off"]
        command += ["-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-machine", "pc", "-accel", accelerator, "-cpu", "max"]
        command += ["-smp", str(machine.vcpus), "-m", f"{machine.memory_mb}M"]
        command += ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd")]
        command += ["-append", self._append(machine)]
        console = {"backend": "file", "id": "console", "path": str(folder / "console.log")}
        command += ["-chardev", _options(**console, append="on"), "-serial", "chardev:console"]
        command += ["-device", _options("virtio-rng-pci", addr="0x5")]
        command += ["-device", _options("virtio-scsi-pci", id="scsi", addr=hex(_SLOT_DISKS))]
        for attachment in machine.disks:
            command += ["-blockdev", json.dumps(self._blockdev(attachment))]
            command += ["-device", json.dumps(_scsi_disk(attachment))]
        command += ["-netdev", self._service_netdev(machine, forwards)]
        mac = service_mac(machine)
        where = {"netdev": "service", "addr": hex(_SLOT_SERVICE)}
        command += ["-device", _options("virtio-net-pci", **where, mac=mac)]
        for index, nic in enumerate(machine.nics):
            lan = {"id": f"lan{index}", "mcast": self.lan(), "localaddr": "127.0.0.1"}
            command += ["-netdev", _options("socket", **lan)]
            where = {"netdev": f"lan{index}", "addr": hex(_SLOT_LAN + (index and index + 1))}
            command += ["-device", _options("virtio-net-pci", **where, mac=nic.mac.lower())]
        return command

    def lan(self) -> str:
        """Return the multicast group and port that are this lab's network."""
        digest = hashlib.sha256(str(self._places.state).encode()).digest()
        port = 20000 + int.from_bytes(digest[2:4], "big") % 10000
        return f"239.192.{digest[0]}.{digest[1]}:{port}"

    def _append(self, machine: Machine) -> str:
        key = self._places.ssh_key().with_suffix(".pub").read_text().rsplit(" ", 1)[0]
        service = f"{service_mac(machine)},{SERVICE_GUEST}/24,{MTU}"
        networks = [service, *(lan_interface(nic) for nic in machine.nics)]
        told = credentials(machine, key, networks=networks)
        words = [f'"systemd.set_credential={name}:{value}"' for name, value in told.items()]
        return " ".join([_KERNEL, f"systemd.hostname={machine.hostname.partition('.')[0]}", *words])

    def _blockdev(self, attachment: Attachment) -> dict[str, Any]:
        kind = "qcow2" if self._places.disk(attachment.disk.path, "qcow2").exists() else "raw"
        path = self._places.disk(attachment.disk.path, kind)
        if not path.exists():
            message = (
                f"{attachment.disk.path} has no data at {path}: was it made by another driver?"
            )
            raise MachineError(message)
        return {
            "node-name": _node(attachment.disk),
            "driver": kind,
            "read-only": attachment.read_only,
            "discard": "unmap",
            "file": {"driver": "file", "filename": str(path), "discard": "unmap"},
        }

    def _service_netdev(self, machine: Machine, forwards: Mapping[int, int]) -> str:
        folder = self._places.machine(machine.path)
        relay = [sys.executable, "-I", "-S", str(_RELAY)]
        metadata = shlex.join([*relay, str(folder / "endpoint")])
        options = {
            "id": "service",
            "ipv6": "off",
            "net": SERVICE_NETWORK,
            "host": HOST_ADDRESS,
            "dhcpstart": SERVICE_GUEST,
            "guestfwd": f"tcp:{METADATA_ADDRESS}:80-cmd:{metadata}",
        }
        given = _options("user", **options)
        for guest_port, port in sorted(forwards.items()):
            given += f",hostfwd={_forward(port, guest_port)}"
        return given

    # What the machine's folder holds

    def _pid(self, path: str) -> int | None:
        folder = self._places.machine(path)
        # With the slash: another guest whose name begins with this one may have got the id.
        return processes.find(folder / "pid", f"{folder}/")

    def _monitor(self, machine: Machine) -> Monitor:
        return Monitor(self._places.machine(machine.path) / "qmp.sock")

    @staticmethod
    def _let_go(monitor: Monitor, node: str) -> bool:
        """Tell whether a disk that was unplugged is free; it is some time after the command."""
        try:
            monitor.do("blockdev-del", **{"node-name": node})
        except MachineError:
            return False
        return True

    def _write_endpoint(self, machine: Machine) -> None:
        host, port = self._endpoint(machine)
        write_whole(self._places.machine(machine.path) / "endpoint", f"{host} {port}\n")

    def _forwards(self, path: str) -> dict[int, int]:
        """Return the machine's forwards; a port that was taken meanwhile is replaced."""
        kept = self._places.forwards(path)
        forwards = {guest: free_port(port) for guest, port in kept.items()}
        if forwards != kept:
            LOG.warning("%s: ports were taken, forwards are now %s", path, forwards)
            self._places.keep_forwards(path, forwards)
        return forwards


def service_mac(machine: Machine) -> str:
    """Return the address of a guest's interface to the lab: a local one, by the machine's path."""
    digest = hashlib.sha256(machine.path.encode()).hexdigest()
    return ":".join(["52", "54", "01", digest[0:2], digest[2:4], digest[4:6]])


def _node(disk: Disk) -> str:
    return "disk-" + hashlib.sha256(disk.path.encode()).hexdigest()[:20]


def _scsi_disk(attachment: Attachment) -> dict[str, Any]:
    # The image's udev rule knows disks by these names, as Google's does.
    return {
        "driver": "scsi-hd",
        "bus": "scsi.0",
        "drive": _node(attachment.disk),
        "id": _node(attachment.disk),
        "vendor": "Google",
        "product": "PersistentDisk",
        "device_id": attachment.device_name,
    }


def _forward(port: int, guest_port: int) -> str:
    return f"tcp:127.0.0.1:{port}-:{guest_port}"


def _options(backend: str, **options: str) -> str:
    """Return QEMU's option syntax, in which a comma in a value is doubled."""
    words = [f"{key}={value.replace(',', ',,')}" for key, value in options.items()]
    return ",".join([backend, *words])
