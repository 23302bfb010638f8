"""A release on trial, as a file on the state disk: a reboot must not hide what it did to the
registry."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeGuard

from ..machine import files
from ..machine.paths import Paths
from ..rollout import roll_state
from . import registry_copies
from .runs import Run


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A release that is not accepted yet. It is kept from before its first start until it is
    accepted, or until the registry is mended after it. A record that cannot be read is a trial of
    an unknown release."""

    release: str = ""
    """sha256 of the binary."""
    keys: int = 0
    """The keys of the newest copy at its begin, which is the way back."""


def current(paths: Paths) -> Trial | None:
    try:
        return files.record(Trial, json.loads(_record(paths).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        return Trial()


def begin(paths: Paths, run: Run) -> None:
    """Have the trial on disk before its first start, also after a power cut. Raises OSError."""
    known = registry_copies.copies(paths)
    trial = Trial(release=run.release, keys=known[-1].keys if known else 0)
    files.write(_record(paths), json.dumps(asdict(trial), sort_keys=True) + "\n", 0o600)
    registry_copies.sync_directory(paths.node_state)


def end(paths: Paths) -> None:
    """Raises OSError."""
    _record(paths).unlink(missing_ok=True)


def is_on_trial(run: Run | None, roll: roll_state.RollState | None) -> TypeGuard[Run]:
    """Whether `run` is of the release that is rolled out and not accepted yet."""
    if run is None or roll is None or roll.target is None:
        return False
    return roll.state in roll_state.ON_TRIAL and run.release == roll.target.sha256


def is_rejected(run: Run, roll: roll_state.RollState | None) -> bool:
    rejected = roll.rejected if roll else ()
    return run.release in {each.sha256 for each in rejected}


def _record(paths: Paths) -> Path:
    return paths.node_state / "trial.json"
