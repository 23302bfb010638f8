"""What a program can do that runs on a VM as one of its agents: programs, and how they are run."""

from __future__ import annotations

import json
import shlex
from typing import Any

from startup.node.machine.agent_units import OWN
from tests.vm.fleet import Fleet

# Arguments: its own port and another's, their processes. Prints what it can do to either.
NEIGHBOUR = r"""
import json, os, signal, socket, sys, urllib.request
from pathlib import Path

mine, other = sys.argv[1:3]
ours, theirs = map(int, sys.argv[3:5])
can = {}


def attempt(what, do):
    try:
        do()
        can[what] = True
    except OSError:
        can[what] = False


def swap(path):
    path.rename(path.with_name("d"))
    path.with_name("d").rename(path)


def connect(path):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)


for who, port, pid in (("own", mine, ours), ("other's", other, theirs)):
    home = Path("/var/lib/pilot/agents", port)
    attempt(f"{who} identity", lambda: (home / "identity.json").read_bytes())
    attempt(f"{who} socket", lambda: connect(str(home / "daemon.sock")))
    attempt(f"{who} socket's place", lambda: swap(home / "daemon.sock"))
    attempt(f"{who} process", lambda: os.kill(pid, 0))
    # The kernel asks here what it asks of one who wants to trace it.
    attempt(f"{who} memory", lambda: open(f"/proc/{pid}/mem", "rb").close())
address = "http://169.254.169.254/computeMetadata/v1/instance/name"
asked = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
attempt("metadata", lambda: urllib.request.urlopen(asked, timeout=3))
attempt("journald", lambda: connect("/run/systemd/journal/stdout"))
attempt("D-Bus", lambda: connect("/run/dbus/system_bus_socket"))
attempt("shared memory", lambda: Path("/dev/shm/x").write_text("x"))
print(json.dumps(can))
"""

# Forks as long as it may. Prints how many, and the KiB that they take.
FORKS = r"""
import json, os, re, signal
from pathlib import Path


def available():
    return int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())[1])


before, count = available(), 0
while True:
    try:
        if not os.fork():
            signal.pause()
    except BlockingIOError:
        break
    count += 1
print(json.dumps([count, before - available()]))
"""


def as_agent(fleet: Fleet, vm: str, port: int, words: list[str]) -> Any:
    """What a Python program says that runs with an agent's user, slice and limit of processes."""
    limit = fleet.run(vm, f"systemctl show -P LimitNPROC {OWN.unit(port)}").strip()
    run = "systemd-run --quiet --pipe --wait --collect"
    run += f" -p LimitNPROC={limit} -p OOMScoreAdjust=500"
    slice_ = OWN.cgroup(port).partition("/")[0]
    user = f"unshare --setgid 610 --setuid {OWN.user(port)} python3 -c"
    line = f"{run} --slice={slice_} {user} {shlex.join(words)}"
    return json.loads(fleet.run(vm, line.replace("%", "%%")))
