"""FleetIdentity: the service accounts that the VMs run as, with the least they need.

The rendezvous has one of its own: it writes the registry's copies to the bucket, and no swarm VM,
which runs strangers' code, may do that.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_gcp as gcp

from components.config import RENDEZVOUS_SUFFIX

# To read releases and orders (and the registry's copies), on the fleet's bucket only.
_BUCKET_ROLE = "roles/storage.objectViewer"
# To write the registry's copies and to remove old ones.
_COPIES_ROLE = "roles/storage.objectUser"
# The Ops Agent writes logs and metrics; nothing else in the project is needed.
_PROJECT_ROLES = ("roles/logging.logWriter", "roles/monitoring.metricWriter")


@dataclass(frozen=True, kw_only=True)
class FleetIdentityArgs:
    """Arguments of `FleetIdentity`."""

    project: pulumi.Input[str]
    # Addresses of accounts to use instead of new ones. They keep their project roles, and get
    # access to the fleet's bucket. Where `existing` alone is given, it is the rendezvous' too.
    existing: str | None
    rendezvous_existing: str | None
    bucket_name: pulumi.Input[str]
    # The same name as plain text, for a condition.
    bucket: str


class FleetIdentity(pulumi.ComponentResource):
    """The accounts and their roles. VMs depend on it, because a first boot needs the bucket."""

    # Of the swarm VMs.
    email: pulumi.Output[str]
    rendezvous_email: pulumi.Output[str]

    def __init__(
        self, name: str, args: FleetIdentityArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetIdentity", name, None, opts)
        self._args = args
        self._child = pulumi.ResourceOptions(parent=self)
        self.email = self.rendezvous_email = self._account(
            name, args.existing, "Fleet VMs", "Reads releases and orders, writes logs and metrics"
        )
        if args.rendezvous_existing is not None or args.existing is None:
            own = f"{name}-{RENDEZVOUS_SUFFIX}"
            self.rendezvous_email = self._account(
                own,
                args.rendezvous_existing,
                "Fleet rendezvous",
                "As the fleet's VMs; also writes copies of the registry",
            )
            start = f"projects/_/buckets/{args.bucket}/objects/registry/"
            gcp.storage.BucketIAMMember(
                f"{own}-copies-writer",
                bucket=args.bucket_name,
                role=_COPIES_ROLE,
                member=self.rendezvous_email.apply(_member),
                condition=gcp.storage.BucketIAMMemberConditionArgs(
                    title="registry",
                    description="The registry's copies, and nothing else",
                    expression=f'resource.name.startsWith("{start}")',
                ),
                opts=self._child,
            )
        self.register_outputs({"email": self.email, "rendezvousEmail": self.rendezvous_email})

    def _account(
        self, name: str, existing: str | None, display_name: str, description: str
    ) -> pulumi.Output[str]:
        """The address of the account `existing`, or of a new one with roles on the project; either
        may read the fleet's bucket."""
        if existing is None:
            email = gcp.serviceaccount.Account(
                f"{name}-account",
                account_id=name,
                display_name=display_name,
                description=description,
                opts=self._child,
            ).email
            for role in _PROJECT_ROLES:
                gcp.projects.IAMMember(
                    f"{name}-{role.rsplit('.', 1)[1]}",
                    project=self._args.project,
                    role=role,
                    member=email.apply(_member),
                    opts=self._child,
                )
        else:
            email = pulumi.Output.from_input(existing)
        gcp.storage.BucketIAMMember(
            f"{name}-bucket-reader",
            bucket=self._args.bucket_name,
            role=_BUCKET_ROLE,
            member=email.apply(_member),
            opts=self._child,
        )
        return email


def _member(email: str) -> str:
    return f"serviceAccount:{email}"
