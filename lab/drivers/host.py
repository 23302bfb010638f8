"""What a driver needs of this machine: programs, and the packages that have them."""

import os
import shutil
import subprocess
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
