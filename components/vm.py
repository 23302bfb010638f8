"""What the two kinds of fleet VM have in common: the instance and its state disk."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_gcp as gcp

from components.config import STATE_DISK_SUFFIX

# The device name under which a VM finds its state disk (docs/CONTRACT.md).
STATE_DEVICE = "pilot-state"
# IAM roles decide what the account may do; the old access scopes are left wide open (Google's
# recommendation for service accounts on VMs).
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


@dataclass(frozen=True, kw_only=True)
class VmArgs:
    """What every fleet VM is made from. Disk sizes in GB; `metadata` as docs/CONTRACT.md.

    `hyperdisk` for machine types that take no Persistent Disk; `migrates` for those that Google
    moves to another host while they run.
    """

    vm_name: str
    zone: pulumi.Input[str]
    machine_type: pulumi.Input[str]
    image: pulumi.Input[str]
    boot_disk_gb: pulumi.Input[int]
    disk_gb: pulumi.Input[int]
    hyperdisk: bool
    migrates: bool
    subnet_id: pulumi.Input[str]
    service_account: pulumi.Input[str]
    metadata: dict[str, str]
    labels: dict[str, str]
    tag: str
    protect: bool
    internal_address: pulumi.Input[str] | None = None
    external_address: pulumi.Input[str] | None = None


def _disk_type(args: VmArgs) -> str:
    # Identities and a registry of tens of megabytes: neither needs more than the balanced kinds.
    return "hyperdisk-balanced" if args.hyperdisk else "pd-balanced"


def state_disk(name: str, args: VmArgs, opts: pulumi.ResourceOptions) -> gcp.compute.Disk:
    """The disk that outlives the VM: identities of agents, or the registry's store."""
    return gcp.compute.Disk(
        f"{name}-disk",
        name=f"{args.vm_name}{STATE_DISK_SUFFIX}",
        zone=args.zone,
        size=args.disk_gb,
        type=_disk_type(args),
        labels=args.labels,
        opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(protect=args.protect)),
    )


def instance(
    name: str, args: VmArgs, disk: gcp.compute.Disk, opts: pulumi.ResourceOptions
) -> gcp.compute.Instance:
    """The VM. A change of its metadata or machine type happens in place, never by replacement."""
    return gcp.compute.Instance(
        f"{name}-vm",
        name=args.vm_name,
        zone=args.zone,
        machine_type=args.machine_type,
        # A new machine type stops and starts the VM instead of failing half way.
        allow_stopping_for_update=True,
        boot_disk=gcp.compute.InstanceBootDiskArgs(
            initialize_params=gcp.compute.InstanceBootDiskInitializeParamsArgs(
                image=args.image,
                size=args.boot_disk_gb,
                type=_disk_type(args),
            ),
        ),
        attached_disks=[
            gcp.compute.InstanceAttachedDiskArgs(source=disk.id, device_name=STATE_DEVICE)
        ],
        network_interfaces=[
            gcp.compute.InstanceNetworkInterfaceArgs(
                subnetwork=args.subnet_id,
                network_ip=args.internal_address,
                access_configs=[]
                if args.external_address is None
                else [
                    gcp.compute.InstanceNetworkInterfaceAccessConfigArgs(
                        nat_ip=args.external_address
                    )
                ],
            )
        ],
        metadata=args.metadata,
        labels=args.labels,
        tags=[args.tag],
        service_account=gcp.compute.InstanceServiceAccountArgs(
            email=args.service_account, scopes=_SCOPES
        ),
        shielded_instance_config=gcp.compute.InstanceShieldedInstanceConfigArgs(
            enable_secure_boot=True,
            enable_vtpm=True,
            enable_integrity_monitoring=True,
        ),
        scheduling=gcp.compute.InstanceSchedulingArgs(
            automatic_restart=True,
            # Where Google cannot migrate it refuses MIGRATE, and on some others TERMINATE (E2, Z3).
            on_host_maintenance="MIGRATE" if args.migrates else "TERMINATE",
            preemptible=False,
        ),
        # Its name, address and disk belong to one VM at a time.
        opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(delete_before_replace=True)),
    )
