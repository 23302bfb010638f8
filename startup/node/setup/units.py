"""What is written on a VM for systemd and the kernel: units, limits, environments.

The templates in `units/` are real units with `@name@` where a number of this VM belongs. Every
placeholder needs its value and every value its placeholder, so none is forgotten on either side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ..desired.spec import ROLE_RENDEZVOUS, ROLE_SWARM, RendezvousSpec, SwarmSpec
from ..machine import files
from ..machine.paths import Paths
from . import limits
from .limits import KernelFacts

# Beside the program, as in the repository.
TEMPLATES = Path(__file__).resolve().parents[2] / "units"

# New keys a minute and address that the registry allows the fleet's own subnet: as good as any
# number, for a whole fleet that registers anew within a minute (docs/FACTS.md).
WHITELIST_RATE = 100_000

# Seconds that pilot-node may take to end at a power-off, of the some 90 that Compute Engine gives
# to all: a drain has 60 (drain.py), and a rendezvous needs what is left to write 45 MB by itself.
_STOP_SECONDS = {ROLE_SWARM: "75", ROLE_RENDEZVOUS: "45"}

# At the end of a line that is written into a file of the system's.
_OURS = "# pilot-fleet"

_SPECIAL = re.compile(r"""(["`$\\])""")
_ESCAPED = r"\\\1"
_PLACEHOLDER = re.compile(r"@([a-z_]+)@")


class TemplateError(Exception):
    """A placeholder without a value, or a value without a placeholder: a mistake in this tree."""


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with every `@name@` replaced. Raises TemplateError when the two do not match."""
    names = set(_PLACEHOLDER.findall(template))
    if names != set(values):
        raise TemplateError(f"placeholders {sorted(names)}, values {sorted(values)}")
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def sysctl_file(numbers: Mapping[str, str]) -> str:
    """`numbers` as a file of sysctl.d, for whoever re-reads it: the kernel has them already."""
    lines = "".join(f"{name} = {value}\n" for name, value in numbers.items())
    return (
        f"# Written by the pilot-fleet startup script. Sources: limits.py of pilot-node.\n{lines}"
    )


def unit_files(machine: KernelFacts, spec: SwarmSpec | RendezvousSpec) -> dict[str, str]:
    """Every unit file of this VM's role: path on the VM -> content."""
    memory_max = str(limits.slice_memory(machine, spec))
    units = {
        "pilot.slice": {"memory_max": memory_max},
        "pilot-node.service": {"stop_seconds": _STOP_SECONDS[spec.role]},
    }
    if isinstance(spec, SwarmSpec):
        units["pilot-agent@.service"] = {}
        tasks_max = str(limits.SYSTEM_TASKS // 2)
        units["pilotbench.slice"] = {"memory_max": memory_max, "tasks_max": tasks_max}
    else:
        units["pilot-rendezvous.service"] = {
            "descriptors": str(limits.rendezvous_descriptors(spec))
        }
    found = {f"/etc/systemd/system/{name}": _filled(name, v) for name, v in units.items()}
    found["/etc/systemd/system/user-.slice.d/60-pilot.conf"] = _filled("user-.slice.conf", {})
    return found


def limit_files() -> dict[str, str]:
    """The fragments that are the same on every VM: path on the VM -> content."""
    return {
        "/etc/security/limits.d/60-pilot.conf": _filled("limits.conf", {}),
        "/etc/systemd/journald.conf.d/60-pilot.conf": _filled("journald.conf", {}),
    }


def nsswitch(text: str) -> str:
    """`text`, an nsswitch.conf, with a line that ends the search for a user's groups in /etc/group
    where that names the user as a member; for everybody else all is as it was.

    glibc asks every service of `group:` for them, found or not, but for a line `initgroups:`,
    where the first answer counts. systemd asks before each start of an agent, in its child, which
    has none of the libraries: OS Login's alone are 33, and took more of the processor than the
    agent did (docs/UNITS.md). A line that is somebody else's is left alone.
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
    """Write what differs; the paths that did, in order."""
    return [
        path for path, text in sorted(contents.items()) if files.write(paths.at(path), text, mode)
    ]


def agent_environment(spec: SwarmSpec, address: str) -> dict[str, str]:
    """The environment of every agent of this VM: our defaults, the operator's, what is ours.

    GOMAXPROCS=1, because Go takes the number of CPUs and pays for it in threads and memory
    (docs/FACTS.md: PSS 1.51 MB instead of 1.90 together with GOGC=50). The catalogue's URL is a
    closed loopback port: fetching the real one stalls every start for seconds without egress.
    """
    return {
        "GOMAXPROCS": "1",
        "PILOT_APPSTORE_CATALOG_URL": "http://127.0.0.1:9/none",
        **spec.environment,
        "PILOT_AGENT_ADDRESS": address,
        "PILOT_AGENT_BEACON": spec.beacon,
        "PILOT_AGENT_REGISTRY": spec.registry,
        # Part of the agent's e-mail: the registry allows one node an owner, and ports repeat on
        # every VM. It is the same after a reboot and for the VM's replacement.
        "PILOT_AGENT_VM": spec.name,
    }


def rendezvous_environment(machine: KernelFacts, spec: RendezvousSpec) -> dict[str, str]:
    """The environment of the rendezvous; the operator's wins over GOMEMLIMIT."""
    return {
        "GOMEMLIMIT": limits.go_memory_limit(machine),
        **spec.environment,
        "PILOT_PORT_BEACON": str(spec.beacon_port),
        "PILOT_PORT_DASHBOARD": str(spec.dashboard_port),
        "PILOT_PORT_REGISTRY": str(spec.registry_port),
    }


def environment_file(environment: Mapping[str, str]) -> str:
    """`environment` as systemd's EnvironmentFile= reads it, every value in double quotes.

    Inside them a backslash takes the meaning from `"`, backslash, backquote and `$`, and nothing
    is expanded. Values with line breaks never get here (spec.py).
    """
    return "".join(
        f'{name}="{_SPECIAL.sub(_ESCAPED, value)}"\n' for name, value in sorted(environment.items())
    )


def whitelist(spec: RendezvousSpec) -> str:
    """`rate-limit-whitelist.json`: without it, 9,500 new keys take five hours to register."""
    return json.dumps([{"cidr": spec.subnet, "rate": WHITELIST_RATE}]) + "\n"


def _filled(name: str, values: Mapping[str, str]) -> str:
    return fill((TEMPLATES / name).read_text(encoding="utf-8"), values)
