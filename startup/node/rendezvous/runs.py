"""Records in /run/pilot of how the process was started, so that a new pilot-node knows it.

A process whose run is the wanted one is left alone, also when pilot-node restarts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..desired.spec import RendezvousSpec
from ..machine import files
from ..machine.paths import Paths
from ..setup import kernel, units
from .process import UNIT

# A change of these lines of the unit restarts nothing. The limit of descriptors is raised in the
# running process; the others take effect at the next start or stop.
_NEEDS_NO_RESTART = ("#", "LimitNOFILE=", "Before=", "SyslogIdentifier=")


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a process is started with. Where another run is wanted, it is restarted."""

    release: str
    """sha256 of its binary."""
    environment: str
    """Hash of its environment."""
    unit: str
    """Hash of its unit, less the lines that need no restart."""
    tokens: str
    """Hash of its tokens."""
    restart: str
    """The last restart that was ordered."""


def record(paths: Paths) -> Path:
    return paths.run / "rendezvous-run.json"


def running(paths: Paths) -> Run | None:
    """The run of the process, None where that is not known."""
    return files.recall(Run, record(paths))


def remember(paths: Paths, run: Run) -> None:
    """Raises OSError."""
    files.write(record(paths), json.dumps(asdict(run), sort_keys=True) + "\n", 0o600)


def wanted(
    paths: Paths, spec: RendezvousSpec, release: str, config: Mapping[str, str], restart: str
) -> Run:
    """The run that the process should have now. `config`: the content of `-config`."""
    text = (paths.units / UNIT).read_text(encoding="utf-8")
    lines = [
        line
        for line in text.splitlines()
        if line.strip() and not line.startswith(_NEEDS_NO_RESTART)
    ]
    return Run(
        release=release,
        environment=_hash(environment(paths, spec)),
        unit=_hash("\n".join(lines)),
        tokens=_hash(json.dumps(config, sort_keys=True)),
        restart=restart,
    )


def environment(paths: Paths, spec: RendezvousSpec) -> str:
    """The text of the process' environment file."""
    machine = kernel.machine(paths)
    return units.environment_file(units.rendezvous_environment(machine, spec))


def difference(before: Run | None, wanted: Run) -> str:
    """Why the process is restarted, for people."""
    if before is None:
        return "its release and settings are not known"
    names = [name for name, value in asdict(wanted).items() if asdict(before)[name] != value]
    return f"another {', '.join(names)}"


def has_answered(paths: Paths, pid: int) -> bool:
    """Whether an earlier pilot-node has seen the process `pid` up."""
    try:
        return int(_answered(paths).read_bytes()) == pid
    except (FileNotFoundError, ValueError):
        return False


def remember_answer(paths: Paths, pid: int) -> None:
    """Raises OSError."""
    files.write(_answered(paths), f"{pid}\n", 0o600)


def _answered(paths: Paths) -> Path:
    return paths.run / "rendezvous-answered"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
