"""Runs on the VM: starts the same agents in other ways than pilot-node's.

    python3 - rounds FIRST COUNT   upstream's way (docs/FACTS.md): 15 units, then 3 s of sleep
    python3 - bare FIRST COUNT     processes without units, 15 in flight, the next when one is ready
    python3 - stay FIRST COUNT     as bare; the processes stay until SIGTERM, and end 15 at a time

FIRST is the first port. Standard library only: the file is sent to the VM as text. Prints one JSON
object when all were started: how many came up and how many failed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

UNITS = Path("/etc/systemd/system")
# So many templates, all with one text.
SLICES = 20
HOMES = Path("/var/lib/pilot/agents")
VARIANT = Path("/run/pilot/variant")
VARIANTS = Path("/run/pilot/variants")
GID = 610
# Upstream's number (docs/FACTS.md), and pilot-node's window.
AT_ONCE = 15
PAUSE_S = 3.0
# A process that is not ready by then has failed; starts take far less.
DEADLINE_S = 60.0


def rounds(ports: Iterable[int]) -> dict[str, int]:
    """Start 15 units, sleep 3 s, and so on. The units and their files are pilot-node's."""
    left = list(ports)
    for port in left:
        _home(port)
    count = len(left)
    while left:
        now, left = left[:AT_ONCE], left[AT_ONCE:]
        units = [f"pilot-agent-{port % SLICES:02d}@{port}.service" for port in now]
        subprocess.run(["systemctl", "--no-block", "start", *units], check=True)
        if left:
            time.sleep(PAUSE_S)
    time.sleep(PAUSE_S)
    failed = subprocess.run(
        ["systemctl", "list-units", "--no-legend", "--state=failed", "pilot-agent*"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return {"started": count - len(failed), "failed": len(failed)}


def bare(
    ports: Iterable[int], started: list[subprocess.Popen[bytes]] | None = None
) -> dict[str, int]:
    """Keep 15 starting processes in flight, with the unit's user, command and
    environment. Adds each process to `started`."""
    left = list(ports)
    for port in left:
        _link(port)
    commands = {port: command(_unit().read_text(), port, _file) for port in left}
    for port in left:
        _home(port)
    flying: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    up = failed = 0
    while left or flying:
        while left and len(flying) < AT_ONCE:
            port = left.pop(0)
            words, environment = commands[port]
            process = subprocess.Popen(
                words,
                env=environment,
                user=_user(port),
                group=GID,
                extra_groups=[],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            flying[port] = process, time.monotonic()
            if started is not None:
                started.append(process)
        for port, (process, since) in list(flying.items()):
            if _socket(port).exists():
                up += 1
            elif process.poll() is not None or time.monotonic() - since > DEADLINE_S:
                failed += 1
            else:
                continue
            del flying[port]
        time.sleep(0.002)
    return {"started": up, "failed": failed}


def stay(ports: Iterable[int]) -> dict[str, int]:
    """Start as `bare`, wait for SIGTERM, then end all processes, 15 at a time."""
    started: list[subprocess.Popen[bytes]] = []
    counts = bare(ports, started)
    # Not earlier: the processes would inherit the mask, and never end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print(json.dumps(counts), flush=True)
    signal.sigwait({signal.SIGTERM})
    ending: list[subprocess.Popen[bytes]] = []
    while started or ending:
        while started and len(ending) < AT_ONCE:
            ending.append(started.pop())
            ending[-1].terminate()
        ending = [process for process in ending if process.poll() is None]
        time.sleep(0.002)
    return counts


def command(unit: str, port: int, read: Callable[[str], str]) -> tuple[list[str], dict[str, str]]:
    """The words and the environment with which the template `unit` starts its instance `port`.

    `read` gives the text of an environment file. Understands only what our unit uses: %i, ${NAME},
    Environment= and EnvironmentFile=.
    """
    text = unit.replace("%i", str(port))
    environment: dict[str, str] = {"PATH": os.defpath}
    for path in re.findall(r"^EnvironmentFile=(.+)$", text, re.MULTILINE):
        environment |= _variables(read(path))
    for line in re.findall(r"^Environment=(.+)$", text, re.MULTILINE):
        environment |= dict(word.split("=", 1) for word in shlex.split(line))
    (line,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    words = [_expanded(word, environment) for word in shlex.split(line)]
    # What comes before it changes the user: a process is started as it.
    daemon = next((index for index, word in enumerate(words) if "pilot-daemon" in word), 0)
    return words[daemon:], environment


def _variables(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {
        name: shlex.split(value)[0] if value else ""
        for name, _, value in (line.partition("=") for line in lines)
    }


def _expanded(word: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: environment[found.group(1)], word)


def _file(path: str) -> str:
    return Path(path).read_text()


def _unit() -> Path:
    return next(UNITS.glob("pilot-agent-*@.service"))


def _user(port: int) -> int:
    return int(f"19000{port}")


def _socket(port: int) -> Path:
    return HOMES / str(port) / "daemon.sock"


def _home(port: int) -> None:
    home = HOMES / str(port)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(home, _user(port), GID)


def _link(port: int) -> None:
    """Make the link to the unit's binary and environment; pilot-node removes it with its agent."""
    link = VARIANT / str(port)
    if not link.exists():
        newest = max(VARIANTS.iterdir(), key=lambda variant: variant.stat().st_mtime)
        link.unlink(missing_ok=True)
        link.symlink_to(f"../{VARIANTS.name}/{newest.name}")


def main(arguments: list[str]) -> None:
    """Start the agents and print the counts."""
    way, first, count = arguments[0], int(arguments[1]), int(arguments[2])
    ways: dict[str, Callable[[Iterable[int]], dict[str, int]]] = {
        "rounds": rounds,
        "bare": bare,
        "stay": stay,
    }
    print(json.dumps(ways[way](range(first, first + count))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
