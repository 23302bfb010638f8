"""Rendezvous: the VM with registry, beacon and dashboard, its disk and that disk's snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_gcp as gcp

from components import vm
from components.config import Snapshots
from components.vm import KeptDisk

# A quiet hour in the Americas; each schedule starts within the hour that it names (UTC).
_SNAPSHOT_START = "08:00"


@dataclass(frozen=True, kw_only=True)
class RendezvousArgs:
    """The VM, and how long its disk's snapshots are kept."""

    vm: vm.VmArgs
    region: pulumi.Input[str]
    snapshots: Snapshots
    # What it left behind in other zones.
    kept_disks: Sequence[KeptDisk] = ()


class Rendezvous(pulumi.ComponentResource):
    """The rendezvous VM, its protected disk, hourly and daily snapshots; `instance` is the VM."""

    instance: gcp.compute.Instance
    instance_id: pulumi.Output[str]
    address: pulumi.Output[str]

    def __init__(
        self, name: str, args: RendezvousArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:Rendezvous", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        disk = vm.state_disk(name, args.vm, child)
        schedule_args = gcp.compute.ResourcePolicySnapshotSchedulePolicyScheduleArgs
        for kind, days, schedule in (
            (
                "hourly",
                args.snapshots.hourly_days,
                schedule_args(
                    hourly_schedule=(
                        gcp.compute.ResourcePolicySnapshotSchedulePolicyScheduleHourlyScheduleArgs(
                            hours_in_cycle=1, start_time=_SNAPSHOT_START
                        )
                    )
                ),
            ),
            (
                "daily",
                args.snapshots.daily_days,
                schedule_args(
                    daily_schedule=(
                        gcp.compute.ResourcePolicySnapshotSchedulePolicyScheduleDailyScheduleArgs(
                            days_in_cycle=1, start_time=_SNAPSHOT_START
                        )
                    )
                ),
            ),
        ):
            policy = gcp.compute.ResourcePolicy(
                f"{name}-{kind}",
                name=f"{args.vm.vm_name}-{kind}",
                region=args.region,
                snapshot_schedule_policy=gcp.compute.ResourcePolicySnapshotSchedulePolicyArgs(
                    schedule=schedule,
                    retention_policy=(
                        gcp.compute.ResourcePolicySnapshotSchedulePolicyRetentionPolicyArgs(
                            max_retention_days=days,
                            on_source_disk_delete="KEEP_AUTO_SNAPSHOTS",
                        )
                    ),
                    snapshot_properties=(
                        gcp.compute.ResourcePolicySnapshotSchedulePolicySnapshotPropertiesArgs(
                            labels=args.vm.labels
                        )
                    ),
                ),
                # Providers before 2023 replace it for other days, and its name is fixed. Its
                # attachment goes first: Google deletes no policy that is attached to a disk.
                opts=pulumi.ResourceOptions.merge(
                    child, pulumi.ResourceOptions(delete_before_replace=True)
                ),
            )
            gcp.compute.DiskResourcePolicyAttachment(
                f"{name}-{kind}-attachment{args.vm.suffix}",
                name=policy.name,
                disk=disk.name,
                zone=args.vm.zone,
                opts=child,
            )
        for kept in args.kept_disks:
            vm.kept_disk(name, args.vm, kept, child)
        instance = vm.instance(name, args.vm, disk, child)
        self.instance = instance
        self.instance_id = instance.instance_id
        self.address = instance.network_interfaces[0].network_ip
        self.register_outputs({"instanceId": self.instance_id, "address": self.address})
