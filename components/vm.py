"""The instance and the state disk of a fleet VM, rendezvous and swarm alike."""

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
class KeptDisk:
    """The state disk that a VM left behind in a zone, by the suffix of its names."""

    suffix: str
    zone: str


@dataclass(frozen=True, kw_only=True)
class VmArgs:
    """Arguments of `state_disk` and `instance`. Disk sizes in GB."""

    vm_name: str
    zone: pulumi.Input[str]
    machine_type: pulumi.Input[str]
    # The fleet's image, for a new boot disk.
    image: str
    # Takes the place of `image`. Another value replaces the VM.
    own_image: str | None
    boot_disk_gb: pulumi.Input[int]
    disk_gb: pulumi.Input[int]
    # Whether the machine type takes no Persistent Disk.
    hyperdisk: bool
    # Whether Google moves the machine type to another host while it runs.
    migrates: bool
    subnet_id: pulumi.Input[str]
    service_account: pulumi.Input[str]
    # As in docs/CONTRACT.md.
    metadata: dict[str, str]
    labels: dict[str, str]
    tag: str
    protect: bool
    internal_address: pulumi.Input[str] | None = None
    external_address: pulumi.Input[str] | None = None
    # The VM that must be done before this one, where VMs are stopped in turn.
    after: gcp.compute.Instance | None = None
    # Ends the names of resources that are another's in each zone, "" in the rendezvous' first one.
    suffix: str = ""


def _disk_type(args: VmArgs) -> str:
    # Identities, or a registry of tens of megabytes: the balanced types are enough.
    return "hyperdisk-balanced" if args.hyperdisk else "pd-balanced"


def boot_device(image: str) -> str:
    """The boot disk's device name on a VM with an image of its own.

    It cannot change on an attached disk, so another image makes the provider replace the VM.
    Without an own image the device name is left out, so removing the line replaces nothing.
    At most 20 characters, the length that a virtio disk shows.
    """
    return f"boot-{hashlib.sha256(image.encode()).hexdigest()[:12]}"


def state_disk(name: str, args: VmArgs, opts: pulumi.ResourceOptions) -> gcp.compute.Disk:
    """The disk that outlives the VM: identities of agents, or the registry's store."""
    return gcp.compute.Disk(
        f"{name}-disk{args.suffix}",
        name=f"{args.vm_name}{STATE_DISK_SUFFIX}{args.suffix}",
        zone=args.zone,
        size=args.disk_gb,
        type=_disk_type(args),
        labels=args.labels,
        opts=pulumi.ResourceOptions.merge(
            opts,
            # A disk that was made from a snapshot (docs/PRODUCTION.md) stays this disk.
            pulumi.ResourceOptions(protect=args.protect, ignore_changes=["snapshot"]),
        ),
    )


def kept_disk(name: str, args: VmArgs, kept: KeptDisk, opts: pulumi.ResourceOptions) -> None:
    """The state disk of a VM that has left its zone: declared as it is, so that no update deletes
    what it holds."""
    gcp.compute.Disk(
        f"{name}-disk{kept.suffix}",
        name=f"{args.vm_name}{STATE_DISK_SUFFIX}{kept.suffix}",
        zone=kept.zone,
        opts=pulumi.ResourceOptions.merge(
            opts,
            pulumi.ResourceOptions(
                protect=args.protect, ignore_changes=["size", "type", "labels", "snapshot"]
            ),
        ),
    )


def instance(
    name: str, args: VmArgs, disk: gcp.compute.Disk, opts: pulumi.ResourceOptions
) -> gcp.compute.Instance:
    """The VM. A change of its metadata or machine type happens in place, never by replacement."""
    return gcp.compute.Instance(
        f"{name}-vm{args.suffix}",
        name=args.vm_name,
        zone=args.zone,
        machine_type=args.machine_type,
        # A new machine type stops and starts the VM instead of failing half way.
        allow_stopping_for_update=True,
        # A VM that is off shows as a change.
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
            # Google refuses MIGRATE where it cannot migrate, and TERMINATE on some others (E2, Z3).
            on_host_maintenance="MIGRATE" if args.migrates else "TERMINATE",
            preemptible=False,
        ),
        opts=pulumi.ResourceOptions.merge(
            opts,
            pulumi.ResourceOptions(
                # Its name, address and disk belong to one VM at a time.
                delete_before_replace=True,
                # The provider compares the declared family with the name of the disk's image. A
                # replaced VM still gets the declared one (docs/GOTCHAS.md).
                ignore_changes=["bootDisk.initializeParams.image"],
                depends_on=[] if args.after is None else [args.after],
                hooks=power.hooks(f"{name}{args.suffix}"),
            ),
        ),
    )
