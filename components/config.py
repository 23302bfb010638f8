"""FleetConfig: the stack's configuration, validated as a whole.

`FleetConfig.parse` takes the plain values of the stack file (as Pulumi hands them over, or as
`stack_file` reads them) and either returns a configuration that works or raises `ConfigError` with
every problem at once, each with the path of its key. Nothing here does I/O or needs an engine.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pulumi

from components import capacity, described, names
from components.machines import MIB_PER_GIB, MachineType, look_up, unsold
from components.reading import ConfigError, MapReader, Problem, describe, show

PROJECT_NAME = "pilot-fleet"
REGISTRY_PORT = 9000
BEACON_PORT = 9001
DASHBOARD_PORT = 3000
STATE_DISK_SUFFIX = "-state"
# Tables of variables that no stack file sets: the agents' unit or the loader has them.
_RESERVED = ("RESERVED_VARIABLES", "LOADER_VARIABLES")
# Seconds of roll.watchSeconds from which on growth is looked at (startup/node/rollout/rollout.py).
WATCH_LEAST = 20
# Bytes of configuration. Pulumi hands all of it, gcp:… too, to the program and to the policies in
# one environment variable, and Linux starts nothing with one of 131,072 bytes (MAX_ARG_STRLEN).
CONFIGURATION_MOST = 96 << 10
# Google reserves the first two and the last two addresses of a subnet.
_RESERVED_HEAD, _RESERVED_TAIL = 2, 2

# RFC 1035, which Google requires of names, less the seven characters of `-hourly`, which name the
# longest thing that is named after a VM.
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,54}[a-z0-9])?")
_RESOURCE = re.compile(r"[^\s/]{1,128}")
_SERVICE_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
# The accounts that Google makes by itself: far too powerful, and anyone's.
_DEFAULT_ACCOUNT = re.compile(
    r"[0-9]+-compute@developer\.gserviceaccount\.com|[^@]+@appspot\.gserviceaccount\.com"
    r"|[0-9]+@cloudservices\.gserviceaccount\.com"
)
# A token that nobody guesses, in characters that no shell, URL or header reads in another way.
_TOKEN = re.compile(r"[-0-9A-Za-z_.~+/=]{16,512}")
_CHANNEL = re.compile(
    r"[^@\s/]+@[^@\s/]+\.[^@\s/]+"
    r"|projects/[-a-z0-9]{6,30}/(?:notificationChannels/[0-9]+|topics/[A-Za-z][-\w.~+%]{2,254})"
)
# A member of an IAM policy: people, groups, accounts and federated identities, never everybody.
_MEMBER = re.compile(
    r"(?:user|group|serviceAccount):[^@\s:]+@[^@\s:]+\.[^@\s:]+|domain:[^@\s:/]+\.[^@\s:/]+"
    r"|principal(?:Set)?://iam\.googleapis\.com/[^\s]+"
)


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """A version of the binaries and where they are built, as paths relative to the checkout.

    `sha256` holds the hex digests that the binaries must have, by name (daemon, rendezvous), where
    the stack file names them: then a plan without the files is the plan of an update.
    """

    version: str
    daemon: str
    rendezvous: str
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RollConfig:
    """How a release is rolled out: `batch` agents at a time, `watch_seconds` between batches."""

    batch: int = 500
    watch_seconds: int = 60
    auto: bool = True


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """Days for which the rendezvous' hourly and daily snapshots are kept."""

    hourly_days: int = 2
    daily_days: int = 14


@dataclass(frozen=True, kw_only=True)
class MonitoringConfig:
    """Alerts and dashboard of Cloud Monitoring.

    `online`: the fraction of the fleet's agents below which the registry's count is an alert
    (9,000 of 9,500: docs/FACTS.md). `channels`: e-mail addresses, Pub/Sub topics
    (`projects/P/topics/T`), or channels that exist (`projects/P/notificationChannels/N`).
    `agent`: whether Google's VM Extension Manager installs the Ops Agent.
    """

    enabled: bool = False
    agent: bool = False
    channels: tuple[str, ...] = ()
    online: float = 9000 / 9500


