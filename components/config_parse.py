"""Reads and checks a stack's configuration as a whole.

`parse_fleet` takes plain values, from Pulumi or from stack_file.py. It returns a configuration that
works, or raises `ConfigError` with every problem at once, each with the path of its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi

from components import capacity, config_parts, names, spec_tables
from components.config import PROJECT_NAME, FleetConfig, RollConfig, Snapshots
from components.config_checks import (
    check_accounts,
    check_ports,
    check_size,
    check_subnet,
    check_total_agents,
)
from components.config_reader import ConfigError, MapReader, Problem, show
from components.config_vms import (
    FleetDefaults,
    read_image,
    read_release,
    read_rendezvous,
    read_swarm_vm,
)


def from_pulumi(refused: Sequence[Problem] = ()) -> FleetConfig:
    """The fleet in the configuration of the stack that Pulumi is running.

    `refused`: as of `parse_fleet`. Raises `pulumi.RunError`, which the engine prints without a
    traceback.
    """
    prefix = f"{PROJECT_NAME}:"
    everything = pulumi.runtime.get_config_env()
    values = {
        key.removeprefix(prefix): value
        for key, value in everything.items()
        if key.startswith(prefix)
    }
    try:
        return parse_fleet(values, project=everything.get("gcp:project"), refused=refused)
    except ConfigError as error:
        raise pulumi.RunError(str(error)) from None


def parse_fleet(
    values: Mapping[str, Any], *, project: str | None, refused: Sequence[Problem] = ()
) -> FleetConfig:
    """The fleet that `values` describes (the keys of `pilot-fleet:` without the prefix).

    `project` is `gcp:project`. `refused`: problems with the text of some values; their paths get
    no other problem. Raises `ConfigError` with every problem.
    """
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
    defaults = FleetDefaults(
        zone=zone,
        release=read_release(root.node("release", required=True), None),
        agent_mb=root.integer("agentMb", 1, 4096, capacity.AGENT_MB),
        reserve_mb=root.integer("reserveMb", 128, 1_000_000, capacity.RESERVE_MB),
        base_port=root.integer("basePort", 1024, 65_000, 10_000),
    )
    subnet = config_parts.read_subnet(root)
    rendezvous_node = root.node("rendezvous", required=True)
    swarm_items = root.items("swarm")
    swarm = tuple(
        vm
        for index, item in enumerate(swarm_items)
        if (vm := read_swarm_vm(item, f"{PROJECT_NAME}:swarm[{index}]", defaults, problems))
    )
    if not swarm_items and root.at("swarm") not in {problem.path for problem in problems}:
        root.problem("swarm", "is empty: name at least one VM with machineType and agents")
    if swarm and len(swarm) == len(swarm_items) and not any(vm.agents for vm in swarm):
        root.problem("swarm", "has no agent at all: give at least one VM agents")
    rendezvous = read_rendezvous(
        rendezvous_node,
        defaults,
        subnet,
        agents=sum(vm.agents for vm in swarm),
    )
    account = config_parts.read_service_account(root)
    check_accounts(rendezvous_node, account, rendezvous)
    check_total_agents(root, rendezvous.fit.agents)
    check_size(root)
    check_ports(root, defaults.base_port, swarm)
    check_subnet(root, subnet, vms=len(swarm) + 1)
    roll = root.node("roll")
    snapshots = root.node("snapshots")
    endpoints = root.node("endpoints")
    config = FleetConfig(
        project=project or "",
        zone=zone,
        region=names.region(zone),
        release=defaults.release,
        rendezvous=rendezvous,
        swarm=swarm,
        base_port=defaults.base_port,
        max_zone_share=root.fraction("maxZoneShare", 1.0),
        window=root.integer("window", 1, 100, 15),
        roll=RollConfig(
            batch=roll.integer("batch", *spec_tables.bounds("roll.batch"), RollConfig.batch),
            watch_seconds=roll.integer(
                "watchSeconds", *spec_tables.bounds("roll.watchSeconds"), RollConfig.watch_seconds
            ),
            auto=roll.boolean("auto", RollConfig.auto),
        ),
        program_stagger=root.integer("programStagger", 0, 3600, 120),
        reserve_mb=defaults.reserve_mb,
        subnet_cidr=str(subnet),
        registry_ranges=config_parts.read_registry_ranges(root),
        nat=root.boolean("nat", False),
        image=read_image(root, "debian-cloud/debian-12"),
        bucket=config_parts.read_bucket(root, project),
        service_account=account or None,
        protect=root.boolean("protect", True),
        snapshots=Snapshots(
            hourly_days=snapshots.integer("hourlyDays", 1, 365, Snapshots.hourly_days),
            daily_days=snapshots.integer("dailyDays", 1, 3650, Snapshots.daily_days),
        ),
        storage_endpoint=config_parts.read_endpoint(
            endpoints, "storage", "https://storage.googleapis.com"
        ),
        secrets_endpoint=config_parts.read_endpoint(
            endpoints, "secrets", "https://secretmanager.googleapis.com"
        ),
        tokens=config_parts.read_tokens(root.node("tokens")),
        monitoring=config_parts.read_monitoring(root.node("monitoring")),
        access=config_parts.read_access(root.node("access")),
        allowed_scripts=config_parts.read_allowed_scripts(
            root, (rendezvous.name, *(vm.name for vm in swarm))
        ),
    )
    for node in (roll, snapshots, endpoints, root):
        node.unknown_keys()
    refused_paths = {problem.path for problem in refused}
    problems = [*refused, *(each for each in problems if each.path not in refused_paths)]
    if problems:
        raise ConfigError(problems)
    return config
