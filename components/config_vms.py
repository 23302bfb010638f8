"""Reads the configuration of one VM: the rendezvous, or one line of the swarm."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components import capacity, names, spec_tables
from components.config import (
    PROJECT_NAME,
    STATE_DISK_SUFFIX,
    ReleaseConfig,
    RendezvousConfig,
    SwarmVmConfig,
)
from components.config_checks import RESERVED_HEAD, RESERVED_TAIL
from components.config_parts import read_service_account
from components.config_reader import MapReader, Problem, describe, show
from components.machine_types import MIB_PER_GIB, MachineType, look_up, unsold

# RFC 1035 label of 63 - len("-hourly") = 56 characters: the snapshot policy is called VM-hourly.
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,54}[a-z0-9])?")
# Tables of variables that a stack file must not set: the agents' unit or the loader sets them.
_RESERVED_TABLES = ("RESERVED_VARIABLES", "LOADER_VARIABLES")


@dataclass(kw_only=True)
class FleetDefaults:
    """Values of the fleet that its VMs inherit, and the names taken so far."""

    # "" where the stack file's is wrong.
    zone: str
    release: ReleaseConfig
    agent_mb: int
    reserve_mb: int
    base_port: int
    # Path of the VM that has each name.
    names: dict[str, str] = field(default_factory=dict)


def read_swarm_vm(
    item: Any, path: str, fleet: FleetDefaults, problems: list[Problem]
) -> SwarmVmConfig | None:
    """One line of the swarm. None where it has no machine type."""
    if not isinstance(item, Mapping):
        problems.append(
            Problem(
                path=path,
                message=f"must be a map with name, machineType and agents, not {describe(item)}",
            )
        )
        return None
    node = MapReader(item, path, problems)
    name = _name(node, fleet)
    zone = _zone(node, fleet)
    machine = _machine(node)
    agents = node.integer("agents", *spec_tables.bounds("agents"))
    agent_mb = node.integer("agentMb", 1, 4096, fleet.agent_mb)
    reserve_mb = node.integer("reserveMb", 128, 1_000_000, fleet.reserve_mb)
    connections_given = node.take("activeConnections") is not None
    connections = node.integer(
        "activeConnections", 0, 1_000_000, capacity.default_connections(agents)
    )
    release = fleet.release
    if node.take("release") is not None or "release" in node.values:
        release = read_release(node.node("release", required=True), fleet.release)
    environment = _environment(node.node("env"))
    image = read_image(node)
    disk_gb = node.integer("diskGb", 10, 65_536, 10)
    boot_disk_gb = node.integer("bootDiskGb", 10, 2_000, 20)
    node.unknown_keys()
    if machine is None:
        return None
    fit = capacity.swarm_fit(
        machine,
        agents=agents,
        base_port=fleet.base_port,
        agent_mb=agent_mb,
        reserve_mb=reserve_mb,
        active_connections=connections if connections_given else None,
    )
    binding = min(fit.limits, key=lambda limit: limit.fits)
    if capacity.guest_mb(machine) <= reserve_mb:
        node.problem(
            "reserveMb",
            f"{reserve_mb:,} MiB leave nothing of the {machine.memory_mb:,} MiB of {machine.name}, "
            f"of which a VM sees {capacity.guest_mb(machine):,} for sure",
        )
    elif binding.fits < 0 and connections_given:
        most = (machine.memory_mb - reserve_mb) // capacity.CONNECTION_MB
        node.problem(
            "activeConnections",
            f"{connections:,} do not fit on {machine.name}: without agents {most:,} would",
        )
    elif fit.headroom < 0 or fit.fits < agents:
        node.problem(
            "agents",
            f"{agents:,} agents do not fit on {machine.name}: {binding.name} allows "
            f"{max(binding.fits, 0):,} (asked {binding.demand:,} of {binding.capacity:,} "
            f"{binding.unit})",
        )
    return SwarmVmConfig(
        name=name,
        zone=zone,
        machine=machine,
        agents=agents,
        environment=environment,
        release=release,
        agent_mb=agent_mb,
        reserve_mb=reserve_mb,
        active_connections=connections,
        image=image or None,
        disk_gb=disk_gb,
        boot_disk_gb=boot_disk_gb,
        fit=fit,
    )


def read_rendezvous(
    node: MapReader, fleet: FleetDefaults, subnet: ipaddress.IPv4Network, *, agents: int
) -> RendezvousConfig:
    """The rendezvous for `agents`, those of all VMs together."""
    name = _name(node, fleet) if node.values else ""
    zone = _zone(node, fleet)
    machine = _machine(node) if node.values else None
    address = node.choose(
        "address",
        ipaddress.IPv4Address,
        "an IPv4 address",
        _default_address(subnet, zone, fleet.zone),
    )
    last = subnet.broadcast_address - RESERVED_TAIL
    if not subnet.network_address + RESERVED_HEAD <= address <= last:
        node.problem(
            "address",
            f"{address} is not an address that a VM in {subnet} can have: "
            f"{subnet.network_address + RESERVED_HEAD} to {last}",
        )
    public = node.boolean("public", False)
    account = read_service_account(node)
    image = read_image(node)
    disk_gb = node.integer("diskGb", 10, 65_536, 20)
    boot_disk_gb = node.integer("bootDiskGb", 10, 2_000, 20)
    per_gib = node.integer("connectionsPerGb", 1, 50_000, capacity.CONNECTIONS_PER_GIB)
    if node.values:
        node.unknown_keys()
    if machine is not None:
        fit = capacity.rendezvous_fit(machine, agents=agents, connections_per_gib=per_gib)
        if capacity.guest_mb(machine) <= fleet.reserve_mb:
            node.problem(
                "machineType",
                f"{machine.name} has {machine.memory_mb:,} MiB, of which a VM sees "
                f"{capacity.guest_mb(machine):,} for sure, and reserveMb ({fleet.reserve_mb:,}) "
                "leaves nothing of them",
            )
        elif fit.headroom < 0:
            needed = capacity.rendezvous_memory_gb(agents, connections_per_gib=per_gib)
            node.problem(
                "machineType",
                f"{machine.name} carries {max(fit.fits, 0):,} agents, the fleet has {agents:,}: "
                f"choose one with at least {needed} GB of memory",
            )
    else:
        machine = MachineType(name="", vcpus=1, memory_mb=1024)
        fit = capacity.rendezvous_fit(machine, agents=agents)
    return RendezvousConfig(
        name=name,
        zone=zone,
        machine=machine,
        address=str(address),
        public=public,
        service_account=account or None,
        image=image or None,
        disk_gb=disk_gb,
        boot_disk_gb=boot_disk_gb,
        fit=fit,
    )


def _default_address(subnet: ipaddress.IPv4Network, zone: str, home: str) -> ipaddress.IPv4Address:
    """The rendezvous' internal address in `zone`: the subnet's first in the fleet's zone, `home`.

    A rendezvous of another zone has another one, since the first stays with the VM that it takes
    over from. They are counted by the zone's letter from the subnet's end, where Google gives none
    to VMs before the rest is taken.
    """
    letter = ord(zone[-1:] or "a") - ord("a")
    if zone == home or not 0 <= letter < min(26, subnet.num_addresses - RESERVED_HEAD):
        return subnet.network_address + RESERVED_HEAD
    return subnet.broadcast_address - RESERVED_TAIL - letter


def read_release(node: MapReader, inherited: ReleaseConfig | None) -> ReleaseConfig:
    """The release at `node`; a canary's inherits the fleet's rendezvous binary."""
    if not node.values:
        return inherited or ReleaseConfig(version="", daemon="", rendezvous="")
    names = ["daemon"] if inherited else ["daemon", "rendezvous"]
    paths = {name: _path(node, name) for name in names}
    digests = node.node("sha256")
    release = ReleaseConfig(
        version=node.string(
            "version", spec_tables.pattern("release.version"), "a version such as 1.18.0"
        ),
        daemon=paths["daemon"],
        # Only the fleet's own release names a rendezvous binary: there is one rendezvous.
        rendezvous=inherited.rendezvous if inherited else paths["rendezvous"],
        sha256={
            name: digest
            for name in names
            if (
                digest := digests.string(
                    name, spec_tables.pattern("script.sha256"), "a sha256 in hex", required=False
                )
            )
        },
    )
    digests.unknown_keys()
    node.unknown_keys()
    return release


def _path(node: MapReader, name: str) -> str:
    path = node.string(name, re.compile(r"[^\0\n]{1,1000}"), f"the path of the pilot-{name} binary")
    if path.startswith("/") or ".." in path.split("/"):
        node.problem(name, f"{show(path)} leads out of the checkout: give a path inside it")
    return path


def read_image(node: MapReader, default: str | None = None) -> str:
    """The image at `node`, or "" where there is none."""
    what = "PROJECT/FAMILY of an image"
    image = node.string("image", names.IMAGE, what, default, required=False)
    if problem := names.image_problem(image):
        node.problem("image", problem)
    return image


def _machine(node: MapReader) -> MachineType | None:
    """The VM's machine type. None where it has a problem, which is recorded."""
    before = len(node.problems)
    name = node.string("machineType", re.compile(r"[a-z0-9-]{1,63}"), "a machine type's name")
    memory_gb, vcpus = node.take("memoryGb"), node.take("vcpus")
    if memory_gb is not None and (
        isinstance(memory_gb, bool)
        or not isinstance(memory_gb, int | float)
        or not 0.25 <= memory_gb <= 40_000
    ):
        node.problem("memoryGb", "must be a number of GB from 0.25 to 40,000")
    if vcpus is not None:
        vcpus = node.integer("vcpus", 1, 10_000, 1)
    if len(node.problems) > before:
        return None
    if MachineType(name=name, vcpus=0, memory_mb=0).arm:
        node.problem("machineType", f"{name!r} is an Arm machine and the daemon is x86-64")
        return None
    if reason := unsold(name):
        node.problem("machineType", f"{name!r} is not sold: {reason}")
        return None
    known = look_up(name)
    if known is not None:
        for key, given, real in (
            ("memoryGb", memory_gb, known.memory_mb / MIB_PER_GIB),
            ("vcpus", vcpus, known.vcpus),
        ):
            if given is not None and given != real:
                node.problem(key, f"{name} has {real:g}, not {given:g}: leave it out")
    if known is None and (memory_gb is None or vcpus is None):
        node.problem(
            "machineType",
            f"{name!r} is not in the table of machine types: give memoryGb and vcpus beside it "
            "(custom types are e2-custom-VCPUS-MB)",
        )
        return None
    return MachineType(
        name=name,
        vcpus=vcpus if vcpus is not None else known.vcpus if known else 0,
        memory_mb=int(memory_gb * MIB_PER_GIB)
        if memory_gb is not None
        else known.memory_mb
        if known
        else 0,
    )


