"""Renders the files for systemd: units, fragments, environments.

The templates in `units/` are real units with `@name@` for a number of this VM. Every placeholder
needs a value and every value a placeholder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ..desired.spec import ROLE_RENDEZVOUS, ROLE_SWARM, RendezvousSpec, SwarmSpec
from ..machine import agent_units, files
from ..machine.agent_units import OWN, SHARED
from ..machine.paths import Paths
from . import limits
from .limits import KernelFacts

# Beside the program, as in the repository.
TEMPLATES = Path(__file__).resolve().parents[2] / "units"

# New keys per minute and address that the registry allows the fleet's own subnet: in effect no
# limit, so that a whole fleet can register within a minute (docs/FACTS.md).
WHITELIST_RATE = 100_000

# Seconds that pilot-node may take to end at a power-off. Compute Engine gives all of the VM some
# 90: a drain takes 60 (drain.py), and the rendezvous needs the rest to write 45 MB by itself.
_STOP_SECONDS = {ROLE_SWARM: "75", ROLE_RENDEZVOUS: "45"}

# Marks a line that is added to a file of the system.
_OURS = "# pilot-fleet"

_SPECIAL = re.compile(r"""(["`$\\])""")
_ESCAPED = r"\\\1"
_PLACEHOLDER = re.compile(r"@([a-z_]+)@")


class TemplateError(Exception):
    """A placeholder without a value, or a value without a placeholder (a bug)."""


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with every `@name@` replaced. Raises TemplateError when the two do not match."""
    names = set(_PLACEHOLDER.findall(template))
    if names != set(values):
        raise TemplateError(f"placeholders {sorted(names)}, values {sorted(values)}")
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def unit_files(machine: KernelFacts, spec: SwarmSpec | RendezvousSpec) -> dict[str, str]:
    """Every unit file of this VM's role: path on the VM -> content."""
    memory_max = str(limits.slice_memory(machine, spec))
    units = {
        "pilot.slice": {"memory_max": memory_max},
        "pilot-node.service": {"stop_seconds": _STOP_SECONDS[spec.role]},
    }
    if isinstance(spec, SwarmSpec):
        tasks_max = str(limits.SYSTEM_TASKS // 2)
        units["pilotbench.slice"] = {"memory_max": memory_max, "tasks_max": tasks_max}
    else:
        units["pilot-rendezvous.service"] = {
            "descriptors": str(limits.rendezvous_descriptors(spec))
        }
    found = {f"/etc/systemd/system/{name}": _filled(name, v) for name, v in units.items()}
    if isinstance(spec, SwarmSpec):
        agent = _filled(agent_units.SOURCE, {})
        found |= {f"/etc/systemd/system/{name}": agent for name in OWN.templates}
        slices = "/etc/systemd/system/pilot-.slice.d/60-pilot.conf"
        found[slices] = _filled("pilot-.slice.conf", {})
    return found


def remove_unused(paths: Paths) -> list[str]:
    """Remove the agents' unit files of the release before, once no agent runs by them; their
    paths."""
    if SHARED in agent_units.running(paths).values():
        return []
    found = [path for name in SHARED.templates if (path := paths.units / name).exists()]
    for path in found:
        path.unlink()
    return [str(path) for path in found]


def journald_file() -> dict[str, str]:
    """journald's fragment, the same on every VM: path on the VM -> content."""
    return {"/etc/systemd/journald.conf.d/60-pilot.conf": _filled("journald.conf", {})}


def nsswitch(text: str) -> str:
    """`text`, an nsswitch.conf, with a line `initgroups:`: the groups of a user that is a member in
    /etc/group are looked up there only. For other users nothing changes.

    Without this line glibc asks every service of `group:`, found or not. systemd looks groups up
    before it starts the rendezvous, whose user has a name, in a child that has to load each
    service's libraries (OS Login's alone are 33: docs/UNITS.md). Agents have users by number. An
    `initgroups:` line of somebody else is left alone.
    """
    lines = [
        line
        for line in text.removesuffix("\n").split("\n")
        if not (line.startswith("initgroups:") and line.endswith(_OURS))
    ]
    groups = [line.partition(":")[2].split() for line in lines if line.startswith("group:")]
    if groups and not any(line.startswith("initgroups:") for line in lines):
        services = groups[-1] if groups[-1][:1] == ["files"] else ["files", *groups[-1]]
        lines.append(f"initgroups: {' '.join(services)}  {_OURS}")
    return "\n".join(lines) + "\n" if text else ""


def write_all(paths: Paths, contents: Mapping[str, str], mode: int = 0o644) -> list[str]:
    """Write the files that differ; their paths, in order."""
    return [
        path for path, text in sorted(contents.items()) if files.write(paths.at(path), text, mode)
    ]


def agent_environment(spec: SwarmSpec, address: str) -> dict[str, str]:
    """The environment of every agent of this VM: defaults, the operator's variables, then those
    that the operator must not set.

    GOMAXPROCS=1: by default it is the number of CPUs, which costs threads and memory
    (docs/FACTS.md: PSS 1.51 MB instead of 1.90 together with GOGC=50). The catalogue's URL is a
    closed loopback port: without egress, fetching the real one delays every start by seconds.
    """
    return {
        "GOMAXPROCS": "1",
        "PILOT_APPSTORE_CATALOG_URL": "http://127.0.0.1:9/none",
        **spec.environment,
        "PILOT_AGENT_ADDRESS": address,
        "PILOT_AGENT_BEACON": spec.beacon,
        "PILOT_AGENT_REGISTRY": spec.registry,
        # Part of the agent's e-mail: the registry allows one node per owner, and ports repeat on
        # every VM. It stays the same after a reboot and on the VM's replacement.
        "PILOT_AGENT_VM": spec.name,
    }


def rendezvous_environment(machine: KernelFacts, spec: RendezvousSpec) -> dict[str, str]:
    """The environment of the rendezvous. The operator's variables win over GOMEMLIMIT."""
    return {
        "GOMEMLIMIT": limits.go_memory_limit(machine),
        **spec.environment,
        "PILOT_PORT_BEACON": str(spec.beacon_port),
        "PILOT_PORT_DASHBOARD": str(spec.dashboard_port),
        "PILOT_PORT_REGISTRY": str(spec.registry_port),
    }


def environment_file(environment: Mapping[str, str]) -> str:
    """`environment` as systemd's EnvironmentFile= reads it, every value in double quotes.

    Inside them a backslash escapes `"`, backslash, backquote and `$`, and nothing is expanded.
    spec.py refuses values with line breaks.
    """
    return "".join(
        f'{name}="{_SPECIAL.sub(_ESCAPED, value)}"\n' for name, value in sorted(environment.items())
    )


def whitelist(spec: RendezvousSpec) -> str:
    """`rate-limit-whitelist.json`: without it, 9,500 new keys take five hours to register."""
    return json.dumps([{"cidr": spec.subnet, "rate": WHITELIST_RATE}]) + "\n"


def _filled(name: str, values: Mapping[str, str]) -> str:
    return fill((TEMPLATES / name).read_text(encoding="utf-8"), values)
