"""Measures `ops live` beside `ops watch`, for a fleet of 100 VMs and with the same period.

    python -m tools.bench.live [--vms N] [--looks N] [--every SECONDS]

The lab's API answers over loopback, without guests; some VMs' statuses change between two looks.
Prints the requests of a look, and the processor time of a minute: of the process alone, from its
third look on, when all is loaded.
"""

from __future__ import annotations

import argparse
import os
import pty
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.cloud.server import serve
from startup.node.report.status import encode
from tests.components.fleet import ROOT
from tests.ops.simulated import Simulated
from tools.bench import meter

_AGENTS = 50
_LIMIT_S = 300.0
_A_LOOK = "/aggregated/instances"


@dataclass(frozen=True, kw_only=True)
class LookCost:
    """What a command costs."""

    requests: float
    """Per look."""
    processor: float
    """Seconds per look."""


@contextmanager
def _on_a_terminal(command: Sequence[str], rows: int, columns: int) -> Iterator[int]:
    """Run a command on a terminal of that size, whose output nobody reads; its process ID."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )

    def read() -> None:
        # The last end to be closed ends it.
        try:
            while os.read(ours, 65536):
                pass
        except OSError:
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        os.close(theirs)
        reader.join()
        os.close(ours)


def _measure(
    made: Simulated, command: Sequence[str], looks: int, size: tuple[int, int]
) -> LookCost:
    def looked() -> int:
        return sum(_A_LOOK in each for each in list(made.asked))

    def wait(count: int) -> None:
        """Until so many looks have begun; meanwhile agents start and stop."""
        since, seen = time.monotonic(), -1
        while (now := looked()) < count:
            if time.monotonic() - since > _LIMIT_S:
                sys.exit(f"{' '.join(command)}: {now} looks in {_LIMIT_S:.0f} s")
            if now != seen:
                seen = now
                for at, node in enumerate(made.nodes.values()):
                    if node.is_swarm:
                        node.running = _AGENTS - (at + now) % 3
                    made.publish(node.name, encode(node.document(made.online)))
            time.sleep(0.05)

    made.asked.clear()
    with _on_a_terminal(command, *size) as pid:
        wait(3)
        # The look has begun: the processor time from here to the begin of another is that of
        # whole looks.
        before, requests = meter.cpu(pid), len(made.asked)
        wait(3 + looks)
        spent, asked = meter.cpu(pid) - before, len(made.asked) - requests
        # Ended amid its requests, it would leave the lab half a connection.
        last = -1
        while last != (last := len(made.asked)):
            time.sleep(0.5)
    return LookCost(requests=asked / looks, processor=spent / looks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vms", type=int, default=100, help="VMs (default 100)")
    parser.add_argument("--looks", type=int, default=10, help="counted looks (default 10)")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two (default 3)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turns (default 3)")
    given = parser.parse_args()
    costs: dict[str, list[LookCost]] = {"watch": [], "live": [], "live, large": []}
    with tempfile.TemporaryDirectory() as scratch, serve(Path(scratch) / "cloud") as serving:
        made = Simulated(serving, {f"swarm-{number}": _AGENTS for number in range(1, given.vms)})
        made.tick()
        program = [sys.executable, "-m", "ops", "--endpoint", serving.url, "--project", "p1"]
        for _ in range(given.runs):
            for name, found in costs.items():
                command = [*program, name.partition(",")[0], "--every", str(given.every)]
                size = (50, 160) if "large" in name else (24, 80)
                found.append(_measure(made, command, given.looks, size))
    # Other work of the machine only adds to a run.
    least = {name: min(found, key=lambda each: each.processor) for name, found in costs.items()}
    watched = least["watch"]
    for name, cost in least.items():
        print(
            f"{name:<11} {given.vms} VMs, every {given.every:.0f} s: {cost.requests:.1f} requests "
            f"a look, {cost.processor * 60 / given.every:.1f} s of processor a minute, "
            f"{cost.processor / watched.processor:.2f} times that of watch "
            f"(least of {given.runs})"
        )


if __name__ == "__main__":
    main()
