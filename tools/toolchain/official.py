"""Pulumi's own release, fetched by the SDK's installer, and its provider, fetched by the engine.

Both or neither: they are fetched into a scratch folder of the cache, which one rename moves in.
The installer has no limit of its own, so it runs in a process that has one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.toolchain import build, versions
from tools.toolchain.failure import Failure
from tools.toolchain.progress import Steps, say

# What the SDK's installer fetches first.
ADDRESS = "https://get.pulumi.com/install.sh"
LOOK_SECONDS = 5.0
FETCH_SECONDS = 300.0
"""Of the engine, and of the provider: some 150 MB each. Who has less than 0.5 MB/s builds."""
_PLANNED_SECONDS = 30.0

_LOOK = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
_INSTALL = (
    "import sys; from pulumi.automation import PulumiCommand; PulumiCommand.install(sys.argv[1])"
)
_PROGRAMS = ("pulumi", "pulumi-language-python", "pulumi-language-python-exec")


def sdk_version(requirements: str) -> str:
    """The version of the SDK that a requirements file pins: its installer fetches that engine."""
    found = re.search(r"^pulumi==([^\s;]+)", requirements, re.MULTILINE)
    if not found:
        raise Failure("requirements.txt does not pin pulumi==VERSION.")
    return found[1]


def folder(root: Path, version: str) -> Path:
    """The release's folder in the cache `root`. If it exists it is complete."""
    return root / f"official-{version}-gcp-{versions.PLUGIN_VERSION}-{versions.system()}"


def fetch(root: Path, version: str, python: Path) -> Path:
    """Have the release, with the SDK of `python`; its folder. Raises Failure, with a reason that
    is part of a sentence, and leaves nothing half."""
    target = folder(root, version)
    if not python.exists():
        raise Failure("there is no .venv with the SDK that fetches it: `make venv`")
    _run([sys.executable, "-c", _LOOK, ADDRESS], LOOK_SECONDS, ADDRESS.split("/")[2])
    root.mkdir(parents=True, exist_ok=True)
    with build.only_one(root / "lock", "Fetching or building Pulumi"):
        if target.exists():
            return target
        for leftover in root.glob("scratch-*"):
            build.remove(leftover)
        say(f"Fetching Pulumi {version}, its own release, once")
        steps = Steps([_PLANNED_SECONDS] * 2)
        with build.scratch_folder(root, "official") as scratch:
            with steps.step("fetching the engine (1 of 2)"):
                _run([str(python), "-c", _INSTALL, str(scratch)], FETCH_SECONDS, "its installer")
            plugin = [f"{scratch}/bin/pulumi", "plugin", "install", "resource", "gcp"]
            home = {"PULUMI_HOME": f"{scratch}/home", "PULUMI_SKIP_UPDATE_CHECK": "1"}
            with steps.step("fetching the Google provider (2 of 2)"):
                _run([*plugin, versions.PLUGIN_VERSION], FETCH_SECONDS, "the provider", home)
            wanted = [*(f"bin/{name}" for name in _PROGRAMS), versions.PROVIDER.output]
            if lacking := [name for name in wanted if not os.access(scratch / name, os.X_OK)]:
                raise Failure(f"it came without {', '.join(lacking)}")
            scratch.rename(target)
    return target


def _run(
    command: Sequence[str], seconds: float, what: str, environ: Mapping[str, str] | None = None
) -> None:
    """Run a command with a limit. It ends with all that it has started."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException as error:
        # It is not reaped yet, so the number is its own.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Failure(f"no answer of {what} within {seconds:.0f} s") from None
        raise
    if process.returncode:
        last = (output.strip().splitlines() or ["no reason given"])[-1]
        raise Failure(f"{what} failed: {last}")
