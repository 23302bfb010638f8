"""What the program tells its operator: outputs, and what is not built yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pulumi

from components import capacity
from components.config import DASHBOARD_PORT, FleetConfig
from components.spec import Binary


def of(config: FleetConfig) -> dict[str, Any]:
    """The stack's outputs that follow from configuration alone."""
    rendezvous = config.rendezvous
    tunnel = (
        f"gcloud compute start-iap-tunnel {rendezvous.name} {DASHBOARD_PORT} "
        f"--local-host-port=localhost:{DASHBOARD_PORT} "
        f"--zone={config.zone} --project={config.project}"
    )
    machines = tuple(fit.machine for fit in config.fits.values())
    return {
        "agents": config.agents,
        "registry": config.registry,
        "beacon": config.beacon,
        "dashboard": f"http://localhost:{DASHBOARD_PORT}",
        "dashboardTunnel": tunnel,
        "vms": {name: _vm(fit) for name, fit in config.fits.items()},
        # Read by the next update (components/last.py).
        "image": config.image,
        "vcpus": capacity.vcpus_by_family(machines),
    }


def moves(config: FleetConfig, before: Mapping[str, str]) -> list[str]:
    """A warning for each VM that moves to a series with other disks. `before`: machine types."""
    found = []
    for name, fit in config.fits.items():
        was = replace(fit.machine, name=before.get(name, fit.machine.name))
        if was.hyperdisk != fit.machine.hyperdisk:
            found.append(
                f"{name} is a {was.name} and becomes a {fit.machine.name}, which takes another "
                "type of disk. Its state disk cannot be changed to that in place, so the plan "
                "replaces it: do NOT unprotect it, what is on it would be lost. "
                'docs/PRODUCTION.md, "A VM of another series", has the way'
            )
    return found


def label(stack: str) -> str:
    """The stack's name as the value of a label. RunError where Google would refuse it."""
    if not re.fullmatch(r"[a-z0-9_-]{1,63}", stack):
        raise pulumi.RunError(
            f"the stack's name {stack!r} labels every resource, and Google allows lower-case "
            "letters, digits, dashes and underscores in a label, 63 at most: rename the stack "
            "(pulumi stack rename)"
        )
    return stack


def _vm(fit: capacity.Fit) -> str:
    # One line a VM: Pulumi prints nested maps a key a line, and a fleet is read as a table.
    machine = fit.machine
    return (
        f"{machine.name}, {machine.vcpus} vCPU, {machine.memory_mb / 1024:g} GB: "
        f"{fit.agents:,} agents, headroom {fit.headroom:.0%} ({fit.binds.name}), "
        f"at most {fit.fits:,}"
    )


def require_built(binaries: tuple[Binary, ...]) -> None:
    """A binary that is not built is a warning in a preview and an error in `up`.

    Raises `pulumi.RunError`, so that the engine prints the sentence and no traceback.
    """
    paths = sorted({binary.path for binary in binaries if not binary.is_built})
    if not paths:
        return
    what = (
        f"not built: {', '.join(paths)}. `make artifacts` takes the daemon from its package; "
        'the rendezvous comes from upstream (docs/PRODUCTION.md, "Binaries")'
    )
    if not pulumi.runtime.is_dry_run():
        raise pulumi.RunError(what)
    pulumi.log.warn(f"{what}. This preview goes on without; `pulumi up` will not")
