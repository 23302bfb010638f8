"""The files of a lab's drivers. They outlive the process.

Everything is below the lab's state directory:

    disks/NAME.raw|.qcow2|.tree   a disk's data; NAME.json beside it names the image it is made of
    images/BUILD/                 links to the images that disks are made of
    machines/NAME/                a machine's record, console and process
    ssh/id_ed25519                the lab's own key
"""

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from lab.machines.driver import Attachment, Disk, Machine, MachineError, Nic
from lab.machines.image import Image

MTU: Final = 1460
"""Of Compute Engine's networks, unless asked for another."""

SERVICE_NETWORK: Final = "169.254.169.0/24"
METADATA_ADDRESS: Final = "169.254.169.254"
HOST_ADDRESS: Final = "169.254.169.1"
"""Where a machine finds the lab's own API, on the port that it has on this machine's loopback."""

GIB: Final = 1024**3

Endpoint = Callable[[Machine], tuple[str, int]]
"""Returns the (host, port) of the metadata server that answers for a machine."""


def slug(path: str) -> str:
    """Return a file name for a resource: the names in its path, which no `_` can be part of."""
    return "_".join(path.strip("/").split("/")[1::2])


class Places:
    """The files of one lab below `state`."""

    def __init__(self, state: Path) -> None:
        """Take `state`, a directory that exists or will be made."""
        self.state = state.absolute()
        # Machines start in parallel, and the first of them make the shared files.
        self._making = threading.Lock()

    def machine(self, path: str) -> Path:
        """Return the folder of the machine `path`."""
        return self.state / "machines" / slug(path)

    def console(self, path: str) -> Path:
        """Return the file that the machine's first serial port is written to."""
        return self.machine(path) / "console.log"

    def disk(self, path: str, kind: str) -> Path:
        """Return the data of the disk `path`; `kind` is `raw`, `qcow2`, `tree` or `json`."""
        return self.state / "disks" / f"{slug(path)}.{kind}"

    def snapshot(self, path: str) -> Path:
        """Return the data of the snapshot `path`."""
        return self.state / "snapshots" / f"{slug(path)}.raw"

    def build_of(self, path: str) -> Path | None:
        """Return the folder of the image that a disk was made of, or None for a blank one."""
        try:
            build = json.loads(self.disk(path, "json").read_text())["build"]
        except FileNotFoundError:
            return None
        return self.state / "images" / str(build)

    def keep_image(self, image: Image) -> Path:
        """Return the lab's own links to an image.

        Disks are layers over the image's file system, so it must not change or go away with the
        cache. A link keeps it at no cost.
        """
        with self._making:
            return self._keep_image(image)

    def _keep_image(self, image: Image) -> Path:
        folder = self.state / "images" / image.build
        if folder.exists():
            return folder
        part = folder.with_name(folder.name + f".{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for source in (image.kernel, image.initrd, image.root):
            try:
                os.link(source, part / source.name)
            except OSError:
                copy_sparse(source, part / source.name)
        try:
            part.rename(folder)
        except OSError:  # another thread was faster
            shutil.rmtree(part)
        return folder

    def record(self, machine: Machine) -> None:
        """Write a machine down, for a process that comes after this one."""
        folder = self.machine(machine.path)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "machine.json", json.dumps(asdict(machine)))

    def recorded(self) -> Iterator[Machine]:
        """Yield the machines that were written down."""
        for file in sorted(self.state.glob("machines/*/machine.json")):
            yield _machine(json.loads(file.read_text()))

    def forwards(self, path: str) -> dict[int, int]:
        """Return a machine's forwards: port on this machine's loopback by port of the machine."""
        try:
            kept = json.loads((self.machine(path) / "forwards.json").read_text())
        except FileNotFoundError:
            return {}
        return {int(guest): int(host) for guest, host in kept.items()}

    def keep_forwards(self, path: str, forwards: dict[int, int]) -> None:
        """Write down a machine's forwards: they stay the same over stops and starts."""
        folder = self.machine(path)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "forwards.json", json.dumps(forwards))

    def ssh_key(self) -> Path:
        """Return the lab's own private key, made now if there is none; `.pub` is beside it."""
        with self._making:
            return self._ssh_key()

    def _ssh_key(self) -> Path:
        key = self.state / "ssh" / "id_ed25519"
        if not key.with_suffix(".pub").exists():
            key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            key.unlink(missing_ok=True)
            part = key.with_name("part")
            for each in (part, part.with_suffix(".pub")):
                each.unlink(missing_ok=True)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(part))
            part.rename(key)
            part.with_suffix(".pub").rename(key.with_suffix(".pub"))
        return key


def _machine(body: dict[str, Any]) -> Machine:
    disks = tuple(
        Attachment(**{**each, "disk": Disk(**each["disk"])}) for each in body.pop("disks")
    )
    nics = tuple(Nic(**each) for each in body.pop("nics"))
    return Machine(**body, disks=disks, nics=nics)


def boot_disk(machine: Machine) -> Disk:
    """Return the disk that a machine boots from; MachineError if it has none."""
    for attachment in machine.disks:
        if attachment.boot:
            return attachment.disk
    message = f"{machine.path} has no boot disk"
    raise MachineError(message)


def make_raw(path: Path, size_gb: int) -> None:
    """Make a sparse file of so many GiB, or grow the one that is there; never shrink it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(max(size_gb * GIB, file.tell()))


def copy_raw(source: Path, target: Path) -> None:
    """Copy a sparse file; what is there already is complete."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    run("cp", "--sparse=always", "--reflink=auto", str(source), str(part))
    part.rename(target)


def credentials(machine: Machine, key: str, *, networks: list[str]) -> dict[str, str]:
    """Return a machine's systemd credentials, by name.

    `networks` are interfaces as the image's `instance-network.service` wants them; `key` is the
    public key that may log in as root.
    """
    told = {"ssh.authorized_keys.root": key, "instance.network": ";".join(networks)}
    if machine.nics:
        short = machine.hostname.partition(".")[0]
        names = dict.fromkeys([machine.hostname, short])
        told["instance.hosts"] = " ".join([machine.nics[0].address, *names])
    return told


def lan_interface(nic: Nic, *routes: str) -> str:
    """Return an interface on the LAN for `credentials`."""
    prefix = nic.cidr.partition("/")[2]
    return ",".join([nic.mac.lower(), f"{nic.address}/{prefix}", str(MTU), *routes])


def free_port(wanted: int | None = None) -> int:
    """Return a TCP port of the loopback interface that is free now: `wanted` if it is."""
    for port in (wanted, 0):
        if port is None:
            continue
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    message = "no TCP port is free on the loopback interface"
    raise MachineError(message)


def write_whole(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old or the new text, never a part."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def read_console(path: Path) -> bytes:
    """Return what is in a console file; nothing if there is none yet."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file with its holes, or share its blocks where the file system can."""
    run("cp", "--reflink=auto", "--sparse=always", str(source), str(target))


def run(*command: str) -> str:
    """Run a program to its end and return what it printed; MachineError has its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        message = f"{command[0]} is not installed: `lab.machines.host` says what to install"
        raise MachineError(message) from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip() or f"exit code {error.returncode}"
        message = f"{' '.join(command[:3])}…: {said}"
        raise MachineError(message) from None
    return done.stdout
