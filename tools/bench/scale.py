"""Measures how fast agents start, and what a VM full of them costs.

    python -m tools.bench.scale [--quick] [--only speed|full] [--agents 4500] [--seed N]
                          [--write] [--json FILE] [--startup FOLDER]

Speed: the same agents start in three ways, at a registry that takes 0.6 s per registration and at
a prompt one. The ways are `pilot-node`; upstream's `rounds` (15 units, then 3 s of sleep, as in
docs/FACTS.md; the same units); `bare processes` (no units, 15 in flight). Each start is from
nothing: new identities, and a registry that knows nobody and exempts the VM's subnet from its limit
of new keys.

Full: pilot-node, then bare processes, fill the VM, leave it alone and drain it. Judge an
improvement by the ratios of the two. The registry is the stand-in, a process of this machine, so
machine-wide figures hold both ends.

Exits with 1 where agents failed, or pilot-node is not fast enough against the rounds. Needs root
(the VM is a container) and an idle machine; it reports other load. `--write` replaces the measured
parts of docs/SCALE.md and docs/scale.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.machines.driver import MachineError
from tools.bench import chart, meter, report
from tools.bench.report import Fill, FillSample, Full, Idle
from tools.bench.vm import BASE_PORT, ROOT, WINDOW, BenchError, BenchVm, booted, check

# Returns the CPU seconds of this process and of all that it started, the VM included.
Ours = Callable[[], float]

WAYS = ("pilot-node", "rounds", "bare processes")
# pilot-node comes first: bare processes need a variant that it has made.
FULL_WAYS = ("pilot-node", "bare processes")
DOCUMENT = ROOT / "docs" / "SCALE.md"
PICTURE = ROOT / "docs" / "scale.svg"
# Between two looks at the registry; 1 % of the shortest fill that counts.
_LOOK_S = 0.25
# A fill without a new registration for so long has stopped.
_STUCK_S = 90.0
_SAMPLE = 50
_UNIT = "pilot-bench-way"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The extent of a run."""

    starts: dict[str, int]
    """Way -> agents that it starts, at either registry."""
    agents: int
    """Agents that fill the VM."""
    settle: float
    """Seconds between the last start and the measurement."""
    idle: float
    """Seconds of the measurement."""


def counts(agents: int, *, quick: bool) -> Counts:
    """Enough for each way to reach its steady rate, and few enough to end in minutes."""
    if quick:
        few = {"pilot-node": 90, "rounds": 45, "bare processes": 90}
        return Counts(starts=few, agents=min(agents, 150), settle=5, idle=10)
    return Counts(
        starts={"pilot-node": 600, "rounds": 300, "bare processes": 600},
        agents=agents,
        settle=60,
        idle=60,
    )


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, flush=True)


def speed(vm: BenchVm, ours: Ours, wanted: Counts, seed: int) -> list[Fill]:
    """Measure the three ways at the two registries, in an order that the seed decides: so no way
    always profits from caches that another has warmed."""
    # Uncounted: it loads the binary's pages and makes the links that the units need.
    most = max(wanted.starts.values())
    say(f"  {most} agents to warm up")
    _fill(vm, ours, "pilot-node", most, 0.0)
    order = [(way, delay) for delay in (report.SLOW_S, 0.0) for way in WAYS]
    random.Random(seed).shuffle(order)  # noqa: S311 (an order, not a secret)
    fills = []
    for way, delay in order:
        number = wanted.starts[way]
        fill = _fill(vm, ours, way, number, delay)
        say(
            f"  {report.registry(delay):<17} {way:<15} {fill.agents:>5} in {fill.seconds:5.1f} s: "
            f"{fill.rate:6.1f} per second, {fill.failed} failed, at most {fill.most_open} open; "
            f"others took {fill.others:.2f} CPUs"
        )
        fills.append(fill)
    return sorted(fills, key=lambda fill: (-fill.delay, WAYS.index(fill.way)))


