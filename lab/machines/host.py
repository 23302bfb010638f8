"""What a driver needs of this machine: programs, their packages, and its kernel."""

import fcntl
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from lab.machines.cgroups import NO_CGROUP_2, hierarchies
from lab.machines.driver import MachineError

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
# The installing process holds it: apt does not wait for another one that reads its lists.
_TURN: Final = Path("/run/lab-packages.lock")
# Seconds that apt waits for dpkg's lock: a new machine upgrades itself.
_LOCKED_S: Final = 300
_INSTALL: Final = ("apt-get", "install", "--yes", "--no-install-recommends")
_PLACES: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # often not on PATH

# A kernel runs so many deferred works on a processor at a time (WQ_DFL_ACTIVE is 1024), and what
# frees a seccomp filter is one.
_WORKS: Final = 1000
_STUCK_S: Final = 5.0
# What a container of this lab needs of its kernel, and root in somebody else's container lacks.
_ISOLATED: Final = ("unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c")
_TRIAL: Final = (*_ISOLATED, "mount -t tmpfs none /mnt && losetup --find")
_TRIAL_S: Final = 10.0


def no_containers(proc: Path = Path("/proc")) -> str:
    """Why this machine can have no containers now; nothing where it can."""
    if os.geteuid() != 0:
        return "containers need root"
    if hierarchies((proc / "mounts").read_text()).unified is None:
        return NO_CGROUP_2
    if why := stuck_kernel(proc):
        return why
    try:
        subprocess.run(_TRIAL, check=True, capture_output=True, text=True, timeout=_TRIAL_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
        return f"this machine lets root make no container ({said})"
    return ""


def stuck_kernel(proc: Path = Path("/proc")) -> str:
    """Why this machine's kernel takes no BPF program any more, a seccomp filter for one; nothing
    where it does. Whoever loads one there never comes back."""
    before = _freeing(proc)
    if len(before) >= _WORKS:
        time.sleep(_STUCK_S)
        if len(before & _freeing(proc)) >= _WORKS:
            return (
                "this machine's kernel is stuck where it frees seccomp filters, and nothing that "
                "has one starts any more: restart the machine (docs/GOTCHAS.md)"
            )
    return ""


def _freeing(proc: Path) -> set[str]:
    """Processes (the kernel's) that wait to free a BPF program, a seccomp filter for one."""
    found = set()
    for each in proc.glob("[0-9]*/wchan"):
        with suppress(OSError):
            if each.read_text() == "bpf_prog_pack_free":
                found.add(each.parent.name)
    return found


def missing_packages(driver: str, *, root: bool) -> list[str]:
    """Return the packages that the driver `qemu` or `container` needs and that are missing."""
    wanted = {**_IMAGE, **_DRIVERS[driver], **({} if root else _WITHOUT_ROOT)}
    path = os.pathsep.join([os.environ.get("PATH", ""), *_PLACES])
    return sorted({wanted[each] for each in wanted if shutil.which(each, path=path) is None})


def ensure_packages(driver: str) -> list[str]:
    """Install what the driver needs, as root; return what was installed.

    Processes that come at the same time do it one after the other. MachineError with the line to
    type where this is not root, or apt fails.
    """
    root = os.geteuid() == 0
    missing = missing_packages(driver, root=root)
    if not missing:
        return []
    if not root:
        message = f"the {driver} driver needs packages; as root, type: {_to_type(missing)}"
        raise MachineError(message)
    with _TURN.open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        # Another process may have installed them meanwhile.
        missing = missing_packages(driver, root=root)
        if missing:
            _install(driver, missing)
    return missing


def _to_type(missing: list[str]) -> str:
    return f"apt-get update && {' '.join([*_INSTALL, *missing])}"


def _install(driver: str, missing: list[str]) -> None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [*_INSTALL, "-o", f"DPkg::Lock::Timeout={_LOCKED_S}", *missing]
    for command in (["apt-get", "update", "--quiet"], install):
        try:
            subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            message = f"the {driver} driver needs {', '.join(missing)}, and there is no apt here"
            raise MachineError(message) from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip()[-1000:]
            message = f"installing {', '.join(missing)} failed; type: {_to_type(missing)}\n{said}"
            raise MachineError(message) from None