@dataclass(frozen=True, kw_only=True)
class Access:
    """Members of IAM who may look at the fleet, and who may also give it orders (docs/ACCESS.md).

    `role` is a role that may reset VMs and snapshot disks; None makes one.
    """

    look: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    role: str | None = None


@dataclass(frozen=True, kw_only=True)
class RendezvousConfig:
    """The rendezvous VM. Disk sizes in GB, as Google counts them. `image`: its own, if any."""

    name: str
    machine: MachineType
    address: str
    public: bool
    image: str | None
    disk_gb: int
    boot_disk_gb: int
    fit: capacity.Fit


@dataclass(frozen=True, kw_only=True)
class SwarmVmConfig:
    """One swarm VM. Memory in MiB, disk sizes in GB. `image`: its own, if any."""

    name: str
    machine: MachineType
    agents: int
    environment: Mapping[str, str]
    release: ReleaseConfig
    agent_mb: int
    reserve_mb: int
    active_connections: int
    image: str | None
    disk_gb: int
    boot_disk_gb: int
    fit: capacity.Fit


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """A fleet that works: everything the components need, and nothing that does not fit."""

    project: str
    zone: str
    region: str
    release: ReleaseConfig
    rendezvous: RendezvousConfig
    swarm: tuple[SwarmVmConfig, ...]
    base_port: int
    window: int
    roll: RollConfig
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
    # By what a token is for: its text, or "" where its version is added by hand.
    tokens: Mapping[str, str] = field(repr=False)
    monitoring: MonitoringConfig
    access: Access
    # Names of what is not the fleet's and may carry a script of its own.
    allowed_scripts: tuple[str, ...]

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
        """The UDP ports of agents, inclusive, over all VMs."""
        most = max((vm.agents for vm in self.swarm), default=0)
        return self.base_port + 1, self.base_port + max(most, 1)

    @property
    def turns(self) -> dict[str, int]:
        """Seconds after which each running VM applies a new project script, by name: the smallest
        swarm VM at once, the rendezvous last."""
        most = described.bounds("script.afterSeconds")[1]
        swarm = sorted(self.swarm, key=lambda vm: (vm.agents, vm.name))
        names = [*(vm.name for vm in swarm), self.rendezvous.name]
        return {name: min(place * self.program_stagger, most) for place, name in enumerate(names)}

    @property
    def images(self) -> dict[str, str]:
        """Every image that is asked for, by the path of its key."""
        asked = {
            "image": self.image,
            "rendezvous.image": self.rendezvous.image,
            **{f"swarm[{index}].image": vm.image for index, vm in enumerate(self.swarm)},
        }
        return {f"{PROJECT_NAME}:{key}": image for key, image in asked.items() if image}

    @property
    def fits(self) -> dict[str, capacity.Fit]:
        """How each VM is filled, by name, the rendezvous first."""
        vms = {self.rendezvous.name: self.rendezvous.fit}
        return vms | {vm.name: vm.fit for vm in self.swarm}

    def warnings(self) -> list[str]:
        """What works but is tight or without effect, a sentence each."""
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
        if self.roll.watch_seconds < WATCH_LEAST:
            warnings.append(
                f"{PROJECT_NAME}:roll.watchSeconds is {self.roll.watch_seconds}: in less than "
                f"{WATCH_LEAST} s a release that grows is not told from one that warms up"
            )
        if self.rendezvous.public and not self.registry_ranges:
            warnings.append(
                f"{PROJECT_NAME}:rendezvous.public reserves an external address, but no "
                "registryRanges are named, so nobody outside the subnet can register"
            )
        if self.monitoring.enabled and not self.monitoring.channels:
            warnings.append(
                f"{PROJECT_NAME}:monitoring.channels is empty: alerts show in the console, and "
                "nobody is told"
            )
        return warnings

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], *, project: str | None, refused: Sequence[Problem] = ()
    ) -> FleetConfig:
        """The fleet that `values` describes (the keys of `pilot-fleet:` without the prefix).

        `project` is `gcp:project`, `refused` what is wrong with the text of some values: of those
        nothing else is said. Raises `ConfigError` with every problem.
        """
        return _parse(values, project, refused)


