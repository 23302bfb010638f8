"""Measures `ops status` for fleets of 10 and of 100 VMs, on one machine.

    python -m tools.bench.status [--runs N]

The lab's API answers over loopback, without guests. Prints the median time of a look and of the
whole command, and the number of requests. A look at Google takes longer, because its answers do;
ten requests are open at a time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.cloud.server import serve
from ops import fleet, status
from ops.cloud_address import CloudAddress
from ops.google import Cloud
from tests.components.fleet import ROOT
from tests.ops.simulated import Simulated

_AIM_S = 3.0


def _measure(vms: int, runs: int, folder: Path) -> tuple[float, float, int]:
    """(seconds of a look, seconds of the command, requests of a look)."""
    with serve(folder) as serving:
        made = Simulated(serving, {f"swarm-{number}": 50 for number in range(1, vms)})
        made.tick()
        url = serving.url
        looks, commands = [], []
        for _ in range(runs):
            made.asked.clear()
            start = time.monotonic()
            cloud = Cloud(CloudAddress(project="p1", compute=url, storage=url, monitoring=url))
            seen = status.picture(fleet.read(cloud))
            looks.append(time.monotonic() - start)
            requests = len(made.asked)
            if not seen.is_well:
                sys.exit("the fleet is not whole: the figures would mean nothing")
            start = time.monotonic()
            command = [sys.executable, "-m", "ops", "--endpoint", url, "--project", "p1", "status"]
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, check=False
            )
            commands.append(time.monotonic() - start)
            if done.returncode:
                sys.exit(f"`ops status` ended with {done.returncode}")
    return statistics.median(looks), statistics.median(commands), requests


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs per fleet (default 3)")
    runs = parser.parse_args().runs
    measured = {}
    with tempfile.TemporaryDirectory() as scratch:
        for vms in (10, 100):
            measured[vms] = _measure(vms, runs, Path(scratch) / str(vms))
            look, command, requests = measured[vms]
            print(
                f"ops status, {vms:>3} VMs: {command:4.1f} s, of which the look {look:4.1f} s, "
                f"{requests} requests   (median of {runs})",
                flush=True,
            )
    small, large = measured[10], measured[100]
    print(
        f"10 times the VMs: {large[2] / small[2]:.1f} times the requests; the aim for 100 VMs is "
        f"{_AIM_S:.0f} s"
    )


if __name__ == "__main__":
    main()
