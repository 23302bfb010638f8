"""Variants: what agents are started with, in /run/pilot/variants.

A variant is a release, an environment, the text of the unit and the last ordered restart. Its ID is
a hash of these. Agents of two variants run side by side while one replaces the other.
`/run/pilot/variant/PORT` links to the variant that the agent of that port was last started with.
The unit executes it, and a new pilot-node reads from it what runs.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from ..desired.spec import Binary
from ..machine import files
from ..machine.paths import Paths
from ..machine.retry import FinalError
from ..setup import release, units

# Characters of an ID: 64 bits, of a handful of variants on one VM.
LENGTH = 16
_ID = re.compile(r"[0-9a-f]{16}")


def identify(*, sha256: str, environment: Mapping[str, str], unit: str, restart: str) -> str:
    """The ID of a variant. Comments in `unit` do not count."""
    made_of = [sha256, sorted(environment.items()), _directives(unit), restart]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:LENGTH]


def ensure(
    paths: Paths,
    *,
    binary: Binary,
    version: str,
    environment: Mapping[str, str],
    unit: str,
    restart: str,
) -> str:
    """Have the variant in /run, and return its ID.

    `unit` is the text of the agents' unit as systemd has it, `restart` the ID of the last
    ordered restart or "". Raises FinalError where the binary is not there, OSError with the path.
    """
    found = identify(sha256=binary.sha256, environment=environment, unit=unit, restart=restart)
    executable = release.path_of(binary, paths.opt)
    if not executable.is_file():
        raise FinalError(f"{executable} is not there: release {version} was not fetched")
    folder = paths.variants / found
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    files.write(folder / "agent.env", units.environment_file(environment), 0o600)
    about = {
        "release": binary.sha256,
        "version": version,
        "restart": restart,
        "unit": hashlib.sha256(_directives(unit).encode()).hexdigest(),
    }
    files.write(folder / "variant.json", json.dumps(about, sort_keys=True) + "\n")
    # Last: a variant that has this link is complete.
    files.link(folder / "pilot-daemon", str(executable))
    return found


def prune(paths: Paths, keep: Collection[str]) -> None:
    """Remove every variant but `keep` and those that an agent was last started with."""
    others = [folder for folder in _entries(paths.variants) if folder.name not in keep]
    # Reading thousands of links took a sixth of an idle pilot-node's time: only where it matters.
    used = set(read(paths).values()) if others else set()
    for folder in others:
        if folder.name not in used:
            shutil.rmtree(folder)


def about(paths: Paths, variant: str) -> dict[str, str]:
    """The `variant.json` of `variant`, empty where that cannot be read."""
    try:
        found = json.loads((paths.variants / variant / "variant.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def choose(paths: Paths, port: int, variant: str) -> None:
    """Have the agent of `port` started as `variant`, in one rename."""
    paths.chosen.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = paths.chosen / f".{port}.new"
    new.unlink(missing_ok=True)
    # No fsync: /run does not outlive the boot, and thousands are written while agents start.
    new.symlink_to(f"../variants/{variant}")
    new.rename(paths.chosen / str(port))


def forget(paths: Paths, port: int) -> None:
    """Remove the link of the agent of `port`, which is gone and not wanted."""
    (paths.chosen / str(port)).unlink(missing_ok=True)


def read(paths: Paths) -> dict[int, str]:
    """Port -> ID of the variant that its agent was last started with, "" for a bad link."""
    found = {}
    for entry in _entries(paths.chosen):
        if entry.name.isascii() and entry.name.isdigit() and entry.is_symlink():
            name = entry.readlink().name
            found[int(entry.name)] = name if _ID.fullmatch(name) else ""
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _directives(unit: str) -> str:
    lines = (line.strip() for line in unit.splitlines())
    return "\n".join(line for line in lines if line and line[0] not in "#;")
