"""The fleet that a configuration describes: which components, in which order, with what of it."""

from __future__ import annotations

from pathlib import Path

import pulumi
import pulumi_gcp as gcp

from components import accounts, images, last, outputs, sold, spec, startup
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


def declare(config: FleetConfig, was: last.Last, *, root: Path) -> tuple[FleetNetwork, FleetBucket]:
    """Declare all of it; the parts that outputs are of. `was`: what the stack had before; `root`:
    the checkout, in which binaries are looked for. Raises what the components raise, before
    anything is declared where it can."""
    fleet = outputs.label(pulumi.get_stack())
    script = startup.render()
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
        config.images, last.needed_images(config, was), images.look, dry_run=dry_run
    )
    missing += sold.problems(
        config.zone,
        last.needed_types(config, was),
        sold.looker(config.project, config.zone),
        dry_run=dry_run,
    )
    missing += accounts.problems(
        config.service_account, last.other_account(config, was), accounts.look
    )
    last.require(config, was, sizes, missing)

    def labels(role: str) -> dict[str, str]:
        """How people and `ops` find the fleet's resources."""
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
            bucket_name=bucket.bucket_name,
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
                    account=identity.email,
                    labels={"pilot-fleet": fleet},
                ),
            )
        )
    project_script = startup.ProjectStartupScript(
        NAME, startup.ProjectStartupScriptArgs(project=config.project, script=script)
    )
    # A first boot finds its script, its release, its tokens and the right to read them.
    ready = pulumi.ResourceOptions(depends_on=[*needed, project_script])

    # VMs that this update stops take turns, each after the one before; no other waits for anybody
    # (docs/DECISIONS.md).
    turns = last.stopped(config, was)
    before: gcp.compute.Instance | None = None
    vms: list[Rendezvous | SwarmVm] = []
    for vm in sorted(config.swarm, key=lambda each: (each.agents, each.name)):
        one = SwarmVm(
            vm.name,
            VmArgs(
                vm_name=vm.name,
                zone=config.zone,
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
                after=before if vm.name in turns else None,
            ),
            ready,
        )
        vms.append(one)
        if vm.name in turns:
            before = one.instance
    rendezvous = Rendezvous(
        config.rendezvous.name,
        RendezvousArgs(
            vm=VmArgs(
                vm_name=config.rendezvous.name,
                zone=config.zone,
                machine_type=config.rendezvous.machine.name,
                image=config.image,
                own_image=config.rendezvous.image,
                boot_disk_gb=config.rendezvous.boot_disk_gb,
                disk_gb=config.rendezvous.disk_gb,
                hyperdisk=config.rendezvous.machine.hyperdisk,
                migrates=config.rendezvous.machine.migrates,
                subnet_id=network.subnet_id,
                service_account=identity.email,
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
                after=before if config.rendezvous.name in turns else None,
            ),
            region=config.region,
            snapshots=config.snapshots,
        ),
        ready,
    )
    vms.append(rendezvous)
    FleetMonitoring(
        NAME,
        FleetMonitoringArgs(
            project=config.project,
            zone=config.zone,
            fleet=fleet,
            agents=config.agents,
            monitoring=config.monitoring,
        ),
        # Alerts are on what VMs say: they have to be there first.
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
