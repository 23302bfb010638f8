"""Rolls of a release: how far each VM is. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import RenderableType
from rich.text import Text

from ops.errors import StuckError
from ops.fleet import Fleet, Vm
from ops.plan import VmInPlan
from ops.table import Column, Line, Sheet


@dataclass(frozen=True, kw_only=True)
class VmRoll:
    """The roll of a VM."""

    vm: str
    state: str
    version: str
    sha256: str
    """The release that waits, rolls or halted; else the declared one where it is not accepted yet.
    "" where nothing is left to roll."""
    accepted: str
    """The version that is accepted."""
    done: int | None
    of: int | None
    reason: str
    """Why it halted or was rejected."""
    is_rejected: bool
    problem: str
    """Why the VM does not speak."""

    @property
    def is_open(self) -> bool:
        """Whether something is left to roll."""
        return bool(self.sha256)

    @property
    def is_bad(self) -> bool:
        """Whether it needs a decision, or is not known."""
        return self.state in ("halted", "waiting") or self.is_rejected or bool(self.problem)


def roll(vm: Vm) -> VmRoll:
    """The roll of a VM."""
    status = vm.status
    state = status.text("roll.state") if vm.speaks else ""
    sha256, version = status.text("roll.sha256"), status.text("roll.version")
    binary = "daemon" if vm.is_swarm else "rendezvous"
    declared = vm.instance.spec.text(f"release.{binary}.sha256")
    accepted = status.text("release.sha256")
    if state in ("", "none") or not sha256:
        # A spec without a binary (of a preview that has none) wants none.
        is_there = declared in ("", accepted)
        sha256 = "" if is_there else declared
        version = "" if is_there else vm.instance.spec.text("release.version")
    rejected = {
        each.text("sha256"): each.text("reason") for each in status.documents("roll.rejected")
    }
    return VmRoll(
        vm=vm.name,
        state=state or "unknown",
        version=version,
        sha256=sha256,
        accepted=status.text("release.version"),
        done=status.number("roll.done"),
        of=status.number("roll.of"),
        reason=status.text("roll.reason") or rejected.get(sha256, ""),
        is_rejected=sha256 in rejected,
        problem=vm.problem,
    )


def rolls(fleet: Fleet) -> list[VmRoll]:
    """The roll of the rendezvous, which is of one process, and those of the swarm VMs, the smallest
    first."""
    rendezvous = [fleet.rendezvous] if fleet.rendezvous else []
    return [roll(vm) for vm in (*rendezvous, *fleet.swarm)]


def arrived(seen: VmInPlan, sha256: str) -> bool:
    """Whether the VM has accepted this release. StuckError where its roll halted."""
    found = roll(seen.vm)
    if not seen.heeds:
        return False
    if found.state == "halted" or (found.sha256 == sha256 and found.is_rejected):
        raise StuckError(
            f"{found.vm} halted: {found.reason}. It is back on {found.accepted}; `ops roll reject` "
            "leaves it there, `ops roll go` tries once more"
        )
    return found.state == "none" and seen.vm.status.text("release.sha256") == sha256


def ended(seen: VmInPlan) -> bool:
    """Whether the VM's roll is over, so that it runs what it accepted."""
    return seen.heeds and roll(seen.vm).state in ("none", "halted")


def documents(found: list[VmRoll]) -> list[dict[str, Any]]:
    """For `--json`."""
    return [asdict(each) for each in found]


_COLUMNS: Final = tuple(
    Column(name=name) for name in ("VM", "accepted", "rolls to", "state", "done")
)


def render(found: list[VmRoll]) -> RenderableType:
    """The table for people."""
    lines = []
    for each in found:
        progress = "" if not each.of else f"{each.done} of {each.of}"
        cells = (each.vm, each.accepted, each.version, each.state, progress)
        words = "; ".join(_words(each))
        lines.append(Line(cells=[Text(cell) for cell in cells], notes=[words] if words else []))
    return Sheet(columns=_COLUMNS, lines=lines)


def _words(each: VmRoll) -> Iterator[str]:
    if each.problem:
        yield each.problem
    if each.is_rejected and each.state != "halted":
        yield "rejected"
    if each.reason:
        yield each.reason
