"""The fleet on this machine.

    python -m demo up       boot it: cloud, `pulumi up`, VMs, agents (what `make lab` does)
    python -m demo status   what is there
    python -m demo down     end it and leave nothing

LAB_DRIVER is `qemu` (the default; no root needed) or `container` (root; native speed).
PILOT_RENDEZVOUS is the path of a real rendezvous binary; without it a stand-in is built, which
says in its log and on its page that it is one. Every step may be repeated after an interruption.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.config import DASHBOARD_PORT, FleetConfig
from components.stack_file import parse

ROOT = Path(__file__).resolve().parent.parent
STACK = "lab"
STATE = ROOT / ".lab"
API = "http://127.0.0.1:8480"
DRIVERS = ("qemu", "container")
# Four QEMU guests at once on two cores needed up to 103 s from power on to the script (FACTS);
# minutes more than that say that something is wrong.
_PATIENCE_S = 900.0
_RENDEZVOUS = ROOT / "artifacts" / "lab" / "pilot-rendezvous"


class DemoError(Exception):
    """What went wrong and what to do, in a sentence."""


@dataclass
class Phases:
    """Says what is being done, and in the end how long each phase took (seconds)."""

    took: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"· {name} …", flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            self.took[name] = time.monotonic() - start

    def report(self) -> str:
        width = max(map(len, self.took))
        lines = [f"  {name:<{width}}  {seconds:6.1f} s" for name, seconds in self.took.items()]
        return "\n".join([*lines, f"  {'in all':<{width}}  {sum(self.took.values()):6.1f} s"])


def fleet() -> FleetConfig:
    """The fleet of the lab's stack."""
    path = ROOT / f"Pulumi.{STACK}.yaml"
    return parse(path.read_text(encoding="utf-8"), path.name)


def driver() -> str:
    """What runs the machines. DemoError for a name that is none."""
    name = os.environ.get("LAB_DRIVER", DRIVERS[0])
    if name not in DRIVERS:
        raise DemoError(f"LAB_DRIVER is {name!r}: choose {' or '.join(DRIVERS)}")
    return name


def up() -> None:
    """Boots the fleet and waits until every agent is online."""
    phases, config = Phases(), fleet()
    STATE.mkdir(exist_ok=True)
    mine = (STATE / "demo.lock").open("w")
    try:
        # Held until this process ends, however it ends.
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DemoError("another `make lab` is at work in this checkout") from None
    with phases("packages and image"):
        run([sys.executable, "-m", "lab", "prepare", "--driver", driver()])
    with phases("binaries"):
        run([sys.executable, "toolchain/toolchain.py", "artifacts"])
        rendezvous()
    with phases("the cloud"):
        cloud()
    # A `pulumi up` that was killed leaves its lock behind; nobody else uses this backend.
    for lock in (backend() / ".pulumi" / "locks").rglob("*.json"):
        lock.unlink()
    with phases("pulumi up"):
        run(
            [sys.executable, "toolchain/toolchain.py", "up", STACK],
            PILOT_FLEET_YES="1",
            # The lab's own, whatever backend its user has chosen: it goes with the lab.
            PULUMI_BACKEND_URL=f"file://{backend()}",
        )
    with phases("VMs boot, agents register"):
        wait_for(config)
    print(table(config))
    print(phases.report())
    print(f"\nThe dashboard: http://127.0.0.1:{dashboard_port(config)}   `make lab-down` ends it.")


def backend() -> Path:
    """Where the lab's stack keeps its state."""
    folder = STATE / "pulumi"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rendezvous() -> None:
    """Puts the rendezvous binary where the lab's stack looks for it."""
    real = os.environ.get("PILOT_RENDEZVOUS")
    _RENDEZVOUS.parent.mkdir(parents=True, exist_ok=True)
    if real is None:
        run([sys.executable, "-m", "standin.build", str(_RENDEZVOUS)])
        print("  the rendezvous is a stand-in (PILOT_RENDEZVOUS names a real one)", flush=True)
        return
    if not Path(real).is_file():
        raise DemoError(f"PILOT_RENDEZVOUS is {real}: there is no such file")
    part = _RENDEZVOUS.with_suffix(".part")
    shutil.copy(real, part)
    part.replace(_RENDEZVOUS)


def cloud() -> None:
    """Serves the cloud in a process of its own, unless one serves already."""
    wanted = driver()
    if (status := lab_status()) is not None:
        marker = STATE / "driver"
        runs = marker.read_text().strip() if marker.exists() else "?"
        if runs != wanted:
            raise DemoError(
                f"a lab with the {runs} driver is up: `make lab-down` first, or LAB_DRIVER={runs}"
            )
        print(f"  is up: {status['driver']}", flush=True)
        return
    port = API.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "lab", "serve", "--driver", wanted, "--port", port]
    with (STATE / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--state", str(STATE)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until(
        lambda: lab_status() is not None or process.poll() is not None,
        60,
        f"the cloud does not answer at {API}: see {STATE / 'log'}",
    )
    status = lab_status()
    if status is None or process.poll() is not None:
        last = (STATE / "log").read_text(errors="replace").strip().splitlines()[-1:]
        raise DemoError(f"the cloud does not come up: {''.join(last)}")
    print(f"  {status['driver']}", flush=True)


