"""The command line: what the startup script asks for, one word a step, and `run`, the service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from . import agents, files, kernel, limits, release, units
from .metadata import MetadataServer
from .place import Place, place_of
from .retry import FinalError, Retry, bounds_of
from .spec import RendezvousSpec, SpecError, SwarmSpec, parse
from .systemd import Systemctl

# A run in which nothing is left to do ends at its guard.
AGAIN = "run `rm /run/pilot/guard; google_metadata_script_runner startup`"

# In the words of the startup script, which says its own steps in the same form.
TITLES = {"limits": "kernel limits"}
# Seconds of /proc/uptime when the startup script began; without it no step is announced.
STARTED_VARIABLE = "PILOT_STARTED"

USAGE = """usage: pilot-node COMMAND [COMMAND ...]
  spec ROLE  fetch this VM's spec from the metadata server and check it
  limits     write the kernel's numbers and the limits, and apply them
  release    fetch and verify this VM's binary, and make it the current one
  units      write the units and the environment of what runs here
  store      have the registry's directory and its whitelist
  run        keep this VM's agents at their number, until stopped
"""


class Node:
    """One command on one VM. `say` gets a line for each thing that was done."""

    def __init__(self, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.place: Place = place_of(environment)
        self.say = say
        self.retry = Retry(bounds=bounds_of(environment), say=say)
        self.metadata = MetadataServer(host=self.place.metadata_host)

    def fetch_spec(self, role: str) -> None:
        path = "instance/attributes/pilot-spec"
        text = self.retry("pilot-spec", lambda: self.metadata.value(path))
        if text is None:
            raise FinalError("metadata has pilot-role but no pilot-spec: run `pulumi up`")
        spec = parse(text)
        if spec.role != role:
            raise SpecError([f"role: is {spec.role!r}, the metadata's pilot-role is {role!r}"])
        files.write(self.place.spec, text)
        self.say(f"{spec.name}: {spec.role}, {spec.agents} agents, release {spec.version}")

    def spec(self) -> SwarmSpec | RendezvousSpec:
        try:
            return parse(self.place.spec.read_bytes())
        except FileNotFoundError:
            raise FinalError(
                f"{self.place.spec} is not there: the startup script has not got to it in this "
                f"boot; {AGAIN}"
            ) from None

    def limits(self) -> None:
        spec, machine = self.spec(), kernel.machine(self.place)
        numbers = limits.sysctls(machine, spec)
        name = "/etc/sysctl.d/60-pilot.conf"
        changed = units.write_all(
            self.place, {name: units.sysctl_file(numbers), **units.limit_files()}
        )
        left = kernel.apply(self.place, numbers, container=_in_container())
        if left:
            self.say(f"in a container, left to the host: {', '.join(left)}")
        if any("journald" in path for path in changed):
            # It keeps every stream over a restart. systemd-logind is never restarted.
            _systemctl("try-restart", "systemd-journald.service")
        self.say(f"{len(numbers)} kernel numbers, written {', '.join(changed) or 'nothing'}")

    def release(self) -> None:
        spec = self.spec()
        fetched = release.ensure(
            spec.binary,
            opt=self.place.opt,
            endpoint=spec.storage,
            bucket=spec.bucket,
            token=self.metadata.token,
            retry=self.retry,
        )
        release.use(spec.binary, self.place.opt)
        how = "fetched and verified" if fetched else "there already, verified"
        self.say(f"{spec.binary.name} {spec.version} {how}")

    def units(self) -> None:
        spec, machine = self.spec(), kernel.machine(self.place)
        if isinstance(spec, SwarmSpec):
            path = self.place.agent_environment
            environment = units.agent_environment(spec, self._address())
            self.place.agents.mkdir(parents=True, exist_ok=True)
        else:
            path = self.place.rendezvous_environment
            environment = units.rendezvous_environment(machine, spec)
            self.store()
        files.write(path, units.environment_file(environment), 0o600)
        changed = units.write_all(self.place, units.unit_files(machine, spec))
        if changed:
            _systemctl("daemon-reload")
        self.say(f"written {', '.join(changed) or 'nothing'}")

    def store(self) -> None:
        spec = self.spec()
        if not isinstance(spec, RendezvousSpec):
            raise FinalError(f"store: this VM is a {spec.role}, it has no registry")
        if not self.place.is_mounted(self.place.state):
            raise FinalError(
                f"{self.place.state} is not mounted: the registry would be lost with the boot "
                f"disk; {AGAIN}"
            )
        # Root's, and sticky: the rendezvous makes its own files in it, but cannot remove or
        # replace the whitelist.
        self.place.registry.mkdir(mode=0o700, exist_ok=True)
        agents.share(self.place.registry)
        files.write(self.place.registry / "rate-limit-whitelist.json", units.whitelist(spec))

    def run(self) -> None:
        spec = self.spec()
        if not isinstance(spec, SwarmSpec):
            raise FinalError(f"run: this VM is a {spec.role}, it has no agents")
        keeper = agents.Keeper(place=self.place, spec=spec, systemd=Systemctl(), say=self.say)
        seen = 0

        def refresh() -> None:
            nonlocal seen
            modified = self.place.spec.stat().st_mtime_ns
            if modified != seen:
                seen = modified
                fresh = self.spec()
                if isinstance(fresh, SwarmSpec):
                    keeper.spec = fresh

        agents.serve(keeper, refresh=refresh)

    def _address(self) -> str:
        path = "instance/network-interfaces/0/ip"
        address = self.retry("internal address", lambda: self.metadata.value(path))
        if not address:
            raise FinalError(f"metadata has no {path}: agents need an address to be reached at")
        return address.strip()


def main(arguments: list[str]) -> int:
    """Run the commands. 0 when all are done, 1 when one failed (said why), 2 when one is none."""
    # The serial console may know no UTF-8, and a message may hold what an operator typed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    node = Node(os.environ, lambda line: print(f"pilot:   {line}"))
    steps = _steps(node, arguments)
    if not steps:
        print(USAGE, file=sys.stderr, end="")
        return 2
    for name, command in steps:
        if started := os.environ.get(STARTED_VARIABLE):
            print(f"pilot: {TITLES.get(name, name)} ({_uptime() - int(started)} s)")
        try:
            command()
        except SpecError as error:
            for problem in error.problems:
                print(f"pilot: pilot-spec: {problem}")
            return 1
        except (FinalError, limits.LimitsError, OSError, subprocess.SubprocessError) as error:
            print(f"pilot: {name}: {error}")
            return 1
    return 0


def _steps(node: Node, arguments: list[str]) -> list[tuple[str, Callable[[], None]]]:
    """What `arguments` ask for, in their order; nothing when one is not known."""
    commands = {
        "limits": node.limits,
        "release": node.release,
        "units": node.units,
        "store": node.store,
        "run": node.run,
    }
    found: list[tuple[str, Callable[[], None]]] = []
    words = iter(arguments)
    for word in words:
        if word in commands:
            found.append((word, commands[word]))
        elif word == "spec" and (role := next(words, "")):
            found.append((word, partial(node.fetch_spec, role)))
        else:
            return []
    return found


def _uptime() -> int:
    """The clock of the startup script; the wall clock jumps at boot."""
    return int(float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]))


def _in_container() -> bool:
    done = subprocess.run(["systemd-detect-virt", "--quiet", "--container"], check=False)
    return done.returncode == 0


def _systemctl(*arguments: str) -> None:
    subprocess.run(["systemctl", *arguments], check=True, stdin=subprocess.DEVNULL, timeout=120)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
