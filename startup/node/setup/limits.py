"""The kernel's numbers for a VM: pure arithmetic over the machine and its spec.

Sources are in docs/FACTS.md: upstream's notes on its fleet, and measurements. Others are derived
here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..desired.spec import RendezvousSpec, SwarmSpec

# Threads of one agent: 7.3 measured with default settings, rounded up.
TASKS_PER_AGENT = 8
# Tasks of everything else: kernel threads (thousands on 128 CPUs), journald, people, benchmarks.
SYSTEM_TASKS = 32768
# TCP connections to the registry per agent (measured; upstream's notes say one).
CONNECTIONS_PER_AGENT = 4
# Local ports that the system needs, of those that the kernel hands out.
SYSTEM_PORTS = 4096
# fs.nr_open of Debian 12: no process may have a higher limit of descriptors.
NR_OPEN = 1048576
# The kernel's own net.ipv4.ip_local_port_range, and the widest possible.
PORT_RANGE = (32768, 60999)
PORT_RANGE_WIDE = (1024, 65535)
# Ports of services (rendezvous, exporters) that the kernel must not hand out of the wide range.
SERVICE_PORTS = ((3000, 3000), (9000, 9001), (9090, 9100))


class LimitsError(Exception):
    """A spec that cannot work on this machine. The text gives a number that would."""


@dataclass(frozen=True, kw_only=True)
class KernelFacts:
    """The machine."""

    ram: int
    """Bytes."""
    page: int
    """Bytes of a page."""
    threads_max: int
    """The kernel's present number."""


def sysctls(machine: KernelFacts, spec: SwarmSpec | RendezvousSpec) -> dict[str, str]:
    """Every kernel number, by its sysctl name, in the order in which they are written.

    `kernel.pid_max`, `fs.file-max` and `net.core.*` (bytes) are upstream's. `kernel.threads-max`
    (tasks), `net.ipv4.udp_mem` (pages) and the port ranges are derived. Those of System V's shared
    memory, semaphores and queues are ours.
    """
    numbers = {
        "kernel.pid_max": "4194304",
        "kernel.threads-max": str(threads_max(machine, spec)),
        "fs.file-max": "2097152",
        "net.core.rmem_max": "16777216",
        "net.core.wmem_max": "16777216",
        "net.core.rmem_default": "1048576",
        "net.core.wmem_default": "1048576",
        # System V shared memory is freed with its last process, so agents leave none behind.
        "kernel.shm_rmid_forced": "1",
        # Semaphores and queues stay when their process ends. The kernel's own limits are a billion
        # semaphores of 64 bytes, and 32,000 queues of 16 KiB; these are 256 and 512 KiB.
        "kernel.sem": "250 4096 100 128",
        "kernel.msgmni": "32",
        "net.ipv4.udp_mem": " ".join(map(str, udp_mem(machine))),
    }
    if isinstance(spec, SwarmSpec):
        low, high = port_range(spec)
        reserved = [reserved_ports(spec)]
        if (low, high) == PORT_RANGE_WIDE:
            reserved += SERVICE_PORTS
        numbers["net.ipv4.ip_local_reserved_ports"] = port_list(reserved)
        numbers["net.ipv4.ip_local_port_range"] = f"{low} {high}"
    return numbers


def threads_max(machine: KernelFacts, spec: SwarmSpec | RendezvousSpec) -> int:
    """Tasks: eight per agent and the system's; never less than the kernel's own number.

    The kernel's own follows RAM (5,576 on 768 MB) and is the first limit on small VMs. The
    rendezvous runs no agents: its one process has threads by CPU, not by agent.
    """
    agents = spec.agents if isinstance(spec, SwarmSpec) else 0
    return max(machine.threads_max, agents * TASKS_PER_AGENT + SYSTEM_TASKS)


