"""A VM that is a folder: its root, the commands it may call, and Google on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.startup import render
from lab.machines.processes import ending
from tests.startup import specs
from tests.startup.google import Google

PROC = {
    "meminfo": "MemTotal:        4194304 kB\nMemFree:         4000000 kB\n",
    "self/mountinfo": "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n",
    "sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
    "sys/kernel/threads-max": "31000\n",
    "sys/kernel/pid_max": "32768\n",
    "sys/fs/file-max": "9223372036854775807\n",
    "sys/net/core/rmem_max": "212992\n",
    "sys/net/core/wmem_max": "212992\n",
    "sys/net/core/rmem_default": "212992\n",
    "sys/net/core/wmem_default": "212992\n",
    "sys/kernel/shm_rmid_forced": "0\n",
    "sys/kernel/sem": "32000\t1024000000\t500\t32000\n",
    "sys/kernel/msgmni": "32000\n",
    "sys/net/ipv4/udp_mem": "15483\t20644\t30966\n",
    "sys/net/ipv4/ip_local_reserved_ports": "\n",
    "sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
}
# What needs systemd or root. Each says how it was called; none of them does anything else.
STUBS = {
    "systemctl": "",
    "systemd-detect-virt": "exit 1",
    # As the kernel shows it: the device is the last word but one, the mount point the last.
    "mount": (
        'set -- "${@: -2}"; echo "40 1 8:16 / $2 rw,nosuid,nodev - ext4 $1 rw"'
        ' >> "$PILOT_ROOT/proc/self/mountinfo"'
    ),
    "umount": "",
    "chown": "",
    "systemd-sysusers": (
        'mkdir -p "$PILOT_ROOT/etc"; echo pilot:x:610:610::/var/lib/pilot:/usr/sbin/nologin'
        ' > "$PILOT_ROOT/etc/passwd"; echo pilot-local:x:611:pilot > "$PILOT_ROOT/etc/group"'
    ),
}


class Vm:
    """A scratch VM. `script` may be changed before `run`."""

    def __init__(self, folder: Path, google: Google) -> None:
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.log = folder / "calls"
        self.script = folder / "startup-script"
        self.google = google
        self.script.write_text(render(10_000).text, encoding="utf-8")
        self.script.chmod(0o755)
        self.bin.mkdir(parents=True)
        self.log.touch()
        for name, content in PROC.items():
            path = self.root / "proc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="ascii")
        for name, body in STUBS.items():
            self.stub(name, body)
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PILOT_ROOT": str(self.root),
            "GCE_METADATA_HOST": google.host,
            "PILOT_RETRY_SECONDS": "10",
            "PILOT_RETRY_PAUSE": "0.05",
            "PILOT_DEVICE_SECONDS": "5",
            "PILOT_LOCK_SECONDS": "20",
            "LC_ALL": "C",
        }

    def stub(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(
            f'#!/bin/bash\necho "{name} $*" >> "{self.log}"\n{body}\n', encoding="utf-8"
        )
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.split(" ")[0] == name]

    def use(self, spec: dict[str, object]) -> None:
        """Put `spec` into the metadata."""
        self.google.attributes |= {
            "pilot-role": str(spec["role"]),
            "pilot-spec": specs.text(spec),
        }

    def use_swarm(self, **changes: object) -> None:
        """A swarm VM whose daemon is in the bucket."""
        daemon = self.google.put("pilot-daemon", b"#!/bin/true\n" + b"x" * 300_000)
        self.use(
            specs.swarm(
                release={"version": "1.18.0", "daemon": daemon},
                endpoints={"storage": f"http://{self.google.host}"},
                **changes,
            )
        )

    def use_rendezvous(self, **changes: object) -> None:
        binary = self.google.put("pilot-rendezvous", b"#!/bin/true\n")
        self.use(
            specs.rendezvous(
                release={"version": "1.18.0", "rendezvous": binary},
                endpoints={"storage": f"http://{self.google.host}"},
                **changes,
            )
        )

    def attach_disk(self, megabytes: int = 8) -> Path:
        """An empty disk where udev would put it."""
        image = self.root.parent / "disk.img"
        with image.open("wb") as stream:
            stream.truncate(megabytes << 20)
        name = self.root / "dev/disk/by-id/google-pilot-state"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(image)
        return image

    def mount(self, path: str, device: str = "/dev/sdb", options: str = "rw") -> None:
        """As if `device` were mounted on `path`."""
        line = f"40 1 8:16 / {self.root}{path} rw,nosuid,nodev - ext4 {device} {options}\n"
        with (self.root / "proc/self/mountinfo").open("a", encoding="utf-8") as stream:
            stream.write(line)

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.script)],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **environment: str) -> tuple[int, str]:
        """Run the script as Google's runner does: until the end of its output. Status, output."""
        with ending(self.start(**environment)) as process:
            output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def call(self, code: str, **environment: str) -> tuple[int, str]:
        """Source the script and run `code`."""
        done = subprocess.run(
            ["bash", "-c", f'source "{self.script}"\n{code}'],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text(encoding="utf-8")

    def tree(self) -> dict[str, bytes]:
        """Every path below the root, with what is in it."""
        return {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else b""
            for path in sorted(self.root.rglob("*"))
        }


@pytest.fixture
def google() -> Iterator[Google]:
    google = Google()
    yield google
    google.stop()


@pytest.fixture
def vm(tmp_path: Path, google: Google) -> Vm:
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info >= (3, 11))"],
        capture_output=True,
        text=True,
        check=False,
    )
    if version.stdout.strip() != "True":
        pytest.skip("no /usr/bin/python3 of 3.11 or later, which a Debian 12 VM has")
    if not sys.platform.startswith("linux"):
        pytest.skip("the startup script is for Linux")
    return Vm(tmp_path, google)
