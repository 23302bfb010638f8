"""The lab's stack: `pulumi up`, and the repair after one that was cut off."""

from __future__ import annotations

import json
import re
import sys
import urllib.error
from pathlib import Path
from typing import IO, Any

from components.config import PROJECT_NAME
from lab.fleet import checkout, cloud, sessions
from lab.fleet.errors import DemoError


def carry_out(lock: IO[str], log: Path) -> None:
    """Runs `pulumi up`, after the repair of what an earlier one left when it was cut off.

    What they say is in `log`. Pulumi holds `lock` too: if this process is killed, no second one
    runs beside it.
    """
    # A `pulumi up` that was killed leaves its lock behind; nobody else uses this backend.
    for left in (backend() / ".pulumi" / "locks").rglob("*.json"):
        left.unlink()
    toolchain = [sys.executable, "tools/toolchain/toolchain.py"]
    # The lab's own, whatever backend its user has chosen: it goes with the lab.
    environment = {"PILOT_FLEET_YES": "1", "PULUMI_BACKEND_URL": f"file://{backend()}"}
    if unfinished := pending():
        print("  a `pulumi up` was cut off here: looking what it has done", flush=True)
        for each in unfinished:
            take_away(each)
        refresh = ["pulumi", "refresh", "--stack", checkout.STACK]
        unasked = ["--yes", "--skip-preview", "--non-interactive"]
        sessions.run(
            [*toolchain, "exec", "--", *refresh, *unasked, "--clear-pending-creates"],
            holding=lock,
            log=log,
            **environment,
        )
    try:
        sessions.run([*toolchain, "up", checkout.STACK], holding=lock, log=log, **environment)
    except DemoError as error:
        raise DemoError(
            f"{error}\nWhere something exists already (409), a run that was cut off has made it: "
            "`make lab-down`, then `make lab`"
        ) from None


def backend() -> Path:
    """Where the lab's stack keeps its state."""
    folder = checkout.STATE / "pulumi"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pending() -> list[dict[str, Any]]:
    """Operations in the state that Pulumi had begun and not finished when it was killed."""
    state = backend() / ".pulumi" / "stacks" / PROJECT_NAME / f"{checkout.STACK}.json"
    try:
        latest = json.loads(state.read_text())["checkpoint"]["latest"] or {}
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError):
        raise DemoError(
            f"{state} is no state of a stack: `make lab-down`, then `make lab`"
        ) from None
    found: list[dict[str, Any]] = latest.get("pending_operations") or []
    return found


def take_away(operation: dict[str, Any]) -> None:
    """Deletes resources whose creation was cut off: Pulumi makes them again.

    Compute only: only machines and disks take long enough to be cut off, and compute refuses to
    make a resource twice.
    """
    resource = operation["resource"]
    kind = re.fullmatch(r"gcp:compute/(\w+):\w+", resource["type"])
    inputs = resource.get("inputs", {})
    if operation["type"] != "creating" or kind is None or "name" not in inputs:
        return
    place = next(
        (f"{level}s/{inputs[level]}" for level in ("zone", "region") if level in inputs), "global"
    )
    path = f"projects/{checkout.fleet().project}/{place}/{_plural(kind[1])}/{inputs['name']}"
    try:
        cloud.fetch(f"{cloud.API}/compute/v1/{path}")
    except urllib.error.HTTPError as error:
        if error.code in (404, 501):
            return
        raise DemoError(f"{path}: {cloud.reason(error)}") from None
    print(f"  {inputs['name']} was half made: taken away, and made again", flush=True)
    cloud.compute(path, method="DELETE")


def _plural(kind: str) -> str:
    """A kind as the API has it in paths."""
    if kind.endswith("y"):
        return f"{kind[:-1]}ies"
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"