def from_pulumi(refused: Sequence[Problem] = ()) -> FleetConfig:
    """The fleet in the configuration of the stack that Pulumi is running; `refused` as above.

    Raises `pulumi.RunError`, which the engine prints without a traceback.
    """
    prefix = f"{PROJECT_NAME}:"
    everything = pulumi.runtime.get_config_env()
    values = {
        key.removeprefix(prefix): value
        for key, value in everything.items()
        if key.startswith(prefix)
    }
    try:
        return FleetConfig.parse(values, project=everything.get("gcp:project"), refused=refused)
    except ConfigError as error:
        raise pulumi.RunError(str(error)) from None


@dataclass(kw_only=True)
class _Context:
    """What the VMs of a fleet share while it is parsed."""

    release: ReleaseConfig
    agent_mb: int
    reserve_mb: int
    base_port: int
    names: dict[str, str] = field(default_factory=dict)


def _parse(
    values: Mapping[str, Any], project: str | None, refused: Sequence[Problem]
) -> FleetConfig:
    problems: list[Problem] = []
    root = MapReader(values, PROJECT_NAME, problems, top=True)
    if project is None:
        problems.append(
            Problem(path="gcp:project", message="is missing: give the Google Cloud project's id")
        )
    elif not names.PROJECT.fullmatch(project):
        problems.append(Problem(path="gcp:project", message=f"{show(project)} is not a project id"))
    elif problem := names.project_problem(project):
        problems.append(Problem(path="gcp:project", message=problem))
    zone = root.string("zone", names.ZONE, "a zone of Google's such as us-central1-a")
    context = _Context(
        release=_release(root.node("release", required=True), None),
        agent_mb=root.integer("agentMb", 1, 4096, capacity.AGENT_MB),
        reserve_mb=root.integer("reserveMb", 128, 1_000_000, capacity.RESERVE_MB),
        base_port=root.integer("basePort", 1024, 65_000, 10_000),
    )
    subnet = root.choose(
        "subnetCidr",
        _subnet,
        "an IPv4 range that a subnet can have, from /8 to /29, such as 10.10.0.0/20",
        _DEFAULT_SUBNET,
    )
    rendezvous_node = root.node("rendezvous", required=True)
    swarm_items = root.items("swarm")
    swarm = tuple(
        vm
        for index, item in enumerate(swarm_items)
        if (vm := _swarm_vm(item, f"{PROJECT_NAME}:swarm[{index}]", context, problems))
    )
    if not swarm_items and root.at("swarm") not in {problem.path for problem in problems}:
        root.problem("swarm", "is empty: name at least one VM with machineType and agents")
    if swarm and len(swarm) == len(swarm_items) and not any(vm.agents for vm in swarm):
        root.problem("swarm", "has no agent at all: give at least one VM agents")
    rendezvous = _rendezvous(
        rendezvous_node,
        context,
        subnet,
        agents=sum(vm.agents for vm in swarm),
    )
    account = root.string(
        "serviceAccount", _SERVICE_ACCOUNT, "a service account's address", required=False
    )
    if _DEFAULT_ACCOUNT.fullmatch(account):
        root.problem(
            "serviceAccount",
            f"{account} is a default account of Google's, which may do far too much: make one "
            "for the VMs, or leave this empty",
        )
    if rendezvous.fit.agents > described.bounds("agents")[1]:
        root.problem(
            "swarm",
            f"{rendezvous.fit.agents:,} agents are more than one rendezvous is for: "
            f"{described.bounds('agents')[1]:,} at most, in all",
        )
    _check_size(root)
    _check_ports(root, context.base_port, swarm)
    _check_subnet(root, subnet, vms=len(swarm) + 1)
    roll = root.node("roll")
    snapshots = root.node("snapshots")
    endpoints = root.node("endpoints")
    config = FleetConfig(
        project=project or "",
        zone=zone,
        region=zone.rsplit("-", 1)[0],
        release=context.release,
        rendezvous=rendezvous,
        swarm=swarm,
        base_port=context.base_port,
        window=root.integer("window", 1, 100, 15),
        roll=RollConfig(
            batch=roll.integer("batch", *described.bounds("roll.batch"), RollConfig.batch),
            watch_seconds=roll.integer(
                "watchSeconds", *described.bounds("roll.watchSeconds"), RollConfig.watch_seconds
            ),
            auto=roll.boolean("auto", RollConfig.auto),
        ),
        program_stagger=root.integer("programStagger", 0, 3600, 120),
        reserve_mb=context.reserve_mb,
        subnet_cidr=str(subnet),
        registry_ranges=_ranges(root),
        nat=root.boolean("nat", False),
        image=_image(root, "debian-cloud/debian-12"),
        bucket=_bucket(root, project),
        service_account=account or None,
        protect=root.boolean("protect", True),
        snapshots=Snapshots(
            hourly_days=snapshots.integer("hourlyDays", 1, 365, Snapshots.hourly_days),
            daily_days=snapshots.integer("dailyDays", 1, 3650, Snapshots.daily_days),
        ),
        storage_endpoint=endpoints.choose(
            "storage",
            _endpoint,
            "a URL without a path, over https unless the address is private",
            "https://storage.googleapis.com",
        ),
        secrets_endpoint=endpoints.choose(
            "secrets",
            _endpoint,
            "a URL without a path, over https unless the address is private",
            "https://secretmanager.googleapis.com",
        ),
        tokens=_tokens(root.node("tokens")),
        monitoring=_monitoring(root.node("monitoring")),
        access=_access(root.node("access")),
        allowed_scripts=_allowed_scripts(root, (rendezvous.name, *(vm.name for vm in swarm))),
    )
    for node in (roll, snapshots, endpoints, root):
        node.unknown_keys()
    told = {problem.path for problem in refused}
    problems = [*refused, *(problem for problem in problems if problem.path not in told)]
    if problems:
        raise ConfigError(problems)
    return config


