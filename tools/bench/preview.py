"""Measures `pulumi preview` of the blog's fleet of 4 VMs and of one of 101, on one machine.

    python -m tools.bench.preview [--runs N]

Prints the median time of the whole process with and without the policy pack, the size of each
plan, and ratios: times differ between machines, the ratios hardly do.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.components.fleet import changed, seed
from tests.conftest import pulumi_environment
from tests.engine.project import Project

_FLEETS: dict[str, Mapping[str, Any]] = {
    "4 VMs, 9,500 agents": seed(),
    "101 VMs, 50,000 agents": changed(
        rendezvous={"name": "pilot-rendezvous", "machineType": "n2-highmem-16"},
        swarm=[
            {"name": f"swarm-{number}", "machineType": "e2-standard-8", "agents": 500}
            for number in range(1, 101)
        ],
    ),
}


def _seconds(project: Project, runs: int, *, policies: bool) -> float:
    times = []
    for run in range(runs + 1):
        start = time.monotonic()
        answer = project.preview(policies=policies)
        if answer.code:
            sys.exit(f"the preview failed:\n{answer.text}")
        # The first run fills caches.
        if run:
            times.append(time.monotonic() - start)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="counted runs per fleet (default 3)")
    runs = parser.parse_args().runs
    environment = pulumi_environment()
    measured: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, values) in enumerate(_FLEETS.items()):
            project = Project(folder=Path(scratch) / str(number), environment=environment)
            project.configure(values)
            resources = len(project.steps())
            measured[name] = (
                _seconds(project, runs, policies=False),
                _seconds(project, runs, policies=True),
            )
            plain, checked = measured[name]
            print(
                f"{name:<24} {resources:>4} resources   preview {plain:5.1f} s   "
                f"with policies {checked:5.1f} s   (median of {runs})",
                flush=True,
            )
    (small, small_checked), (large, large_checked) = measured.values()
    print(
        f"101 VMs against 4: {large / small:.1f} times the time, "
        f"{large_checked / small_checked:.1f} with policies"
    )


if __name__ == "__main__":
    main()
