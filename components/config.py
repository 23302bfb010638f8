"""FleetConfig: the values of a stack's configuration.

config_parse.py reads them from the stack file, config_vms.py a VM's line, config_parts.py the
other keys; config_checks.py compares parts with each other. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from components import capacity, spec_tables
from components.machine_types import MachineType

PROJECT_NAME = "pilot-fleet"
REGISTRY_PORT = 9000
BEACON_PORT = 9001
DASHBOARD_PORT = 3000
STATE_DISK_SUFFIX = "-state"
# What the rendezvous' account is called after the fleet's.
RENDEZVOUS_SUFFIX = "rendezvous"
# Least roll.watchSeconds with which a VM judges growth (startup/node/rollout/rollout.py).
MIN_WATCH_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """A version of the binaries, and their paths relative to the checkout."""

    version: str
    daemon: str
    rendezvous: str
    # Hex digests that the binaries must have, by name (daemon, rendezvous). With them, a plan
    # without the files is the plan of an update.
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RollConfig:
    """How a release is rolled out: `batch` agents at a time, `watch_seconds` between batches."""

    batch: int = 500
    watch_seconds: int = 60
    auto: bool = True


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """How many days the rendezvous' hourly and daily snapshots are kept."""

    hourly_days: int = 2
    daily_days: int = 14


@dataclass(frozen=True, kw_only=True)
class MonitoringConfig:
    """Alerts and dashboard of Cloud Monitoring."""

    enabled: bool = False
    # Whether Google's VM Extension Manager installs the Ops Agent.
    agent: bool = False
    # E-mail addresses, Pub/Sub topics (`projects/P/topics/T`), or existing channels
    # (`projects/P/notificationChannels/N`).
    channels: tuple[str, ...] = ()
    # Alert when the registry counts less than this fraction of the fleet's agents
    # (9,000 of 9,500: docs/FACTS.md).
    online: float = 9000 / 9500


@dataclass(frozen=True, kw_only=True)
class Access:
    """IAM members with rights on the fleet (docs/ACCESS.md)."""

    # May look.
    look: tuple[str, ...] = ()
    # May look and give orders.
    order: tuple[str, ...] = ()
    # A role that may reset VMs and snapshot disks; None makes one.
    role: str | None = None


@dataclass(frozen=True, kw_only=True)
class RendezvousConfig:
    """The rendezvous VM. Disk sizes in GB, as Google counts them."""

    name: str
    # Of the VM and its state disk.
    zone: str
    machine: MachineType
    # Internal IPv4 address.
    address: str
    # Whether it has an external address.
    public: bool
    # Address of an account of its own that exists; None: as of FleetConfig.account_of.
    service_account: str | None
    # Its own image; None takes the fleet's.
    image: str | None
    disk_gb: int
    boot_disk_gb: int
    fit: capacity.Fit


@dataclass(frozen=True, kw_only=True)
class SwarmVmConfig:
    """One swarm VM. Memory in MiB, disk sizes in GB."""

    name: str
    # Of the VM and its state disk.
    zone: str
    machine: MachineType
    agents: int
    environment: Mapping[str, str]
    release: ReleaseConfig
    agent_mb: int
    reserve_mb: int
    active_connections: int
    # Its own image; None takes the fleet's.
    image: str | None
    disk_gb: int
    boot_disk_gb: int
    fit: capacity.Fit


