"""The limits of a VM's units, against docs/FACTS.md. Numbers of the kernel: test_kernel.py."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess

import pytest

from startup.node.desired.spec import RendezvousSpec, SwarmSpec, parse
from startup.node.machine import proc
from startup.node.machine.paths import Paths
from startup.node.setup import kernel, limits
from startup.node.setup.limits import KernelFacts, LimitsError
from tests.startup import specs
from tests.startup.conftest import Vm

GIB = 1 << 30


def swarm(agents: int = 30, **changes: object) -> SwarmSpec:
    spec = parse(specs.text(specs.swarm(agents=agents)))
    assert isinstance(spec, SwarmSpec)
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def rendezvous(agents: int = 9500) -> RendezvousSpec:
    spec = parse(specs.text(specs.rendezvous(agents=agents)))
    assert isinstance(spec, RendezvousSpec)
    return spec


def machine(gib: float = 4) -> KernelFacts:
    return KernelFacts(ram=int(gib * GIB), page=4096)


@pytest.mark.parametrize(
    ("agents", "descriptors"),
    [(95, 4856), (9500, 80096), (50_000, 404_096), (500_000, 1_048_576)],
)
def test_descriptors_of_the_rendezvous(agents: int, descriptors: int) -> None:
    """4,750 agents held some 20,000 (docs/FACTS.md): more than that, below fs.nr_open."""
    assert limits.rendezvous_descriptors(rendezvous(agents)) == descriptors


def test_the_slice_leaves_the_reserve() -> None:
    assert limits.slice_memory(machine(32), swarm(reserve_mb=3000)) == (32768 - 3000) << 20
    with pytest.raises(LimitsError, match=r"memory\.reserveMb: 4096 is all of this VM's 4096 MiB"):
        limits.slice_memory(machine(4), swarm(reserve_mb=4096))


def test_go_memory_limit() -> None:
    assert limits.go_memory_limit(machine(16)) == "12288MiB"


def test_the_machine(vm: Vm) -> None:
    page = os.sysconf("SC_PAGESIZE")
    assert kernel.machine(Paths(root=vm.root)) == KernelFacts(ram=4 * GIB, page=page)


def test_the_descriptors_of_a_process_are_told_by_its_file() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = float("inf") if hard == resource.RLIM_INFINITY else hard
    assert proc.most_descriptors(os.getpid()) == wanted
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(ProcessLookupError, match=f"process {gone.pid} is gone"):
        proc.most_descriptors(gone.pid)
