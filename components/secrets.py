"""FleetSecrets: the rendezvous' tokens in Secret Manager, readable by the fleet's VMs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_gcp as gcp

from components import spec_tables
from components.config import secret_id

_ACCESSOR = "roles/secretmanager.secretAccessor"


@dataclass(frozen=True, kw_only=True)
class FleetSecretsArgs:
    """`tokens`: by what each is for, its text, or "" where the operator adds the version. `member`
    is the account of the VMs; `region` is where the secrets are kept."""

    tokens: Mapping[str, str]
    region: pulumi.Input[str]
    account: pulumi.Input[str]
    labels: dict[str, str]


class FleetSecrets(pulumi.ComponentResource):
    """A secret for each token, its version where the configuration has one, and who may read it.

    The text of a version is a secret to Pulumi: encrypted in the state, hidden in plans.
    """

    def __init__(
        self, name: str, args: FleetSecretsArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetSecrets", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        member = pulumi.Output.from_input(args.account).apply(
            lambda email: f"serviceAccount:{email}"
        )
        # By token; the full name: projects/P/secrets/S.
        self.secret_names: dict[str, pulumi.Output[str]] = {}
        for what in spec_tables.table("TOKENS"):
            if what not in args.tokens:
                continue
            secret = gcp.secretmanager.Secret(
                f"{name}-{what}-token",
                secret_id=secret_id(what),
                labels=args.labels,
                # Where the fleet is: the rendezvous needs no other region to start.
                replication=gcp.secretmanager.SecretReplicationArgs(
                    user_managed=gcp.secretmanager.SecretReplicationUserManagedArgs(
                        replicas=[
                            gcp.secretmanager.SecretReplicationUserManagedReplicaArgs(
                                location=args.region
                            )
                        ]
                    )
                ),
                opts=child,
            )
            self.secret_names[what] = secret.id
            gcp.secretmanager.SecretIamMember(
                f"{name}-{what}-token-reader",
                secret_id=secret.id,
                role=_ACCESSOR,
                member=member,
                opts=child,
            )
            if text := args.tokens[what]:
                gcp.secretmanager.SecretVersion(
                    f"{name}-{what}-token-version",
                    secret=secret.id,
                    secret_data=pulumi.Output.secret(text),
                    opts=pulumi.ResourceOptions.merge(
                        child,
                        pulumi.ResourceOptions(
                            additional_secret_outputs=["secretData"],
                            # One that was disabled by hand, after a newer one, stays so.
                            ignore_changes=["enabled"],
                        ),
                    ),
                )
        self.register_outputs({"secretNames": self.secret_names})