def _bucket(node: MapReader, project: str | None) -> str:
    default = f"{project or 'project'}-pilot-fleet"
    bucket = node.string("bucket", names.BUCKET, "a bucket's name", default)
    if bucket != default and (problem := names.bucket_problem(bucket)):
        node.problem("bucket", f"{bucket!r} {problem}")
    return bucket


def _release(node: MapReader, inherited: ReleaseConfig | None) -> ReleaseConfig:
    if not node.values:
        return inherited or ReleaseConfig(version="", daemon="", rendezvous="")
    names = ["daemon"] if inherited else ["daemon", "rendezvous"]
    paths = {name: _path(node, name) for name in names}
    digests = node.node("sha256")
    release = ReleaseConfig(
        version=node.string(
            "version", described.pattern("release.version"), "a version such as 1.18.0"
        ),
        daemon=paths["daemon"],
        # Only the fleet's own release names a rendezvous binary: there is one rendezvous.
        rendezvous=inherited.rendezvous if inherited else paths["rendezvous"],
        sha256={
            name: digest
            for name in names
            if (
                digest := digests.string(
                    name, described.pattern("script.sha256"), "a sha256 in hex", required=False
                )
            )
        },
    )
    digests.unknown_keys()
    node.unknown_keys()
    return release


def _path(node: MapReader, name: str) -> str:
    path = node.string(name, re.compile(r"[^\0\n]{1,1000}"), f"the path of the pilot-{name} binary")
    if path.startswith("/") or ".." in path.split("/"):
        node.problem(name, f"{show(path)} leads out of the checkout: give a path inside it")
    return path


def _image(node: MapReader, default: str | None = None) -> str:
    what = "PROJECT/FAMILY of an image"
    image = node.string("image", names.IMAGE, what, default, required=False)
    if problem := names.image_problem(image):
        node.problem("image", problem)
    return image


