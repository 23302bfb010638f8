"""The state of a roll, and its file on the state disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from ..machine import files
from ..machine.paths import Paths
from ..machine.retry import FinalError

NONE: Final = "none"
WAITING: Final = "waiting"
ROLLING: Final = "rolling"
WATCHING: Final = "watching"
HALTED: Final = "halted"
# Some agents have the target release, and it is not accepted yet.
ON_TRIAL: Final = (ROLLING, WATCHING)
_STATES: Final = (NONE, WAITING, *ON_TRIAL, HALTED)
# The file, and its copy.
_NAMES = ("roll.json", "roll.json.old")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release. Two are the same when their sha256 is."""

    version: str
    sha256: str
    """Of its binary, in hex."""

    def __str__(self) -> str:
        return f"{self.version} ({self.sha256[:12]})"


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A release that is tried again by order only."""

    version: str
    sha256: str
    reason: str
    time: float
    """Seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class BatchWatch:
    """Observations of the ports with the new release, since their last batch began."""

    epoch: str = ""
    """As in RollObserved. With another one all agents are started anew, and so is the watch."""
    before: Mapping[int, int] = field(default_factory=dict)
    """Failures in a row that each port had at the begin."""
    up: Mapping[int, float] = field(default_factory=dict)
    """When each port became ready (its `up_since`)."""
    ever_up: bool = False
    """Whether any port was ready."""
    down_since: float | None = None
    """Since when failed ports are down while an agent of the accepted release, if there is one,
    is up."""
    died: frozenset[int] = frozenset()
    """Ports that were ready and have ended or restarted since."""
    since: float | None = None
    """When all were ready, and the watch began."""
    memory: tuple[float, float] | None = None
    """Mean private bytes at the begin of the watch, and the time of that."""
    kernel: tuple[str, ...] = ()
    """The kernel's lines about the program."""


@dataclass(frozen=True, kw_only=True)
class RollState:
    """The state of the roll, as it is on the state disk (but for `watch`)."""

    accepted: Release | None = None
    """The release of all ports that do not have `target`."""
    previous: Release | None = None
    """The release that was accepted before."""
    target: Release | None = None
    """The release of the first `done` ports while the state is ROLLING or WATCHING."""
    state: str = NONE
    done: int = 0
    reason: str = ""
    rejected: tuple[Rejected, ...] = ()
    spent: tuple[str, ...] = ()
    """The GO verdicts that were used, `SHA256/ID` each."""
    watch: BatchWatch | None = None


def recall(paths: Paths, say: Callable[[str], None]) -> RollState:
    """The state on disk, or a new one on a new VM. A file that cannot be understood is logged.
    Raises OSError when a file cannot be read and the other one gives no state either."""
    missed: OSError | None = None
    for name in _NAMES:
        path = paths.node_state / name
        try:
            found = _read(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            missed = error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            say(f"{path}: {error}: its accepted and rejected releases are lost")
        else:
            if missed is not None:
                say(f"{missed}: {path} is taken instead")
            return found
    if missed is not None:
        raise missed
    return RollState()


def _read(path: Path) -> RollState:
    """Raises FinalError where a newer program wrote fields that must not be ignored."""
    known = json.loads(path.read_bytes())
    required = {*known.get("requires", ())} - {each.name for each in fields(RollState)}
    if known["state"] not in _STATES:
        required.add(f"state {known['state']}")
    if required:
        raise FinalError(
            f"{path}: a newer program wrote it, and {', '.join(sorted(map(str, required)))} must "
            "not be ignored: no agent is started until the script that knows it is back"
        )
    return RollState(
        accepted=_release(known["accepted"]),
        previous=_release(known["previous"]),
        target=_release(known["target"]),
        state=str(known["state"]),
        done=int(known["done"]),
        reason=str(known["reason"]),
        rejected=tuple(files.record(Rejected, each) for each in known["rejected"]),
        spent=tuple(map(str, known["spent"])),
    )


def remember(paths: Paths, state: RollState) -> None:
    """Write `state` for `recall`, twice: one file may be damaged. Raises OSError."""
    known = asdict(replace(state, watch=None))
    del known["watch"]
    # For the way back: versions until 2026-11 do not read a document without it.
    known["exempt"] = []
    text = json.dumps(known, indent=1, sort_keys=True) + "\n"
    for name in _NAMES:
        files.write(paths.node_state / name, text, 0o600)


def _release(known: Mapping[str, str] | None) -> Release | None:
    return None if known is None else Release(version=known["version"], sha256=known["sha256"])
