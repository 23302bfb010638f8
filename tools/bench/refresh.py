"""Measures what `refresh: always` in Pulumi.yaml costs: every plan asks Google first.

    python -m tools.bench.refresh [--vms N] [--runs N]

Makes a fleet of N swarm VMs (default 100) and its rendezvous at the lab's API, which boots no
machine here. Runs `pulumi preview` and `pulumi up` of the unchanged fleet in turns with that line
and without it. Prints the median times of the whole process and their ratios. Times differ between
machines, and Google answers more slowly than an API on the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lab.cloud.server import serve
from tests.components.fleet import changed
from tests.conftest import pulumi_environment
from tests.engine.project import Answer, Project

_LINE = "  refresh: always\n"
_ACCOUNT = "vms@project-1.iam.gserviceaccount.com"


def _seconds(run: Callable[[], Answer]) -> float:
    start = time.monotonic()
    answer = run()
    if answer.code:
        sys.exit(f"pulumi failed:\n{answer.text}")
    return time.monotonic() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vms", type=int, default=100, help="swarm VMs (default 100)")
    parser.add_argument("--runs", type=int, default=3, help="counted runs per command (default 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, serve(Path(scratch) / "cloud") as cloud:
        project = Project(
            folder=Path(scratch) / "fleet",
            environment=pulumi_environment(),
            extra=cloud.settings(),
        )
        swarm = [
            {"name": f"swarm-{number}", "machineType": "e2-standard-8", "agents": 500}
            for number in range(1, arguments.vms + 1)
        ]
        rendezvous = {"name": "pilot-rendezvous", "machineType": "n2-highmem-16"}
        project.configure(changed(rendezvous=rendezvous, swarm=swarm, serviceAccount=_ACCOUNT))
        made = _seconds(lambda: project.up(policies=False))
        print(f"{arguments.vms + 1} VMs made in {made:.1f} s", flush=True)
        manifest = project.folder / "Pulumi.yaml"
        with_it = manifest.read_text(encoding="utf-8")
        without = with_it.replace(_LINE, "")
        if without == with_it:
            sys.exit(f"Pulumi.yaml has no line {_LINE.strip()!r}")
        commands: dict[str, Callable[[], Answer]] = {
            "preview": lambda: project.preview(policies=False),
            "up": lambda: project.up(policies=False),
        }
        for name, command in commands.items():
            times: dict[str, list[float]] = {with_it: [], without: []}
            # In turns, so that other work of the machine meets both.
            for _ in range(arguments.runs):
                for text, found in times.items():
                    manifest.write_text(text, encoding="utf-8")
                    found.append(_seconds(command))
            asking, trusting = (statistics.median(found) for found in times.values())
            print(
                f"{name:<8} with `refresh: always` {asking:6.1f} s   without {trusting:6.1f} s   "
                f"{asking / trusting:.1f} times (median of {arguments.runs})",
                flush=True,
            )


if __name__ == "__main__":
    main()
