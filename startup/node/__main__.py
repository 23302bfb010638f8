"""The command line: steps of the startup script, `run` (the service), and commands for people."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from .desired.json_reader import SpecError
from .desired.spec import Binary, RendezvousSpec, SwarmSpec, parse
from .machine import files, user
from .machine.metadata import MetadataServer
from .machine.paths import AGAIN, Paths, paths_of
from .machine.retry import FinalError, Retry, bounds_of
from .machine.systemd import Systemctl
from .rollout import roll_state
from .setup import apply, isolation, kernel, limits, release, units

# Modules of one command are imported there: on an emulated CPU, compiling those of the service
# would take half a minute of a boot.

# Seconds of /proc/uptime when the startup script began; without it no step is announced.
STARTED_VARIABLE = "PILOT_STARTED"

PEOPLE = ("drain", "undrain", "resume", "restart", "status", "agent", "bench")
"""Commands for people. `resume`, the word for `undrain` until 2026-11, works and is not shown."""

USAGE = """usage: pilot-node COMMAND
  drain             end all agents, and start none, until `undrain`
  undrain           end `drain`: start the agents again
  restart           start all agents anew, a window's worth at a time
  status            what this VM says of itself
  agent PORT        unit, process, user and files of one agent
  bench -- COMMAND  run COMMAND in the slice of benchmarks, which memory pressure freezes
The first three give an order; pilot-node carries it out, also when your session ends.

Steps of the startup script (several in one go) and of units:
  spec ROLE  fetch this VM's spec from the metadata server and check it
  release    fetch and verify this VM's binary, and make it the current one
  units      write this VM's units and their environment
  store      prepare the registry's directory, its whitelist, and a good registry file
  run        keep this VM at its spec, until stopped
