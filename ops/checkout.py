"""What this checkout declares, without an engine and without state: for the audit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pulumi

from components import spec, startup
from components.bucket import read_binary
from components.config import FleetConfig
from components.reading import ConfigError
from components.stack_file import parse
from ops.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent


def script_sha256() -> str:
    """The hash (hex) of the startup script that the program renders."""
    try:
        return startup.render().sha256
    except startup.RenderError as error:
        raise UsageError(str(error)) from None


def metadata(stack: str, digest: str) -> Mapping[str, Mapping[str, str]]:
    """The metadata of each VM of a stack (`swarm`: Pulumi.swarm.yaml), by name. A release that is
    neither built here nor named by its sha256 is null in it. UsageError."""
    path = ROOT / f"Pulumi.{stack}.yaml"
    try:
        config = parse(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise UsageError(f"{path.name}: {error.strerror}") from None
    except ConfigError as error:
        raise UsageError(str(error)) from None
    try:
        return _specs(config, digest)
    except pulumi.RunError as error:
        raise UsageError(str(error)) from None


def _specs(config: FleetConfig, digest: str) -> Mapping[str, Mapping[str, str]]:
    release = config.release
    binary = read_binary(
        ROOT,
        "pilot-rendezvous",
        release.version,
        release.rendezvous,
        release.sha256.get("rendezvous"),
    )
    rendezvous = spec.rendezvous_spec(config, rendezvous=binary, script_sha256=digest)
    found = {config.rendezvous.name: spec.metadata(rendezvous)}
    for vm in config.swarm:
        daemon = read_binary(
            ROOT,
            "pilot-daemon",
            vm.release.version,
            vm.release.daemon,
            vm.release.sha256.get("daemon"),
        )
        swarm = spec.swarm_spec(config, vm, daemon=daemon, script_sha256=digest)
        found[vm.name] = spec.metadata(swarm)
    return found
