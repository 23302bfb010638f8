"""The paths on a VM (docs/CONTRACT.md, "Paths on a VM"), below a root that tests choose."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# By address: DNS may not work yet at boot. Google's own client libraries use the same variable.
METADATA_HOST = "169.254.169.254"
METADATA_HOST_VARIABLE = "GCE_METADATA_HOST"
ROOT_VARIABLE = "PILOT_ROOT"
# How to run the startup script again. While the guard is there, a run does nothing.
AGAIN = "run `rm /run/pilot/guard; systemctl restart google-startup-scripts`"


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The paths of a VM. `root` is `/` but in tests; `metadata_host` is HOST[:PORT]."""

    root: Path = Path("/")
    metadata_host: str = METADATA_HOST

    def at(self, path: str) -> Path:
        """`path`, as on a VM, below the root."""
        return self.root / path.lstrip("/")

    @property
    def run(self) -> Path:
        return self.at("/run/pilot")

    @property
    def spec(self) -> Path:
        return self.run / "spec.json"

    @property
    def variants(self) -> Path:
        """The variants that agents can be started with, one directory each."""
        return self.run / "variants"

    @property
    def chosen(self) -> Path:
        """For each port a link to the variant that its agent was last started with."""
        return self.run / "variant"

    @property
    def rendezvous_environment(self) -> Path:
        return self.run / "rendezvous.env"

    @property
    def rendezvous_config(self) -> Path:
        """The rendezvous' tokens, for root and the rendezvous alone."""
        return self.run / "rendezvous.json"

    @property
    def sockets(self) -> Path:
        """The sockets of agents that the release before started. Agents may write there until the
        next boot; nothing is made there any more."""
        return self.run / "agents"

    @property
    def logs(self) -> Path:
        """Standard error of the agents, one file each. Owned by root: PID 1 opens them, and an
        agent must not be able to put a link there."""
        return self.run / "log"

    @property
    def state(self) -> Path:
        """Mount point of the state disk."""
        return self.at("/var/lib/pilot")

    @property
    def agents(self) -> Path:
        return self.state / "agents"

    @property
    def registry(self) -> Path:
        return self.state / "registry"

    @property
    def node_state(self) -> Path:
        """pilot-node's own state, root's only."""
        return self.state / "node"

    @property
    def orders(self) -> Path:
        """Orders given on the VM itself, until its next boot."""
        return self.run / "orders.json"

    @property
    def address(self) -> Path:
        """The VM's own internal address, one line."""
        return self.run / "address"

    @property
    def status(self) -> Path:
        return self.run / "status.json"

    @property
    def guard(self) -> Path:
        return self.run / "guard"

    @property
    def runner(self) -> Path:
        """Runs startup scripts with Google's own command; the startup script writes it."""
        return self.run / "runner"

    @property
    def opt(self) -> Path:
        return self.at("/opt/pilot")

    @property
    def units(self) -> Path:
        return self.at("/etc/systemd/system")

    def is_mounted(self, path: Path) -> bool:
        """Whether something is mounted on `path`."""
        # The fifth field of a line is the mount point, in bytes: it need not be UTF-8.
        lines = self.at("/proc/self/mountinfo").read_bytes().split(b"\n")
        return any(line.split(b" ", 5)[4:5] == [os.fsencode(path)] for line in lines)

    def mounted_from(self, path: Path) -> Path | None:
        """The device of the ext4 that is mounted last on `path`, None where there is none."""
        found = None
        for line in self.at("/proc/self/mountinfo").read_bytes().split(b"\n"):
            # number parent major:minor root POINT options [more...] - TYPE SOURCE options
            before, _, after = line.partition(b" - ")
            kind = after.split(b" ")
            if before.split(b" ", 5)[4:5] == [os.fsencode(path)]:
                found = Path(os.fsdecode(kind[1])) if kind[0] == b"ext4" else None
        return found

    def unmounted(self, therefore: str) -> str:
        """The message for a state disk that is not mounted: `therefore`, and what to do."""
        return f"{self.state} is not mounted: {therefore}; {AGAIN}"

    def home(self, port: int) -> Path:
        """The agent's home, which holds its identity."""
        return self.agents / str(port)


def paths_of(environment: Mapping[str, str]) -> Paths:
    """The paths by a process's environment."""
    return Paths(
        root=Path(environment.get(ROOT_VARIABLE) or "/"),
        metadata_host=environment.get(METADATA_HOST_VARIABLE) or METADATA_HOST,
    )
