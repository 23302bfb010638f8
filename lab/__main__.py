"""The fleet on this machine.

    python -m lab up       boot it: cloud, `pulumi up`, VMs, agents (what `make lab` does)
    python -m lab status   what is there
    python -m lab down     end it and leave nothing

LAB_DRIVER is `container` (native speed; the default where this is root and they work) or `qemu`
(guests with a kernel of their own; no root needed).
PILOT_RENDEZVOUS is the path of a real rendezvous binary; without it a stand-in is built, which
says in its log and on its page that it is one. Every step may be repeated after an interruption:
Ctrl-C waits for what is under way, a second one cuts it off.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from components.config import FleetConfig
from lab.fleet import agents, checkout, cloud, operator_context, pings, sessions, stack
from lab.fleet.errors import DemoError
from lab.fleet.phases import Phases
from lab.machines.driver import MachineError

_RENDEZVOUS = checkout.ROOT / "artifacts" / "lab" / "pilot-rendezvous"


def up() -> None:
    """Boots the fleet and waits until every agent is online."""
    (wanted, why), config = cloud.choose_driver(), checkout.fleet()
    cloud.refuse_another(wanted)
    print(f"· {why}", flush=True)
    checkout.STATE.mkdir(exist_ok=True)
    with (checkout.STATE / "demo.lock").open("a+") as mine:
        # Held until this process and its Pulumi have ended.
        if not sessions.take(mine):
            raise DemoError(
                "another `make lab` is at work in this checkout, or the Pulumi that one left"
            )
        boot(config, wanted, mine)


def boot(config: FleetConfig, wanted: str, mine: IO[str]) -> None:
    """Boots the fleet with a driver, phase by phase."""
    phases = Phases(checkout.STATE / "up.log")
    log = phases.log
    prepare = [sys.executable, "-m", "lab.cloud", "prepare", "--driver", wanted]
    # Quick checks come before builds of minutes.
    with phases("packages"):
        sessions.run([*prepare, "--packages"], log=log)
    with phases("Pulumi"):
        sessions.run([sys.executable, "tools/toolchain/toolchain.py", "ensure"], log=log)
    with phases("image"):
        sessions.run(prepare, log=log)
    with phases("binaries"):
        sessions.run([sys.executable, "tools/toolchain/toolchain.py", "artifacts"], log=log)
        rendezvous(log)
    with phases("the cloud"):
        cloud.serve(wanted)
    with phases("pulumi up"):
        stack.carry_out(mine, log)
    with phases("VMs boot, agents register"):
        cloud.start_what_is_off(config)
        agents.wait_for(config, phases.say)
    with phases("one agent pings another"):
        ping = pings.report(config, wanted)
    print(f"up after {phases.seconds():.0f} s")
    print(table(config))
    print(f"  {ping}")
    shows = operator_context.make(config)
    print(f"\nThe dashboard: http://127.0.0.1:{agents.dashboard_port(config)}")
    print(f"Next: `{shows}` shows the fleet as it moves. `make lab-down` ends it.")


def rendezvous(log: Path) -> None:
    """Puts the rendezvous binary where the lab's stack looks for it."""
    real = os.environ.get("PILOT_RENDEZVOUS")
    _RENDEZVOUS.parent.mkdir(parents=True, exist_ok=True)
    if real is None:
        sessions.run([sys.executable, "-m", "lab.standin.build", str(_RENDEZVOUS)], log=log)
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


def _end() -> None:
    """Ends cloud and machines. What that says is kept where it fails: the lab's own log goes."""
    descriptor, name = tempfile.mkstemp(prefix="lab-down-", suffix=".log")
    os.close(descriptor)
    log = Path(name)
    with Phases(log)("the VMs and the cloud end"):
        command = [sys.executable, "-m", "lab.cloud", "down", "--state", str(checkout.STATE)]
        sessions.run(command, log=log)
    log.unlink()


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
        _end()
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
