"""What a driver needs of this machine: programs, the packages that have them, and its clock."""

import ctypes
import functools
import mmap
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from lab.machines import MachineError

_IMAGE: Final = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "truncate": "coreutils",
    "tar": "tar",
    "ssh-keygen": "openssh-client",
}
_WITHOUT_ROOT: Final = {"newuidmap": "uidmap"}
_DRIVERS: Final[dict[str, dict[str, str]]] = {
    "qemu": {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils"},
    "container": {
        "systemd-nspawn": "systemd-container",
        "ip": "iproute2",
        "losetup": "mount",
        "unshare": "util-linux",
        "bash": "bash",
    },
}
# rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_READ_COUNTER: Final = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_PLACES: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on everybody's PATH


def missing_packages(driver: str, *, root: bool) -> list[str]:
    """Return the packages that the driver `qemu` or `container` needs and that are missing."""
    wanted = {**_IMAGE, **_DRIVERS[driver], **({} if root else _WITHOUT_ROOT)}
    path = os.pathsep.join([os.environ.get("PATH", ""), *_PLACES])
    return sorted({wanted[each] for each in wanted if shutil.which(each, path=path) is None})


def ensure_packages(driver: str) -> list[str]:
    """Install what the driver needs, as root; return what was installed.

    MachineError with the line to type where this is not root, or apt fails.
    """
    root = os.geteuid() == 0
    missing = missing_packages(driver, root=root)
    if not missing:
        return []
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    line = f"apt-get update && {' '.join(install)}"
    if not root:
        message = f"the {driver} driver needs packages; as root, type: {line}"
        raise MachineError(message)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "--quiet"], install):
        try:
            subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            message = f"the {driver} driver needs {', '.join(missing)}, and there is no apt here"
            raise MachineError(message) from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip()[-1000:]
            message = f"installing {', '.join(missing)} failed; type: {line}\n{said}"
            raise MachineError(message) from None
    return missing


@functools.cache
def counter_khz() -> int | None:
    """Measure this machine's time-stamp counter (TSC), in kHz; it takes a quarter of a second.

    None where there is none that runs at one rate, or where nobody may make code to read it. What
    `/proc/cpuinfo` calls MHz is another thing: on most machines the speed of the moment.
    """
    if platform.machine() != "x86_64" or not _counts_evenly(Path("/proc/cpuinfo").read_text()):
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(_READ_COUNTER)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def at() -> tuple[int, int]:
        """A moment in ns and the counter at it: of many readings the one that took least."""
        best = (1 << 63, 0, 0)
        for _ in range(200):
            before = time.monotonic_ns()
            count = read()
            took = time.monotonic_ns() - before
            best = min(best, (took, before + took // 2, count))
        return best[1], best[2]

    start, first = at()
    # Long enough: a moment that is wrong by a microsecond is 4 millionths of it.
    time.sleep(0.25)
    end, last = at()
    return round((last - first) * 1_000_000 / (end - start))


def _counts_evenly(cpuinfo: str) -> bool:
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return {"constant_tsc", "nonstop_tsc"} <= set(flags.split())
