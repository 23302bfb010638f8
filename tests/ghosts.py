"""Every key of metadata that makes a guest run something, and some that only look so.

Four sides say what a script is: the program (components/guard.py), the policies
(policy/instance_scripts.py), a VM (startup/node/desired/sources.py) and the audit
(ops/ghost_keys.py). Each keeps a list of its own, because a check shares nothing with the thing it
checks. This table holds for all four.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Key:
    """`images`: where a guest looks at it, and what looks. `says`: a word that every sentence about
    it has; "" for a key with which nothing runs. `value`: one that it could have."""

    key: str
    images: str
    says: str = ""
    value: str = "x"


PLACE = "in place of the project's startup script"
WINDOWS = "Windows VM"
SHUTDOWN = "shuts down"
CLOUD_INIT = "cloud-init"
COS = "Container-Optimized OS"
GKE = "GKE"
WORKBENCH = "Workbench"
OS_CONFIG = "OS Config"
NAMED = "named like a script"

_LINUX = "Linux and FreeBSD images with Google's guest environment: its metadata script runner"
_WINDOWS = "Windows images: Google's metadata script runner"
_BY_NAME = "none of Google's; refused because of its name"
_AGENT = "Google's images with the OS Config agent, Debian 12 among them; instance and project"

TABLE = (
    Key(key="startup-script", images=_LINUX, says=PLACE),
    Key(key="startup-script-url", images=_LINUX, says=PLACE),
    Key(key="shutdown-script", images=_LINUX, says=SHUTDOWN),
    Key(key="shutdown-script-url", images=_LINUX, says=SHUTDOWN),
    *(
        Key(key=f"{when}-script-{form}", images=_WINDOWS, says=says)
        for when, says in (
            ("windows-startup", WINDOWS),
            ("windows-shutdown", SHUTDOWN),
            ("sysprep-specialize", WINDOWS),
        )
        for form in ("ps1", "cmd", "bat", "url")
    ),
    *(
        Key(
            key=f"sysprep-oobe-script-{form}",
            images="Windows images of before May 2015",
            says=WINDOWS,
        )
        for form in ("ps1", "cmd", "bat", "url")
    ),
    Key(key="windows-startup-script", images=_BY_NAME, says=WINDOWS),
    Key(key="startup-script-ps1", images=_BY_NAME, says=WINDOWS),
    Key(key="shutdown-script-cmd", images=_BY_NAME, says=SHUTDOWN),
    Key(key="sysprep-specialize-script", images=_BY_NAME, says=WINDOWS),
    Key(
        key="user-data",
        images="Ubuntu, COS and others with cloud-init; Flatcar and Fedora CoreOS (Ignition); "
        "Windows with Cloudbase-Init; of an instance only",
        says=CLOUD_INIT,
        value="#cloud-config\n",
    ),
    Key(key="user-data-encoding", images="beside user-data", says=CLOUD_INIT, value="base64"),
    Key(key="vendor-data", images="cloud-init of other clouds; by its name", says=CLOUD_INIT),
    Key(key="user-data-2", images=_BY_NAME, says=NAMED),
    Key(key="bootstrap-script", images=_BY_NAME, says=NAMED),
    Key(key="cloud-init", images=_BY_NAME, says=CLOUD_INIT),
    Key(key="cloudinit", images=_BY_NAME, says=CLOUD_INIT),
    Key(key="cloud-config", images=_BY_NAME, says=CLOUD_INIT),
    Key(key="gce-container-declaration", images="COS: konlet", says=COS),
    Key(key="google-container-manifest", images="container-vm, before COS: kubelet", says=COS),
    Key(key="configure-sh", images="GKE on COS: units of its user-data", says=GKE),
    Key(key="containerd-configure-sh", images="GKE on COS: the node's set-up", says=GKE),
    Key(key="k8s-node-setup-psm1", images="GKE on Windows: the node's set-up", says=GKE),
    Key(key="common-psm1", images="GKE on Windows: the node's set-up", says=GKE),
    Key(key="post-startup-script", images="Deep Learning VM, Workbench", says=WORKBENCH),
    Key(key="post-startup-script-url", images="Deep Learning VM, Workbench", says=WORKBENCH),
    Key(
        key="gce-software-declaration",
        images=_AGENT,
        says=OS_CONFIG,
        value='{"softwareRecipes": []}',
    ),
    Key(key="enable-osconfig", images=_AGENT, says=OS_CONFIG, value="TRUE"),
    Key(key="enable-osconfig", images=_AGENT, says=OS_CONFIG, value=" true "),
    Key(key="osconfig-endpoint", images=_AGENT, says=OS_CONFIG, value="example.com:443"),
    Key(key="os-config-endpoint", images=_AGENT, says=OS_CONFIG, value="example.com:443"),
    Key(
        key="osconfig-enabled-prerelease-features",
        images=_AGENT,
        says=OS_CONFIG,
        value="guestpolicies",
    ),
    Key(
        key="os-config-enabled-prerelease-features",
        images=_AGENT,
        says=OS_CONFIG,
        value="ospackage",
    ),
    # Whoever reads a key takes one spelling; whoever looks for ghosts takes them all.
    Key(key="Startup-Script", images=_BY_NAME, says=PLACE),
    Key(key=" startup-script", images=_BY_NAME, says=PLACE),
    Key(key="startup-script\n", images=_BY_NAME, says=PLACE),
    Key(key="User-Data", images=_BY_NAME, says=CLOUD_INIT),
    Key(key="ENABLE-OSCONFIG", images=_BY_NAME, says=OS_CONFIG, value="TRUE"),
    # With these nothing runs.
    Key(key="enable-osconfig", images=_AGENT, value="FALSE"),
    Key(key="enable-osconfig", images=_AGENT, value="0"),
    Key(key="osconfig-disabled-features", images=_AGENT, value="tasks"),
    Key(key="osconfig-log-level", images=_AGENT, value="debug"),
    Key(key="enable-os-inventory", images=_AGENT, value="TRUE"),
    Key(key="not-startup-script", images="none"),
    Key(key="startup-script-version", images="none"),
    Key(key="STARTUP_SCRIPT", images="none"),
    Key(key="kube-env", images="GKE: settings, no code"),
    Key(key="ssh-keys", images="all: keys of people", value="me:ssh-ed25519 AAAA me"),
    Key(key="sshKeys", images="all: keys of people", value="me:ssh-ed25519 AAAA me"),
    Key(key="windows-keys", images="Windows: passwords of people"),
    Key(key="enable-oslogin", images="all", value="TRUE"),
    Key(key="enable-guest-attributes", images="all", value="TRUE"),
    Key(key="serial-port-enable", images="all", value="TRUE"),
    Key(key="google-logging-enabled", images="COS", value="true"),
    Key(key="cos-update-strategy", images="COS", value="update_disabled"),
    Key(key="install-nvidia-driver", images="Deep Learning VM: Google's own", value="True"),
    Key(key="bitbucketCloudConfig", images="none"),
    Key(key="pilot-owner", images="none"),
)
"""All keys; a line each."""
