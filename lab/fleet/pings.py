"""One ping at the end of `make lab`: from an agent on a VM to an agent on another one.

An agent answers its own user on its own VM only, through a socket. A container's is reached through
its first process, by who started it; nothing on the VM takes part. Into a QEMU guest leads only a
login, and the lab logs in to no VM: there is no ping then, and the output says so.
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from components.config import FleetConfig
from lab.fleet import checkout, cloud, talk
from lab.machines import processes
from lab.machines.places import Places

# Of a VM, docs/CONTRACT.md: agents of one user, and agents of a user each.
_SOCKETS = ("run/pilot/agents/*.sock", "var/lib/pilot/agents/*/daemon.sock")
# Seconds until both know of their trust. An agent looks 2 s after it asked, then every minute.
_TRUST_S = 90
_LIMIT_S = 200


@dataclass(frozen=True, kw_only=True)
class Reached:
    """An agent that can be asked."""

    name: str
    socket: str
    """As its VM sees it."""
    as_its_user: Sequence[str]
    """The command before a command, to run that where the socket is, as the agent's user."""


class NoPingError(Exception):
    """Why there was no ping, in a sentence."""


def report(config: FleetConfig, driver: str) -> str:
    """What was pinged, and how long it took; or why nothing was. A lab without a ping is a lab all
    the same, so nothing here is an error."""
    try:
        if driver != "container":
            raise NoPingError(
                "agents answer on their own VM only, and into a QEMU guest leads nothing but a "
                "login; with LAB_DRIVER=container two agents ping each other"
            )
        if len(config.swarm) < 2:
            raise NoPingError("the fleet has one swarm VM")
        one, other = (agent_on(config, vm.name) for vm in config.swarm[:2])
        return ping(one, other)
    except NoPingError as error:
        return f"no ping: {error}"


def agent_on(config: FleetConfig, vm: str) -> Reached:
    """The first agent of a VM that is a container."""
    folder = Places(checkout.STATE).machine(cloud.place(config, vm))
    launcher = processes.find(folder / "pid", str(folder))
    first = None if launcher is None else processes.first_in(launcher)
    if first is None:
        raise NoPingError(f"{vm} does not run")
    root = Path(f"/proc/{first}/root")
    for pattern in _SOCKETS:
        for found in sorted(root.glob(pattern)):
            # The VM's root and its agents are not trusted: no link, and nobody's but an agent's.
            there = found.lstat()
            if not stat.S_ISSOCK(there.st_mode) or there.st_uid == 0:
                continue
            user = str(there.st_uid)
            inside = f"/{found.relative_to(root)}"
            port = found.stem if found.stem.isdigit() else found.parent.name
            # In all that the VM is in, and the user first: the programs are the VM's own.
            enter = ["nsenter", "--target", str(first), "--all", "--root"]
            return Reached(
                name=f"{vm}'s agent on port {port}",
                socket=inside,
                as_its_user=[*enter, f"--setuid={user}", f"--setgid={there.st_gid}", "--"],
            )
    raise NoPingError(f"{vm} runs no agent")


def ping(one: Reached, other: Reached) -> str:
    """Both ask each other for trust; then one pings. NoPingError says what went wrong."""
    with ThreadPoolExecutor(2) as both:
        nodes = [both.submit(ask, each, "node") for each in (one, other)]
        mine, theirs = (each.result() for each in nodes)
        trust = [
            both.submit(ask, one, "trust", theirs, str(_TRUST_S)),
            both.submit(ask, other, "trust", mine, str(_TRUST_S)),
        ]
        for each in trust:
            each.result()
    took, way = ask(one, "ping", theirs).split()
    return f"{one.name} pings {other.name}: {took} ms, {way}"


def ask(agent: Reached, *words: str) -> str:
    """Run talk.py where the agent is."""
    program = Path(talk.__file__).read_text(encoding="utf-8")
    command = [*agent.as_its_user, "python3", "-", agent.socket, *words]
    try:
        done = subprocess.run(
            command, input=program, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoPingError(f"{agent.name}: {error}") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no answer"]
        raise NoPingError(f"{agent.name}: {said[-1]}")
    return done.stdout.strip()
