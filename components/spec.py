"""The metadata of an instance, with the VM's spec (docs/CONTRACT.md).

It is data only, and all of it is known in a preview, so that policies can judge it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components import capacity
from components.config import (
    BEACON_PORT,
    DASHBOARD_PORT,
    REGISTRY_PORT,
    FleetConfig,
    SwarmVmConfig,
    secret_id,
)

SCHEMA = 1
ROLE_RENDEZVOUS = "rendezvous"
ROLE_SWARM = "swarm"


@dataclass(frozen=True, kw_only=True)
class Binary:
    """A binary of a release."""

    name: str
    version: str
    path: str
    # Hex; None where neither file nor configuration gives it.
    sha256: str | None
    is_built: bool

    @property
    def object(self) -> str | None:
        """Its object in the fleet's bucket, named by content; None without a sha256."""
        return None if self.sha256 is None else f"releases/{self.sha256}/{self.name}"

    def reference(self) -> dict[str, str] | None:
        """The binary's entry in a spec."""
        if self.sha256 is None or self.object is None:
            return None
        return {"object": self.object, "sha256": self.sha256}


def swarm_spec(
    config: FleetConfig, vm: SwarmVmConfig, *, daemon: Binary, script_sha256: str
) -> dict[str, Any]:
    """The spec of a swarm VM."""
    return _common(config, vm.name, ROLE_SWARM, script_sha256) | {
        "agents": vm.agents,
        "basePort": config.base_port,
        "beacon": config.beacon,
        "environment": dict(vm.environment),
        "memory": {
            "activeConnections": vm.active_connections,
            "agentMb": vm.agent_mb,
            "connectionMb": capacity.CONNECTION_MB,
            "reserveMb": vm.reserve_mb,
        },
        "registry": config.registry,
        "release": {"version": vm.release.version, "daemon": daemon.reference()},
        "roll": {
            "auto": config.roll.auto,
            "batch": config.roll.batch,
            "watchSeconds": config.roll.watch_seconds,
        },
        "window": config.window,
    }


def rendezvous_spec(
    config: FleetConfig, *, rendezvous: Binary, script_sha256: str
) -> dict[str, Any]:
    """The spec of the rendezvous VM. It has the names of secrets, never a token."""
    found = _common(config, config.rendezvous.name, ROLE_RENDEZVOUS, script_sha256) | {
        "agents": config.agents,
        "environment": {},
        "memory": {"reserveMb": config.reserve_mb},
        "ports": {
            "beacon": BEACON_PORT,
            "dashboard": DASHBOARD_PORT,
            "registry": REGISTRY_PORT,
        },
        "release": {
            "version": config.release.version,
            "rendezvous": rendezvous.reference(),
        },
        "subnet": config.subnet_cidr,
        "uploadCopies": config.copies_leave_the_vm,
    }
    if config.tokens:
        found["endpoints"] = found["endpoints"] | {"secrets": config.secrets_endpoint}
        found["secrets"] = {
            what: f"projects/{config.project}/secrets/{secret_id(what)}/versions/latest"
            for what in config.tokens
        }
    return found


def metadata(spec: Mapping[str, Any]) -> dict[str, str]:
    """The whole metadata of an instance. The same spec gives the same bytes."""
    return {
        "enable-guest-attributes": "TRUE",
        "enable-oslogin": "TRUE",
        "pilot-role": spec["role"],
        "pilot-spec": json.dumps(spec, sort_keys=True, separators=(",", ":")),
    }


def _common(config: FleetConfig, name: str, role: str, script_sha256: str) -> dict[str, Any]:
    return {
        "bucket": config.bucket,
        "endpoints": {"storage": config.storage_endpoint},
        "name": name,
        "role": role,
        "schema": SCHEMA,
        "script": {"sha256": script_sha256, "afterSeconds": config.script_delays[name]},
    }
