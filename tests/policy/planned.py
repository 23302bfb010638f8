"""Planned resources for tests of rules, and the spec of a VM of the fleet."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from policy.values import Resource

INSTANCE = "gcp:compute/instance:Instance"
SCRIPT = "#!/bin/bash\n# pilot-fleet startup script\nguard=/run/pilot/guard\n"
SHA256 = hashlib.sha256(SCRIPT.encode()).hexdigest()


def planned(kind: str, props: dict[str, Any], name: str = "it", **more: Any) -> Resource:
    """A resource of type `kind`; its stack is `swarm`."""
    urn = f"urn:pulumi:swarm::fleet::{kind}::{name}"
    return Resource(type=kind, name=name, urn=urn, props=props, **more)


def spec(role: str = "swarm", **changes: Any) -> dict[str, Any]:
    """A good spec; `changes` replaces fields, `memory_X=…` those of its memory."""
    memory: dict[str, Any] = {"reserveMb": 3000}
    if role == "swarm":
        memory |= {"agentMb": 10, "connectionMb": 4, "activeConnections": 300}
    found: dict[str, Any] = {"schema": 1, "role": role, "agents": 3000, "memory": memory}
    found["script"] = {"sha256": SHA256}
    if role == "swarm":
        found["basePort"] = 10000
    for name, value in changes.items():
        if name.startswith("memory_"):
            memory[name.removeprefix("memory_")] = value
        else:
            found[name] = value
    return found


def vm_props(document: Any, machine_type: Any = "e2-standard-16", role: Any = None) -> Any:
    """Inputs of a VM with this spec (a dict is written as JSON, anything else is left as it is)."""
    is_spec = isinstance(document, dict) and "role" in document
    if role is None:
        role = document["role"] if is_spec else "swarm"
    text = json.dumps(document, separators=(",", ":"), sort_keys=True) if is_spec else document
    return {
        "name": "vm",
        "zone": "us-central1-a",
        "machineType": machine_type,
        "metadata": {"pilot-role": role, "pilot-spec": text, "enable-oslogin": "TRUE"},
        "shieldedInstanceConfig": {
            "enableSecureBoot": True,
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
        },
        "networkInterfaces": [{"network": "fleet"}],
        "serviceAccount": {"email": "vm@p.iam.gserviceaccount.com", "scopes": ["cloud-platform"]},
    }


def vm(document: Any, machine_type: Any = "e2-standard-16", name: str = "swarm-1") -> Resource:
    """A VM of the fleet."""
    return planned(INSTANCE, vm_props(document, machine_type), name)


def owner(script: Any = SCRIPT, name: str = "startup", key: Any = "startup-script") -> Resource:
    """The project's item that holds the startup script."""
    kind = "gcp:compute/projectMetadataItem:ProjectMetadataItem"
    return planned(kind, {"key": key, "value": script}, name)


def nested(path: str, value: Any) -> Any:
    """`value` at the dotted `path`; a step `x[]` is a list of one: `a.b[]` is {a: {b: [value]}}."""
    for step in reversed(path.split(".")):
        name = step.removesuffix("[]")
        value = {name: [value] if step.endswith("[]") else value}
    return value
