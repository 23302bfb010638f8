"""The image that machines boot: Debian 12 with Google's guest agent, built once and cached.

`ensure_image` builds it from the packages of whatever mirror this machine's apt uses, as root or
in a user namespace. What is in it is the recipe below and the folder `image/` beside this file;
a hash of both names the folder in the cache, so that a changed recipe is another image.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.machines.driver import MachineError

LOG = logging.getLogger("lab.machines.image")

SUITE: Final = "bookworm"
FILES: Final = Path(__file__).parent / "image"
PACKAGES: Final = (
    "busybox-static",
    "ca-certificates",
    "curl",
    "dbus",
    "e2fsprogs",
    "google-compute-engine-oslogin",
    "google-guest-agent",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "mount",
    "netbase",
    "openssh-server",
    "procps",
    "python3",
    "systemd",
    "systemd-sysv",
    "udev",
)
"""What Google's image has of what programs on an instance rely on, a kernel, and its first init."""

ROOT_MIB: Final = 2048
"""Size of the root file system in MiB; a guest grows it to its disk's size when it boots."""

_VERSION: Final = 1  # of what the functions below do with the recipe


class ImageError(MachineError):
    """The image cannot be built here; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """A built image: `root` is a raw ext4 file system that nobody may write to.

    `build` tells two builds of one recipe apart: a mirror gives newer packages next month.
    """

    folder: Path
    build: str

    @property
    def kernel(self) -> Path:
        """The kernel, to be started with `initrd` and `root=LABEL=root`."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initial RAM disk of `kernel`."""
        return self.folder / "initrd"

    @property
    def root(self) -> Path:
        """The root file system."""
        return self.folder / "root.raw"


def default_cache() -> Path:
    """Return the folder that images are cached in: `$XDG_CACHE_HOME/lab`, or `~/.cache/lab`."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".cache") / "lab"


def recipe_key() -> str:
    """Return the hash that names this recipe's image: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    digest.update(json.dumps([_VERSION, SUITE, PACKAGES, ROOT_MIB]).encode())
    for path in sorted(each for each in FILES.rglob("*") if each.is_file()):
        mode = "x" if os.access(path, os.X_OK) else "-"
        content = path.read_bytes()
        digest.update(f"{path.relative_to(FILES)} {mode} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def find_image(cache: Path) -> Image | None:
    """Return this recipe's image if it has been built."""
    folder = cache / f"image-{recipe_key()}"
    try:
        build = json.loads((folder / "image.json").read_text())["build"]
    except FileNotFoundError:
        return None
    return Image(folder=folder, build=build)


def ensure_image(cache: Path) -> Image:
    """Return the image, built if it is not there: a minute or two, once.

    Processes that come at the same time wait for one build. A build that was interrupted goes on
    after its last finished step. ImageError where it cannot be built.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "image.lock"):
        found = find_image(cache)
        return found or _build(cache / f"image-{recipe_key()}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path) -> Image:
    started = time.monotonic()
    part = folder.with_name(folder.name + ".part")
    part.mkdir(exist_ok=True)
    image = Image(folder=folder, build=uuid.uuid4().hex[:12])
    packed = part / "root.tar"
    if not packed.exists():
        LOG.info("building the image: packages (a minute)")
        _install(part / "root.tar.part")
        (part / "root.tar.part").rename(packed)
    LOG.info("building the image: file system")
    _run(*_as_root(), "sh", "-euc", _PACK, "sh", str(part), str(ROOT_MIB), what="file system")
    packed.unlink()
    (part / "root.raw").chmod(0o444)
    seconds = round(time.monotonic() - started)
    facts = {"build": image.build, "suite": SUITE, "built_in_seconds": seconds}
    (part / "image.json").write_text(json.dumps(facts) + "\n")
    part.rename(folder)
    LOG.info("built %s in %d s", folder, seconds)
    return image


# Unpacks, takes kernel and initrd out, and makes the file system, all as the root of this machine
# or of a user namespace: `mke2fs -d` writes the owners that it sees.
_PACK: Final = """
cd "$1"
rm -rf tree root.raw.part
mkdir tree
tar --extract --file root.tar --directory tree --numeric-owner --xattrs --exclude './dev/*'
cat tree/boot/vmlinuz-* >vmlinuz
cat tree/boot/initrd.img-* >initrd
truncate --size "$2M" root.raw.part
mke2fs -q -F -t ext4 -L root -m 1 -d tree root.raw.part
rm -rf tree
mv root.raw.part root.raw
"""


def _install(target: Path) -> None:
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--format=tar",
        f"--include={','.join(PACKAGES)}",
        *(f"--aptopt={option}" for option in _apt_options()),
        "--aptopt=APT::Install-Recommends false",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f"--essential-hook=sync-in {FILES / 'root'} /",
        f"--customize-hook=copy-in {FILES / 'setup.sh'} {FILES / 'init'} /",
        '--customize-hook=chroot "$1" /setup.sh',
        '--customize-hook=rm "$1/setup.sh"',
        SUITE,
        str(target),
        "-",
    ]
    _run(*command, stdin="".join(f"{line}\n" for line in _sources()), what="mmdebstrap")


def _apt_options() -> list[str]:
    """Return how this machine's apt reaches its mirror: proxies, time-outs, checks of dates."""
    dump = _output("apt-config", "dump", "--no-empty", "Acquire")
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
    lines = (line.rstrip(";") for line in dump.splitlines())
    return [line for line in lines if line.startswith(wanted)]


def _sources() -> list[str]:
    """Return sources.list lines for the suite and its updates, from this machine's apt."""
    lines = source_lines(
        _output(
            "apt-get",
            "indextargets",
            "--format",
            "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
            "Created-By: Packages",
        )
    )
    if not any(f" {SUITE} " in line for line in lines):
        message = (
            f"this machine's apt knows no Debian {SUITE}, which the image is built of: add it to"
            " its sources (with a low priority if this is another release) and run apt-get update"
        )
        raise ImageError(message)
    return lines


def source_lines(targets: str) -> list[str]:
    """Return sources.list lines from apt's index targets: `origin|codename|uri|release|component`.

    Only Debian's, only the suite with its updates and security fixes, only main.
    """
    lines = []
    for target in targets.splitlines():
        origin, codename, uri, release, component = target.split("|")
        suites = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
        if origin == "Debian" and codename in suites and component == "main":
            lines.append(f"deb {uri} {release} main")
    return list(dict.fromkeys(lines))


def _as_root() -> list[str]:
    if os.geteuid() == 0:
        return []
    if shutil.which("unshare") is None or shutil.which("newuidmap") is None:
        message = "without root the image needs newuidmap: apt-get install uidmap"
        raise ImageError(message)
    return ["unshare", "--user", "--map-root-user", "--map-auto"]


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        message = f"{command[0]} is not there: the image is built with Debian's tools, on Debian"
        raise ImageError(message) from None
    except subprocess.CalledProcessError as error:
        raise ImageError(_explained(command, error.stderr)) from None
    return done.stdout


def _run(*command: str, what: str, stdin: str = "") -> None:
    LOG.debug("%s", " ".join(command))
    # LANG: mmdebstrap hands it to maintainer scripts, and the image has no locales.
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=True, env=environ
        )
    except FileNotFoundError:
        message = f"{command[0]} is not there: apt-get install {what}"
        raise ImageError(message) from None
    except subprocess.CalledProcessError as error:
        raise ImageError(_explained(command, error.stderr)) from None


def _explained(command: Sequence[str], stderr: str) -> str:
    last = "\n".join(stderr.strip().splitlines()[-12:])
    return f"the image could not be built: {command[0]} says:\n{last}"
