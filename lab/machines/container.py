"""Machines as systemd containers: native speed, up in seconds; needs root.

A container is a process that outlives the lab's, as a QEMU guest is. The relays for its metadata,
its API and its forwards run in the lab's process.
"""

import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from threading import RLock
from typing import Final

from lab.machines import processes
from lab.machines.cgroups import NO_CGROUP_2, Group, hierarchies
from lab.machines.driver import Attachment, Disk, Machine, MachineError
from lab.machines.image import default_cache, ensure_image
from lab.machines.local import LocalDriver
from lab.machines.namespace import Namespace, Relays, listener, unconnected
from lab.machines.places import (
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
from lab.machines.qemu import STOP_SECONDS

LOG = logging.getLogger("lab.container")

LAUNCHER: Final = Path(__file__).parent / "container.sh"

_UP_SECONDS: Final = 20.0  # until a container has its first process; usually half a second
_ASK_SECONDS: Final = 5.0
_POWER_OFF: Final = signal.SIGRTMIN + 4  # to systemd as first process: power off in good order


class Container(LocalDriver):
    """Runs machines as systemd containers; see `lab.machines.driver.Driver`."""

    def __init__(
        self,
        state: Path,
        *,
        metadata_endpoint: Endpoint,
        api_port: int,
        cache: Path | None = None,
        stopped: Callable[[str], None] | None = None,
    ) -> None:
        """Adopt the containers of the lab in `state` that run.

        `metadata_endpoint` says where a machine's metadata server listens; it is asked for each
        connection. `api_port` is the lab's on loopback, which machines find at 169.254.169.1.
        `cache` and `stopped` are as in `lab.machines.qemu.Qemu`.
        """
        if os.geteuid() != 0:
            message = "containers need root: run the lab as root, or with the qemu driver"
            raise MachineError(message)
        self._found = hierarchies(Path("/proc/mounts").read_text())
        if self._found.unified is None:
            raise MachineError(f"{NO_CGROUP_2}: run the lab with the qemu driver")
        self._places = Places(state)
        self._endpoint = metadata_endpoint
        self._api_port = api_port
        self._cache = cache or default_cache()
        self._name = lab_name(state)
        self._namespace = Namespace(self._name)
        self._relays: Relays | None = None
        self._lock = RLock()
        self._machines: dict[str, Machine] = {}
        self._forwarded: set[int] = set()
        self._watch = processes.ProcessWatch(self._ended)
        self._stopped = stopped or (lambda _: None)
        for machine in self._places.recorded():
            pid = self._pid(machine.path)
            if pid is not None:
                self._connect(machine)
                self._watch.add(machine.path, pid)

    @property
    def description(self) -> str:
        """What this driver is, and how its machines differ from Google's."""
        memory = "limited" if self._found.limits_memory else "not limited"
        return (
            "systemd containers: kernel, sysctls (read-only but for a few of net.*), processors,"
            " /proc/meminfo"
            f" and the cap on open files are this machine's; {self._found.description}; memory is"
            f" {memory}; a boot disk has no size of its own; a reset loses nothing that was"
            " written; one network for all, firewall rules are recorded and not enforced; no way"
            " out to the internet and no name service"
        )

    # Disks

    def create_disk(self, disk: Disk) -> None:
        """Make a disk: a layer over its image, or a blank sparse file."""
        if disk.image is None:
            self._create_blank_disk(disk)
            return
        base = self._places.keep_image(ensure_image(self._cache))
        tree = self._places.disk(disk.path, "tree")
        if tree.exists():
            return
        part = tree.with_name(tree.name + ".part")
        rmtree(part, ignore_errors=True)
        for layer in ("upper", "work"):
            (part / layer).mkdir(parents=True)
        write_whole(self._places.disk(disk.path, "json"), json.dumps({"build": base.name}))
        part.rename(tree)

    def resize_disk(self, disk: Disk) -> None:
        """Grow a disk, under a running container too."""
        raw = self._places.disk(disk.path, "raw")
        if not raw.exists():
            return
        make_raw(raw, disk.size_gb)
        for loop in _loops(raw):
            run("losetup", "--set-capacity", loop)

    def delete_disk(self, disk: Disk) -> None:
        """Delete a disk's data."""
        tree = self._places.disk(disk.path, "tree")
        if tree.exists():
            rmtree(tree)
        _detach(self._places.disk(disk.path, "raw"))
        for kind in ("raw", "json"):
            self._places.disk(disk.path, kind).unlink(missing_ok=True)

    # Machines

    def start(self, machine: Machine) -> None:
        """Power a machine on; it boots after this has returned."""
        if self._pid(machine.path) is not None:
            return
        self._places.record(machine)
        self._connect(machine)
        group = self._group(machine.path)
        group.remove()
        group.make(machine.memory_mb)
        folder = self._places.machine(machine.path)
        command = self.command(machine)
        (folder / "pid").unlink(missing_ok=True)
        with (folder / "console.log").open("ab") as console, (folder / "log").open("wb") as log:
            subprocess.run(
                ["setsid", "--fork", *command],
                env={**os.environ, **self._environment()},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=log,
                check=True,
            )
        pid = self._came_up(machine.path)
        if pid is None:
            self._end(machine.path)
            said = (folder / "log").read_text(errors="replace").strip()
            message = f"{machine.path} does not start: {said[-2000:] or 'no word of why'}"
            raise MachineError(message)
        self._watch.add(machine.path, pid)

    def stop(self, machine: Machine) -> None:
        """Ask the container to power off; end one that does not in time."""
        pid = self._pid(machine.path)
        self._watch.forget(machine.path)
        waited = 0.0
        while pid is not None and waited < STOP_SECONDS:
            leader = processes.first_in(pid)
            if leader is not None:
                processes.tell(leader, _POWER_OFF)
            if processes.wait(pid, _ASK_SECONDS):
                pid = None
            waited += _ASK_SECONDS
        if pid is not None:
            LOG.warning("%s did not power off in %.0f s: cut", machine.path, STOP_SECONDS)
        self._end(machine.path)

    def power_cut(self, machine: Machine) -> None:
        """End a machine without telling it."""
        self._watch.forget(machine.path)
        self._end(machine.path)

    def delete(self, machine: Machine) -> None:
        """Stop a machine and forget it."""
        self.stop(machine)
        with self._lock:
            self._machines.pop(machine.path, None)
        rmtree(self._places.machine(machine.path), ignore_errors=True)

    def change_disks(self, machine: Machine) -> None:
        """Write down the disks that a machine now has: a container gets them when it starts."""
        self._places.record(machine)
        if self._pid(machine.path) is not None:
            LOG.warning("%s: a container sees its new disks when it is started", machine.path)

    def forward(self, machine: Machine, guest_port: int) -> int:
        """Forward a TCP port of this machine's loopback to a port of the container; return it.

        It stays the same over stops and starts, and is there while the lab's process is.
        """
        with self._lock:
            forwards = self._places.forwards(machine.path)
            if guest_port not in forwards:
                forwards[guest_port] = free_port()
                self._places.keep_forwards(machine.path, forwards)
            self._open_forwards(machine)
            return self._places.forwards(machine.path)[guest_port]

    def close(self) -> None:
        """Let go of the containers; they go on running, without their relays."""
        self._watch.close()
        with self._lock:
            if self._relays is not None:
                self._relays.close()
                self._relays = None
            self._forwarded.clear()
        if not any(self._pid(machine.path) for machine in self._places.recorded()):
            self._leave_nothing()

    def shutdown(self) -> None:
        """End all containers of this lab without asking them, and remove the lab's network.

        It does not need the state: it also ends containers whose files are gone, and new ones that
        have no pid file yet. MachineError where one stays.
        """
        self._watch.close()
        for folder in self._places.state.glob("machines/*"):
            self._kill(folder)
        while launchers := processes.having(f"/{LAUNCHER.name}\0{self._places.state}/machines/"):
            for each in launchers:
                processes.kill_container(each)
        lab = self._lab_group()
        # Children of a launcher that ended before its children were looked up.
        processes.kill(*lab.processes())
        if not lab.remove():
            where = ", ".join(str(each) for each in lab.directories)
            message = f"processes {lab.processes()} in {where} do not end: end them, and try again"
            raise MachineError(message)
        for raw in self._places.state.glob("disks/*.raw"):
            _detach(raw)
        self.close()
        self._leave_nothing()

    # What a container is made of

    def command(self, machine: Machine) -> list[str]:
        """Return the command line that runs a container until it is off."""
        folder = self._places.machine(machine.path)
        boot = boot_disk(machine)
        image = self._places.build_of(boot.path)
        if image is None:
            message = f"{machine.path} cannot boot: {boot.path} is made of no image"
            raise MachineError(message)
        tree = self._places.disk(boot.path, "tree")
        if not tree.exists():
            message = f"{boot.path} has no data at {tree}: was it made by another driver?"
            raise MachineError(message)
        layers = [image / "root.raw", tree / "upper", tree / "work"]
        data = [each for each in machine.disks if not each.boot]
        devices = {f"/dev/sd{_letters(index + 1)}": each for index, each in enumerate(data)}
        name = f"{self._name}-{_digest(folder)}"
        command = ["unshare", "--mount", "--net", "--propagation", "private"]
        command += [str(LAUNCHER), str(folder), self._name]
        command += ["\n".join(str(each) for each in self._group(machine.path).directories)]
        command += ["\n".join(str(each) for each in layers)]
        command += ["\n".join(self._nics(machine))]
        command += ["\n".join(self._disk(device, each) for device, each in devices.items())]
        command += ["--quiet", "--boot", f"--directory={folder / 'tree'}", f"--machine={name}"]
        command += ["--register=no", "--keep-unit", "--settings=no", "--private-network"]
        command += ["--console=read-only", "--link-journal=no", "--resolv-conf=off"]
        command += ["--timezone=off", f"--hostname={machine.hostname.partition('.')[0]}"]
        # IPAddressDeny= of services needs these.
        command += ["--capability=CAP_BPF,CAP_PERFMON", "--system-call-filter=bpf"]
        for name, value in self._told(machine, devices).items():
            command += [f"--set-credential={name}:{_escaped(value)}"]
        return command

    def _environment(self) -> dict[str, str]:
        # Debian 12 has /tmp on its disk; nspawn would mount a tmpfs.
        return {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_TMPFS_TMP": "0"}

    def _told(self, machine: Machine, devices: dict[str, Attachment]) -> dict[str, str]:
        key = self._places.ssh_key().with_suffix(".pub").read_text().rsplit(" ", 1)[0]
        networks = [lan_interface(nic, SERVICE_NETWORK) for nic in machine.nics]
        # No udev runs in a container, so its links are made with its other files.
        links = ["L+ /dev/ttyS0 - - - - /dev/console"]
        for device, each in devices.items():
            links.append(f"L+ /dev/disk/by-id/google-{each.device_name} - - - - {device}")
        told = credentials(machine, key, networks=networks)
        return {**told, "tmpfiles.extra": "".join(f"{line}\n" for line in links)}

    def _nics(self, machine: Machine) -> list[str]:
        digest = hashlib.sha256(machine.path.encode()).hexdigest()
        return [
            # As on Compute Engine the first is `ens4`; an interface's name has 15 letters at most.
            f"ens{4 + index} v{index}{digest[:12]} {nic.mac.lower()} {MTU}"
            for index, nic in enumerate(machine.nics)
        ]

    def _disk(self, device: str, attachment: Attachment) -> str:
        raw = self._places.disk(attachment.disk.path, "raw")
        if not raw.exists():
            message = (
                f"{attachment.disk.path} is not a blank disk: a container only boots the others"
            )
            raise MachineError(message)
        return f"{device} {'ro' if attachment.read_only else 'rw'} {raw}"

    # Its processes

    def _pid(self, path: str) -> int | None:
        folder = self._places.machine(path)
        return processes.find(folder / "pid", str(folder))

    def _came_up(self, path: str) -> int | None:
        """Wait for a container's first process; return its launcher, or None if it ended."""
        folder = self._places.machine(path)

        def settled() -> bool:
            if not (folder / "pid").exists():
                return False
            pid = self._pid(path)
            return pid is None or processes.first_in(pid) is not None

        return self._pid(path) if processes.until(settled, _UP_SECONDS) else None

    def _kill(self, folder: Path) -> None:
        pid = processes.find(folder / "pid", str(folder))
        if pid is None:
            return
        processes.kill_container(pid)

    def _end(self, path: str) -> None:
        folder = self._places.machine(path)
        self._kill(folder)
        if not self._group(path).remove():
            message = f"{path}: processes of it stay in {self._group(path).directories}"
            raise MachineError(message)
        (folder / "pid").unlink(missing_ok=True)

    def _ended(self, path: str) -> None:
        with suppress(MachineError):
            self._end(path)
        self._stopped(path)

    def _group(self, path: str) -> Group:
        return self._group_of(self._places.machine(path))

    def _group_of(self, folder: Path) -> Group:
        return Group(self._found, f"{self._name}/{_digest(folder)}")

    # Its network

    def _connect(self, machine: Machine) -> None:
        """Have the lab's network and relays there for a machine."""
        with self._lock:
            self._namespace.ensure()
            for nic in machine.nics:
                self._namespace.add_gateway(nic)
            self._machines[machine.path] = machine
            if self._relays is None:
                self._relays = Relays()
                inside = self._namespace.inside
                where = (METADATA_ADDRESS, 80)
                self._relays.serve(inside(lambda: listener(*where)), self._dial_metadata)
                where_api = (HOST_ADDRESS, self._api_port)
                self._relays.serve(inside(lambda: listener(*where_api)), self._dial_api)
            self._open_forwards(machine)

    def _open_forwards(self, machine: Machine) -> None:
        if self._relays is None:
            return  # opened when a machine starts
        forwards = self._places.forwards(machine.path)
        for guest_port, wanted in forwards.items():
            if wanted in self._forwarded:
                continue
            port = free_port(wanted)
            if port != wanted:
                LOG.warning("%s: port %d is taken, now %d", machine.path, wanted, port)
                self._places.keep_forwards(machine.path, {**forwards, guest_port: port})
            self._forwarded.add(port)
            self._relays.serve(listener("127.0.0.1", port), self._dialler(machine.path, guest_port))

    def _dial_metadata(self, peer: str) -> tuple[socket.socket, tuple[str, int]] | None:
        """Return the metadata server of the machine that has the address `peer`."""
        with self._lock:
            machines = list(self._machines.values())
        for machine in machines:
            if any(nic.address == peer for nic in machine.nics):
                return unconnected(), self._endpoint(machine)
        LOG.warning("%s asks for metadata, and no machine has that address", peer)
        return None

    def _dial_api(self, _: str) -> tuple[socket.socket, tuple[str, int]]:
        return unconnected(), ("127.0.0.1", self._api_port)

    def _dialler(
        self, path: str, port: int
    ) -> Callable[[str], tuple[socket.socket, tuple[str, int]] | None]:
        def dial(_: str) -> tuple[socket.socket, tuple[str, int]] | None:
            with self._lock:
                machine = self._machines.get(path)
            if machine is None or not machine.nics:
                return None
            return self._namespace.inside(unconnected), (machine.nics[0].address, port)

        return dial

    def _lab_group(self) -> Group:
        return Group(self._found, self._name)

    def _leave_nothing(self) -> None:
        self._namespace.delete()
        self._lab_group().remove()


def _loops(raw: Path) -> list[str]:
    return run("losetup", "--noheadings", "-O", "NAME", "-j", str(raw)).split()


def _detach(raw: Path) -> None:
    """Detach a disk whose container has ended.

    A container that was killed between attaching and opening it leaves it attached for good.
    """
    for loop in _loops(raw) if raw.exists() else []:
        with suppress(MachineError):  # it was just detached by itself
            run("losetup", "--detach", loop)


def lab_name(state: Path) -> str:
    """Return the name of a lab's network namespace and cgroup: one per state directory."""
    return "lab-" + hashlib.sha256(str(state.absolute()).encode()).hexdigest()[:8]


def _digest(folder: Path) -> str:
    return hashlib.sha256(folder.name.encode()).hexdigest()[:12]


def _letters(index: int) -> str:
    """Return the letters of the disk with that index: a … z, aa …"""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def _escaped(value: str) -> str:
    """Return a credential's value as --set-credential= reads it: with escapes as in C."""
    return value.replace("\\", "\\\\").replace("\n", "\\n")
