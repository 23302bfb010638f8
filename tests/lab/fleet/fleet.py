"""The fleet of the lab's stack, and VMs of it in a lab that has no machines."""

from lab.fleet import checkout
from tests.lab.cloud.client import Client, vm

CONFIG = checkout.fleet()
ZONE = f"/compute/v1/projects/{CONFIG.project}/zones/{CONFIG.zone}"


def make_vms(client: Client, *names: str) -> None:
    """Make VMs in the fleet's place."""
    project = f"/compute/v1/projects/{CONFIG.project}"
    network = {"name": "net", "autoCreateSubnetworks": False}
    client.do("POST", f"{project}/global/networks", network)
    subnet = {"name": "sub", "ipCidrRange": "10.10.0.0/20", "network": "global/networks/net"}
    client.do("POST", f"{project}/regions/us-central1/subnetworks", subnet)
    for name in names:
        client.do("POST", f"{ZONE}/instances", vm(name))
