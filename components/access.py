"""FleetAccess: IAM bindings to look at the fleet and to give it orders (docs/ACCESS.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pulumi
import pulumi_gcp as gcp

from components.config import DASHBOARD_PORT, Access

# To look: VMs with guest attributes and serial consoles, metrics and alerts.
LOOK_ROLES = ("roles/compute.viewer", "roles/monitoring.viewer")
BUCKET_LOOK_ROLE = "roles/storage.objectViewer"
TUNNEL_ROLE = "roles/iap.tunnelResourceAccessor"
# To order, besides: silence alerts, write orders.
ORDER_ROLES = ("roles/monitoring.snoozeEditor",)
BUCKET_ORDER_ROLE = "roles/storage.objectUser"
# Every role of Google's that may reset a VM may also rewrite its metadata, which is root on it.
OPERATOR_PERMISSIONS = (
    "compute.disks.createSnapshot",
    "compute.instances.reset",
    "compute.instances.start",
    "compute.instances.stop",
    "compute.snapshots.create",
    "compute.snapshots.setLabels",
)


@dataclass(frozen=True, kw_only=True)
class FleetAccessArgs:
    """Arguments of `FleetAccess`."""

    project: pulumi.Input[str]
    bucket_name: pulumi.Input[str]
    # The same name as plain text, for a condition.
    bucket: str
    access: Access


@dataclass(frozen=True, kw_only=True)
class _Condition:
    title: str
    description: str
    expression: str


class FleetAccess(pulumi.ComponentResource):
    """One binding per member and role. Bindings of others are not touched."""

    def __init__(
        self, name: str, args: FleetAccessArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetAccess", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        dashboard = _Condition(
            title="dashboard",
            description="The rendezvous' dashboard, and no other port of any VM",
            expression=f"destination.port == {DASHBOARD_PORT}",
        )
        orders = _Condition(
            title="orders",
            description="The operators' orders, and no release",
            expression="resource.name.startsWith("
            f'"projects/_/buckets/{args.bucket}/objects/orders/")',
        )

        def on_project(
            member: str, role: pulumi.Input[str], suffix: str, condition: _Condition | None = None
        ) -> None:
            gcp.projects.IAMMember(
                f"{name}-{suffix}-{member}",
                project=args.project,
                role=role,
                member=member,
                condition=None
                if condition is None
                else gcp.projects.IAMMemberConditionArgs(**vars(condition)),
                opts=child,
            )

        def on_bucket(
            member: str, role: str, suffix: str, condition: _Condition | None = None
        ) -> None:
            gcp.storage.BucketIAMMember(
                f"{name}-{suffix}-{member}",
                bucket=args.bucket_name,
                role=role,
                member=member,
                condition=None
                if condition is None
                else gcp.storage.BucketIAMMemberConditionArgs(**vars(condition)),
                opts=child,
            )

        for member in _distinct(args.access.look, args.access.order):
            for role in LOOK_ROLES:
                on_project(member, role, role.removeprefix("roles/"))
            on_project(member, TUNNEL_ROLE, "dashboard", dashboard)
            on_bucket(member, BUCKET_LOOK_ROLE, "bucket")
        operator = self._operator_role(name, args, child) if args.access.order else ""
        for member in args.access.order:
            for role in ORDER_ROLES:
                on_project(member, role, role.removeprefix("roles/"))
            on_project(member, operator, "operator")
            on_bucket(member, BUCKET_ORDER_ROLE, "orders", orders)
        # The full name of the role; empty where nobody may order.
        self.operator_role = pulumi.Output.from_input(operator)
        self.register_outputs({"operatorRole": self.operator_role})

    def _operator_role(
        self, name: str, args: FleetAccessArgs, opts: pulumi.ResourceOptions
    ) -> pulumi.Input[str]:
        if args.access.role is not None:
            return args.access.role
        role = gcp.projects.IAMCustomRole(
            f"{name}-operator",
            project=args.project,
            role_id="pilotFleetOperator",
            title="Pilot fleet operator",
            description="Resets VMs and takes snapshots; changes nothing that is declared",
            permissions=list(OPERATOR_PERMISSIONS),
            stage="GA",
            opts=opts,
        )
        return role.name


def _distinct(*groups: tuple[str, ...]) -> Iterator[str]:
    yield from dict.fromkeys(member for group in groups for member in group)
