"""FleetIdentity: the service account that the VMs run as, with the least it needs."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_gcp as gcp

# To read releases and orders, on the fleet's bucket only.
_BUCKET_ROLE = "roles/storage.objectViewer"
# The Ops Agent writes logs and metrics; nothing else in the project is needed.
_PROJECT_ROLES = ("roles/logging.logWriter", "roles/monitoring.metricWriter")


@dataclass(frozen=True, kw_only=True)
class FleetIdentityArgs:
    """Arguments of `FleetIdentity`."""

    project: pulumi.Input[str]
    # Address of an account to use instead of a new one. It keeps its project roles, and gets read
    # access to the fleet's bucket.
    existing: str | None
    bucket_name: pulumi.Input[str]


class FleetIdentity(pulumi.ComponentResource):
    """The account and its roles. VMs depend on it, because a first boot needs the bucket."""

    email: pulumi.Output[str]

    def __init__(
        self, name: str, args: FleetIdentityArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetIdentity", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        if args.existing is None:
            account = gcp.serviceaccount.Account(
                f"{name}-account",
                account_id=name,
                display_name="Fleet VMs",
                description="Reads releases and orders, writes logs and metrics",
                opts=child,
            )
            self.email = account.email
            for role in _PROJECT_ROLES:
                gcp.projects.IAMMember(
                    f"{name}-{role.rsplit('.', 1)[1]}",
                    project=args.project,
                    role=role,
                    member=self.email.apply(_member),
                    opts=child,
                )
        else:
            self.email = pulumi.Output.from_input(args.existing)
        gcp.storage.BucketIAMMember(
            f"{name}-bucket-reader",
            bucket=args.bucket_name,
            role=_BUCKET_ROLE,
            member=self.email.apply(_member),
            opts=child,
        )
        self.register_outputs({"email": self.email})


def _member(email: str) -> str:
    return f"serviceAccount:{email}"
