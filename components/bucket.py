"""FleetBucket: release binaries, named by their content, and the operators' orders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pulumi
import pulumi_gcp as gcp

from components.spec import Binary

# Old versions of orders are the history of a quarter.
_KEEP_NONCURRENT_DAYS = 90


@dataclass(frozen=True, kw_only=True)
class FleetBucketArgs:
    """Arguments of `FleetBucket`."""

    # Its name, unique in all of Cloud Storage.
    bucket: pulumi.Input[str]
    location: pulumi.Input[str]
    binaries: tuple[Binary, ...]
    labels: dict[str, str]
    protect: bool


class FleetBucket(pulumi.ComponentResource):
    """The bucket and one object for every binary that is built."""

    bucket_name: pulumi.Output[str]
    objects: tuple[gcp.storage.BucketObject, ...]

    def __init__(
        self, name: str, args: FleetBucketArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetBucket", name, None, opts)
        bucket = gcp.storage.Bucket(
            f"{name}-bucket",
            name=args.bucket,
            location=args.location,
            uniform_bucket_level_access=True,
            versioning=gcp.storage.BucketVersioningArgs(enabled=True),
            lifecycle_rules=[
                gcp.storage.BucketLifecycleRuleArgs(
                    action=gcp.storage.BucketLifecycleRuleActionArgs(type="Delete"),
                    condition=gcp.storage.BucketLifecycleRuleConditionArgs(
                        days_since_noncurrent_time=_KEEP_NONCURRENT_DAYS,
                    ),
                )
            ],
            # A bucket that is not protected (a fleet for a day) is deleted with its contents.
            force_destroy=not args.protect,
            labels=args.labels,
            opts=pulumi.ResourceOptions(parent=self, protect=args.protect),
        )
        self.objects = tuple(
            gcp.storage.BucketObject(
                f"{name}-{binary.name}-{(binary.sha256 or '')[:12]}",
                name=binary.object,
                bucket=bucket.name,
                # The engine takes an empty text for no asset.
                source=pulumi.FileAsset(binary.path)
                if binary.is_built
                else pulumi.StringAsset("not built"),
                opts=pulumi.ResourceOptions(
                    parent=self,
                    # A VM that rolls back needs the release before this one.
                    retain_on_delete=True,
                    # The name has the hash. A plan without the file leaves the object alone.
                    ignore_changes=[] if binary.is_built else ["source", "detectMd5hash"],
                ),
            )
            for binary in unique(args.binaries)
            if binary.object is not None
        )
        self.bucket_name = bucket.name
        self.register_outputs({"bucketName": self.bucket_name})


def read_binary(
    root: Path, name: str, version: str, path: str, expected: str | None = None
) -> Binary:
    """The binary at `path` below `root` with the sha256 of its bytes.

    Without a file the sha256 is the `expected` one of the configuration, or None. Raises
    `pulumi.RunError` for a file with another sha256, or one that cannot be read.
    """
    try:
        with (root / path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return Binary(name=name, version=version, path=path, sha256=expected, is_built=False)
    except OSError as error:
        raise pulumi.RunError(
            f"{path} (the {name} of release {version}): {error.strerror}"
        ) from None
    if expected is not None and digest != expected:
        raise pulumi.RunError(
            f"{path} is not the {name} of release {version}: its sha256 is {digest}, the "
            f"configuration expects {expected}"
        )
    return Binary(name=name, version=version, path=path, sha256=digest, is_built=True)


def unique(binaries: Iterable[Binary]) -> tuple[Binary, ...]:
    """The binaries, one per object."""
    return tuple({binary.object: binary for binary in binaries}.values())
