"""SwarmVm: a VM full of agents and the disk with their identities."""

from __future__ import annotations

import pulumi
import pulumi_gcp as gcp

from components import vm


class SwarmVm(pulumi.ComponentResource):
    """One swarm VM; `instance` is the VM itself."""

    instance: gcp.compute.Instance
    instance_id: pulumi.Output[str]
    address: pulumi.Output[str]

    def __init__(
        self, name: str, args: vm.VmArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:SwarmVm", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        disk = vm.state_disk(name, args, child)
        instance = vm.instance(name, args, disk, child)
        self.instance = instance
        self.instance_id = instance.instance_id
        self.address = instance.network_interfaces[0].network_ip
        self.register_outputs({"instanceId": self.instance_id, "address": self.address})