@dataclass(frozen=True, kw_only=True)
class ZoneLoss:
    """What the fleet loses while a zone is down."""

    vms: int
    agents: int
    # Of the fleet's agents, as a fraction.
    share: float
    # Whether the rendezvous is lost too: then no agent of any zone can register.
    rendezvous: bool


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """Everything that the components need; it has passed every check."""

    project: str
    # The zone of every VM that names none.
    zone: str
    # The region of all of them.
    region: str
    release: ReleaseConfig
    rendezvous: RendezvousConfig
    swarm: tuple[SwarmVmConfig, ...]
    # Agent i (from 1) of a VM has UDP port base_port + i.
    base_port: int
    # Warn where a zone holds more than this share of the agents; 1 is no bound.
    max_zone_share: float
    # Most starts in flight per VM.
    window: int
    roll: RollConfig
    # Seconds between two running VMs that apply a new project script.
    program_stagger: int
    reserve_mb: int
    subnet_cidr: str
    registry_ranges: tuple[str, ...]
    nat: bool
    image: str
    bucket: str
    service_account: str | None
    protect: bool
    snapshots: Snapshots
    storage_endpoint: str
    secrets_endpoint: str
    # Text of each token by its purpose (admin, dashboard, replication); "" where the operator adds
    # the secret's version by hand.
    tokens: Mapping[str, str] = field(repr=False)
    monitoring: MonitoringConfig
    access: Access
    # Names of resources outside the fleet that may carry a startup script of their own.
    allowed_scripts: tuple[str, ...]

    @property
    def copies_leave_the_vm(self) -> bool:
        """Whether the rendezvous has an account of its own, which may write the registry's copies
        to the bucket. Where the swarm's account is named and no other, the program makes none."""
        return self.service_account is None or self.rendezvous.service_account is not None

    def account_of(self, vm: str) -> str:
        """Address of the service account of a VM, named in the stack file or made by the program
        (components/identity.py)."""
        name, given = PROJECT_NAME, self.service_account
        if vm == self.rendezvous.name and self.copies_leave_the_vm:
            name, given = f"{PROJECT_NAME}-{RENDEZVOUS_SUFFIX}", self.rendezvous.service_account
        return given or f"{name}@{self.project}.iam.gserviceaccount.com"

    @property
    def agents(self) -> int:
        """Agents of the whole fleet."""
        return sum(vm.agents for vm in self.swarm)

    @property
    def registry(self) -> str:
        """HOST:PORT of the registry, inside the subnet."""
        return f"{self.rendezvous.address}:{REGISTRY_PORT}"

    @property
    def beacon(self) -> str:
        """HOST:PORT of the beacon, inside the subnet."""
        return f"{self.rendezvous.address}:{BEACON_PORT}"

    @property
    def agent_ports(self) -> tuple[int, int]:
        """Lowest and highest UDP port of an agent on any VM."""
        most = max((vm.agents for vm in self.swarm), default=0)
        return self.base_port + 1, self.base_port + max(most, 1)

    @property
    def script_delays(self) -> dict[str, int]:
        """Seconds that each running VM waits before it applies a new project script, by name.

        The smallest swarm VM waits 0 s; the rendezvous is last.
        """
        most = spec_tables.bounds("script.afterSeconds")[1]
        swarm = sorted(self.swarm, key=lambda vm: (vm.agents, vm.name))
        names = [*(vm.name for vm in swarm), self.rendezvous.name]
        return {name: min(place * self.program_stagger, most) for place, name in enumerate(names)}

    @property
    def images(self) -> dict[str, str]:
        """Every image in the configuration, by the path of its key."""
        by_key = {
            "image": self.image,
            "rendezvous.image": self.rendezvous.image,
            **{f"swarm[{index}].image": vm.image for index, vm in enumerate(self.swarm)},
        }
        return {f"{PROJECT_NAME}:{key}": image for key, image in by_key.items() if image}

    @property
    def fits(self) -> dict[str, capacity.Fit]:
        """How the agents fit on each VM, by name, the rendezvous first."""
        vms = {self.rendezvous.name: self.rendezvous.fit}
        return vms | {vm.name: vm.fit for vm in self.swarm}

    @property
    def zones(self) -> dict[str, ZoneLoss]:
        """The loss with each zone that has a VM, by zone."""
        losses = {}
        for zone in sorted({self.rendezvous.zone, *(vm.zone for vm in self.swarm)}):
            swarm = [vm for vm in self.swarm if vm.zone == zone]
            agents = sum(vm.agents for vm in swarm)
            has_rendezvous = self.rendezvous.zone == zone
            losses[zone] = ZoneLoss(
                vms=len(swarm) + has_rendezvous,
                agents=agents,
                share=agents / self.agents,
                rendezvous=has_rendezvous,
            )
        return losses

    def warnings(self) -> list[str]:
        """One sentence for each setting that works but is tight or has no effect."""
        warnings = [
            f"{name} ({fit.machine.name}) keeps {fit.headroom:.0%} headroom for {fit.agents:,} "
            f"agents, below {capacity.WARN_HEADROOM:.0%}: {fit.binds.name} binds, "
            f"{fit.fits:,} agents are the most it carries"
            for name, fit in self.fits.items()
            if fit.headroom < capacity.WARN_HEADROOM
        ]
        warnings += [
            f"{name} ({fit.machine.name}) is stopped and started again by Google's host "
            "maintenance (onHostMaintenance TERMINATE): this type cannot be migrated"
            for name, fit in self.fits.items()
            if not fit.machine.migrates
        ]
        warnings += [
            f"{zone} holds {loss.agents:,} of {self.agents:,} agents ({loss.share:.1%}), more than "
            f"{PROJECT_NAME}:maxZoneShare ({self.max_zone_share:.1%}): put agents on VMs in "
            f"another zone of {self.region}"
            for zone, loss in self.zones.items()
            if loss.share > self.max_zone_share
        ]
        if self.roll.watch_seconds < MIN_WATCH_SECONDS:
            warnings.append(
                f"{PROJECT_NAME}:roll.watchSeconds is {self.roll.watch_seconds}: in less than "
                f"{MIN_WATCH_SECONDS} s a VM cannot tell growth of a release from its warm-up"
            )
        if self.rendezvous.public and not self.registry_ranges:
            warnings.append(
                f"{PROJECT_NAME}:rendezvous.public reserves an external address, but no "
                "registryRanges are set, so nobody outside the subnet can register"
            )
        if not self.copies_leave_the_vm:
            warnings.append(
                f"{PROJECT_NAME}:serviceAccount is also the rendezvous': copies of the registry "
                f"stay on the disk of {self.rendezvous.name} and are lost with it. Name another "
                f"account (`rendezvous.serviceAccount`), which the swarm cannot write them with"
            )
        if self.monitoring.enabled and not self.monitoring.channels:
            warnings.append(
                f"{PROJECT_NAME}:monitoring.channels is empty: alerts show in the console only, "
                "and nobody is notified"
            )
        return warnings


def secret_id(token: str) -> str:
    """The name of the secret that holds the token."""
    return f"{PROJECT_NAME}-{token}-token"