def udp_mem(machine: KernelFacts) -> tuple[int, int, int]:
    """Low, pressure and high of UDP's buffers, of all the VM's sockets, in PAGES, not bytes.

    A sixteenth, an eighth and three sixteenths of RAM. High is the kernel's own share (18.75 %).
    Above low, a socket that holds more than `udp_rmem_min` (4 KiB) gets no more, and a quiet one,
    as of DNS, still gets its packet. So a flood on the agents' sockets can take low, and the gap to
    high (an eighth of RAM) is left for all others: 6,000 sockets that each pass low by one packet
    take some 48 MB, less than the 128 MB of a 1 GiB VM. Low is also more than agents x
    `rmem_default` on every VM of upstream's fleet (swarm-1: 3,000 MiB of 4 GiB).

    Upstream's "4096 87380 16777216" are bytes taken for pages: a limit of 64 GiB, and pressure from
    16 MiB on.
    """
    pages = machine.ram // machine.page
    return (pages // 16, pages // 8, pages * 3 // 16)


def reserved_ports(spec: SwarmSpec) -> tuple[int, int]:
    """First and last UDP port that the kernel must not hand out: the agents' own.

    A quarter more than there are agents, 64 at least: `agents` may grow on a running VM, and until
    then no connection must take the port of a new agent.
    """
    room = max(64, spec.agents // 4)
    first = spec.base_port + 1
    return first, min(spec.base_port + spec.agents + room, 65535)


def port_list(ranges: Iterable[tuple[int, int]]) -> str:
    """`ranges` (first, last) as the kernel prints them: in order, adjacent ones merged, a single
    port as one number."""
    merged: list[list[int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in merged)


def port_range(spec: SwarmSpec) -> tuple[int, int]:
    """First and last local port that the kernel hands out.

    Every agent holds four connections to one address and port, and each needs a local port of its
    own. connect() looks at the even ports first: where they are taken, each call tries all of them
    before it comes to an odd one, thousands each time (17 % of the processor with 4,000 agents in
    the kernel's own range of 28,232). So that range is kept where its half is enough, for some
    2,500 agents per VM. Above that the widest is taken (agents' and services' ports are reserved).
    Raises LimitsError where that is not enough either.
    """
    needed = spec.agents * CONNECTIONS_PER_AGENT + SYSTEM_PORTS
    if needed <= _free(PORT_RANGE, reserved_ports(spec)) // 2:
        return PORT_RANGE
    if needed <= _free(PORT_RANGE_WIDE, reserved_ports(spec)):
        return PORT_RANGE_WIDE
    fits = spec.agents
    while fits and fits * CONNECTIONS_PER_AGENT + SYSTEM_PORTS > 64512 - fits - fits // 4 - 128:
        fits -= 1
    raise LimitsError(
        f"agents: {spec.agents} need {needed} local ports for their connections to one registry, "
        f"more than one address has; about {fits} fit: spread them over more VMs"
    )


def rendezvous_descriptors(spec: RendezvousSpec) -> int:
    """LimitNOFILE of the rendezvous: four connections per agent, twice, and 4,096 for the rest.

    Twice, because agents reconnect before the kernel has given up their old connections. At its
    limit the rendezvous fails ten accepts in a row and exits. Never above `fs.nr_open`, which
    systemd could not set.
    """
    return min(spec.agents * CONNECTIONS_PER_AGENT * 2 + 4096, NR_OPEN)


def slice_memory(machine: KernelFacts, spec: SwarmSpec | RendezvousSpec) -> int:
    """MemoryMax of pilot.slice in bytes: RAM less the reserve, so that a lack of memory ends
    agents and never sshd. Raises LimitsError when the reserve leaves nothing."""
    left = machine.ram - (spec.reserve_mb << 20)
    if left <= 0:
        raise LimitsError(
            f"memory.reserveMb: {spec.reserve_mb} is all of this VM's {machine.ram >> 20} MiB: "
            f"lower it, or take a larger machine type"
        )
    return left // machine.page * machine.page


def go_memory_limit(machine: KernelFacts) -> str:
    """GOMEMLIMIT of the rendezvous: 75 % of RAM (upstream's fleet notes: a fixed 24 GiB of 63
    thrashed at 150,000 connections)."""
    return f"{machine.ram * 3 // 4 >> 20}MiB"


def _free(ports: tuple[int, int], reserved: tuple[int, int]) -> int:
    first, last = reserved
    low, high = ports
    taken = max(0, min(last, high) - max(first, low) + 1)
    return high - low + 1 - taken
