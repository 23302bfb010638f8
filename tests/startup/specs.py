"""Specs as the program writes them (docs/CONTRACT.md)."""

from __future__ import annotations

import json
from typing import Any

from tests.startup.google import BUCKET

SHA = "ab" * 32
STORAGE = "https://storage.googleapis.com"
SECRETS = "https://secretmanager.googleapis.com"


def swarm(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "swarm-1",
        "role": "swarm",
        "release": {
            "version": "1.18.0",
            "daemon": {"object": f"releases/{SHA}/pilot-daemon", "sha256": SHA},
        },
        "environment": {},
        "bucket": BUCKET,
        "endpoints": {"storage": STORAGE},
        "memory": {
            "reserveMb": 1000,
            "agentMb": 10,
            "connectionMb": 4,
            "activeConnections": 3,
        },
        "script": {"sha256": SHA, "afterSeconds": 240},
        "agents": 30,
        "basePort": 10000,
        "registry": "10.10.0.2:9000",
        "beacon": "10.10.0.2:9001",
        "window": 15,
        "roll": {"auto": True, "batch": 500, "watchSeconds": 60},
        **changes,
    }


def rendezvous(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "pilot-rendezvous",
        "role": "rendezvous",
        "release": {
            "version": "1.18.0",
            "rendezvous": {"object": f"releases/{SHA}/pilot-rendezvous", "sha256": SHA},
        },
        "environment": {},
        "bucket": BUCKET,
        "endpoints": {"storage": STORAGE, "secrets": SECRETS},
        "memory": {"reserveMb": 1000},
        "script": {"sha256": SHA, "afterSeconds": 240},
        "agents": 9500,
        "ports": {"registry": 9000, "beacon": 9001, "dashboard": 3000},
        "subnet": "10.10.0.0/20",
        "secrets": {"admin": "projects/p/secrets/pilot-admin/versions/latest"},
        "uploadCopies": True,
        **changes,
    }


def text(spec: dict[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))
