"""The stack's outputs, and messages to the operator about the plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pulumi

from components import capacity
from components.config import DASHBOARD_PORT, FleetConfig, ZoneLoss
from components.last_update import LastUpdate
from components.spec import Binary

# What `_vm` writes, read back from the outputs of the last update.
_VM = re.compile(
    r"(?P<machine>[^,]+),.*: (?P<agents>[\d,]+) agents, "
    r"headroom (?P<headroom>-?\d+%) \((?P<binds>[^)]+)\)"
)


class FitRow(NamedTuple):
    """One VM in the table of what fits. Every cell is a text."""

    zone: str
    machine: str
    agents: str
    headroom: str
    # The limit with the least headroom.
    binds: str


def from_config(config: FleetConfig) -> dict[str, Any]:
    """The stack's outputs that follow from the configuration alone."""
    rendezvous = config.rendezvous
    tunnel = (
        f"gcloud compute start-iap-tunnel {rendezvous.name} {DASHBOARD_PORT} "
        f"--local-host-port=localhost:{DASHBOARD_PORT} "
        f"--zone={rendezvous.zone} --project={config.project}"
    )
    machines = tuple(fit.machine for fit in config.fits.values())
    return {
        "agents": config.agents,
        "registry": config.registry,
        "beacon": config.beacon,
        "dashboard": f"http://localhost:{DASHBOARD_PORT}",
        "dashboardTunnel": tunnel,
        "vms": {name: _vm(fit) for name, fit in config.fits.items()},
        "zones": {zone: _lost_with(loss, of=config.agents) for zone, loss in config.zones.items()},
        # Read by the next update (components/last_update.py).
        "image": config.image,
        "vcpus": capacity.vcpus_by_family(machines),
    }


def disk_type_warnings(config: FleetConfig, before: Mapping[str, str]) -> list[str]:
    """A warning for each VM that moves to a series with another disk type.

    `before`: the machine types of VMs in the last update.
    """
    found = []
    for name, fit in config.fits.items():
        was = replace(fit.machine, name=before.get(name, fit.machine.name))
        if was.hyperdisk != fit.machine.hyperdisk:
            found.append(
                f"{name} is a {was.name} and becomes a {fit.machine.name}, which takes another "
                "type of disk. Its state disk cannot change type in place, so the plan replaces "
                "it: do NOT unprotect it, its contents would be lost. See "
                'docs/PRODUCTION.md, "A VM of another series"'
            )
    return found


def fit_changes(config: FleetConfig, last: LastUpdate) -> str:
    """The table of what fits, before and after; "" for a new stack: its outputs say the same."""
    before = {}
    for name, text in last.fits.items():
        # A later version of the program may have written another text.
        if found := _VM.match(text):
            before[name] = FitRow(zone=last.zones.get(name, "?"), **found.groupdict())
    zones = {vm.name: vm.zone for vm in config.swarm} | {
        config.rendezvous.name: config.rendezvous.zone
    }
    after = {
        name: FitRow(
            zone=zones[name],
            machine=fit.machine.name,
            agents=f"{fit.agents:,}",
            headroom=f"{fit.headroom:.0%}",
            binds=fit.binds.name,
        )
        for name, fit in config.fits.items()
    }
    return fit_table(before, after) if before else ""


def fit_table(before: Mapping[str, FitRow], after: Mapping[str, FitRow]) -> str:
    """A line per VM, marked as in Pulumi's plans: `+` new, `-` gone, `~` changed."""
    lines: list[tuple[str, ...]] = [("", "VM", *FitRow._fields)]
    for name in dict.fromkeys([*after, *before]):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            row = new or old
            assert row is not None
            lines.append(("-" if new is None else "+", name, *row))
        else:
            cells = [
                was if was == will else f"{was} → {will}"
                for was, will in zip(old, new, strict=True)
            ]
            lines.append(("" if old == new else "~", name, *cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def stack_label(stack: str) -> str:
    """The stack's name as the value of a label. Raises RunError where Google would refuse it."""
    if not re.fullmatch(r"[a-z0-9_-]{1,63}", stack):
        raise pulumi.RunError(
            f"the stack's name {stack!r} labels every resource, and Google allows lower-case "
            "letters, digits, dashes and underscores in a label, 63 at most: rename the stack "
            "(pulumi stack rename)"
        )
    return stack


def _vm(fit: capacity.Fit) -> str:
    # One line per VM: Pulumi prints nested maps with one line per key.
    machine = fit.machine
    return (
        f"{machine.name}, {machine.vcpus} vCPU, {machine.memory_mb / 1024:g} GB: "
        f"{fit.agents:,} agents, headroom {fit.headroom:.0%} ({fit.binds.name}), "
        f"at most {fit.fits:,}"
    )


def _lost_with(loss: ZoneLoss, *, of: int) -> str:
    vms = "1 VM" if loss.vms == 1 else f"{loss.vms:,} VMs"
    rendezvous = " and the rendezvous" if loss.rendezvous else ""
    return f"{vms}, lost with it: {loss.agents:,} of {of:,} agents ({loss.share:.0%}){rendezvous}"


def require_built(binaries: tuple[Binary, ...]) -> None:
    """Warn of binaries that are not built in a preview; raise `pulumi.RunError` in `up`."""
    paths = sorted({binary.path for binary in binaries if not binary.is_built})
    if not paths:
        return
    message = (
        f"not built: {', '.join(paths)}. `make artifacts` takes the daemon from its package; "
        'the rendezvous comes from upstream (docs/PRODUCTION.md, "Binaries")'
    )
    if not pulumi.runtime.is_dry_run():
        raise pulumi.RunError(message)
    pulumi.log.warn(f"{message}. This preview continues without; `pulumi up` will not")
