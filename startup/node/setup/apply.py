"""Making the machine what its spec says: the kernel's numbers, limits, units.

Done by the startup script at boot, and by the service when another spec comes. All of it looks
first: where nothing differs nothing is written, and systemd reloads nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping

from ..desired.spec import RendezvousSpec, SwarmSpec
from ..machine import files
from ..machine.paths import Paths
from . import kernel, limits, units

# Seconds for systemctl: a reload with thousands of units takes up to 20 (docs/FACTS.md).
_SECONDS = 120

Say = Callable[[str], None]


def apply_limits(paths: Paths, spec: SwarmSpec | RendezvousSpec, say: Say) -> None:
    """The kernel's numbers and the limits. Raises LimitsError where they cannot be, and OSError."""
    numbers = limits.sysctls(kernel.machine(paths), spec)
    name = "/etc/sysctl.d/60-pilot.conf"
    contents = {name: units.sysctl_file(numbers), **units.limit_files()}
    # It keeps every stream over a restart. systemd-logind is never restarted.
    changed = _write(paths, contents, "journald", "try-restart", "systemd-journald.service")
    left = kernel.apply(paths, numbers, container=_in_container())
    if left:
        say(f"in a container, left to the host: {', '.join(left)}")
    if isinstance(spec, SwarmSpec) and (problem := kernel.huge_pages_on_request(paths)):
        say(f"huge pages go to agents as well, each takes more memory for it: {problem}")
    say(f"{len(numbers)} kernel numbers, written {', '.join(changed) or 'nothing'}")


def apply_units(paths: Paths, spec: SwarmSpec | RendezvousSpec, say: Say) -> None:
    """The unit files of the spec's role. Raises LimitsError, OSError, SubprocessError."""
    changed = _write(paths, units.unit_files(kernel.machine(paths), spec), "", "daemon-reload")
    changed += _write_nsswitch(paths, say)
    say(f"written {', '.join(changed) or 'nothing'}")


def _write_nsswitch(paths: Paths, say: Say) -> list[str]:
    """Have PID 1's children look for the agents' groups in one file: nobody is told, each reads
    it. Without it all starts just cost more."""
    path = paths.at("/etc/nsswitch.conf")
    try:
        before = path.read_text(encoding="utf-8")
        return units.write_all(paths, {"/etc/nsswitch.conf": units.nsswitch(before)})
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    except OSError as error:
        say(f"/etc/nsswitch.conf is left as it is, each start asks more for it: {error}")
        return []


def _write(paths: Paths, contents: Mapping[str, str], about: str, *command: str) -> list[str]:
    """Write what differs; the paths that did. Where one that has `about` in its path did, systemd
    is told by `command`.

    The marker is there from before the first write until systemd was told: where it timed out, or
    this process was killed in between, nothing differs any more and systemd still knows the old.
    In /run: after a boot it has read all of them.
    """
    marker = paths.run / f"untold-{command[0]}"
    untold = marker.exists()
    files.write(marker, "", 0o600)
    changed = units.write_all(paths, contents)
    if untold or any(about in path for path in changed):
        systemctl(*command)
    marker.unlink(missing_ok=True)
    return changed


def check(paths: Paths, spec: SwarmSpec | RendezvousSpec) -> None:
    """Raises LimitsError where this machine cannot be what `spec` says. Changes nothing."""
    machine = kernel.machine(paths)
    limits.sysctls(machine, spec)
    units.unit_files(machine, spec)


def systemctl(*arguments: str) -> None:
    """Raises SubprocessError."""
    subprocess.run(
        ["systemctl", *arguments], check=True, stdin=subprocess.DEVNULL, timeout=_SECONDS
    )


def _in_container() -> bool:
    done = subprocess.run(["systemd-detect-virt", "--quiet", "--container"], check=False)
    return done.returncode == 0
