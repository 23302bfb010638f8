"""What the two kinds of fleet VM have in common: the instance and its state disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pulumi
import pulumi_gcp as gcp

from components import power
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
    moves to another host while they run. `image` is for a new boot disk; the VM is made again when
    it gets another `own_image`, which takes its place. `after` is the VM that comes before this one
    where VMs are stopped: nothing is done to this one before that one is done.
    """

    vm_name: str
    zone: pulumi.Input[str]
    machine_type: pulumi.Input[str]
    image: str
    own_image: str | None
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
    after: gcp.compute.Instance | None = None


def _disk_type(args: VmArgs) -> str:
    # Identities and a registry of tens of megabytes: neither needs more than the balanced kinds.
    return "hyperdisk-balanced" if args.hyperdisk else "pd-balanced"


def boot_device(image: str) -> str:
    """The boot disk's device name of a VM with an image of its own.

    It cannot be changed on a disk that is attached, by nobody, so another one asks the provider for
    another VM. Left out, it is whatever the disk has: a line that is removed replaces nothing.
    At most 20 characters, which is what a virtio disk shows.
    """
    return f"boot-{hashlib.sha256(image.encode()).hexdigest()[:12]}"


def state_disk(name: str, args: VmArgs, opts: pulumi.ResourceOptions) -> gcp.compute.Disk:
    """The disk that outlives the VM: identities of agents, or the registry's store."""
    return gcp.compute.Disk(
        f"{name}-disk",
        name=f"{args.vm_name}{STATE_DISK_SUFFIX}",
        zone=args.zone,
        size=args.disk_gb,
        type=_disk_type(args),
        labels=args.labels,
        opts=pulumi.ResourceOptions.merge(
            opts,
            # One that was made of a snapshot (docs/PRODUCTION.md) is this disk all the same.
            pulumi.ResourceOptions(protect=args.protect, ignore_changes=["snapshot"]),
        ),
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
        # A VM that is found off is a change like any other.
        desired_status="RUNNING",
        boot_disk=gcp.compute.InstanceBootDiskArgs(
            device_name=None if args.own_image is None else boot_device(args.own_image),
            initialize_params=gcp.compute.InstanceBootDiskInitializeParamsArgs(
                image=args.own_image or args.image,
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
        opts=pulumi.ResourceOptions.merge(
            opts,
            pulumi.ResourceOptions(
                # Its name, address and disk belong to one VM at a time.
                delete_before_replace=True,
                # The provider compares the family that is asked for with the name of the image
                # that the disk was made from. Where the VM is replaced, the engine takes what is
                # asked for now (docs/GOTCHAS.md).
                ignore_changes=["bootDisk.initializeParams.image"],
                depends_on=[] if args.after is None else [args.after],
                hooks=power.hooks(name),
            ),
        ),
    )
