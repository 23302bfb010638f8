"""Sets up the checkout: the venv with its pinned requirements, and the daemon's binary."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tools.toolchain.build import only_one
from tools.toolchain.failure import Failure
from tools.toolchain.progress import Steps, say

REQUIREMENTS = ("requirements.txt",)
DEV_REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
PILOT_REQUIREMENTS = Path("tools/toolchain/pilot-requirements.txt")
BINARIES = ("pilot-daemon", "pilotctl")
COMMAND = "pilot-fleet"
# Planned, for who watches.
_VENV_SECONDS, _DAEMON_SECONDS = 60.0, 10.0
# As pip writes one where the path of its Python is long or has a blank: to sh the second line runs
# this file with the venv's Python, to Python lines 2 and 3 are a text.
_SCRIPT = """\
#!/bin/sh
'''exec' {python} "$0" "$@"
' '''
# The operator's command line of this checkout, in any folder. Made by tools/toolchain/checkout.py.
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from ops.cli import COMMAND, main

sys.exit(main(program=COMMAND))
"""


def stamp(root: Path, files: Sequence[str], interpreter: str) -> str:
    """A hash of everything a venv is made from: the requirements, the Python, and the path of the
    checkout (a venv's programs name it in their first line)."""
    digest = hashlib.sha256(f"{interpreter}\0{root}\0".encode())
    for name in files:
        digest.update((root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def ensure_venv(root: Path, *, dev: bool) -> None:
    """Have `.venv` with the pinned requirements and the command `pilot-fleet` in it."""
    _ensure_packages(root, dev=dev)
    ensure_command(root / ".venv")


def ensure_command(venv: Path) -> None:
    """Have the operator's command in the venv, also in one that was made without it.

    It names the venv's Python, as all programs of a venv do: a copied or moved one is replaced.
    """
    command = venv / "bin" / COMMAND
    text = _SCRIPT.format(python=shlex.quote(str(venv / "bin" / "python")))
    if _text_of(command) == text and os.access(command, os.X_OK):
        return
    try:
        # Beside it, so that a rename puts it in place, whole.
        with tempfile.TemporaryDirectory(prefix=f".{COMMAND}-", dir=command.parent) as scratch:
            partial = Path(scratch) / COMMAND
            partial.write_text(text, encoding="utf-8")
            partial.chmod(0o755)
            partial.rename(command)
    except OSError as error:
        # Everything else works without it.
        say(f"{command} could not be written ({error.strerror}): `python -m ops` does the same")


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _ensure_packages(root: Path, *, dev: bool) -> None:
    """Make `.venv` with exactly the pinned requirements; costs nothing when it has them.

    The stamp is written after success only. After an interrupted installation, which leaves its
    marker, and in a checkout that was moved, the venv is made anew. A venv without a stamp that
    has exactly the pinned packages is kept: `pulumi install` makes one.
    """
    venv = root / ".venv"
    done, marker, place = (venv / name for name in (".requirements", ".installing", ".place"))
    interpreter = sys.version
    base = stamp(root, REQUIREMENTS, interpreter)
    full = stamp(root, DEV_REQUIREMENTS, interpreter)
    wanted = {full} if dev else {base, full}

    def complete() -> bool:
        whole = done.is_file() and not marker.exists() and (venv / "bin" / "python").exists()
        return whole and done.read_text() in wanted

    if complete():
        return
    with only_one(root / "tools" / "toolchain", "Setting up this checkout"):
        if complete():
            return
        if not done.exists() and not marker.exists():
            for files, text in ((DEV_REQUIREMENTS, full), (REQUIREMENTS, base)):
                if _has_exactly(venv, "".join((root / name).read_text() for name in files)):
                    place.write_text(str(root))
                    done.write_text(text)
                    break
        if complete():
            return
        files = DEV_REQUIREMENTS if dev else REQUIREMENTS
        with Steps([_VENV_SECONDS]).step("Setting up .venv, once"):
            here = place.is_file() and place.read_text() == str(root)
            usable = here and _runs_pip(venv) and not marker.exists()
            if not usable:
                _run([sys.executable, "-m", "venv", "--clear", str(venv)], "create .venv")
                place.write_text(str(root))
            done.unlink(missing_ok=True)
            marker.touch()
            _run(
                [
                    *(str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"),
                    *("--disable-pip-version-check", "--no-input", "--require-hashes"),
                    *(word for name in files for word in ("-r", str(root / name))),
                ],
                "install the requirements",
            )
        partial = done.with_suffix(".new")
        partial.write_text(full if dev else base)
        marker.unlink()
        partial.rename(done)


# Packages of every venv.
_OWN = {"pip", "setuptools", "wheel"}
# pip writes a package's INSTALLER last: a package without it is not whole.
_INSTALLED = """
import importlib.metadata, sys
if sys.version_info >= (3, 11):
    for each in importlib.metadata.distributions():
        if each.read_text("INSTALLER") is not None:
            print(f"{each.name}=={each.version}")
"""


def _has_exactly(venv: Path, requirements: str) -> bool:
    """Whether a venv was made here and has the pinned packages, whole, and no others."""

    def pins(text: str) -> set[str]:
        found = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", text, re.MULTILINE)
        names = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}
        return {f"{name}=={version}" for name, version in names.items() if name not in _OWN}

    try:
        if str(venv) not in (venv / "bin" / "activate").read_text():
            return False
        # -I: only the venv's own packages, whatever PYTHONPATH says.
        answer = subprocess.run(
            [venv / "bin" / "python", "-I", "-c", _INSTALLED],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return False
    return answer.returncode == 0 and pins(answer.stdout) == pins(requirements)


def _runs_pip(venv: Path) -> bool:
    python = venv / "bin" / "python"
    if not python.exists():
        return False
    try:
        answer = subprocess.run(
            [python, "-c", "import sys, pip; print(sys.version, end='')"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout == sys.version


def pinned_version(requirements: str) -> str:
    """The version of the Pilot Protocol wheel that a requirements file pins."""
    found = re.search(r"^pilotprotocol==(\S+)", requirements, re.MULTILINE)
    if not found:
        raise Failure(f"{PILOT_REQUIREMENTS} does not pin pilotprotocol==VERSION.")
    return found[1]


def ensure_artifacts(root: Path) -> None:
    """Have `artifacts/VERSION/pilot-daemon` and `pilotctl`, from the pinned wheel.

    Each is moved in by one rename. Other files in that folder (your rendezvous binary) stay.
    """
    version = pinned_version((root / PILOT_REQUIREMENTS).read_text())
    folder = root / "artifacts" / version
    if all((folder / name).exists() for name in BINARIES):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(root / "tools" / "toolchain", "Setting up this checkout"):
        if all((folder / name).exists() for name in BINARIES):
            return
        with (
            Steps([_DAEMON_SECONDS]).step(f"Fetching pilot-daemon {version}"),
            tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch,
        ):
            _run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--disable-pip-version-check", "--no-input", "--require-hashes"),
                    # For the VMs, whatever this machine is.
                    *("--only-binary=:all:", "--python-version", "3.11"),
                    *("--platform", "manylinux_2_34_x86_64", "--dest", scratch),
                    *("--requirement", str(root / PILOT_REQUIREMENTS)),
                ],
                "fetch pilot-daemon",
            )
            (wheel,) = Path(scratch).glob("*.whl")
            for name in BINARIES:
                unpack(wheel, f"pilotprotocol/bin/{name}", folder / name, Path(scratch))


def unpack(wheel: Path, member: str, target: Path, scratch: Path) -> None:
    """Extract a file of a wheel, executable. It is in place only when whole and on the disk."""
    partial = scratch / target.name
    with zipfile.ZipFile(wheel) as archive, partial.open("wb") as out:
        try:
            source = archive.open(member)
        except KeyError as error:
            raise Failure(f"{wheel.name} holds no {member}: pin another version.") from error
        with source:
            shutil.copyfileobj(source, out)
        out.flush()
        os.fsync(out.fileno())
    partial.chmod(0o755)
    partial.rename(target)


def _run(command: Sequence[str], what: str) -> None:
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines()[-10:]
        tail = "\n".join(f"    {line}" for line in lines)
        raise Failure(
            f"Could not {what}. Fix the error below (most often an index that cannot be reached: "
            f"PIP_INDEX_URL, or a Python without its venv package), then run this again.\n{tail}"
        )
