"""Commands for people on the VM: drain, undrain, restart, status, agent.

A command writes an order (/run/pilot/orders.json), which the service carries out. The command then
watches the agents. So a session that ends changes nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .desired import orders
from .desired.json_reader import SpecError
from .desired.spec import ROLE_SWARM, SwarmSpec, parse
from .machine import agent_units, files
from .machine.paths import Paths
from .swarm import variants

# Seconds between two looks at the agents.
LOOK = 1.0
# Seconds without a status after which the service is reported as silent.
SILENT = 180.0


class AskError(Exception):
    """A command that cannot be carried out. The text says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class AgentsSeen:
    """The agents, at one look."""

    running: Mapping[int, int]
    """Port -> inode of its cgroup, which differs from start to start."""
    ready: frozenset[int]
    """Those with a socket."""


def main(paths: Paths, arguments: list[str]) -> int:
    """Run the command. 0 when it is done, 1 when it cannot be, 130 when interrupted."""
    command, *rest = arguments
    try:
        if command == "agent":
            print("\n".join(_agent(paths, rest)))
            return 0
        if rest:
            raise AskError(f"{command}: takes no argument, was given {' '.join(rest)!r}")
        if command == "status":
            print(_status(paths))
        else:
            _ask(paths, command, print)
    except AskError as error:
        print(f"pilot-node: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"pilot-node: {error.filename}: {error.strerror}: use sudo", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"pilot-node: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{command} goes on without you; `pilot-node status` shows how far it is")
        return 130
    return 0


def _ask(paths: Paths, command: str, say: Callable[[str], None]) -> None:
    _spec(paths)
    before, here = look(paths), _here(paths)
    if command == "restart":
        write(paths, hold=here.hold, restart=f"here-{int(time.time())}-{os.getpid()}")
    else:
        write(paths, hold=command == "drain", restart=here.restart)
    if command == "drain":
        watch(paths, say, lambda s: not s.running, lambda s: f"{len(s.running)} agents left")
        say("drained; `pilot-node undrain` starts them again")
        return
    here_too = command == "restart" and here.hold
    if here_too or _held(paths):
        by = "`pilot-node undrain`" if here_too else "an order in the bucket"
        say(f"this VM is held: nothing is started before {by} says so")
        return

    def whole(seen: AgentsSeen) -> bool:
        wanted = set(_spec(paths).ports)
        anew = command != "restart" or not _same(before, seen)
        return (wanted <= seen.ready and anew) or _held(paths)

    def line(seen: AgentsSeen) -> str:
        text = f"{len(seen.ready)} of {_spec(paths).agents} agents ready"
        if command == "restart":
            text += f", {_same(before, seen)} still to be started anew"
        return text

    watch(paths, say, whole, line)
    say("held by an order in the bucket: nothing is started" if _held(paths) else "done")


def write(paths: Paths, *, hold: bool, restart: str) -> None:
    """Write the orders of this VM, in one rename. Raises OSError."""
    text: dict[str, Any] = {"schema": orders.SCHEMA, "hold": hold}
    if restart:
        text["restart"] = restart
    files.write(paths.orders, json.dumps(text) + "\n", 0o600)


def watch(
    paths: Paths,
    say: Callable[[str], None],
    done: Callable[[AgentsSeen], bool],
    line: Callable[[AgentsSeen], str],
) -> None:
    """Watch the agents until `done`. Says a line when the numbers change, and one when pilot-node
    is silent."""
    said, missed = "", False
    while True:
        seen = look(paths)
        if (text := line(seen)) != said:
            said = text
            say(text)
        if done(seen):
            return
        if not missed and (silence := _silence(paths)) is not None and silence > SILENT:
            missed = True
            say(f"pilot-node is silent for {silence:.0f} s: see `systemctl status pilot-node`")
        time.sleep(LOOK)


def look(paths: Paths) -> AgentsSeen:
    """The agents as the file system shows them."""
    running, ready = {}, set()
    base = agent_units.base(paths)
    for port in agent_units.processes(paths):
        layout = agent_units.layout_of(paths, port)
        if base is None or layout is None:
            # It ended between the two looks.
            continue
        with suppress(FileNotFoundError):
            running[port] = (base / layout.cgroup(port)).stat().st_ino
            if layout.socket(paths, port).is_socket():
                ready.add(port)
    return AgentsSeen(running=running, ready=frozenset(ready))


def _same(before: AgentsSeen, now: AgentsSeen) -> int:
    """How many agents were not started anew since `before`."""
    return sum(now.running.get(port) == inode for port, inode in before.running.items())


def _spec(paths: Paths) -> SwarmSpec:
    try:
        spec = parse(paths.spec.read_bytes())
    except FileNotFoundError:
        raise AskError(f"{paths.spec} is not there: is this VM the fleet's?") from None
    except SpecError as error:
        raise AskError(f"{paths.spec}: {error}") from error
    if not isinstance(spec, SwarmSpec):
        raise AskError(
            f"this VM is the {spec.role}: it has no agents. Order it from outside: `ops restart`"
        )
    return spec


def _here(paths: Paths) -> orders.Orders:
    """The orders given on this VM so far. None where they cannot be understood: they are about to
    be replaced."""
    try:
        return orders.parse(paths.orders.read_bytes(), ROLE_SWARM)
    except (FileNotFoundError, SpecError):
        return orders.Orders()


def _known(paths: Paths) -> dict[str, Any]:
    try:
        found = json.loads(paths.status.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _held(paths: Paths) -> bool:
    """Whether an order in the bucket holds this VM, as far as its service knows."""
    return orders.recall(paths, ROLE_SWARM, lambda _: None).orders.hold


def _silence(paths: Paths) -> float | None:
    """Seconds since the last status."""
    try:
        return time.time() - paths.status.stat().st_mtime
    except FileNotFoundError:
        return None


def _agent(paths: Paths, words: list[str]) -> list[str]:
    """What people need to look at one agent: the names that a unit's instance hides."""
    port = int(words[0]) if len(words) == 1 and words[0].isascii() and words[0].isdigit() else 0
    ports, running = _spec(paths).ports, agent_units.layout_of(paths, port)
    if port not in ports and running is None:
        some = f"from {min(ports)} to {max(ports)}" if ports else "(this VM has none)"
        raise AskError(f"agent: needs the port of an agent, {some}")
    layout = running or agent_units.OWN
    processes = " ".join(map(str, agent_units.processes_of(paths, port)))
    socket = layout.socket(paths, port)
    variant = variants.read(paths).get(port, "")
    version = variants.about(paths, variant).get("version", "not known") if variant else "not known"
    return [
        f"unit     {layout.unit(port)}",
        f"runs     {f'as process {processes}' if running else 'no'}",
        f"user     {layout.user(port)}",
        f"home     {paths.home(port)}",
        f"socket   {socket}{'' if socket.is_socket() else ', not there'}",
        f"output   {paths.logs / str(port)}",
        f"release  {version}",
    ]


def _status(paths: Paths) -> str:
    found = _known(paths)
    if not found:
        raise AskError(f"{paths.status} is not there yet: see `systemctl status pilot-node`")
    return json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False)