def _machine(node: MapReader) -> MachineType | None:
    """The VM's machine type, or None with its problem recorded."""
    before = len(node.problems)
    name = node.string("machineType", re.compile(r"[a-z0-9-]{1,63}"), "a machine type's name")
    memory_gb, vcpus = node.take("memoryGb"), node.take("vcpus")
    if memory_gb is not None and (
        isinstance(memory_gb, bool)
        or not isinstance(memory_gb, int | float)
        or not 0.25 <= memory_gb <= 40_000
    ):
        node.problem("memoryGb", "must be a number of GB from 0.25 to 40,000")
    if vcpus is not None:
        vcpus = node.integer("vcpus", 1, 10_000, 1)
    if len(node.problems) > before:
        return None
    if MachineType(name=name, vcpus=0, memory_mb=0).arm:
        node.problem("machineType", f"{name!r} is an Arm machine and the daemon is x86-64")
        return None
    if reason := unsold(name):
        node.problem("machineType", f"{name!r} is not sold: {reason}")
        return None
    known = look_up(name)
    if known is not None:
        for key, given, real in (
            ("memoryGb", memory_gb, known.memory_mb / MIB_PER_GIB),
            ("vcpus", vcpus, known.vcpus),
        ):
            if given is not None and given != real:
                node.problem(key, f"{name} has {real:g}, not {given:g}: leave it out")
    if known is None and (memory_gb is None or vcpus is None):
        node.problem(
            "machineType",
            f"{name!r} is not in the table of machine types: give memoryGb and vcpus beside it "
            "(custom types are e2-custom-VCPUS-MB)",
        )
        return None
    return MachineType(
        name=name,
        vcpus=vcpus if vcpus is not None else known.vcpus if known else 0,
        memory_mb=int(memory_gb * MIB_PER_GIB)
        if memory_gb is not None
        else known.memory_mb
        if known
        else 0,
    )


def _name(node: MapReader, context: _Context) -> str:
    name = node.string(
        "name", _NAME, "a VM's name: lower-case letters, digits and dashes, 56 at most"
    )
    if name and name in context.names:
        node.problem("name", f"{name!r} is also the name of {context.names[name]}")
    elif name:
        # A boot disk is called like its VM and a state disk like its VM and `-state`.
        for disk in (f"{name}{STATE_DISK_SUFFIX}", name.removesuffix(STATE_DISK_SUFFIX)):
            if disk != name and disk in context.names:
                node.problem(
                    "name",
                    f"the disks of {name!r} and of {context.names[disk]} would share a name: "
                    f"do not end a VM's name in {STATE_DISK_SUFFIX}",
                )
        context.names[name] = node.path
    return name


