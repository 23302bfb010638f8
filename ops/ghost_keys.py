"""Metadata keys that make a VM run something. tests/ghosts.py compares four such lists."""

from __future__ import annotations

import re
from typing import Final

_REPLACES: Final = "a VM runs at every boot in place of the project's startup script"
# Pattern of a key, and what happens with its value, as the end of "bytes that …".
_SCRIPTS: Final = (
    (r"startup-script(-url)?", _REPLACES),
    (
        r"windows-startup-script(-(url|ps1|cmd|bat))?|startup-script-(ps1|cmd|bat)",
        "a Windows VM runs at every boot",
    ),
    (r"(windows-)?shutdown-script(-(url|ps1|cmd|bat))?", "a VM runs when it shuts down"),
    (
        r"sysprep-(specialize|oobe)-script(-(url|ps1|cmd|bat))?",
        "a Windows VM runs when it is set up",
    ),
    (
        r"user-data(-encoding)?|vendor-data|cloud-?init|cloud-config",
        "cloud-init and its kin run at boot (Ubuntu, Container-Optimized OS, Flatcar)",
    ),
    (
        r"bootstrap-script(-url)?|(user|vendor)-data-.+",
        "is named like a script: none of Google's images runs it, one of your own may",
    ),
    (
        r"gce-container-declaration|google-container-manifest",
        "Container-Optimized OS starts containers of at boot",
    ),
    (
        r"(containerd-)?configure-sh|(k8s-node-setup|common)-psm1",
        "the images of GKE's nodes run at boot",
    ),
    (
        r"post-startup-script(-url)?",
        "the images of Deep Learning VM and Workbench run after boot",
    ),
    (r"gce-software-declaration", "Google's OS Config agent runs as install scripts"),
    (
        r"enable-osconfig|os-?config-enabled-prerelease-features",
        "makes Google's OS Config agent run the scripts of policies and patch jobs",
    ),
    (
        r"os-?config-endpoint",
        "makes Google's OS Config agent take its scripts from another server",
    ),
)
_OFF: Final = frozenset({"false", "f", "0"})
"""Values of enable-osconfig with which the agent does nothing."""


def what_runs(key: str, value: str = "") -> str:
    """The use of this metadata key by a VM, as the end of "bytes that …"; "" where nothing runs."""
    folded = key.strip().lower()
    if folded == "enable-osconfig" and value.strip().lower() in _OFF:
        return ""
    for pattern, does in _SCRIPTS:
        if re.fullmatch(pattern, folded):
            return does
    return ""
