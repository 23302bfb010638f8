"""The fleet on this machine.

    python -m lab up       boot it: cloud, `pulumi up`, VMs, agents (what `make lab` does)
    python -m lab status   what is there
    python -m lab down     end it and leave nothing

LAB_DRIVER is `qemu` (the default; no root needed) or `container` (root; native speed).
PILOT_RENDEZVOUS is the path of a real rendezvous binary; without it a stand-in is built, which
says in its log and on its page that it is one. Every step may be repeated after an interruption:
Ctrl-C waits for what is under way, a second one cuts it off.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from components.config import FleetConfig
from lab.fleet import agents, checkout, cloud, operator_context, sessions, stack
from lab.fleet.errors import DemoError
from lab.machines.driver import MachineError

_RENDEZVOUS = checkout.ROOT / "artifacts" / "lab" / "pilot-rendezvous"


@dataclass
class Phases:
    """Prints each phase, and at the end how many seconds each took."""

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


def up() -> None:
    """Boots the fleet and waits until every agent is online."""
    wanted, config = cloud.driver(), checkout.fleet()
    cloud.refuse_another(wanted)
    checkout.STATE.mkdir(exist_ok=True)
    with (checkout.STATE / "demo.lock").open("a+") as mine:
        # Held until this process and its Pulumi have ended.
        if not sessions.take(mine):
            raise DemoError(
                "another `make lab` is at work in this checkout, or the Pulumi that one left"
            )
        boot(config, wanted, mine)


def boot(config: FleetConfig, wanted: str, mine: IO[str]) -> None:
    """Boots the fleet with a driver, phase by phase, and says how long each has taken."""
    phases = Phases()
    prepare = [sys.executable, "-m", "lab.cloud", "prepare", "--driver", wanted]
    # Quick checks come before builds of minutes.
    with phases("packages"):
        sessions.run([*prepare, "--packages"])
    with phases("Pulumi"):
        sessions.run([sys.executable, "tools/toolchain/toolchain.py", "ensure"])
    with phases("image"):
        sessions.run(prepare)
    with phases("binaries"):
        sessions.run([sys.executable, "tools/toolchain/toolchain.py", "artifacts"])
        rendezvous()
    with phases("the cloud"):
        cloud.serve(wanted)
    with phases("pulumi up"):
        stack.carry_out(mine)
    with phases("VMs boot, agents register"):
        cloud.start_what_is_off(config)
        agents.wait_for(config)
    print(table(config))
    print(phases.report())
    port = agents.dashboard_port(config)
    shows = operator_context.make(config)
    print(f"\nThe dashboard: http://127.0.0.1:{port}   `{shows}` shows the fleet.")
    print("`make lab-down` ends it.")


def rendezvous() -> None:
    """Puts the rendezvous binary where the lab's stack looks for it."""
    real = os.environ.get("PILOT_RENDEZVOUS")
    _RENDEZVOUS.parent.mkdir(parents=True, exist_ok=True)
    if real is None:
        sessions.run([sys.executable, "-m", "lab.standin.build", str(_RENDEZVOUS)])
        print("  the rendezvous is a stand-in (PILOT_RENDEZVOUS names a real one)", flush=True)
        return
    if not Path(real).is_file():
        raise DemoError(f"PILOT_RENDEZVOUS is {real}: there is no such file")
    part = _RENDEZVOUS.with_suffix(".part")
    shutil.copy(real, part)
    part.replace(_RENDEZVOUS)


def table(config: FleetConfig) -> str:
    """The fleet as it is: VMs, agents wanted and online."""
    status = cloud.lab_status()
    if status is None:
        return "There is no lab: `make lab` boots one."
    there = cloud.states(config)
    rows = [("VM", "machine type", "state", "agents")]
    for name, fit in config.fits.items():
        is_rendezvous = name == config.rendezvous.name
        wanted = "" if is_rendezvous else str(fit.agents)
        rows.append((name, fit.machine.name, there.get(name, "absent"), wanted))
    online = agents.registered(config)
    total = "registry down" if online is None else f"{online}/{config.agents} online"
    rows.append(("", "", "", total))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def down() -> None:
    """Ends the cloud and its machines, and removes the lab's state.

    DemoError, with nothing removed, while a `make lab` is at work or where a machine does not end.
    """
    lock = checkout.STATE / "demo.lock"
    with lock.open("a+") if lock.exists() else nullcontext() as mine:
        if mine is not None and not sessions.take(mine, cut=True):
            raise DemoError(
                "a `make lab` is at work in this checkout and would go on: interrupt it (Ctrl-C), "
                "and type `make lab-down` again"
            )
        sessions.run([sys.executable, "-m", "lab.cloud", "down", "--state", str(checkout.STATE)])
    if checkout.STATE.is_symlink():
        checkout.STATE.unlink()
    operator_context.forget()
    print("The lab is down; nothing of it is left.")


def main(arguments: list[str]) -> int:
    """Runs the command line; 0, or 1 with a sentence on stderr."""
    commands: dict[str, Callable[[], None]] = {
        "up": up,
        "status": lambda: print(table(checkout.fleet())),
        "down": down,
    }
    if len(arguments) != 1 or arguments[0] not in commands:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        # SIGTERM is handled like Ctrl-C: running commands are ended too.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        commands[arguments[0]]()
    except (DemoError, MachineError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlab: interrupted; `make lab` continues, `make lab-down` ends it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