def _swarm_vm(
    item: Any, path: str, context: _Context, problems: list[Problem]
) -> SwarmVmConfig | None:
    if not isinstance(item, Mapping):
        problems.append(
            Problem(
                path=path,
                message=f"must be a map with name, machineType and agents, not {describe(item)}",
            )
        )
        return None
    node = MapReader(item, path, problems)
    name = _name(node, context)
    machine = _machine(node)
    agents = node.integer("agents", *described.bounds("agents"))
    agent_mb = node.integer("agentMb", 1, 4096, context.agent_mb)
    reserve_mb = node.integer("reserveMb", 128, 1_000_000, context.reserve_mb)
    connections_given = node.take("activeConnections") is not None
    connections = node.integer(
        "activeConnections", 0, 1_000_000, capacity.default_connections(agents)
    )
    release = context.release
    if node.take("release") is not None or "release" in node.values:
        release = _release(node.node("release", required=True), context.release)
    environment = _environment(node.node("env"))
    image = _image(node)
    disk_gb = node.integer("diskGb", 10, 65_536, 10)
    boot_disk_gb = node.integer("bootDiskGb", 10, 2_000, 20)
    node.unknown_keys()
    if machine is None:
        return None
    fit = capacity.swarm_fit(
        machine,
        agents=agents,
        base_port=context.base_port,
        agent_mb=agent_mb,
        reserve_mb=reserve_mb,
        active_connections=connections if connections_given else None,
    )
    binding = min(fit.limits, key=lambda limit: limit.fits)
    if capacity.guest_mb(machine) <= reserve_mb:
        node.problem(
            "reserveMb",
            f"{reserve_mb:,} MiB leave nothing of the {machine.memory_mb:,} MiB of {machine.name}, "
            f"of which a VM sees {capacity.guest_mb(machine):,} for sure",
        )
    elif binding.fits < 0 and connections_given:
        most = (machine.memory_mb - reserve_mb) // capacity.CONNECTION_MB
        node.problem(
            "activeConnections",
            f"{connections:,} do not fit on {machine.name}: without agents {most:,} would",
        )
    elif fit.headroom < 0 or fit.fits < agents:
        node.problem(
            "agents",
            f"{agents:,} agents do not fit on {machine.name}: {binding.name} allows "
            f"{max(binding.fits, 0):,} (asked {binding.demand:,} of {binding.capacity:,} "
            f"{binding.unit})",
        )
    return SwarmVmConfig(
        name=name,
        machine=machine,
        agents=agents,
        environment=environment,
        release=release,
        agent_mb=agent_mb,
        reserve_mb=reserve_mb,
        active_connections=connections,
        image=image or None,
        disk_gb=disk_gb,
        boot_disk_gb=boot_disk_gb,
        fit=fit,
    )


def _environment(node: MapReader) -> dict[str, str]:
    environment = {}
    for key in node.values:
        value = node.take(key)
        if not isinstance(key, str) or not re.fullmatch(described.table("VARIABLE"), key):
            node.problem(str(key), "is not the name of an environment variable")
        elif not isinstance(value, str):
            node.problem(key, f"must be text, not {describe(value)}: put it in quotes")
        elif not value.isprintable():
            node.problem(key, "must be one line of printable text")
        elif any(re.fullmatch(described.table(name), key) for name in _RESERVED):
            node.problem(key, "is set on the VM itself: leave it out")
        elif problem := _go_problem(key, value, node.values):
            node.problem(key, problem)
        else:
            environment[key] = value
    return environment


def _go_problem(name: str, value: str, environment: Mapping[Any, Any]) -> str:
    """Why no Go program may run with `value` for the variable `name`, "" where one may. A VM looks
    once more (startup/node/desired/spec.py)."""
    problem = ""
    if name == "GODEBUG":
        harmless = described.table("GO_DEBUG")
        for setting in value.split(","):
            key, _, given = setting.partition("=")
            if key in harmless and given not in harmless[key]:
                allowed = " or ".join(harmless[key]) or "left out"
                problem = f"{show(setting)} ends or ruins a program: {key} must be {allowed}"
    elif name == "GOMEMLIMIT":
        least, most = described.table("GO_LIMITS")
        match = re.fullmatch(described.table("GO_SIZE"), value)
        size = int(match[1]) << described.table("GO_UNITS").get(match[2], 0) if match else 0
        if value != "off" and not least <= size <= most:
            problem = f"{show(value)} is no limit: off, or a size as 64MiB, from 16MiB on"
    elif name == "GOGC" and value == "off":
        if environment.get("GOMEMLIMIT") in (None, "", "off"):
            problem = "is off without a GOMEMLIMIT: nothing would ever be freed"
    elif name in described.table("GO_NUMBERS"):
        most, meaning = described.table("GO_NUMBERS")[name]
        if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= most:
            problem = f"{show(value)} is not {meaning}"
    return problem


