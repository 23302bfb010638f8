"""What each directive of the agents' unit costs, paid thousands of times.

    python -m tools.bench.units [--units N] [--only NAME,...] [--guest]

Boots the lab's image as a container of its own for each directive, starts N units that do nothing
(`sleep infinity`) with the agents' unit plus, or less, that one directive, and prints a table: CPU
of PID 1 a start, CPU of everything a start (what a directive costs in the child before it executes,
too), memory of everything and of PID 1 a unit. Needs root. Memory and task accounting cost nothing
in a container whose host keeps the controllers: with --guest they are tried in one QEMU guest,
between two rows of the unit as it is, which say how far such figures differ by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.machines import container, processes
from lab.machines.cgroups import Group, hierarchies
from lab.machines.host import ensure_packages, no_containers
from lab.machines.image import default_cache, ensure_image
from startup.node.setup import units
from tests.conftest import pulumi_environment
from tests.vm.fleet import Fleet
from tools.bench import meter

# Of this process alone: another checkout may measure, or be tested, at the same time.
NAME = f"pilot-units-{os.getpid()}"
MEMORY_MB = 8000
# As pilot-node: so many on one command line, and the next when they run.
BATCH = 15
_PATIENCE_S = 60.0
_PATH = "/etc/systemd/system/pilot-agent@.service"
# Where version 1 of cgroups is: CPU and memory of all that is in the container, kernel included.
_CPU = Path("/sys/fs/cgroup/cpuacct")
# What the image starts and a container without metadata cannot.
_MASKED = ("google-guest-agent", "google-startup-scripts", "google-shutdown-scripts")

# Name -> (directives that are taken out, directives that are added to [Service]).
CHANGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "as it is": ((), ()),
    "without Before=pilot-node.service": (("Before",), ()),
    "without NoNewPrivileges": (("NoNewPrivileges",), ()),
    "default dependencies": (("DefaultDependencies",), ()),
    "RuntimeDirectory": ((), ("RuntimeDirectory=pilot-agent/%i",)),
    "StateDirectory": ((), ("StateDirectory=pilot-agent/%i",)),
    "MemoryAccounting": (("MemoryAccounting",), ("MemoryAccounting=yes",)),
    "TasksAccounting": (("TasksAccounting",), ("TasksAccounting=yes",)),
    "CPUAccounting": ((), ("CPUAccounting=yes",)),
    "without CapabilityBoundingSet=": (("CapabilityBoundingSet",), ()),
    "without RestrictAddressFamilies": (("RestrictAddressFamilies",), ()),
    "SystemCallFilter=@system-service": (
        (),
        ("SystemCallFilter=@system-service", "SystemCallArchitectures=native"),
    ),
    "MemoryDenyWriteExecute": ((), ("MemoryDenyWriteExecute=yes",)),
    "without the seccomp filters": (("RestrictAddressFamilies", "RestrictNamespaces"), ()),
    "LockPersonality": ((), ("LockPersonality=yes",)),
    "without RestrictNamespaces": (("RestrictNamespaces",), ()),
    "RestrictSUIDSGID": ((), ("RestrictSUIDSGID=yes",)),
    "RestrictRealtime": ((), ("RestrictRealtime=yes",)),
    "ProtectClock": ((), ("ProtectClock=yes",)),
    "PrivateTmp": ((), ("PrivateTmp=yes",)),
    "PrivateDevices": ((), ("PrivateDevices=yes",)),
    "ProtectSystem=full": ((), ("ProtectSystem=full",)),
    "ProtectSystem=strict": (
        (),
        ("ProtectSystem=strict", "ReadWritePaths=/run /var/lib"),
    ),
    "ProtectHome": ((), ("ProtectHome=yes",)),
    "IPAddressDeny in the unit": ((), ("IPAddressDeny=169.254.169.254",)),
    # What is taken out of all rows, because it names what only a VM has: with a stand-in for that.
    "User=root": (("User",), ("User=root",)),
    "EnvironmentFile": ((), ("EnvironmentFile=/etc/os-release",)),
    "StandardError=append": ((), ("StandardError=append:/run/%n",)),
    "OOMScoreAdjust": ((), ("OOMScoreAdjust=500",)),
    "without LimitNOFILE and LimitNPROC": (("LimitNOFILE", "LimitNPROC"), ()),
    "without UMask": (("UMask",), ()),
    "without TimeoutStopSec": (("TimeoutStopSec",), ()),
}
# What a guest is asked for: there every controller is.
GUEST = ("as it is", "MemoryAccounting", "TasksAccounting", "as it is")
# PID 1 and memory of N units, from within: [ms of PID 1 a start, KiB of everything a unit].
_IN_GUEST = """
import json, os, subprocess, sys, time
count, batch = int(sys.argv[1]), int(sys.argv[2])
systemctl = lambda *words: subprocess.run(["systemctl", *words], check=True)
names = [f"cost@{n}.service" for n in range(count)]
def running():
    return int(subprocess.run(["pgrep", "-cx", "sleep"], capture_output=True).stdout)