def _name(node: MapReader, fleet: FleetDefaults) -> str:
    name = node.string(
        "name", _NAME, "a VM's name: lower-case letters, digits and dashes, 56 at most"
    )
    if name and name in fleet.names:
        node.problem("name", f"{name!r} is also the name of {fleet.names[name]}")
    elif name:
        # The boot disk of VM is called VM, its state disk VM-state.
        for disk in (f"{name}{STATE_DISK_SUFFIX}", name.removesuffix(STATE_DISK_SUFFIX)):
            if disk != name and disk in fleet.names:
                node.problem(
                    "name",
                    f"the disks of {name!r} and of {fleet.names[disk]} would share a name: "
                    f"do not end a VM's name in {STATE_DISK_SUFFIX}",
                )
        fleet.names[name] = node.path
    return name


def _zone(node: MapReader, fleet: FleetDefaults) -> str:
    zone = node.string(
        "zone",
        names.ZONE,
        f"a zone of Google's such as {fleet.zone or 'us-central1-a'}",
        fleet.zone,
        required=False,
    )
    region = names.region(fleet.zone)
    if region and names.region(zone) != region:
        node.problem(
            "zone",
            f"{zone} is not in {region}, the region of the fleet and its subnet (from "
            f"{PROJECT_NAME}:zone): choose a zone of {region}",
        )
    return zone