def _rendezvous(
    node: MapReader, context: _Context, subnet: ipaddress.IPv4Network, *, agents: int
) -> RendezvousConfig:
    name = _name(node, context) if node.values else ""
    machine = _machine(node) if node.values else None
    address = node.choose(
        "address",
        ipaddress.IPv4Address,
        "an IPv4 address",
        subnet.network_address + _RESERVED_HEAD,
    )
    last = subnet.broadcast_address - _RESERVED_TAIL
    if not subnet.network_address + _RESERVED_HEAD <= address <= last:
        node.problem(
            "address",
            f"{address} is not an address that a VM in {subnet} can have: "
            f"{subnet.network_address + _RESERVED_HEAD} to {last}",
        )
    public = node.boolean("public", False)
    image = _image(node)
    disk_gb = node.integer("diskGb", 10, 65_536, 20)
    boot_disk_gb = node.integer("bootDiskGb", 10, 2_000, 20)
    if node.values:
        node.unknown_keys()
    if machine is not None:
        fit = capacity.rendezvous_fit(machine, agents=agents)
        if capacity.guest_mb(machine) <= context.reserve_mb:
            node.problem(
                "machineType",
                f"{machine.name} has {machine.memory_mb:,} MiB, of which a VM sees "
                f"{capacity.guest_mb(machine):,} for sure, and reserveMb ({context.reserve_mb:,}) "
                "leaves nothing of them",
            )
        elif fit.headroom < 0:
            node.problem(
                "machineType",
                f"{machine.name} carries {max(fit.fits, 0):,} agents, the fleet has {agents:,}: "
                f"choose one with at least {capacity.rendezvous_memory_gb(agents)} GB of memory",
            )
    else:
        machine = MachineType(name="", vcpus=1, memory_mb=1024)
        fit = capacity.rendezvous_fit(machine, agents=agents)
    return RendezvousConfig(
        name=name,
        machine=machine,
        address=str(address),
        public=public,
        image=image or None,
        disk_gb=disk_gb,
        boot_disk_gb=boot_disk_gb,
        fit=fit,
    )


_DEFAULT_SUBNET = ipaddress.IPv4Network("10.10.0.0/20")


def _subnet(text: str) -> ipaddress.IPv4Network:
    network = ipaddress.IPv4Network(text)
    if not 8 <= network.prefixlen <= 29:
        raise ValueError(text)
    # What Google takes for no subnet: this host, loopback, link-local, multicast and beyond.
    if (
        network.is_loopback
        or network.is_link_local
        or network.is_multicast
        or network.is_reserved
        or network.overlaps(ipaddress.IPv4Network("0.0.0.0/8"))
    ):
        raise ValueError(text)
    return network


def _endpoint(text: str) -> str:
    """A base URL: over TLS, unless it leads to a private address. ValueError for others.

    VMs send their service account's token there.
    """
    if not described.pattern("endpoints.storage").fullmatch(text):
        raise ValueError(text)
    url = urlsplit(text)
    if url.port == 0:
        raise ValueError(text)
    if url.scheme == "http" and not ipaddress.ip_address(url.hostname or "").is_private:
        raise ValueError(text)
    return text


def secret_id(token: str) -> str:
    """The name of the secret that holds a token."""
    return f"{PROJECT_NAME}-{token}-token"


def _tokens(node: MapReader) -> dict[str, str]:
    tokens = {}
    for what in described.table("TOKENS"):
        value = node.take(what)
        if value is None:
            continue
        # What is wrong with it is said without showing it.
        if not isinstance(value, str):
            node.problem(what, f"must be text, not {describe(value)}")
        elif value and not _TOKEN.fullmatch(value):
            node.problem(
                what,
                "is no token: 16 to 512 letters, digits or -_.~+/= (openssl rand -hex 32), or "
                "nothing where its version is added by hand",
            )
        else:
            tokens[what] = value
    node.unknown_keys()
    return tokens


def _monitoring(node: MapReader) -> MonitoringConfig:
    monitoring = MonitoringConfig(
        enabled=node.boolean("enabled", MonitoringConfig.enabled),
        agent=node.boolean("agent", MonitoringConfig.agent),
        channels=node.strings(
            "channels",
            _CHANNEL,
            "an e-mail address, a topic (projects/PROJECT/topics/TOPIC) or a channel that exists "
            "(projects/PROJECT/notificationChannels/NUMBER)",
        ),
        online=node.fraction("online", MonitoringConfig.online),
    )
    if not monitoring.enabled and (monitoring.channels or node.values.get("online") is not None):
        node.problem(
            "enabled", "is not true, so the rest has no effect: set it, or remove the rest"
        )
    node.unknown_keys()
    return monitoring