def start(some, total):
    systemctl("--no-block", "start", *some)
    end = time.monotonic() + 300
    while running() < total:
        assert time.monotonic() < end, f"{running()} of {total} run"
        time.sleep(0.05)
def reading():
    open("/proc/sys/vm/drop_caches", "w").write("3")
    lines = dict(line.split(":") for line in open("/proc/meminfo"))
    held = {name: int(text.split()[0]) for name, text in lines.items()}
    used = held["MemTotal"] - held["MemFree"] - held["Cached"] - held["Buffers"]
    fields = open("/proc/1/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK"), used
systemctl("daemon-reload")
beside = running()
start(names[:batch], beside + batch)
before = reading()
for at in range(batch, count, batch):
    start(names[at:at + batch], beside + min(at + batch, count))
after = reading()
print(json.dumps([(b - a) / (count - batch) for a, b in zip(before, after)]))
systemctl("stop", "cost@*.service")
"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one unit: CPU seconds of PID 1 and of everything for its start, bytes of everything and
    of PID 1 while it runs; None where this machine does not tell. `wall`: seconds for all."""

    pid1: float
    everything: float | None
    memory: float | None
    pid1_memory: float
    wall: float


def changed(unit: str, without: Sequence[str], added: Sequence[str]) -> str:
    """The text of the agents' unit with its command replaced, less and plus directives."""
    lines = [
        line
        for line in unit.splitlines()
        if not line.startswith("#") and line.partition("=")[0] not in (*without, "ExecStart")
    ]
    # What pilot-node and the startup script would have made is not here.
    own = ("User", "EnvironmentFile", "StandardError", "OOMScoreAdjust")
    lines = [line for line in lines if line.partition("=")[0] not in own]
    service = lines.index("[Service]") + 1
    user = [] if "User" in without else ["User=nobody"]
    command = [*user, "ExecStart=/usr/bin/sleep infinity"]
    return "\n".join([*lines[:service], *command, *added, *lines[service:]]) + "\n"


@contextmanager
def booted(folder: Path) -> Iterator[int]:
    """The lab's image as a container; its first process, as this machine numbers it."""
    image = ensure_image(default_cache())
    for layer in ("upper", "work"):
        (folder / layer).mkdir(parents=True)
    masks = folder / "upper" / "etc" / "systemd" / "system"
    masks.mkdir(parents=True)
    for unit in _MASKED:
        (masks / f"{unit}.service").symlink_to("/dev/null")
    found = hierarchies(Path("/proc/mounts").read_text())
    group = Group(found, NAME)
    cpu = _CPU / NAME
    extra = [cpu] if _CPU.is_dir() else []
    group.make(MEMORY_MB)
    for each in extra:
        each.mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--net", "--propagation", "private"]
    command += [str(container.LAUNCHER), str(folder), NAME]
    command += ["\n".join(str(each) for each in [*group.directories, *extra])]
    command += ["\n".join(str(p) for p in (image.root, folder / "upper", folder / "work"))]
    command += ["", "", "--quiet", "--boot", f"--directory={folder / 'tree'}", f"--machine={NAME}"]
    command += ["--register=no", "--keep-unit", "--settings=no", "--private-network"]
    command += ["--console=read-only", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
    command += ["--capability=CAP_BPF,CAP_PERFMON", "--system-call-filter=bpf"]
    with (folder / "console").open("wb") as console:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console
        )
        try:
            yield _first(running, folder)
        finally:
            if running.poll() is None:
                processes.kill_container(running.pid)
            processes.end(running)
            _until(lambda: group.remove(0.1), "its cgroups are gone")
            for each in extra:
                _until(lambda each=each: _gone(each), f"{each} is gone")  # type: ignore[misc]


def _first(running: subprocess.Popen[bytes], folder: Path) -> int:
    """Wait until systemd in the container has started what it starts."""

    def up() -> bool:
        if running.poll() is not None:
            said = (folder / "console").read_text(errors="replace")
            raise SystemExit(f"the container does not boot: {said[-2000:]}")
        first = processes.first_in(running.pid)
        if first is None:
            return False
        state = inside(first, "systemctl", "is-system-running", check=False)
        return state.strip() in ("running", "degraded")

    _until(up, "the container has booted")
    first = processes.first_in(running.pid)
    assert first is not None
    return first


def inside(first: int, *command: str, check: bool = True, text: str = "") -> str:
    done = subprocess.run(
        ["nsenter", f"--target={first}", "--mount", "--pid", "--ipc", "--net", "--uts", *command],
        input=text,
        capture_output=True,
        text=True,
        check=check,
    )
    return done.stdout