def _environment(node: MapReader) -> dict[str, str]:
    environment = {}
    for key in node.values:
        value = node.take(key)
        if not isinstance(key, str) or not re.fullmatch(spec_tables.table("VARIABLE"), key):
            node.problem(str(key), "is not the name of an environment variable")
        elif not isinstance(value, str):
            node.problem(key, f"must be text, not {describe(value)}: put it in quotes")
        elif not value.isprintable():
            node.problem(key, "must be one line of printable text")
        elif any(re.fullmatch(spec_tables.table(name), key) for name in _RESERVED_TABLES):
            node.problem(key, "is set on the VM itself: leave it out")
        elif problem := _go_problem(key, value, node.values):
            node.problem(key, problem)
        else:
            environment[key] = value
    return environment


def _go_problem(name: str, value: str, environment: Mapping[Any, Any]) -> str:
    """Why a Go program must not run with `value` for the variable `name`; "" where it may.

    The VM checks again (startup/node/desired/spec.py).
    """
    problem = ""
    if name == "GODEBUG":
        harmless = spec_tables.table("GO_DEBUG")
        for setting in value.split(","):
            key, _, given = setting.partition("=")
            if key in harmless and given not in harmless[key]:
                allowed = " or ".join(harmless[key]) or "left out"
                problem = f"{show(setting)} ends or ruins a program: {key} must be {allowed}"
    elif name == "GOMEMLIMIT":
        least, most = spec_tables.table("GO_LIMITS")
        match = re.fullmatch(spec_tables.table("GO_SIZE"), value)
        size = int(match[1]) << spec_tables.table("GO_UNITS").get(match[2], 0) if match else 0
        if value != "off" and not least <= size <= most:
            problem = f"{show(value)} is no limit: off, or a size as 64MiB, from 16MiB on"
    elif name == "GOGC" and value == "off":
        if environment.get("GOMEMLIMIT") in (None, "", "off"):
            problem = "is off without a GOMEMLIMIT: nothing would ever be freed"
    elif name in spec_tables.table("GO_NUMBERS"):
        most, meaning = spec_tables.table("GO_NUMBERS")[name]
        if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= most:
            problem = f"{show(value)} is not {meaning}"
    return problem