def _fill(vm: BenchVm, ours: Ours, way: str, agents: int, delay: float) -> Fill:
    """Start `agents` from nothing in one way, and end them."""
    vm.empty()
    vm.start_registry(delay=delay)
    if way == "pilot-node":
        vm.want(agents)
        command = "systemctl start pilot-node.service"
    else:
        command = _by_hand("rounds" if way == "rounds" else "bare", agents)
    start, used, all_used = time.monotonic(), ours(), meter.machine().busy
    with _started(vm, command) as process:
        assert process.stdout is not None
        curve = _watched(vm, agents, start, process if way != "pilot-node" else None)
        cpu, all_cpu = ours() - used, meter.machine().busy - all_used
        took = time.monotonic() - start
        most_open = vm.most_open()
        said = process.stdout.read()
        if process.wait():
            raise BenchError(f"{way}: {command.split()[0]} ended with {process.returncode}")
    failed = _failures(vm) if way == "pilot-node" else json.loads(said)["failed"]
    vm.empty()
    return Fill(
        way=way,
        delay=delay,
        agents=agents,
        failed=failed + agents - curve[-1][1],
        most_open=most_open,
        curve=tuple(curve),
        cpu=cpu,
        others=max(0.0, all_cpu - cpu) / took,
    )


def _by_hand(way: str, agents: int) -> str:
    """The command that starts `agents` in a way of tools/bench/ways.py, which it reads from stdin.

    It is a unit of its own in the agents' slice, free of a login's limits.
    """
    return (
        "systemd-run --quiet --pipe --wait --collect --slice=pilot.slice"
        " --property=LimitNOFILE=4096 --property=LimitNPROC=infinity"
        f" --property=TasksMax=infinity --unit={_UNIT}"
        f" python3 - {way} {BASE_PORT + 1} {agents}"
    )