def _access(node: MapReader) -> Access:
    members = "a member such as group:fleet@example.com (user:, serviceAccount:, principalSet://)"
    access = Access(
        look=node.strings("look", _MEMBER, members),
        order=node.strings("order", _MEMBER, members),
        role=node.string(
            "role",
            names.ROLE,
            "a custom role such as projects/P/roles/R (Google's own that may reset VMs may also "
            "rewrite their metadata, which is root on them)",
            required=False,
        )
        or None,
    )
    for index, member in enumerate(access.order):
        if member in access.look:
            node.problem(
                f"order[{index}]", f"{show(member)} is in look as well: who may order may look"
            )
    if access.role and not access.order:
        node.problem("role", "has no effect while order is empty: remove it")
    node.unknown_keys()
    return access


def _allowed_scripts(root: MapReader, fleet: tuple[str, ...]) -> tuple[str, ...]:
    names = root.strings("allowedScripts", _RESOURCE, "the name of a VM or another resource")
    for name in names:
        if name in fleet:
            root.problem(
                "allowedScripts",
                f"{name} is a VM of the fleet, which runs the project's startup script and no "
                "other: what has to run on it belongs into startup/",
            )
    return names


def _ranges(root: MapReader) -> tuple[str, ...]:
    ranges = []
    for index, item in enumerate(root.items("registryRanges")):
        try:
            if not isinstance(item, str):
                raise ValueError(item)
            ranges.append(str(ipaddress.IPv4Network(item)))
        except ValueError:
            root.problem(
                f"registryRanges[{index}]",
                f"{show(item)} is not an IPv4 range such as 203.0.113.0/24 (no host bits set)",
            )
    return tuple(ranges)


# What Go's JSON escapes and Python's does not.
_GO_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def _check_size(root: MapReader) -> None:
    def in_json(value: object) -> str:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
        return text.translate(_GO_ESCAPES)

    def size(key: str, value: object) -> int:
        # A map or list is JSON, and that a text in the JSON of them all.
        text = value if isinstance(value, str) else in_json(value)
        return len(in_json({f"{PROJECT_NAME}:{key}": text}).encode(errors="replace"))

    sizes = {key: size(key, value) for key, value in root.values.items()}
    total = sum(sizes.values())
    if total > CONFIGURATION_MOST:
        key = max(sizes, key=sizes.__getitem__)
        root.problem(
            key,
            f"takes {sizes[key]:,} of the configuration's {total:,} bytes, and "
            f"{CONFIGURATION_MOST:,} are the most: Pulumi hands all of it to the program in one "
            "environment variable, which Linux limits. Make it shorter, or two stacks of it",
        )


def _check_ports(root: MapReader, base_port: int, swarm: tuple[SwarmVmConfig, ...]) -> None:
    last = base_port + max((vm.agents for vm in swarm), default=0)
    taken = [
        f"{port} (the {owner}'s)"
        for port, owner in (
            (DASHBOARD_PORT, "dashboard"),
            (REGISTRY_PORT, "registry"),
            (BEACON_PORT, "beacon"),
        )
        if base_port < port <= last
    ]
    if taken:
        root.problem(
            "basePort",
            f"the agents' UDP ports {base_port + 1} to {last} overlap {', '.join(taken)}: "
            f"choose {BEACON_PORT} or higher",
        )


def _check_subnet(root: MapReader, subnet: ipaddress.IPv4Network, *, vms: int) -> None:
    room = subnet.num_addresses - _RESERVED_HEAD - _RESERVED_TAIL
    if problem := names.subnet_problem(subnet):
        root.problem("subnetCidr", problem)
    if vms > room:
        root.problem("subnetCidr", f"{subnet} has room for {room:,} VMs, the fleet has {vms:,}")
