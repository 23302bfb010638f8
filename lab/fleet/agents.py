"""The fleet's agents: how many are online, and why others are not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from components.config import DASHBOARD_PORT, FleetConfig
from lab.fleet import checkout, cloud
from lab.fleet.errors import DemoError

# Four QEMU guests at once on two cores needed up to 103 s from power on to the script (FACTS);
# minutes more than that mean that something is wrong.
_PATIENCE_S = 900.0


def wait_for(config: FleetConfig, say: Callable[[str], None]) -> None:
    """Waits until every agent is online at the registry, and says how far it is."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        online = registered(config)
        now = f"{online or 0}/{config.agents} agents online"
        if online is None:
            now = "the registry does not answer yet"
        say(now)
        if online is not None and online >= config.agents:
            return
        if failed := failed_scripts(config):
            raise DemoError("the startup script failed:\n" + "\n".join(failed))
        if time.monotonic() > deadline:
            raise DemoError(
                f"after {_PATIENCE_S:.0f} s: {now}. The VMs' consoles tell more: "
                f"{checkout.STATE}/machines/*/console.log; "
                f"the cloud's log: {checkout.STATE / 'log'}"
            )
        time.sleep(1)


def registered(config: FleetConfig) -> int | None:
    """How many agents are online at the registry; None while it does not answer."""
    stats = dashboard(config, "/api/stats")
    return None if stats is None else int(stats["active_nodes"])


def failed_scripts(config: FleetConfig) -> list[str]:
    """The VMs whose startup script ended with an error, each with its last words."""
    found = []
    for name in config.fits:
        port = f"{cloud.API}/compute/v1/{cloud.place(config, name)}/serialPort"
        try:
            console = str(cloud.fetch(port)["contents"])
        except (OSError, ValueError, KeyError):
            continue
        lines = [line for line in console.splitlines() if "startup-script" in line]
        ends = [line for line in lines if re.search(r"startup-script exit status \d", line)]
        if ends and not ends[-1].rstrip().endswith("status 0"):
            last = lines[max(0, lines.index(ends[-1]) - 3) : lines.index(ends[-1])]
            found.append("\n".join([f"  {name}:", *(f"    {line.strip()}" for line in last)]))
    return found


def dashboard(config: FleetConfig, path: str) -> dict[str, Any] | None:
    """An answer of the rendezvous' dashboard; None while it does not answer."""
    try:
        return cloud.fetch(f"http://127.0.0.1:{dashboard_port(config)}{path}")
    except (OSError, ValueError, HTTPException):
        return None


def dashboard_port(config: FleetConfig) -> int:
    """The port of this machine's loopback that leads to the dashboard."""
    vm = f"{cloud.API}/lab/{cloud.place(config, config.rendezvous.name)}"
    return int(cloud.fetch(f"{vm}/forward", {"port": DASHBOARD_PORT})["port"])