def wait_for(config: FleetConfig) -> None:
    """Waits until every agent is online at the registry, and says how far it is."""
    said = ""
    deadline = time.monotonic() + _PATIENCE_S
    start = time.monotonic()
    while True:
        online = registered(config)
        now = f"{online or 0}/{config.agents} agents online"
        if online is None:
            now = "the registry does not answer yet"
        if now != said:
            print(f"  {time.monotonic() - start:5.0f} s  {now}", flush=True)
            said = now
        if online is not None and online >= config.agents:
            return
        if failed := failed_scripts(config):
            raise DemoError("the startup script failed:\n" + "\n".join(failed))
        if time.monotonic() > deadline:
            raise DemoError(
                f"after {_PATIENCE_S:.0f} s: {now}. The VMs' consoles tell more: "
                f"{STATE}/machines/*/console; the cloud's log: {STATE / 'log'}"
            )
        time.sleep(1)


def failed_scripts(config: FleetConfig) -> list[str]:
    """The VMs whose startup script ended with an error, each with its last words."""
    found = []
    for name in config.fits:
        path = f"projects/{config.project}/zones/{config.zone}/instances/{name}/serialPort"
        try:
            console = str(fetch(f"{API}/compute/v1/{path}")["contents"])
        except (OSError, ValueError, KeyError):
            continue
        lines = [line for line in console.splitlines() if "startup-script" in line]
        ends = [line for line in lines if re.search(r"startup-script exit status \d", line)]
        if ends and not ends[-1].rstrip().endswith("status 0"):
            last = lines[max(0, lines.index(ends[-1]) - 3) : lines.index(ends[-1])]
            found.append("\n".join([f"  {name}:", *(f"    {line.strip()}" for line in last)]))
    return found


def registered(config: FleetConfig) -> int | None:
    """How many agents are online at the registry; None while it does not answer."""
    stats = dashboard(config, "/api/stats")
    return None if stats is None else int(stats["active_nodes"])


def dashboard(config: FleetConfig, path: str) -> dict[str, Any] | None:
    """An answer of the rendezvous' dashboard; None while there is none."""
    try:
        return fetch(f"http://127.0.0.1:{dashboard_port(config)}{path}")
    except (OSError, ValueError):
        return None


def dashboard_port(config: FleetConfig) -> int:
    """The port of this machine's loopback that leads to the dashboard."""
    path = f"/lab/projects/{config.project}/zones/{config.zone}/instances/{config.rendezvous.name}"
    return int(fetch(f"{API}{path}/forward", {"port": DASHBOARD_PORT})["port"])


def table(config: FleetConfig) -> str:
    """The fleet as it is: VMs, agents wanted and online."""
    status = lab_status()
    if status is None:
        return "There is no lab: `make lab` boots one."
    states = {path.rsplit("/", 1)[1]: state for path, state in status["instances"].items()}
    rows = [("VM", "machine type", "state", "agents")]
    for name, fit in config.fits.items():
        is_rendezvous = name == config.rendezvous.name
        agents = "" if is_rendezvous else str(fit.agents)
        rows.append((name, fit.machine.name, states.get(name, "absent"), agents))
    online = registered(config)
    total = "registry down" if online is None else f"{online}/{config.agents} online"
    rows.append(("", "", "", total))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def down() -> None:
    """Ends the cloud and its machines, and removes the lab's state."""
    run([sys.executable, "-m", "lab", "down", "--state", str(STATE)])
    print("The lab is down; nothing of it is left.")


def lab_status() -> dict[str, Any] | None:
    """What the cloud says of itself; None where none answers."""
    try:
        return fetch(f"{API}/lab/status")
    except (OSError, ValueError):
        return None


def fetch(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON document. OSError where nobody answers or the answer is a refusal."""
    request = urllib.request.Request(  # noqa: S310 (loopback only)
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Bearer anything"},
    )
    with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
        answer = json.load(response)
    if not isinstance(answer, dict):
        raise ValueError(answer)
    return answer


def until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Waits for a condition. DemoError with `otherwise` where it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(otherwise)
        time.sleep(0.1)


def run(command: list[str], **environment: str) -> None:
    """Runs a command in the checkout; what it prints is for who watches."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise DemoError(f"this failed (above is why): {' '.join(command[1:])}")


def main(arguments: list[str]) -> int:
    """Runs the command line; 0, or 1 with a sentence on stderr."""
    commands: dict[str, Callable[[], None]] = {
        "up": up,
        "status": lambda: print(table(fleet())),
        "down": down,
    }
    if len(arguments) != 1 or arguments[0] not in commands:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        commands[arguments[0]]()
    except DemoError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlab: interrupted; `make lab` goes on, `make lab-down` ends it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
