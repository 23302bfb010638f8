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
    """Arguments of `FleetSecrets`."""

    # Text of each token by its purpose; "" where the operator adds the version.
    tokens: Mapping[str, str]
    # Where the secrets are kept.
    region: pulumi.Input[str]
    # Address of the rendezvous' service account.
    account: pulumi.Input[str]
    labels: dict[str, str]


class FleetSecrets(pulumi.ComponentResource):
    """For each token a secret, its version where the configuration has one, and its reader.

    Pulumi keeps the text of a version encrypted in the state and hides it in plans.
    """

    def __init__(
        self, name: str, args: FleetSecretsArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetSecrets", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        member = pulumi.Output.from_input(args.account).apply(
            lambda email: f"serviceAccount:{email}"
        )
        # Full name of the secret (projects/P/secrets/S), by purpose of the token.
        self.secret_names: dict[str, pulumi.Output[str]] = {}
        for purpose in spec_tables.table("TOKENS"):
            if purpose not in args.tokens:
                continue
            secret = gcp.secretmanager.Secret(
                f"{name}-{purpose}-token",
                secret_id=secret_id(purpose),
                labels=args.labels,
                # In the fleet's region, so that the rendezvous needs no other region to start.
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
            self.secret_names[purpose] = secret.id
            gcp.secretmanager.SecretIamMember(
                f"{name}-{purpose}-token-reader",
                secret_id=secret.id,
                role=_ACCESSOR,
                member=member,
                opts=child,
            )
            if text := args.tokens[purpose]:
                gcp.secretmanager.SecretVersion(
                    f"{name}-{purpose}-token-version",
                    secret=secret.id,
                    secret_data=pulumi.Output.secret(text),
                    opts=pulumi.ResourceOptions.merge(
                        child,
                        pulumi.ResourceOptions(
                            additional_secret_outputs=["secretData"],
                            # An old version that was disabled by hand stays disabled.
                            ignore_changes=["enabled"],
                        ),
                    ),
                )
        self.register_outputs({"secretNames": self.secret_names})
