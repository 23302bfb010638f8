"""Applies a spec to the machine: its units.

The startup script does so at boot, and the service when another spec comes. Where nothing differs
nothing is written, and systemd reloads nothing.
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


def apply_units(paths: Paths, spec: SwarmSpec | RendezvousSpec, say: Say) -> None:
    """Write the unit files of the spec's role, and journald's fragment. Raises LimitsError,
    OSError, SubprocessError."""
    changed = _write(paths, units.unit_files(kernel.machine(paths), spec), "daemon-reload")
    # journald keeps every stream over a restart. systemd-logind is never restarted.
    changed += _write(paths, units.journald_file(), "try-restart", "systemd-journald.service")
    changed += _write_nsswitch(paths, say)
    if isinstance(spec, SwarmSpec) and (unused := units.remove_unused(paths)):
        say(f"removed, as no agent runs by it: {', '.join(unused)}")
    say(f"written {', '.join(changed) or 'nothing'}")


def _write_nsswitch(paths: Paths, say: Say) -> list[str]:
    """Have PID 1's children look up the groups of the rendezvous' user in one file. Each child
    reads it anew, so no reload is needed. Where this fails, a start only takes longer."""
    path = paths.at("/etc/nsswitch.conf")
    try:
        before = path.read_text(encoding="utf-8")
        return units.write_all(paths, {"/etc/nsswitch.conf": units.nsswitch(before)})
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    except OSError as error:
        say(f"/etc/nsswitch.conf stays as it is, so each start takes longer: {error}")
        return []


def _write(paths: Paths, contents: Mapping[str, str], *command: str) -> list[str]:
    """Write the files that differ; their paths. Where one did, run `systemctl command`.

    A marker exists from before the first write until systemctl has succeeded. Without it, after a
    timeout or a kill in between, nothing would differ any more and systemd would keep the old
    files. It is in /run: at a boot systemd reads all files.
    """
    marker = paths.run / f"untold-{command[0]}"
    untold = marker.exists()
    files.write(marker, "", 0o600)
    changed = units.write_all(paths, contents)
    if untold or changed:
        systemctl(*command)
    marker.unlink(missing_ok=True)
    return changed


def check(paths: Paths, spec: SwarmSpec | RendezvousSpec) -> None:
    """Raises LimitsError where `spec` does not fit this machine. Changes nothing."""
    machine = kernel.machine(paths)
    limits.check_agents(spec)
    units.unit_files(machine, spec)


def systemctl(*arguments: str) -> None:
    """Raises SubprocessError."""
    subprocess.run(
        ["systemctl", *arguments], check=True, stdin=subprocess.DEVNULL, timeout=_SECONDS
    )
