"""Whether the planned fleet fits the planned machines, computed again from the plan alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .machine_memory import memory_gb
from .spec import PlannedVm, fleet_vms, parse_spec
from .values import UNKNOWN, Resource, Violation

ROLES: Final = ("swarm", "rendezvous")
HIGHEST_PORT: Final = 65535
# More than any number in a spec can honestly be, and small enough to reckon with.
_ABSURD: Final = 10**9
_MEMORY: Final = {
    "swarm": ("agentMb", "reserveMb", "connectionMb", "activeConnections"),
    "rendezvous": ("reserveMb",),
}
# Local ports are below 65536. 1024 are the system's; the startup script keeps 4096 more for it, and
# 128 for short connections.
_LOCAL_PORTS: Final = 65536 - 1024 - 4096 - 128
# A guest sees up to 3 % and 64 MiB less memory than is sold: the kernel's own.
_GUEST_PERCENT: Final = 97
_GUEST_FIXED_MB: Final = 64
# Four connections to the registry, the agent's own port, and a quarter of a port reserved for new
# agents.
_PORTS_PER_AGENT: Final = 4 + 1 + 0.25


@dataclass(frozen=True, kw_only=True)
class VmConfig:
    """Settings of `vm-fits`."""

    # `{NAME: {"memoryGb": GB}}`, beside the table.
    machineTypes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # noqa: N815
    # Least planning sizes of a spec, in MiB. Measured: 1.7 to 2.4 per agent; upstream: 4 per
    # connection (docs/FACTS.md).
    minAgentMb: float = 2  # noqa: N815
    minReserveMb: float = 256  # noqa: N815
    minConnectionMb: float = 4  # noqa: N815
    # Ports of a VM from which its agents can connect.
    localPorts: int = _LOCAL_PORTS  # noqa: N815
    localPortsPerAgent: float = _PORTS_PER_AGENT  # noqa: N815


@dataclass(frozen=True, kw_only=True)
class FitsConfig:
    """Settings of `fleet-fits`."""

    machineTypes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # noqa: N815
    # TCP connections to the registry per agent (docs/FACTS.md).
    connectionsPerAgent: float = 4  # noqa: N815
    # Connections that a rendezvous carries per GB of RAM (docs/FACTS.md).
    connectionsPerGb: float = 3000  # noqa: N815


def vm_fits(resource: Resource, config: VmConfig) -> Iterator[Violation]:
    """Reasons why a VM of the fleet cannot carry its spec."""
    for vm in fleet_vms([resource]):
        yield from _vm_fits(vm, config)


def _vm_fits(vm: PlannedVm, config: VmConfig) -> Iterator[Violation]:
    for key in ("pilot-role", "pilot-spec"):
        if vm.metadata.get(key) is UNKNOWN:
            yield _later(vm.at(key), "what this VM should run")
            return
    if vm.role not in ROLES:
        yield Violation(
            path=vm.at("pilot-role"),
            problem=f"{vm.role!r} is no role" if vm.role else "the VM has a spec and no role",
            remedy=f"Set it to one of: {', '.join(ROLES)}",
        )
        return
    spec = parse_spec(vm.metadata.get("pilot-spec"))
    problems = [spec] if isinstance(spec, str) else _malformed(spec, vm.role)
    for problem in problems:
        yield Violation(
            path=vm.at("pilot-spec"),
            problem=problem,
            remedy="Write the spec as in docs/CONTRACT.md; a VM without a good one runs nothing",
        )
    if problems:
        return
    yield from _planning_sizes(vm, spec["memory"], config)
    if vm.role == "swarm":
        yield from _ports(vm, spec)
        yield from _local_ports(vm, spec, config)
    yield from _memory(vm, spec, config)


def _malformed(spec: Mapping[str, Any], role: str) -> list[str]:
    """Problems with the fields of a spec that this policy needs."""
    problems = []
    if spec.get("role") != role:
        problems.append(f"role is {spec.get('role')!r} and pilot-role is {role!r}")
    if not _whole(spec.get("agents")):
        problems.append(f"agents is {spec.get('agents')!r}, not a whole number from 0 on")
    if role == "swarm" and not _whole(spec.get("basePort")):
        problems.append(f"basePort is {spec.get('basePort')!r}, not a whole number from 0 on")
    memory = spec.get("memory")
    if not isinstance(memory, Mapping):
        return [*problems, "memory is missing"]
    for name in _MEMORY[role]:
        value = memory.get(name)
        if not _number(value):
            problems.append(f"memory.{name} is {value!r}, not a number from 0 on")
    return problems


def _number(value: Any) -> bool:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and 0 <= value <= _ABSURD


def _whole(value: Any) -> bool:
    return isinstance(value, int) and _number(value)


def _planning_sizes(
    vm: PlannedVm, memory: Mapping[str, float], config: VmConfig
) -> Iterator[Violation]:
    """Planning sizes that are too small to be true, so that anything would fit."""
    floors = {
        "agentMb": config.minAgentMb,
        "reserveMb": config.minReserveMb,
        "connectionMb": config.minConnectionMb,
    }
    for name in _MEMORY[vm.role]:
        floor = floors.get(name, 0)
        if memory[name] < floor:
            yield Violation(
                path=f"{vm.at('pilot-spec')} memory.{name}",
                problem=f"{memory[name]} MiB is less than the {floor:g} that this policy believes",
                remedy=f"Plan with at least {floor:g}, or configure "
                f"min{name[0].upper()}{name[1:]} after measuring",
            )


def _ports(vm: PlannedVm, spec: Mapping[str, Any]) -> Iterator[Violation]:
    last = spec["basePort"] + spec["agents"]
    if last > HIGHEST_PORT:
        fits = max(0, HIGHEST_PORT - spec["basePort"])
        yield Violation(
            path=f"{vm.at('pilot-spec')} agents",
            problem=f"{spec['agents']} agents from port {spec['basePort'] + 1} on end at {last}, "
            f"and {HIGHEST_PORT} is the last there is",
            remedy=f"At most {fits} agents fit above basePort {spec['basePort']}",
        )


def _local_ports(vm: PlannedVm, spec: Mapping[str, Any], config: VmConfig) -> Iterator[Violation]:
    needed = spec["agents"] * config.localPortsPerAgent
    if needed > config.localPorts:
        fits = math.floor(config.localPorts / config.localPortsPerAgent)
        yield Violation(
            path=f"{vm.at('pilot-spec')} agents",
            problem=f"{spec['agents']} agents take {needed:g} local ports for themselves and "
            f"their connections, and a VM has {config.localPorts}",
            remedy=f"At most {fits} agents fit on one VM, however big; use more VMs",
        )


def _memory(vm: PlannedVm, spec: Mapping[str, Any], config: VmConfig) -> Iterator[Violation]:
    ram = _ram_mb(vm, config.machineTypes)
    if isinstance(ram, Violation):
        yield ram
        return
    memory = spec["memory"]
    free = ram - memory["reserveMb"]
    guest = ram * _GUEST_PERCENT // 100 - _GUEST_FIXED_MB
    if memory["reserveMb"] >= guest:
        yield Violation(
            path=f"{vm.at('pilot-spec')} memory.reserveMb",
            problem=f"a reserve of {memory['reserveMb']} MiB leaves nothing of {ram} MiB, of which "
            f"a VM sees {guest} for sure",
            remedy="Use a bigger machine type or a smaller reserve",
        )
        return
    if vm.role == "rendezvous":
        return
    agents = spec["agents"]
    needed = agents * memory["agentMb"] + memory["activeConnections"] * memory["connectionMb"]
    if needed > free:
        # Fewer agents have fewer connections: both shrink in the same proportion.
        fits = math.floor(free * agents / needed)
        yield Violation(
            path=f"{vm.at('pilot-spec')} agents",
            problem=f"{agents} agents of {memory['agentMb']} MiB and "
            f"{memory['activeConnections']} active connections of {memory['connectionMb']} MiB "
            f"need {needed:g} MiB; {_name(vm)} has {ram} MiB, of which "
            f"{memory['reserveMb']} are reserved",
            remedy=f"At most {fits} agents fit, with active connections in the same proportion; "
            "or use a bigger machine type",
        )


def fleet_fits(
    resources: Sequence[Resource], config: FitsConfig
) -> Iterator[tuple[Resource | None, Violation]]:
    """Whether the rendezvous can carry all agents: (resource at fault, finding) pairs.

    `vm_fits` reports VMs whose spec is unknown or malformed. With an unknown one the sum is a lower
    bound, which is refused where it does not fit.
    """
    vms = [(vm, parse_spec(vm.metadata.get("pilot-spec"))) for vm in fleet_vms(resources)]
    rendezvous = [(vm, spec) for vm, spec in vms if vm.role == "rendezvous"]
    swarm = [spec for vm, spec in vms if vm.role == "swarm"]
    counts = [agents_of(spec) for spec in swarm]
    total = sum(count for count in counts if count is not None)
    certain = (
        None not in counts
        and all(vm.role in ROLES for vm, _ in vms)
        # A resource with a machine type and unknown metadata may be a VM of the fleet.
        and not any(
            resource.props.get("metadata") is UNKNOWN and resource.props.get("machineType")
            for resource in resources
        )
    )
    if len(rendezvous) > 1 or (swarm and not rendezvous and certain):
        names = ", ".join(vm.resource.name for vm, _ in rendezvous) or "none"
        yield (
            None,
            Violation(
                path="",
                problem=f"a fleet has one rendezvous, and this one has: {names}",
                remedy="Declare exactly one VM with pilot-role rendezvous",
            ),
        )
        return
    for vm, spec in rendezvous:
        if certain and agents_of(spec) not in (None, total):
            yield (
                vm.resource,
                Violation(
                    path=f"{vm.at('pilot-spec')} agents",
                    problem=f"the rendezvous expects {spec['agents']} agents, the swarm VMs have "
                    f"{total}",
                    remedy=f"Set it to {total}",
                ),
            )
        yield from ((vm.resource, finding) for finding in _carries(vm, total, config))


def agents_of(spec: Any) -> int | None:
    """The number of agents in a parsed spec; `None` where it has none."""
    agents = spec.get("agents") if isinstance(spec, dict) else None
    return agents if _whole(agents) else None


def _carries(vm: PlannedVm, total: int, config: FitsConfig) -> Iterator[Violation]:
    ram = _ram_mb(vm, config.machineTypes)
    if isinstance(ram, Violation):
        # vm_fits reports it.
        return
    can = config.connectionsPerGb * ram / 1024
    needed = total * config.connectionsPerAgent
    if needed > can:
        fits = math.floor(can / config.connectionsPerAgent)
        gb = math.ceil(needed / config.connectionsPerGb)
        yield Violation(
            path="machineType",
            problem=f"{total} agents hold {needed:g} connections to the registry; {_name(vm)} with "
            f"{ram / 1024:g} GB carries {can:g}",
            remedy=f"At most {fits} agents fit in all; {total} need a rendezvous with at least "
            f"{gb} GB",
        )


def _name(vm: PlannedVm) -> str:
    return str(vm.machine_type).rpartition("/")[2]


def _ram_mb(vm: PlannedVm, known: Mapping[str, Mapping[str, float]]) -> int | Violation:
    """RAM in whole MiB of a VM's machine type, or the reason why it is not known."""
    path = f"{vm.path}.machineType" if vm.path else "machineType"
    if vm.machine_type is UNKNOWN:
        return _later(path, "the machine type")
    if not isinstance(vm.machine_type, str) or not vm.machine_type:
        problem = "a VM of the fleet does not state its machine type"
        return Violation(path=path, problem=problem, remedy="State machineType beside the metadata")
    gb = memory_gb(vm.machine_type, known)
    if gb is None:
        problem = f"the memory of {_name(vm)!r} is not known to this policy"
        return Violation(path=path, problem=problem, remedy=_tell_size(vm))
    return math.floor(gb * 1024)


def _tell_size(vm: PlannedVm) -> str:
    """How to tell this policy a machine type's size.

    `memoryGb` of the stack file does not reach it: the checked program must not state its own size.
    """
    policies = ("vm-fits", "fleet-fits") if vm.role == "rendezvous" else ("vm-fits",)
    known = {"machineTypes": {_name(vm): {"memoryGb": "GB"}}}
    setting = json.dumps(dict.fromkeys(policies, known)).replace('"GB"', "GB")
    return (
        "Use another machine type; or, where the stack file declares its memoryGb, say its GB to "
        f"the policies too, in policy/settings.json (the make targets pass it on): {setting}"
    )


def _later(path: str, what: str) -> Violation:
    return Violation(
        path=path,
        problem=f"{what} is not known yet, so nobody can say whether it fits",
        remedy="It is judged in the update; to see it in the plan, let it not depend on other "
        "resources' outputs",
        unjudged=True,
    )