def measure(first: int, unit: str, count: int) -> Cost:
    """The cost of `count` units of the text `unit`, in a container that has none yet."""
    inside(first, "tee", _PATH, text=unit)
    slice_ = "[Slice]\nTasksMax=infinity\n"
    inside(first, "tee", "/etc/systemd/system/pilot.slice", text=slice_)
    inside(first, "systemctl", "daemon-reload")
    names = [f"pilot-agent@{10001 + i}.service" for i in range(count)]
    # The first ones find caches cold, and the slice not there.
    _start(first, names[:BATCH], BATCH)
    before = _reading(first)
    began = time.monotonic()
    for number in range(BATCH, count, BATCH):
        _start(first, names[number : number + BATCH], min(number + BATCH, count))
    wall = time.monotonic() - began
    after = _reading(first)
    left = count - BATCH

    def each(index: int) -> float | None:
        a, b = before[index], after[index]
        return None if a is None or b is None else (b - a) / left

    return Cost(
        pid1=each(0) or 0.0,
        everything=each(1),
        memory=each(2),
        pid1_memory=each(3) or 0.0,
        wall=wall,
    )


def measure_guest(unit: str, count: int) -> Iterator[tuple[str, float, float]]:
    """Of each row of GUEST: its name, milliseconds of PID 1 a start, KiB of everything a unit."""
    with tempfile.TemporaryDirectory(prefix="units-") as folder:
        fleet = Fleet(Path(folder), pulumi_environment(), driver="qemu", patience=600)
        try:
            fleet.carry_out({"swarm-1": 1})
            for name in GUEST:
                text = changed(unit, *CHANGES[name])
                fleet.run("swarm-1", f"echo {shlex.quote(text)} >/run/systemd/system/cost@.service")
                words = ["python3", "-c", _IN_GUEST, str(count), str(BATCH)]
                pid1, memory = json.loads(fleet.run("swarm-1", shlex.join(words)))
                yield name, pid1, memory
        finally:
            fleet.end()


def _start(first: int, names: Sequence[str], total: int) -> None:
    inside(first, "systemctl", "--no-block", "start", *names)
    _until(
        lambda: inside(first, "pgrep", "-cx", "sleep", check=False).strip() == str(total),
        f"{total} units run",
    )


def _reading(first: int) -> tuple[float | None, ...]:
    """CPU seconds of PID 1 and of everything, bytes of everything and of PID 1."""
    usage, memory = _CPU / NAME / "cpuacct.usage", _memory()
    return (
        meter.exact_cpu([first]),
        int(usage.read_text()) / 1e9 if usage.exists() else None,
        memory,
        meter.memory(first),
    )


def _memory() -> int | None:
    """All but what can be had back: the cache of files. Kernel memory is in it."""
    folder = Path("/sys/fs/cgroup/memory") / NAME
    try:
        usage = int((folder / "memory.usage_in_bytes").read_text())
        cache = re.search(
            r"^total_inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE
        )
    except OSError:
        return None
    return usage - (int(cache[1]) if cache else 0)


def _gone(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _until(condition: Callable[[], bool], what: str) -> None:
    if not processes.until(condition, _PATIENCE_S):
        raise SystemExit(f"not within {_PATIENCE_S:.0f} s: {what}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--units", type=int, default=1000, metavar="N")
    parser.add_argument("--only", default="", metavar="NAME,...", help="some of the rows")
    parser.add_argument("--guest", action="store_true", help="accounting, in one QEMU guest")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name] or list(CHANGES)
    if unknown := [name for name in chosen if name not in CHANGES]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(CHANGES)}")
    if options.guest and options.only:
        parser.error("--guest has rows of its own")
    if not options.guest and (why := no_containers()):
        print(f"tools.bench.units: {why}", file=sys.stderr)
        return 2
    unit = (units.TEMPLATES / "pilot-agent@.service").read_text(encoding="utf-8")
    print(f"{options.units} units, started {BATCH} at a time. A unit:")
    if options.guest:
        ensure_packages("qemu")
        print("| the unit | PID 1, ms of an emulated CPU | all, KiB |")
        print("| --- | ---: | ---: |")
        for name, pid1, memory in measure_guest(unit, options.units):
            print(f"| {name} | {pid1:.1f} | {memory:.0f} |", flush=True)
        return 0
    print("| the unit | PID 1, ms CPU | all, ms CPU | all, KiB | PID 1, KiB | seconds for all |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in chosen:
        with (
            tempfile.TemporaryDirectory(prefix="units-") as folder,
            booted(Path(folder)) as first,
        ):
            cost = measure(first, changed(unit, *CHANGES[name]), options.units)
        print(
            f"| {name} | {cost.pid1 * 1e3:.2f} | {_shown(cost.everything, 1e3)} "
            f"| {_shown(cost.memory, 1 / 1024)} | {cost.pid1_memory / 1024:.1f} "
            f"| {cost.wall:.1f} |",
            flush=True,
        )
    return 0


def _shown(value: float | None, factor: float) -> str:
    return "?" if value is None else f"{value * factor:.1f}"


if __name__ == "__main__":
    sys.exit(main())
