"""The kernel's numbers against docs/FACTS.md, and the arithmetic of those that are derived."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from startup.node.desired.spec import RendezvousSpec, SwarmSpec, parse
from startup.node.machine import proc
from startup.node.machine.paths import Paths
from startup.node.setup import kernel, limits
from startup.node.setup.limits import KernelFacts, LimitsError
from tests.startup import specs
from tests.startup.conftest import Vm

GIB = 1 << 30
# Upstream's machines (docs/FACTS.md): RAM and agents.
FLEET = {"swarm-1": (64, 3000), "swarm-2": (125, 5000), "swarm-3": (32, 1500)}


def swarm(agents: int = 30, **changes: object) -> SwarmSpec:
    spec = parse(specs.text(specs.swarm(agents=agents)))
    assert isinstance(spec, SwarmSpec)
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def rendezvous(agents: int = 9500) -> RendezvousSpec:
    spec = parse(specs.text(specs.rendezvous(agents=agents)))
    assert isinstance(spec, RendezvousSpec)
    return spec


def machine(gib: float = 4, threads_max: int = 31000) -> KernelFacts:
    return KernelFacts(ram=int(gib * GIB), page=4096, threads_max=threads_max)


def test_the_table_of_design() -> None:
    assert limits.sysctls(machine(32), swarm(1500)) == {
        "kernel.pid_max": "4194304",
        "kernel.threads-max": str(1500 * 8 + 32768),
        "fs.file-max": "2097152",
        "net.core.rmem_max": "16777216",
        "net.core.wmem_max": "16777216",
        "net.core.rmem_default": "1048576",
        "net.core.wmem_default": "1048576",
        "kernel.shm_rmid_forced": "1",
        "kernel.sem": "250 4096 100 128",
        "kernel.msgmni": "32",
        # 32 GiB are 8,388,608 pages.
        "net.ipv4.udp_mem": "524288 1048576 1572864",
        "net.ipv4.ip_local_reserved_ports": "10001-11875",
        "net.ipv4.ip_local_port_range": "32768 60999",
    }
    # The rendezvous has no agents' ports.
    numbers = limits.sysctls(machine(16), rendezvous())
    assert set(limits.sysctls(machine(), swarm())) - set(numbers) == {
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_local_port_range",
    }


@pytest.mark.parametrize(
    ("own", "agents", "expected"),
    [
        (5576, 95, 95 * 8 + 32768),
        (5576, 5000, 72768),
        (1_000_000, 5000, 1_000_000),
        (5576, 0, 32768),
    ],
)
def test_threads_max(own: int, agents: int, expected: int) -> None:
    assert limits.threads_max(machine(threads_max=own), swarm(agents)) == expected


def test_the_rendezvous_keeps_the_kernels_threads_max() -> None:
    assert limits.threads_max(machine(threads_max=120_000), rendezvous(50_000)) == 120_000


@given(st.integers(512 << 20, 4096 << 30), st.sampled_from([4096, 16384, 65536]))
def test_udp_mem_is_pages_and_leaves_the_system_its_memory(ram: int, page: int) -> None:
    low, pressure, high = limits.udp_mem(KernelFacts(ram=ram, page=page, threads_max=1))
    assert 0 < low < pressure < high
    # The kernel's own ceiling, 18.75 %: in bytes it is never the machine.
    assert high * page <= ram * 3 // 16
    # What is left between a flood and the ceiling: room for 6,000 sockets' first packets (8 KiB).
    assert ram < GIB or (high - low) * page >= 6000 * 8192


@pytest.mark.parametrize("name", FLEET)
def test_udp_mem_holds_the_default_buffers_of_all_agents(name: str) -> None:
    gib, agents = FLEET[name]
    low, _, _ = limits.udp_mem(machine(gib))
    assert low * 4096 >= agents * 1048576


@pytest.mark.parametrize(
    ("agents", "reserved"),
    [(0, (10001, 10064)), (30, (10001, 10094)), (5000, (10001, 16250)), (12000, (10001, 25000))],
)
def test_reserved_ports(agents: int, reserved: tuple[int, int]) -> None:
    assert limits.reserved_ports(swarm(agents)) == reserved


def test_reserved_ports_end_with_the_ports() -> None:
    assert limits.reserved_ports(swarm(30, base_port=65500)) == (65501, 65535)


def as_the_kernel_prints(text: str) -> str:
    """A list of ports as the kernel prints it: a bitmap, as `%*pbl`."""
    bits = bytearray(65537)
    for part in text.split(","):
        low, _, high = part.partition("-")
        for port in range(int(low), int(high or low) + 1):
            bits[port] = 1
    parts, first = [], -1
    for port, bit in enumerate(bits):
        if bit and first < 0:
            first = port
        elif not bit and first >= 0:
            parts.append(str(first) if first == port - 1 else f"{first}-{port - 1}")
            first = -1
    return ",".join(parts)


@pytest.mark.parametrize(
    ("base_port", "agents", "expected"),
    [
        (10000, 8000, "3000,9000-9001,9090-9100,10001-20000"),
        # Below, beside, over and among the services' ports.
        (1023, 8000, "1024-11023"),
        (9001, 8000, "3000,9000-19001"),
        (9050, 8000, "3000,9000-9001,9051-19050"),
        (9098, 8000, "3000,9000-9001,9090-19098"),
        (9099, 8000, "3000,9000-9001,9090-19099"),
        (9100, 8000, "3000,9000-9001,9090-19100"),
        (65534, 1, "65535"),
        (65534, 0, "65535"),
    ],
)
def test_reserved_ports_are_as_the_kernel_prints_them(
    base_port: int, agents: int, expected: str
) -> None:
    """It is asked what it took, and compared with what it was given."""
    spec = swarm(agents, base_port=base_port)
    found = limits.sysctls(machine(125), spec)["net.ipv4.ip_local_reserved_ports"]
    assert found == expected
    assert as_the_kernel_prints(found) == found


@settings(max_examples=20, deadline=None)
@given(st.integers(1023, 65534), st.integers(0, 10000))
def test_any_reserved_ports_are_as_the_kernel_prints_them(base_port: int, agents: int) -> None:
    spec = swarm(min(agents, 65535 - base_port), base_port=base_port)
    ranges = [limits.reserved_ports(spec), *limits.SERVICE_PORTS]
    assert as_the_kernel_prints(limits.port_list(ranges)) == limits.port_list(ranges)


@pytest.mark.parametrize(
    ("agents", "ports"),
    [
        (2000, limits.PORT_RANGE),
        (2505, limits.PORT_RANGE),
        (2506, limits.PORT_RANGE_WIDE),
        (9000, limits.PORT_RANGE_WIDE),
    ],
)
def test_every_connection_has_a_local_port(agents: int, ports: tuple[int, int]) -> None:
    """Four to one address and port, so each needs its own, and an even one as far as possible."""
    assert limits.port_range(swarm(agents)) == ports


def test_a_wide_range_leaves_services_their_ports() -> None:
    reserved = limits.sysctls(machine(125), swarm(8000))["net.ipv4.ip_local_reserved_ports"]
    assert reserved == "3000,9000-9001,9090-9100,10001-20000"


def test_more_connections_than_ports() -> None:
    with pytest.raises(LimitsError, match=r"12000 need .* about (\d+) fit") as caught:
        limits.port_range(swarm(12000))
    fits = int(str(caught.value).partition("about ")[2].split()[0])
    assert limits.port_range(swarm(fits)) == limits.PORT_RANGE_WIDE


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


# The kernel.


def test_applied_numbers_are_in_the_kernel(vm: Vm) -> None:
    paths = Paths(root=vm.root)
    numbers = limits.sysctls(kernel.machine(paths), swarm())
    assert kernel.apply(paths, numbers, container=False) == []
    for name, value in numbers.items():
        assert vm.read(f"proc/sys/{name.replace('.', '/')}").split() == value.split()
    # Applied once more: the same numbers, threads-max too.
    assert limits.sysctls(kernel.machine(paths), swarm()) == numbers


_HUGE = "sys/kernel/mm/transparent_hugepage/enabled"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[always] madvise never\n", "madvise\n"),
        ("always [madvise] never\n", "always [madvise] never\n"),
        # Somebody's own choice, and less still.
        ("always madvise [never]\n", "always madvise [never]\n"),
    ],
)
def test_huge_pages_are_given_on_request(vm: Vm, before: str, after: str) -> None:
    (vm.root / _HUGE).parent.mkdir(parents=True)
    (vm.root / _HUGE).write_text(before)
    assert kernel.huge_pages_on_request(Paths(root=vm.root)) == ""
    assert vm.read(_HUGE) == after


def test_huge_pages_that_cannot_be_had_otherwise_are_no_failure(vm: Vm) -> None:
    assert kernel.huge_pages_on_request(Paths(root=vm.root)) == ""
    assert not (vm.root / _HUGE).exists()
    vm.use_swarm()
    (vm.root / _HUGE).mkdir(parents=True)
    status, output = vm.call("ROLE=swarm; ensure_node spec swarm limits; node limits")
    assert status == 0, output
    assert "agents get huge pages and need more memory for them: " in output


def test_the_machine(vm: Vm) -> None:
    page = os.sysconf("SC_PAGESIZE")
    assert kernel.machine(Paths(root=vm.root)) == KernelFacts(
        ram=4 * GIB, page=page, threads_max=31000
    )


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_number_of_the_hosts(vm: Vm, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Not an error in a container, where it is said; on a VM it is one."""

    def refuse(path: Path, flags: int) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "open", refuse)
    numbers = {"kernel.pid_max": "4194304", "fs.file-max": "2097152"}
    paths = Paths(root=vm.root)
    left = kernel.apply(paths, numbers, container=True)
    assert left == [f"{name} ({os.strerror(number)})" for name in numbers]
    with pytest.raises(LimitsError, match=r"kernel\.pid_max=4194304: .*; fs\.file-max=2097152"):
        kernel.apply(paths, numbers, container=False)