def _started(vm: BenchVm, command: str) -> subprocess.Popen[str]:
    """Begin `command` on the VM; write its program to one of `_by_hand`."""
    process = subprocess.Popen(
        vm.line(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    if _UNIT in command:
        process.stdin.write((ROOT / "tools" / "bench" / "ways.py").read_text(encoding="utf-8"))
    process.stdin.close()
    return process


def _watched(
    vm: BenchVm, agents: int, start: float, process: subprocess.Popen[str] | None
) -> list[tuple[float, int]]:
    """(seconds, registered) until all agents are, or nothing more happens."""
    curve = [(0.0, 0)]
    while curve[-1][1] < agents:
        time.sleep(_LOOK_S)
        now, online = time.monotonic() - start, vm.online()
        if online > curve[-1][1]:
            curve.append((now, online))
        over = process is not None and process.poll() is not None
        if over or now - curve[-1][0] > _STUCK_S:
            break
    return curve


def _failures(vm: BenchVm) -> int:
    """Starts that failed since pilot-node began, by its status or its journal."""
    said = vm.run("cat /run/pilot/status.json 2>/dev/null || true")
    if said:
        return int(json.loads(said)["totals"]["failures"])
    journal = vm.run("journalctl --no-pager -u pilot-node | grep -c '(failure ' || true")
    return int(journal)


def full(vm: BenchVm, ours: Ours, wanted: Counts, way: str) -> Full:
    """Fill the VM, let it settle, measure what it costs, and drain it.

    `way` is one of FULL_WAYS.
    """
    vm.empty()
    registry = vm.start_registry(delay=0.0)
    vm.want(wanted.agents)
    vm.until(lambda: not vm.processes("pilot-daemon"), "a VM without agents")
    by_node = way == "pilot-node"
    before = _idle_machine(5.0)
    zero, first, used = meter.machine(), vm.first(), ours()
    pids = {"pid1": first, "registry": registry}
    cpu = {name: meter.cpu(pid) for name, pid in pids.items()}
    start = time.monotonic()
    with _started(
        vm,
        "systemctl start pilot-node.service" if by_node else _by_hand("stay", wanted.agents),
    ) as process:
        if by_node:
            pids["node"] = vm.node()

        def look() -> FillSample:
            now = meter.machine()
            return FillSample(
                seconds=time.monotonic() - start,
                online=vm.online(),
                memory=zero.available - now.available,
                machine=now.busy - zero.busy,
                ours=ours() - used,
                pid1=meter.cpu(first) - cpu["pid1"],
                node=meter.cpu(pids["node"]) if by_node else 0.0,
                registry=meter.cpu(registry) - cpu["registry"],
            )

        points = _filled(vm, look, wanted.agents, None if by_node else process)
        say(
            f"  {points[-1].seconds:5.0f} s  {wanted.agents} registered;"
            f" {wanted.settle:g} s to settle"
        )
        end = time.monotonic() + wanted.settle
        while time.monotonic() < end:
            time.sleep(1)
            points.append(look())
        agents = vm.processes("pilot-daemon")
        memory = zero.available - meter.machine().available
        say(f"  idle for {wanted.idle:g} s")
        idle = _idle(wanted.idle, ours, agents, pids)
        sample = random.Random(len(agents)).sample(  # noqa: S311
            agents, min(_SAMPLE, len(agents))
        )
        sizes = {name: meter.memory(pid) for name, pid in pids.items()}
        pss = sum(map(meter.proportional, sample)) / len(sample)
        threads = sum(map(meter.threads, sample)) / len(sample)
        failed = _failures(vm) if by_node else wanted.agents - len(agents)
        drain = _drained(vm, process, by_node=by_node)
    say(f"  drained in {drain:.1f} s")
    return Full(
        way=way,
        agents=wanted.agents,
        failed=failed,
        points=tuple(points),
        idle=idle,
        memory=memory,
        registry_memory=sizes["registry"],
        pid1_memory=sizes["pid1"],
        node_memory=sizes.get("node", 0),
        pss=pss,
        threads=threads,
        before=before,
        drain=drain,
    )


def _filled(
    vm: BenchVm, look: Callable[[], FillSample], agents: int, process: subprocess.Popen[str] | None
) -> list[FillSample]:
    """Samples until all agents are registered. BenchError where no more register for a while.

    `process` starts the agents, where they end with it.
    """
    points, changed = [look()], time.monotonic()
    told = points[0]
    while points[-1].online < agents:
        time.sleep(0.5)
        points.append(look())
        if points[-1].online > points[-2].online:
            changed = time.monotonic()
        if points[-1].seconds - told.seconds > 5:
            say(f"  {_progress(told, points[-1], agents)}")
            told = points[-1]
        over = process is not None and process.poll() is not None
        if over or time.monotonic() - changed > _STUCK_S:
            raise BenchError(
                f"{points[-1].online} of {agents} registered, and none more in "
                f"{time.monotonic() - changed:.0f} s:\n{vm.run('journalctl -n 20 -u pilot-node')}"
            )
    return points


def _drained(vm: BenchVm, process: subprocess.Popen[str], *, by_node: bool) -> float:
    """Drain the VM, 15 agents at a time; seconds until the last one is gone."""
    start = time.monotonic()
    if by_node:
        vm.run("pilot-node drain")
    else:
        vm.run(f"systemctl kill --kill-who=main --signal=SIGTERM {_UNIT}.service")
        process.wait()
    took = time.monotonic() - start
    if left := vm.processes("pilot-daemon"):
        raise BenchError(f"{len(left)} agents are left after the drain")
    return took


def _progress(last: FillSample, now: FillSample, agents: int) -> str:
    """A line: agents registered, and CPUs busy since the last sample."""
    took = now.seconds - last.seconds
    busy = {
        "ours": now.ours - last.ours,
        "others": now.machine - last.machine - now.ours + last.ours,
        "PID 1": now.pid1 - last.pid1,
        "pilot-node": now.node - last.node,
        "registry": now.registry - last.registry,
    }
    shares = ", ".join(f"{name} {seconds / took:.2f}" for name, seconds in busy.items())
    return f"{now.seconds:5.0f} s  {now.online:>5}/{agents} registered   CPUs: {shares}"


def _idle(seconds: float, ours: Ours, agents: Sequence[int], pids: dict[str, int]) -> Idle:
    own = {name: meter.cpu(pid) for name, pid in pids.items()}
    exact, start = meter.exact_cpu(agents), time.monotonic()
    # `exact_cpu` reads tens of thousands of files for a second: it is not part of idling.
    machine, used, began = meter.machine(), ours(), time.monotonic()
    time.sleep(seconds)
    after, all_ours = meter.machine(), ours() - used
    quiet, took = time.monotonic() - began, time.monotonic() - start
    return Idle(
        seconds=took,
        agents=meter.exact_cpu(agents) - exact,
        pid1=meter.cpu(pids["pid1"]) - own["pid1"],
        node=meter.cpu(pids["node"]) - own["node"] if "node" in pids else 0.0,
        registry=meter.cpu(pids["registry"]) - own["registry"],
        ours=all_ours * took / quiet,
        others=max(0.0, after.busy - machine.busy - all_ours) / quiet,
        stolen=after.stolen - machine.stolen,
    )


def _idle_machine(seconds: float) -> float:
    """CPUs busy on this machine while we do nothing."""
    before = meter.machine().busy
    time.sleep(seconds)
    return (meter.machine().busy - before) / seconds


def _surroundings(load: tuple[float, float, float], before: float) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit or 'unknown'}, {os.cpu_count()} CPUs, "
        f"{gib:.0f} GiB, Linux {platform.release().split('-')[0]}; load before it began "
        f"{load[0]:.2f}, {before:.2f} CPUs busy with other things"
    )


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a trial with few agents: no result")
    parser.add_argument("--only", choices=("speed", "full"), help="measure one of the two parts")
    parser.add_argument("--agents", type=int, default=4500, help="agents that fill the VM")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the ways")
    parser.add_argument(
        "--write", action="store_true", help="write docs/SCALE.md and docs/scale.svg"
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--startup", type=Path, help="use this startup/ instead of the checkout's")
    given = parser.parse_args()
    if given.write and (given.quick or given.only):
        parser.error("--write is for a whole run: without --quick and --only")
    return given


def measure(given: argparse.Namespace) -> tuple[list[Fill], list[Full]]:
    """Measure on one VM, which is gone afterwards."""
    wanted = counts(given.agents, quick=given.quick)
    check(wanted.agents)
    fills: list[Fill] = []
    whole: list[Full] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, meter.Account() as account:
        if account.used() is None:
            say(
                "! this machine has no CPU accounts (cgroups v1): the load of others counts as ours"
            )

        def ours() -> float:
            used = account.used()
            return meter.machine().busy if used is None else used

        say("· a VM boots")
        with booted(Path(folder), given.startup) as vm:
            if given.only != "full":
                say(f"· three ways of starting agents, {WINDOW} at a time (seed {given.seed})")
                fills = speed(vm, ours, wanted, given.seed)
            if given.only != "speed":
                for way in FULL_WAYS:
                    say(f"· {wanted.agents} agents on one VM, by {way}")
                    whole.append(full(vm, ours, wanted, way))
            say("· the VM ends")
    return fills, whole


def _publish(
    given: argparse.Namespace, fills: list[Fill], whole: list[Full], surroundings: str
) -> None:
    parts = [f"Measured by `make bench` ({surroundings})."]
    parts += [report.speed_table(fills)] if fills else []
    parts += [report.full_table(*whole)] if whole else []
    measured = "\n\n".join(parts)
    print(f"\n{measured}\n")
    if given.json:
        given.json.write_text(json.dumps(report.as_json(fills, whole), indent=1) + "\n")
    if given.write:
        picture = f"![A VM that fills]({PICTURE.name})"
        text = report.into(DOCUMENT.read_text(encoding="utf-8"), f"{measured}\n\n{picture}")
        DOCUMENT.write_text(text)
        if whole:
            title = f"{whole[0].agents:,} agents on one VM, from nothing"
            PICTURE.write_text(chart.svg(title, surroundings, report.panels(whole[0])))


def main() -> int:
    """Measure, print and, with --write, write."""
    given = _given()
    # SIGTERM (timeout, a supervisor) leaves no VM behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    load, before = os.getloadavg(), _idle_machine(3.0)
    if before > 0.2:
        say(f"! {before:.2f} CPUs are busy with other things: the figures will show it")
    try:
        if given.write:
            # Fail now, not after ten minutes.
            report.into(DOCUMENT.read_text(encoding="utf-8"), "")
        fills, whole = measure(given)
        _publish(given, fills, whole, _surroundings(load, before))
    except KeyboardInterrupt:
        print("tools.bench.scale: interrupted; the VM is gone", file=sys.stderr)
        return 130
    except (BenchError, MachineError, OSError, ValueError) as error:
        print(f"tools.bench.scale: {error}", file=sys.stderr)
        return 1
    found = report.problems(fills, trial=given.quick) if fills else []
    found += [
        f"{each.failed} starts by {each.way} failed while the VM filled"
        for each in whole
        if each.failed
    ]
    for problem in found:
        print(f"tools.bench.scale: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
