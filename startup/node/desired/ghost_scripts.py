"""Ghost scripts: metadata with which a VM runs something that was not declared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

# Metadata keys with which a guest runs something, in upper or lower case: of Google's runner, also
# for Windows; cloud-init and similar; the container starters of COS; the node setup of GKE; the
# images of Workbench; Google's OS Config agent.
_GHOST = re.compile(
    r"(windows-)?(startup|shutdown)-script(-(url|ps1|cmd|bat))?|post-startup-script(-url)?"
    r"|sysprep-(specialize|oobe)-script(-(url|ps1|cmd|bat))?"
    r"|(user|vendor)-data(-.+)?|cloud-?init|cloud-config|bootstrap-script(-url)?"
    r"|gce-container-declaration|google-container-manifest"
    r"|(containerd-)?configure-sh|(k8s-node-setup|common)-psm1"
    r"|gce-software-declaration|enable-osconfig|os-?config-(endpoint|enabled-prerelease-features)"
)
# Values of enable-osconfig with which the agent does nothing.
_OFF = frozenset({"false", "f", "0"})
# Keys that the runner takes instead of the project's startup script.
_REPLACING = frozenset({"startup-script", "startup-script-url"})


def ghosts(instance: Mapping[str, str], project: Mapping[str, str]) -> tuple[str, ...]:
    """The ghost keys: the instance's own, and as `project/KEY` those of its project, where
    startup-script is the fleet's."""
    shared = [f"project/{key}" for key in _ghosts(project) if key != "startup-script"]
    return (*_ghosts(instance), *shared)


def _ghosts(attributes: Mapping[str, str]) -> list[str]:
    return sorted(key for key, value in attributes.items() if _is_ghost(key, value))


def _is_ghost(key: str, value: str) -> bool:
    folded = key.strip().lower()
    if folded == "enable-osconfig" and value.strip().lower() in _OFF:
        return False
    return _GHOST.fullmatch(folded) is not None


def replaced(attributes: Mapping[str, str]) -> bool:
    """Whether Google's runner would ignore the project's startup script."""
    return not _REPLACING.isdisjoint(attributes)


def script_hash(project: Mapping[str, str]) -> str:
    """The sha256 (hex) of the project's startup script, "" where there is none."""
    text = project.get("startup-script")
    return "" if text is None else hashlib.sha256(text.encode(errors="replace")).hexdigest()
