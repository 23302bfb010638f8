"""Google's rules for names.

The patterns check characters. Each `…_problem` returns what else is wrong with a name, or "".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

PROJECT = re.compile(r"(?:[a-z0-9][-.a-z0-9]*:)?[a-z][-a-z0-9]{4,28}[a-z0-9]")
BUCKET = re.compile(r"[a-z0-9](?:[-_.a-z0-9]{1,61}[a-z0-9])")
IMAGE = re.compile(r"[a-z][-a-z0-9]{4,28}[a-z0-9]/[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
# Google's form of names: area, direction, number, letter. Not a list of regions: Google adds
# several per year.
ZONE = re.compile(
    r"(?:africa|asia|australia|europe|me|northamerica|southamerica|us)"
    r"-(?:central|(?:north|south)(?:east|west)?|east|west)[1-9][0-9]?-[a-f]"
)
# Google also refuses spellings that look like its own name.
_GOOGLE = re.compile(r"g[o0]{2}g[l1i]e")
# A custom role. Google's own that may reset a VM may also rewrite its metadata.
ROLE = re.compile(r"(?:projects/[-a-z0-9]{6,30}|organizations/[0-9]+)/roles/[a-zA-Z0-9_.]{3,64}")

# Ranges from which Google's services reach every VPC network: Google refuses a subnet with them, or
# it cannot be reached. Source: Google's documentation of subnets and of each service.
_RESERVED_RANGES: Mapping[str, str] = {
    "35.235.240.0/20": "from which people reach VMs through IAP",
    "35.191.0.0/16": "from which Google checks the health of VMs",
    "130.211.0.0/22": "from which Google checks the health of VMs",
    "209.85.152.0/22": "from which Google checks the health of VMs",
    "209.85.204.0/22": "from which Google checks the health of VMs",
    "35.199.192.0/19": "from which Cloud DNS asks",
    "34.126.0.0/18": "where Google's APIs are reached privately",
    "199.36.153.4/30": "where Google's APIs are reached privately",
    "199.36.153.8/30": "where Google's APIs are reached privately",
    "8.8.8.8/32": "where Google's DNS is",
    "8.8.4.4/32": "where Google's DNS is",
}

# Google's public image projects, with their families and images that have x86-64, systemd, Google's
# guest agent and a /usr/bin/python3 of at least 3.11. Debian 11 has 3.9, Ubuntu 22.04 3.10, RHEL 9
# and its clones 3.9, SLES 15 3.6; Windows, COS and Fedora CoreOS have none.
_PUBLIC_IMAGES: Mapping[str, str] = {
    "debian-cloud": r"debian-(1[2-9]|[2-9]\d)\b.*",
    "ubuntu-os-cloud": r"ubuntu-(minimal-|accelerator-)?(2[4-9]|[3-9]\d)(04|10)-.*",
    "ubuntu-os-pro-cloud": r"ubuntu-(minimal-)?pro-(fips-)?(2[4-9]|[3-9]\d)(04|10)-.*",
    "rhel-cloud": r"rhel-[1-8]\d\b.*",
    "rhel-sap-cloud": r"rhel-[1-8]\d\b.*",
    "centos-cloud": r"centos-stream-[1-8]\d\b.*",
    "rocky-linux-cloud": r"rocky-linux-[1-8]\d\b.*",
    "rocky-linux-accelerator-cloud": r"rocky-linux-[1-8]\d\b.*",
    "almalinux-cloud": r"almalinux-[1-8]\d\b.*",
    "oracle-linux-cloud": r"oracle-linux-[1-8]\d\b.*",
    "suse-cloud": r"sles-(1[6-9]|[2-9]\d)\b.*",
    "suse-sap-cloud": r"sles-(sap-)?(1[6-9]|[2-9]\d)\b.*",
    "opensuse-cloud": r"opensuse-leap-(1[6-9]|[2-9]\d)\b.*",
    "fedora-cloud": r"fedora-cloud-([4-9]\d|\d{3})\b.*",
    "cos-cloud": "",
    "fedora-coreos-cloud": "",
    "windows-cloud": "",
    "windows-sql-cloud": "",
    "freebsd-org-cloud-dev": "",
    "cloud-hpc-image-public": "",
    "gce-nvme": "",
}


def region(zone: str) -> str:
    """The region of a zone: us-central1 of us-central1-a; "" of ""."""
    return zone.rpartition("-")[0]


def project_problem(name: str) -> str:
    """Problem with a project's id."""
    if ":" in name:
        return (
            f"{name!r} is a project with a domain before its id, which is not supported: buckets, "
            "service accounts and VMs cannot carry that name as it is. Use another project"
        )
    return ""


def bucket_problem(name: str) -> str:
    """Problem with a bucket's name, by Cloud Storage's rules."""
    if name.startswith("goog"):
        return "begins with goog, which Google keeps for itself"
    if _GOOGLE.search(name):
        return "contains google, or what looks like it, which Google keeps for itself"
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+){3}", name):
        return "looks like an IP address, which no bucket may be called"
    if "." in name and not all(
        re.fullmatch(r"[a-z0-9](?:[-_a-z0-9]*[a-z0-9])?", part) for part in name.split(".")
    ):
        return "has a dot beside a dot or a dash: with dots it has to be a domain's name"
    return ""


def subnet_problem(network: ipaddress.IPv4Network) -> str:
    """Problem with a subnet's range."""
    for kept, use in _RESERVED_RANGES.items():
        if network.overlaps(ipaddress.IPv4Network(kept)):
            return f"{network} overlaps {kept}, {use}: choose a private range"
    return ""


def image_problem(image: str) -> str:
    """Problem with an image, `PROJECT/FAMILY`. Custom images are not checked."""
    project, _, family = image.partition("/")
    fitting = _PUBLIC_IMAGES.get(project)
    use = "use debian-cloud/debian-12"
    if fitting is None:
        return ""
    if "arm64" in family or "aarch64" in family:
        return f"{image} is for Arm machines and the daemon is x86-64: {use}"
    if not re.fullmatch(fitting, family):
        return f"{image} has no Python 3.11 (or no systemd), which pilot-node needs: {use}"
    return ""
