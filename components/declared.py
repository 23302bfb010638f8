"""Prints what this checkout declares of a live project, without an engine and without state.

    python -m components.declared swarm     as JSON: the startup script's sha256, each VM's
                                          metadata and zone, names whose scripts are allowed

`ops audit --declared` compares it with Google's API. A release is null where it is neither built
here nor has its sha256 in the stack file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi

from components import spec, startup
from components.bucket import read_binary
from components.config import FleetConfig
from components.config_reader import ConfigError
from components.stack_file import EncryptedError, parse

ROOT = Path(__file__).resolve().parent.parent


class DeclaredError(Exception):
    """The checkout declares nothing usable. The text says why, and where."""


def declared(stack: str) -> dict[str, Any]:
    """The declarations of a stack. Raises DeclaredError.

    `script` (sha256, hex), `metadata` and `zones` (by VM), and `allowed` (names of resources that
    may have a script of their own).
    """
    path = ROOT / f"Pulumi.{stack}.yaml"
    try:
        config = parse(path.read_text(encoding="utf-8"), path.name)
        digest = startup.render(config.base_port).sha256
        allowed = list(config.allowed_scripts)
        return {
            "script": digest,
            "metadata": metadata(config, digest),
            "zones": {config.rendezvous.name: config.rendezvous.zone}
            | {vm.name: vm.zone for vm in config.swarm},
            "allowed": allowed,
        }
    except OSError as error:
        raise DeclaredError(f"{path.name}: {error.strerror}") from None
    except EncryptedError as error:
        raise DeclaredError(
            f"{path.name}: the VMs' metadata depends on encrypted values: {error}. Without the "
            "key, only tokens may be encrypted"
        ) from None
    except (ConfigError, startup.RenderError, pulumi.RunError) as error:
        raise DeclaredError(str(error)) from None


def metadata(config: FleetConfig, digest: str) -> Mapping[str, Mapping[str, str]]:
    """The metadata of each VM, by name. Raises `pulumi.RunError` for a wrong binary."""
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


def main(arguments: Sequence[str]) -> int:
    """Prints the declarations; returns 2 and prints a sentence where there are none."""
    if len(arguments) != 1:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        print(json.dumps(declared(arguments[0]), sort_keys=True, indent=1))
    except DeclaredError as error:
        print(f"declared: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
