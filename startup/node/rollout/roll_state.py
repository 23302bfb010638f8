"""What is remembered of a roll, and how it is kept on the state disk."""

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
# Some agents have the target, and it is not accepted yet.
ON_TRIAL: Final = (ROLLING, WATCHING)
_STATES: Final = (NONE, WAITING, *ON_TRIAL, HALTED)
# What is remembered, and its copy.
_NAMES = ("roll.json", "roll.json.old")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version's name and the sha256 (hex) of its binary, which is what counts."""

    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.version} ({self.sha256[:12]})"


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A release that is not tried again by itself. `time`: seconds since the epoch."""

    version: str
    sha256: str
    reason: str
    time: float


@dataclass(frozen=True, kw_only=True)
class BatchWatch:
    """What was seen of the ports that have the new release, since their last batch began.

    `before`: failures in a row that each had then. `up`: when each was seen ready (its
    `up_since`). `ever_up`: whether any was. `down_since`: since when some that failed are down,
    while one of the accepted release, where any has it, is up. `died`: those that were ready and
    are not the same any more. `since`: when all were ready, and the watch began. `memory`: mean
    private bytes then, and when that was. `kernel`: what the kernel said of the program. `epoch`:
    as in Seen; when another one begins, all is started anew and so is the watch.
    """

    epoch: str = ""
    before: Mapping[int, int] = field(default_factory=dict)
    up: Mapping[int, float] = field(default_factory=dict)
    ever_up: bool = False
    down_since: float | None = None
    died: frozenset[int] = frozenset()
    since: float | None = None
    memory: tuple[float, float] | None = None
    kernel: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RollState:
    """What is remembered. The first `done` ports, in the order of their numbers, have `target`
    while it is ROLLING or WATCHING; all others have `accepted`. `previous` was accepted before
    that. `exempt`: those of them that were ill before, and are no witnesses. `culprits`: the few
    for which `target` was rejected; once they have failed with `accepted` as well, it is tried
    again and they are exempt. `spent` has the GO verdicts that have been used, `SHA256/ID` each."""

    accepted: Release | None = None
    previous: Release | None = None
    target: Release | None = None
    state: str = NONE
    done: int = 0
    exempt: frozenset[int] = frozenset()
    culprits: frozenset[int] = frozenset()
    reason: str = ""
    rejected: tuple[Rejected, ...] = ()
    spent: tuple[str, ...] = ()
    watch: BatchWatch | None = None


def recall(paths: Paths, say: Callable[[str], None]) -> RollState:
    """What is remembered; nothing on a VM that is new. What cannot be read is said. Raises
    OSError when a file cannot be had and the other one does not say it either."""
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
            say(f"{path}: {error}: what was accepted and rejected is not known from it any more")
        else:
            if missed is not None:
                say(f"{missed}: {path} is taken instead")
            return found
    if missed is not None:
        raise missed
    return RollState()


def _read(path: Path) -> RollState:
    """Raises FinalError where a newer program wrote what must not be passed over."""
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
        exempt=frozenset(map(int, known["exempt"])),
        # Written by a pilot-node that knew of none.
        culprits=frozenset(map(int, known.get("culprits", ()))),
        reason=str(known["reason"]),
        rejected=tuple(files.record(Rejected, each) for each in known["rejected"]),
        spent=tuple(map(str, known["spent"])),
    )


def remember(paths: Paths, state: RollState) -> None:
    """Keep what `recall` gives, twice: one file may come to harm. Raises OSError."""
    known = asdict(replace(state, watch=None))
    known |= {"exempt": sorted(state.exempt), "culprits": sorted(state.culprits)}
    del known["watch"]
    text = json.dumps(known, indent=1, sort_keys=True) + "\n"
    for name in _NAMES:
        files.write(paths.node_state / name, text, 0o600)


def _release(known: Mapping[str, str] | None) -> Release | None:
    return None if known is None else Release(version=known["version"], sha256=known["sha256"])
