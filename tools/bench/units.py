"""Measures what each directive of the agents' unit costs: it is paid thousands of times.

    python -m tools.bench.units [--units N] [--only NAME,...] [--guest]

Boots the lab's image as a container per directive, and starts N units that do nothing (`sleep
infinity`) with the agents' unit plus or minus that directive. Prints a table: CPU per start of PID
1 and of everything (with the child's work before it executes), memory per unit of everything and of
PID 1. Needs root. In a container whose host keeps the controllers, memory and task accounting cost
nothing: --guest measures them in one QEMU guest, between two rows of the unit as it is, which show
how far such figures differ by themselves.
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
from startup.node.machine import agent_units
from startup.node.setup import units
from tests.conftest import pulumi_environment
from tests.vm.fleet import Fleet
from tools.bench import meter

# Named after this process: another checkout may measure, or be tested, at the same time.
NAME = f"pilot-units-{os.getpid()}"
MEMORY_MB = 8000
# Units per command line, as pilot-node's window; the next when they run.
BATCH = 15
_PATIENCE_S = 60.0
# Version 1 of cgroups: CPU of everything in the container, kernel included.
_CPU = Path("/sys/fs/cgroup/cpuacct")
# Units of the image that fail in a container without metadata.
_MASKED = ("google-guest-agent", "google-startup-scripts", "google-shutdown-scripts")

# In the daemon's place.
_SLEEPS = "/usr/bin/sleep infinity"
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
    # All rows leave these out, because they name things of a VM: here with a stand-in.
    "User=nobody, one for all": (("ExecStart",), ("User=nobody", f"ExecStart={_SLEEPS}")),
    "EnvironmentFile": ((), ("EnvironmentFile=/etc/os-release",)),
    "StandardError=append": ((), ("StandardError=append:/run/%n",)),
    "OOMScoreAdjust": ((), ("OOMScoreAdjust=500",)),
    "without LimitNOFILE and LimitNPROC": (("LimitNOFILE", "LimitNPROC"), ()),
    "without UMask": (("UMask",), ()),
    "without TimeoutStopSec": (("TimeoutStopSec",), ()),
}
# The rows of --guest: a guest has every controller.
GUEST = ("as it is", "MemoryAccounting", "TasksAccounting", "as it is")
# Runs in the guest and prints [ms of PID 1 per start, KiB of everything per unit].
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
    """The cost of one unit. None: this machine does not tell."""

    pid1: float
    """CPU seconds of PID 1 per start."""
    everything: float | None
    """CPU seconds of everything per start."""
    memory: float | None
    """Bytes of everything per running unit."""
    pid1_memory: float
    """Bytes of PID 1 per running unit."""
    wall: float
    """Seconds until all units run."""


def changed(unit: str, without: Sequence[str], added: Sequence[str]) -> str:
    """The agents' unit without its daemon, `without` some directives and with those `added`."""
    # pilot-node and the startup script would have made what these name.
    out = (*without, "EnvironmentFile", "StandardError", "OOMScoreAdjust")
    lines = [
        re.sub(" /run/pilot/variant/.*", f" {_SLEEPS}", line)
        for line in unit.splitlines()
        if not line.startswith("#") and line.partition("=")[0] not in out
    ]
    service = lines.index("[Service]") + 1
    return "\n".join([*lines[:service], *added, *lines[service:]]) + "\n"


@contextmanager
def booted(folder: Path) -> Iterator[int]:
    """The lab's image as a container; this machine's ID of its first process."""
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
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
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
    paths = [f"/etc/systemd/system/{name}" for name in agent_units.OWN.templates]
    inside(first, "tee", *paths, text=unit)
    slice_ = "[Slice]\nTasksMax=infinity\n"
    inside(first, "tee", "/etc/systemd/system/pilot.slice", text=slice_)
    inside(first, "systemctl", "daemon-reload")
    names = [agent_units.OWN.unit(10001 + index) for index in range(count)]
    # Uncounted: the first ones find cold caches, and no slice.
    _start(first, names[:BATCH], BATCH)
    before = _reading(first)
    began = time.monotonic()
    for number in range(BATCH, count, BATCH):
        _start(first, names[number : number + BATCH], min(number + BATCH, count))
    wall = time.monotonic() - began
    after = _reading(first)
    # In groups: thousands of seccomp filters that end with the container can hang this kernel.
    for number in range(0, count, BATCH):
        inside(first, "systemctl", "stop", *names[number : number + BATCH])
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
    """(name, milliseconds of PID 1 per start, KiB of everything per unit) of each row of GUEST."""
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
    """Memory of the container with the kernel's, without the cache of files."""
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
    parser.add_argument("--only", default="", metavar="NAME,...", help="only these rows")
    parser.add_argument(
        "--guest", action="store_true", help="measure accounting, in one QEMU guest"
    )
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name] or list(CHANGES)
    if unknown := [name for name in chosen if name not in CHANGES]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(CHANGES)}")
    if options.guest and options.only:
        parser.error("--guest has rows of its own")
    if not options.guest and (why := no_containers()):
        print(f"tools.bench.units: {why}", file=sys.stderr)
        return 2
    unit = (units.TEMPLATES / agent_units.SOURCE).read_text(encoding="utf-8")
    print(f"{options.units} units, started {BATCH} at a time. Per unit:")
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
