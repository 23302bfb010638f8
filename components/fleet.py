"""Declares the fleet's components, in order, each with its part of the configuration."""

from __future__ import annotations

from pathlib import Path

import pulumi
import pulumi_gcp as gcp

from components import (
    accounts,
    images,
    last_update,
    outputs,
    rendezvous_zone,
    spec,
    startup,
    zone_types,
)
from components.access import FleetAccess, FleetAccessArgs
from components.bucket import FleetBucket, FleetBucketArgs, read_binary
from components.config import FleetConfig
from components.identity import FleetIdentity, FleetIdentityArgs
from components.monitoring import FleetMonitoring, FleetMonitoringArgs
from components.network import TAG_RENDEZVOUS, TAG_SWARM, FleetNetwork, FleetNetworkArgs
from components.rendezvous import Rendezvous, RendezvousArgs
from components.secrets import FleetSecrets, FleetSecretsArgs
from components.swarm import SwarmVm
from components.vm import VmArgs

NAME = "pilot-fleet"


def declare(
    config: FleetConfig, last: last_update.LastUpdate, *, root: Path
) -> tuple[FleetNetwork, FleetBucket]:
    """Declare the fleet. Returns the components that the stack's outputs need.

    `root`: the checkout with the binaries. Problems that are known beforehand are raised before
    anything is declared.
    """
    fleet = outputs.stack_label(pulumi.get_stack())
    script = startup.render(config.base_port)
    release = config.release
    rendezvous_binary = read_binary(
        root,
        "pilot-rendezvous",
        release.version,
        release.rendezvous,
        release.sha256.get("rendezvous"),
    )
    daemons = {
        vm.name: read_binary(
            root,
            "pilot-daemon",
            vm.release.version,
            vm.release.daemon,
            vm.release.sha256.get("daemon"),
        )
        for vm in config.swarm
    }
    outputs.require_built((rendezvous_binary, *daemons.values()))
    dry_run = pulumi.runtime.is_dry_run()
    sizes, missing = images.look_up(
        config.images, last_update.needed_images(config, last), images.look, dry_run=dry_run
    )
    missing += zone_types.problems(
        last_update.needed_machine_types(config, last),
        zone_types.looker(config.project),
        dry_run=dry_run,
    )
    for key, account in (
        ("serviceAccount", config.service_account),
        ("rendezvous.serviceAccount", config.rendezvous.service_account),
    ):
        stopped = last_update.vms_with_new_account(config, last, account)
        missing += accounts.problems(account, stopped, accounts.look, key=key)
    missing += map(str, rendezvous_zone.problems(config, last))
    missing += rendezvous_zone.copies_problems(
        config, last, rendezvous_zone.newest_copy, dry_run=dry_run
    )
    last_update.require_possible(config, last, sizes, missing)
    in_zone = rendezvous_zone.zone_resources(config, last)

    def labels(role: str) -> dict[str, str]:
        """Labels by which people and `ops` find the fleet's resources."""
        return {"pilot-fleet": fleet, "pilot-role": role}

    network = FleetNetwork(
        NAME,
        FleetNetworkArgs(
            region=config.region,
            subnet_cidr=config.subnet_cidr,
            rendezvous_address=config.rendezvous.address,
            public=config.rendezvous.public,
            registry_ranges=config.registry_ranges,
            agent_ports=config.agent_ports,
            nat=config.nat,
            labels=labels(spec.ROLE_RENDEZVOUS),
            protect=config.protect,
            suffix=in_zone.suffix,
            kept_addresses=in_zone.kept_addresses,
        ),
    )
    bucket = FleetBucket(
        NAME,
        FleetBucketArgs(
            bucket=config.bucket,
            location=config.region,
            binaries=(rendezvous_binary, *daemons.values()),
            labels={"pilot-fleet": fleet},
            protect=config.protect,
        ),
    )
    identity = FleetIdentity(
        NAME,
        FleetIdentityArgs(
            project=config.project,
            existing=config.service_account,
            rendezvous_existing=config.rendezvous.service_account,
            bucket_name=bucket.bucket_name,
            bucket=config.bucket,
        ),
    )
    needed: list[pulumi.Resource] = [network, bucket, identity]
    if config.tokens:
        needed.append(
            FleetSecrets(
                NAME,
                FleetSecretsArgs(
                    tokens=config.tokens,
                    region=config.region,
                    account=identity.rendezvous_email,
                    labels={"pilot-fleet": fleet},
                ),
            )
        )
    project_script = startup.ProjectStartupScript(
        NAME, startup.ProjectStartupScriptArgs(project=config.project, script=script)
    )
    # A first boot needs its script, release and tokens, and the right to read them.
    after_needed = pulumi.ResourceOptions(depends_on=[*needed, project_script])

    def declare_rendezvous(after: gcp.compute.Instance | None) -> Rendezvous:
        return Rendezvous(
            config.rendezvous.name,
            RendezvousArgs(
                vm=VmArgs(
                    vm_name=config.rendezvous.name,
                    zone=config.rendezvous.zone,
                    machine_type=config.rendezvous.machine.name,
                    image=config.image,
                    own_image=config.rendezvous.image,
                    boot_disk_gb=config.rendezvous.boot_disk_gb,
                    disk_gb=config.rendezvous.disk_gb,
                    hyperdisk=config.rendezvous.machine.hyperdisk,
                    migrates=config.rendezvous.machine.migrates,
                    subnet_id=network.subnet_id,
                    service_account=identity.rendezvous_email,
                    metadata=spec.metadata(
                        spec.rendezvous_spec(
                            config, rendezvous=rendezvous_binary, script_sha256=script.sha256
                        )
                    ),
                    labels=labels(spec.ROLE_RENDEZVOUS),
                    tag=TAG_RENDEZVOUS,
                    protect=config.protect,
                    internal_address=network.internal_address,
                    external_address=network.external_address,
                    after=after,
                    suffix=in_zone.suffix,
                ),
                region=config.region,
                snapshots=config.snapshots,
                kept_disks=in_zone.kept_disks,
            ),
            after_needed,
        )

    # VMs that this update stops take turns: each depends on the one before. Other VMs do not wait
    # (docs/DECISIONS.md).
    stopping = last_update.stopping_vms(config, last)
    moves = last_update.rendezvous_moves(config.rendezvous, last)
    moved = declare_rendezvous(None) if moves else None
    # A rendezvous that moves is there before the agents are told.
    first = moved.instance if moved else None
    previous = first
    vms: list[Rendezvous | SwarmVm] = []
    for vm in sorted(config.swarm, key=lambda each: (each.agents, each.name)):
        swarm_vm = SwarmVm(
            vm.name,
            VmArgs(
                vm_name=vm.name,
                zone=vm.zone,
                machine_type=vm.machine.name,
                image=config.image,
                own_image=vm.image,
                boot_disk_gb=vm.boot_disk_gb,
                disk_gb=vm.disk_gb,
                hyperdisk=vm.machine.hyperdisk,
                migrates=vm.machine.migrates,
                subnet_id=network.subnet_id,
                service_account=identity.email,
                metadata=spec.metadata(
                    spec.swarm_spec(
                        config, vm, daemon=daemons[vm.name], script_sha256=script.sha256
                    )
                ),
                labels=labels(spec.ROLE_SWARM),
                tag=TAG_SWARM,
                protect=config.protect,
                after=previous if vm.name in stopping else first,
            ),
            after_needed,
        )
        vms.append(swarm_vm)
        if vm.name in stopping:
            previous = swarm_vm.instance
    is_stopped = config.rendezvous.name in stopping
    vms.append(moved or declare_rendezvous(previous if is_stopped else None))
    FleetMonitoring(
        NAME,
        FleetMonitoringArgs(
            project=config.project,
            fleet_zone=config.zone,
            zones=tuple(config.zones),
            fleet=fleet,
            agents=config.agents,
            monitoring=config.monitoring,
        ),
        # Alerts need metrics, which VMs send.
        pulumi.ResourceOptions(depends_on=vms),
    )
    FleetAccess(
        NAME,
        FleetAccessArgs(
            project=config.project,
            bucket_name=bucket.bucket_name,
            bucket=config.bucket,
            access=config.access,
        ),
    )
    return network, bucket
