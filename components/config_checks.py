"""Checks that compare one part of the configuration with another."""

from __future__ import annotations

import ipaddress
import json

from components import names, spec_tables
from components.config import (
    BEACON_PORT,
    DASHBOARD_PORT,
    PROJECT_NAME,
    REGISTRY_PORT,
    RendezvousConfig,
    SwarmVmConfig,
)
from components.config_reader import MapReader

# Bytes. Pulumi passes the whole configuration (gcp:… too) to the program and to the policies in one
# environment variable, and Linux refuses one of 131,072 bytes (MAX_ARG_STRLEN).
MAX_CONFIGURATION_BYTES = 96 << 10
# Google reserves the first two and the last two addresses of a subnet.
RESERVED_HEAD, RESERVED_TAIL = 2, 2
# Characters that Go's JSON escapes and Python's does not.
_GO_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def check_size(root: MapReader) -> None:
    """The configuration must fit into one environment variable."""

    def in_json(value: object) -> str:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
        return text.translate(_GO_ESCAPES)

    def size(key: str, value: object) -> int:
        # A map or list is JSON text inside the JSON of the whole configuration.
        text = value if isinstance(value, str) else in_json(value)
        return len(in_json({f"{PROJECT_NAME}:{key}": text}).encode(errors="replace"))

    sizes = {key: size(key, value) for key, value in root.values.items()}
    total = sum(sizes.values())
    if total > MAX_CONFIGURATION_BYTES:
        key = max(sizes, key=sizes.__getitem__)
        root.problem(
            key,
            f"takes {sizes[key]:,} of the configuration's {total:,} bytes, and "
            f"{MAX_CONFIGURATION_BYTES:,} are the most: Pulumi passes all of it to the program in "
            "one environment variable, which Linux limits. Make it shorter, or split the stack",
        )


def check_ports(root: MapReader, base_port: int, swarm: tuple[SwarmVmConfig, ...]) -> None:
    """The agents' UDP ports must not overlap the rendezvous' ports."""
    last = base_port + max((vm.agents for vm in swarm), default=0)
    taken = [
        f"{port} (the {owner}'s)"
        for port, owner in (
            (DASHBOARD_PORT, "dashboard"),
            (REGISTRY_PORT, "registry"),
            (BEACON_PORT, "beacon"),
        )
        if base_port < port <= last
    ]
    if taken:
        root.problem(
            "basePort",
            f"the agents' UDP ports {base_port + 1} to {last} overlap {', '.join(taken)}: "
            f"choose {BEACON_PORT} or higher",
        )


def check_subnet(root: MapReader, subnet: ipaddress.IPv4Network, *, vms: int) -> None:
    """The subnet must reach every VM and have room for all of them."""
    room = subnet.num_addresses - RESERVED_HEAD - RESERVED_TAIL
    if problem := names.subnet_problem(subnet):
        root.problem("subnetCidr", problem)
    if vms > room:
        root.problem("subnetCidr", f"{subnet} has room for {room:,} VMs, the fleet has {vms:,}")


def check_accounts(node: MapReader, swarm: str, rendezvous: RendezvousConfig) -> None:
    """The rendezvous' own account must be the rendezvous' alone."""
    if rendezvous.service_account and rendezvous.service_account == swarm:
        node.problem(
            "serviceAccount",
            f"{swarm} is also the swarm's account, which would then write the registry's copies: "
            "name another one, or leave this out",
        )


def check_total_agents(root: MapReader, agents: int) -> None:
    """One rendezvous serves a limited number of agents."""
    most = spec_tables.bounds("agents")[1]
    if agents > most:
        root.problem(
            "swarm",
            f"{agents:,} agents are more than one rendezvous is for: {most:,} at most, in all",
        )