def test_a_number_that_is_right_need_not_be_written(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise OSError(errno.EROFS, "refused")

    monkeypatch.setattr(os, "open", refuse)
    assert kernel.apply(Paths(root=vm.root), {"kernel.pid_max": "32768"}, container=False) == []


def test_a_wrong_number_is_an_error_anywhere(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise OSError(errno.EINVAL, "refused")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LimitsError, match="Invalid argument"):
        kernel.apply(Paths(root=vm.root), {"kernel.pid_max": "1"}, container=True)


def test_an_unknown_number_is_not_made_up(vm: Vm) -> None:
    paths = Paths(root=vm.root)
    with pytest.raises(LimitsError, match=r"net\.none=1: No such file"):
        kernel.apply(paths, {"net.none": "1"}, container=False)
    assert kernel.apply(paths, {"net.none": "1"}, container=True) == [
        "net.none (No such file or directory)"
    ]
    assert not (vm.root / "proc/sys/net/none").exists()


def test_a_number_that_the_kernel_takes_and_does_not_keep(vm: Vm) -> None:
    """A kernel may clamp; /dev/null is one that keeps nothing."""
    path = vm.root / "proc/sys/kernel/pid_max"
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(LimitsError, match=r"kernel\.pid_max=4194304: it is  ?after writing"):
        kernel.apply(Paths(root=vm.root), {"kernel.pid_max": "4194304"}, container=False)


def test_the_descriptors_of_a_process_are_told_by_its_file() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = float("inf") if hard == resource.RLIM_INFINITY else hard
    assert proc.most_descriptors(os.getpid()) == wanted
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(ProcessLookupError, match=f"process {gone.pid} is gone"):
        proc.most_descriptors(gone.pid)
