"""Measures the state disk, and grows its file system where the disk became larger.

The startup script does so at a boot. Here it is done under a running VM: the file system stays
mounted and in use.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .paths import Paths

# Bytes by which a disk must be larger than its file system, as in the startup script: ext4 may not
# be able to use less, and disks grow by gigabytes.
LARGER: Final = 16 << 20

# ext4's superblock: where it is, its bytes, its magic number.
_AT, _BYTES, _MAGIC = 1024, 1024, 0xEF53
_64BIT: Final = 0x80


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes, None where they are not known."""

    device: int | None = None
    """Of the disk."""
    size: int | None = None
    """Of the file system on it."""
    free: int | None = None
    """Of that, free for agents."""


def filesystem_bytes(superblock: bytes) -> int | None:
    """The size of the ext4 file system with that superblock, None where it is no ext4."""

    def number(at: int, length: int = 4) -> int:
        return int.from_bytes(superblock[at : at + length], "little")

    if len(superblock) < _BYTES or number(0x38, 2) != _MAGIC:
        return None
    blocks = number(0x4)
    if number(0x60) & _64BIT:
        blocks |= number(0x150) << 32
    return blocks << (10 + number(0x18))


class StateDisk:
    """The disk that is mounted on the state directory. `look` never waits."""

    def __init__(self, paths: Paths, say: Callable[[str], None]) -> None:
        self._paths = paths
        self._say = say
        self._growing: subprocess.Popen[bytes] | None = None
        # The size of the disk for which growing failed last, and why.
        self._failed: tuple[int, str] | None = None
        self.usage = Usage()

    def look(self) -> str:
        """Measure the disk, and begin to grow its file system where that is due. The problem, or
        ""."""
        device = self._paths.mounted_from(self._paths.state)
        if device is None:
            self.usage = Usage()
            return ""
        found = os.statvfs(self._paths.state)
        with device.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(_AT)
            filesystem = filesystem_bytes(stream.read(_BYTES))
        self.usage = Usage(
            device=size, size=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize
        )
        if self._is_growing(size) or filesystem is None or size - filesystem < LARGER:
            return ""
        if self._failed is None or self._failed[0] != size:
            try:
                self._grow(device)
            except OSError as error:
                # resize2fs is not installed, or there is no memory for it.
                self._failed = (size, error.strerror or str(error))
            else:
                return ""
        return (
            f"{device} has {size >> 20} MiB and its file system {filesystem >> 20} MiB: resize2fs "
            f"failed ({self._failed[1]}); a restart of the VM grows it"
        )

    def _grow(self, device: Path) -> None:
        self._say(f"{device} is larger than its file system: growing it")
        self._growing = subprocess.Popen(
            ["resize2fs", str(device)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def _is_growing(self, size: int) -> bool:
        """Whether resize2fs runs. Notes the result of one that has ended."""
        process = self._growing
        if process is None:
            return False
        if process.poll() is None:
            return True
        _, said = process.communicate()
        self._growing = None
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"exit status {process.returncode}"
            self._failed = (size, why)
        else:
            self._failed = None
            self._say("the state disk is used in full")
        return False
