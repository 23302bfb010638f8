"""How many agents fit on a machine: pure arithmetic, every number with its source (docs/FACTS.md).

A VM has several limits (memory, UDP ports, tasks; on the rendezvous registry connections). Each is
a `VmLimit`. The limit with the least headroom is the one that binds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from components.machine_types import MIB_PER_GIB, MachineType

# Planning size of an idle agent, MiB: upstream's figure. Measured: 1.7 to 2.4.
AGENT_MB = 10
# Kept for kernel, systemd, sshd and monitoring, MiB: upstream's figure.
RESERVE_MB = 3000
# Buffers, window and encryption context of an active connection, MiB: upstream's third incident.
CONNECTION_MB = 4
# By default one agent in ten holds an active connection: upstream's fleet of 9,500 expects peaks
# around a thousand.
AGENTS_PER_ACTIVE = 10
# Tasks (threads) of one daemon. Measured: 7.3 with default flags.
TASKS_PER_AGENT = 8
# kernel.pid_max on every VM: the highest value of a 64-bit kernel.
PID_MAX = 4_194_304
# Tasks left to the system.
SYSTEM_TASKS = 4_096
# TCP connections that one daemon holds to the registry (measured; upstream's notes say one).
CONNECTIONS_PER_AGENT = 4
# Registry connections per GiB of the rendezvous, unless configured: upstream ran 150,000 to 207,000
# on 64 GiB. Measured, of February 2026: 3.5 kB idle and 14 kB in use each, so 3 GB for 200,000.
CONNECTIONS_PER_GIB = 3_000
MAX_PORT = 65_535
# Local TCP ports of a VM for connections to one registry: the widest range (1024 to 65535), less
# what the VM keeps for the system. 11,483 agents fit: MOST_AGENTS of startup/startup.sh.j2.
LOCAL_PORTS = 65_536 - 1_024 - 4_096 - 128
# Quarters of a port per agent: four connections, its own UDP port, and a quarter of a port that is
# reserved for new agents.
LOCAL_PORT_QUARTERS_PER_AGENT = 4 * (CONNECTIONS_PER_AGENT + 1) + 1
# A guest sees less memory than is sold: the kernel's tables take up to 3 %, its image and the
# firmware up to 64 MiB.
GUEST_PERCENT = 97
GUEST_FIXED_MB = 64
# A VM with less headroom gets a warning: upstream's fleet keeps 50 to 60 %.
WARN_HEADROOM = 0.40


@dataclass(frozen=True, kw_only=True)
class VmLimit:
    """One limit of a VM."""

    name: str
    unit: str
    # In `unit`.
    capacity: int
    # The fleet's demand, in `unit`.
    demand: int
    # The most agents that it allows; below zero where not even a VM without agents fits.
    fits: int

    @property
    def headroom(self) -> float:
        """The unused share of the capacity; negative where the demand does not fit."""
        if self.capacity <= 0:
            return -1.0
        return (self.capacity - self.demand) / self.capacity


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a number of agents fits on one machine."""

    machine: MachineType
    agents: int
    limits: tuple[VmLimit, ...]

    @property
    def binds(self) -> VmLimit:
        """The limit that is hit first."""
        return min(self.limits, key=lambda limit: limit.headroom)

    @property
    def headroom(self) -> float:
        """Headroom at the limit that binds, as a share (1.0 is empty, below 0 does not fit)."""
        return self.binds.headroom

    @property
    def fits(self) -> int:
        """The most agents that this machine carries; below zero where it carries none."""
        return min(limit.fits for limit in self.limits)


def guest_mb(machine: MachineType) -> int:
    """The least memory, MiB, that a VM of this type sees. A reserve must leave some of it."""
    return machine.memory_mb * GUEST_PERCENT // 100 - GUEST_FIXED_MB


def default_connections(agents: int) -> int:
    """Active connections to plan for by default: a tenth of the agents, rounded up."""
    return ceil(agents / AGENTS_PER_ACTIVE)


def swarm_fit(
    machine: MachineType,
    *,
    agents: int,
    base_port: int,
    agent_mb: int = AGENT_MB,
    reserve_mb: int = RESERVE_MB,
    active_connections: int | None = None,
) -> Fit:
    """How `agents` fit on a swarm VM.

    `agent_mb` and `reserve_mb` in MiB; `active_connections` None means a tenth of the agents;
    agent i has UDP port `base_port` + i.
    """
    memory = _memory(machine, agents, agent_mb, reserve_mb, active_connections)
    ports = VmLimit(
        name="UDP ports",
        unit="ports",
        capacity=MAX_PORT - base_port,
        demand=agents,
        fits=MAX_PORT - base_port,
    )
    tasks = PID_MAX - SYSTEM_TASKS
    return Fit(
        machine=machine,
        agents=agents,
        limits=(
            memory,
            ports,
            VmLimit(
                name="local ports",
                unit="ports",
                capacity=LOCAL_PORTS,
                demand=ceil(agents * LOCAL_PORT_QUARTERS_PER_AGENT / 4),
                fits=LOCAL_PORTS * 4 // LOCAL_PORT_QUARTERS_PER_AGENT,
            ),
            VmLimit(
                name="tasks",
                unit="tasks",
                capacity=tasks,
                demand=agents * TASKS_PER_AGENT,
                fits=tasks // TASKS_PER_AGENT,
            ),
        ),
    )


def rendezvous_fit(
    machine: MachineType, *, agents: int, connections_per_gib: int = CONNECTIONS_PER_GIB
) -> Fit:
    """How a fleet of `agents` (all VMs together) fits on its rendezvous."""
    capacity = machine.memory_mb * connections_per_gib // MIB_PER_GIB
    return Fit(
        machine=machine,
        agents=agents,
        limits=(
            VmLimit(
                name="registry connections",
                unit="connections",
                capacity=capacity,
                demand=agents * CONNECTIONS_PER_AGENT,
                fits=capacity // CONNECTIONS_PER_AGENT,
            ),
        ),
    )


def rendezvous_memory_gb(agents: int, *, connections_per_gib: int = CONNECTIONS_PER_GIB) -> int:
    """The memory, GiB, that a rendezvous needs for `agents`."""
    return ceil(agents * CONNECTIONS_PER_AGENT / connections_per_gib)


def vcpus_by_family(machines: tuple[MachineType, ...]) -> dict[str, int]:
    """vCPUs by series, which the project's regional quota must allow."""
    totals: dict[str, int] = {}
    for machine in machines:
        totals[machine.family] = totals.get(machine.family, 0) + machine.vcpus
    return dict(sorted(totals.items()))


def _memory(
    machine: MachineType,
    agents: int,
    agent_mb: int,
    reserve_mb: int,
    active_connections: int | None,
) -> VmLimit:
    usable = machine.memory_mb - reserve_mb

    def demand(count: int) -> int:
        connections = (
            default_connections(count) if active_connections is None else active_connections
        )
        return count * agent_mb + connections * CONNECTION_MB

    if active_connections is None:
        # A tenth rounds up, so the plain quotient is at most a few agents too high.
        fits = usable * AGENTS_PER_ACTIVE // (agent_mb * AGENTS_PER_ACTIVE + CONNECTION_MB)
        while fits > 0 and demand(fits) > usable:
            fits -= 1
    else:
        fits = (usable - active_connections * CONNECTION_MB) // agent_mb
    return VmLimit(
        name="memory",
        unit="MiB",
        capacity=usable,
        demand=demand(agents),
        fits=fits,
    )
