"""A VM's limits, as its units have them: pure arithmetic over the machine and its spec.

Sources are in docs/FACTS.md: upstream's notes on its fleet, and measurements. Others are derived
here. The kernel's own numbers are the startup script's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..desired.spec import RendezvousSpec, SwarmSpec

# The most agents of one VM: the startup script has its ports, tasks and buffers for so many.
MOST_AGENTS = 11_483
# Tasks of everything else: kernel threads (thousands on 128 CPUs), journald, people, benchmarks.
SYSTEM_TASKS = 32768
# TCP connections to the registry per agent (measured; upstream's notes say one).
CONNECTIONS_PER_AGENT = 4
# fs.nr_open of Debian 12: no process may have a higher limit of descriptors.
NR_OPEN = 1048576


class LimitsError(Exception):
    """A spec that cannot work on this machine. The text gives a number that would."""


@dataclass(frozen=True, kw_only=True)
class KernelFacts:
    """The machine."""

    ram: int
    """Bytes."""
    page: int
    """Bytes of a page."""


def check_agents(spec: SwarmSpec | RendezvousSpec) -> None:
    """Raises LimitsError where a swarm VM is to have more agents than one VM carries."""
    if isinstance(spec, SwarmSpec) and spec.agents > MOST_AGENTS:
        raise LimitsError(
            f"agents: {spec.agents} need more local ports for their connections to one registry "
            f"than one address has; {MOST_AGENTS} fit: spread them over more VMs"
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
