"""Where things are on a VM (docs/CONTRACT.md, "Paths on a VM"), below a root that tests choose."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# By address, not by name: at boot the first thing to be missing is DNS. The variable is the one
# that Google's own client libraries honour.
METADATA_HOST = "169.254.169.254"
METADATA_HOST_VARIABLE = "GCE_METADATA_HOST"
ROOT_VARIABLE = "PILOT_ROOT"
# Runs the startup script again, by whatever program Google's unit for it names. Without removing
# the guard a run after a complete one does nothing.
AGAIN = "run `rm /run/pilot/guard; systemctl restart google-startup-scripts`"


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The paths of a VM. `root` is `/` but in tests; `metadata_host` is HOST[:PORT]."""

    root: Path = Path("/")
    metadata_host: str = METADATA_HOST

    def at(self, path: str) -> Path:
        """`path`, written as on a VM, below the root."""
        return self.root / path.lstrip("/")

    @property
    def run(self) -> Path:
        return self.at("/run/pilot")

    @property
    def spec(self) -> Path:
        return self.run / "spec.json"

    @property
    def variants(self) -> Path:
        """What agents can be started with, one directory each."""
        return self.run / "variants"

    @property
    def chosen(self) -> Path:
        """What the agent of each port was last started with: links to a variant."""
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
        """The agents' sockets, in the one directory of /run/pilot that the agents write in."""
        return self.run / "agents"

    @property
    def logs(self) -> Path:
        """Standard error of the agents, one file each, owned by root: nothing an agent can
        replace by a link is ever opened on its behalf by PID 1."""
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
        """What pilot-node must not forget, root's alone."""
        return self.state / "node"

    @property
    def orders(self) -> Path:
        """Orders given on the VM itself; gone with the boot."""
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
        """Whether something is mounted on `path`, by what the kernel says."""
        # The fifth field of a line is the mount point: bytes, and anyone's need not be UTF-8.
        lines = self.at("/proc/self/mountinfo").read_bytes().split(b"\n")
        return any(line.split(b" ", 5)[4:5] == [os.fsencode(path)] for line in lines)

    def mounted_from(self, path: Path) -> Path | None:
        """The device whose ext4 is mounted on `path`, the last where there are more, else None."""
        found = None
        for line in self.at("/proc/self/mountinfo").read_bytes().split(b"\n"):
            # number parent major:minor root POINT options [more...] - TYPE SOURCE options
            before, _, after = line.partition(b" - ")
            kind = after.split(b" ")
            if before.split(b" ", 5)[4:5] == [os.fsencode(path)]:
                found = Path(os.fsdecode(kind[1])) if kind[0] == b"ext4" else None
        return found

    def unmounted(self, therefore: str) -> str:
        """The sentence for a state disk that is not mounted: what follows, and what to do."""
        return f"{self.state} is not mounted: {therefore}; {AGAIN}"

    def socket(self, port: int) -> Path:
        return self.sockets / f"{port}.sock"


def paths_of(environment: Mapping[str, str]) -> Paths:
    """The place that a process's environment names."""
    return Paths(
        root=Path(environment.get(ROOT_VARIABLE) or "/"),
        metadata_host=environment.get(METADATA_HOST_VARIABLE) or METADATA_HOST,
    )