"""


class NodeCommands:
    """The commands on one VM. `say` gets a line for each thing that was done."""

    def __init__(self, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.paths: Paths = paths_of(environment)
        self.say = say
        self.retry = Retry(bounds=bounds_of(environment), say=say)
        self.metadata = MetadataServer(host=self.paths.metadata_host)

    def fetch_spec(self, role: str) -> None:
        path = "instance/attributes/pilot-spec"
        text = self.retry("pilot-spec", lambda: self.metadata.value(path))
        if text is None:
            raise FinalError("metadata has pilot-role but no pilot-spec: run `pulumi up`")
        spec = parse(text)
        if spec.role != role:
            raise SpecError([f"role: is {spec.role!r}, the metadata's pilot-role is {role!r}"])
        # Checked before it is written: the service begins with this spec after a restart.
        apply.check(self.paths, spec)
        files.write(self.paths.spec, text)
        self.say(f"{spec.name}: {spec.role}, {spec.agents} agents, release {spec.version}")

    def spec(self) -> SwarmSpec | RendezvousSpec:
        try:
            return parse(self.paths.spec.read_bytes())
        except FileNotFoundError:
            raise FinalError(
                f"{self.paths.spec} is not there: the startup script has not got to it in this "
                f"boot; {AGAIN}"
            ) from None

    def release(self) -> None:
        """Fetch the accepted release, whatever the spec says. The service fetches the spec's
        release and rolls it out. A rejected release stays rejected after a reboot."""
        spec = self.spec()
        accepted = roll_state.recall(self.paths, self.say).accepted
        if accepted and accepted.sha256 != spec.binary.sha256:
            old = Binary.of(spec.binary.name, accepted.sha256)
            try:
                self._release(spec, old, accepted.version)
            except FinalError as error:
                self.say(f"{error}; the spec's release is taken instead")
            else:
                self.say(f"the spec's release, {spec.version}, is not accepted here")
                return
        self._release(spec, spec.binary, spec.version)

    def _release(self, spec: SwarmSpec | RendezvousSpec, binary: Binary, version: str) -> None:
        fetched = release.ensure(
            binary,
            opt=self.paths.opt,
            endpoint=spec.storage,
            bucket=spec.bucket,
            token=self.metadata.token,
            retry=self.retry,
        )
        release.use(binary, self.paths.opt)
        how = "fetched and verified" if fetched else "there already, verified"
        self.say(f"{binary.name} {version} {how}")

    def units(self) -> None:
        spec = self.spec()
        if isinstance(spec, SwarmSpec):
            self.paths.agents.mkdir(parents=True, exist_ok=True)
            files.write(self.paths.address, self._address() + "\n")
            isolation.close(self.paths, self.say)
        else:
            environment = units.rendezvous_environment(kernel.machine(self.paths), spec)
            self._store(spec)
            text = units.environment_file(environment)
            files.write(self.paths.rendezvous_environment, text, 0o600)
        apply.apply_units(self.paths, spec, self.say)

    def store(self) -> None:
        spec = self.spec()
        if not isinstance(spec, RendezvousSpec):
            raise FinalError(f"store: this VM is a {spec.role}, it has no registry")
        self._store(spec)
        from .rendezvous import registry_copies  # noqa: PLC0415

        registry_copies.prepare_store(self.paths, self.say)

    def _store(self, spec: RendezvousSpec) -> None:
        if not self.paths.is_mounted(self.paths.state):
            raise FinalError(self.paths.unmounted("the registry would be lost with the boot disk"))
        # It belongs to root and is sticky: the rendezvous makes its own files in it, but cannot
        # replace the whitelist.
        self.paths.registry.mkdir(mode=0o700, exist_ok=True)
        user.share(self.paths.registry)
        files.write(self.paths.registry / "rate-limit-whitelist.json", units.whitelist(spec))

    def run(self) -> None:
        from .follower import recall_spec  # noqa: PLC0415

        if isinstance(recall_spec(self.paths).spec, RendezvousSpec):
            from . import rendezvous_loop  # noqa: PLC0415

            rendezvous_loop.serve(self.paths, say=self.say)
            return
        from . import swarm_loop  # noqa: PLC0415

        try:
            address = self.paths.address.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            address = self._address()
        swarm_loop.serve(self.paths, address=address, systemd=Systemctl(), say=self.say)

    def _address(self) -> str:
        path = "instance/network-interfaces/0/ip"
        address = self.retry("internal address", lambda: self.metadata.value(path))
        if not address:
            raise FinalError(f"metadata has no {path}: agents need an address to be reached at")
        return address.strip()


def main(arguments: list[str]) -> int:
    """Run the commands. 0 when all are done, 1 when one failed, 2 when one is not known."""
    # The serial console may not know UTF-8, and a message may hold an operator's text.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    if arguments and arguments[0] in PEOPLE:
        return _ask(arguments)
    node = NodeCommands(os.environ, lambda line: _say(f"pilot:   {line}"))
    steps = _steps(node, arguments)
    if not steps:
        print(USAGE, file=sys.stderr, end="")
        return 2
    for name, command in steps:
        if started := os.environ.get(STARTED_VARIABLE):
            _say(f"pilot: {name} ({_uptime() - int(started)} s)")
        try:
            command()
        except SpecError as error:
            for problem in error.problems:
                _say(f"pilot: pilot-spec: {problem}")
            return 1
        except (FinalError, limits.LimitsError, OSError, subprocess.SubprocessError) as error:
            _say(f"pilot: {name}: {error}")
            return 1
    return 0


def _say(line: str) -> None:
    """Write a line. A failure to write is ignored: others can take all of journald's streams, and
    it then closes this process' output."""
    try:
        print(line)
    except BrokenPipeError:
        # Output goes to /dev/null from here on. Otherwise buffered lines make the exit status 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
    except OSError:
        pass


def _ask(arguments: list[str]) -> int:
    """Run a command for people. The exit status; for `bench`, that of its command."""
    from . import local_orders  # noqa: PLC0415
    from .pressure import benchmarks  # noqa: PLC0415

    if arguments[0] != "bench":
        return local_orders.main(paths_of(os.environ), arguments)
    try:
        return benchmarks.run(arguments[1 + (arguments[1:2] == ["--"]) :], environment=os.environ)
    except FinalError as error:
        print(f"pilot-node: {error}", file=sys.stderr)
        return 1


def _steps(node: NodeCommands, arguments: list[str]) -> list[tuple[str, Callable[[], None]]]:
    """The steps of `arguments`, in order; empty when one is not known."""
    commands = {
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
    """Seconds since the kernel started, as in the startup script: the wall clock jumps at boot."""
    return int(float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
