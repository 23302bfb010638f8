"""FleetNetwork: the fleet's own VPC, subnet, addresses and firewall rules."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_gcp as gcp

from components.config import BEACON_PORT, DASHBOARD_PORT, REGISTRY_PORT

TAG_RENDEZVOUS = "pilot-rendezvous"
TAG_SWARM = "pilot-swarm"
SSH_PORT = 22
# Where Google's Identity-Aware Proxy forwards TCP from (Google's documentation of IAP).
IAP_RANGE = "35.235.240.0/20"


@dataclass(frozen=True, kw_only=True)
class FleetNetworkArgs:
    """Arguments of `FleetNetwork`."""

    region: pulumi.Input[str]
    subnet_cidr: pulumi.Input[str]
    rendezvous_address: pulumi.Input[str]
    public: bool
    registry_ranges: tuple[str, ...]
    # Lowest and highest UDP port.
    agent_ports: tuple[int, int]
    nat: bool
    labels: dict[str, str]
    protect: bool
    # Ends the addresses' names, "" in the rendezvous' first zone.
    suffix: str = ""
    # Names of addresses that the rendezvous left behind in other zones.
    kept_addresses: tuple[str, ...] = ()


class FleetNetwork(pulumi.ComponentResource):
    """VPC, subnet with Private Google Access, static addresses, firewall, optionally Cloud NAT."""

    network_id: pulumi.Output[str]
    subnet_id: pulumi.Output[str]
    internal_address: pulumi.Output[str]
    external_address: pulumi.Output[str] | None

    def __init__(
        self, name: str, args: FleetNetworkArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetNetwork", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        kept = pulumi.ResourceOptions(parent=self, protect=args.protect)
        network = gcp.compute.Network(
            f"{name}-network",
            name=name,
            description="Agents, their rendezvous, and nothing else",
            auto_create_subnetworks=False,
            opts=child,
        )
        subnet = gcp.compute.Subnetwork(
            f"{name}-subnet",
            name=name,
            network=network.id,
            region=args.region,
            ip_cidr_range=args.subnet_cidr,
            # VMs without an external address fetch releases and orders from Cloud Storage.
            private_ip_google_access=True,
            opts=child,
        )
        internal = gcp.compute.Address(
            f"{name}-registry-internal{args.suffix}",
            name=f"{name}-registry-internal{args.suffix}",
            address_type="INTERNAL",
            address=args.rendezvous_address,
            subnetwork=subnet.id,
            region=args.region,
            labels=args.labels,
            opts=kept,
        )
        external = (
            gcp.compute.Address(
                f"{name}-registry-external{args.suffix}",
                name=f"{name}-registry-external{args.suffix}",
                address_type="EXTERNAL",
                region=args.region,
                labels=args.labels,
                opts=kept,
            )
            if args.public
            else None
        )

        for address in args.kept_addresses:
            # As it is: only its name is known here.
            gcp.compute.Address(
                address,
                name=address,
                opts=pulumi.ResourceOptions.merge(
                    kept,
                    pulumi.ResourceOptions(
                        ignore_changes=["address", "addressType", "subnetwork", "region", "labels"]
                    ),
                ),
            )

        def allow(
            rule: str, protocol: str, ports: str, sources: list[pulumi.Input[str]], tags: list[str]
        ) -> None:
            gcp.compute.Firewall(
                f"{name}-{rule}",
                name=f"{name}-{rule}",
                network=network.id,
                direction="INGRESS",
                priority=1000,
                allows=[gcp.compute.FirewallAllowArgs(protocol=protocol, ports=[ports])],
                source_ranges=sources,
                target_tags=tags,
                opts=child,
            )

        registrants: list[pulumi.Input[str]] = [args.subnet_cidr, *args.registry_ranges]
        low, high = args.agent_ports
        allow("registry", "tcp", str(REGISTRY_PORT), registrants, [TAG_RENDEZVOUS])
        allow("beacon", "udp", str(BEACON_PORT), registrants, [TAG_RENDEZVOUS])
        allow("agents", "udp", f"{low}-{high}", [args.subnet_cidr], [TAG_SWARM])
        allow("dashboard", "tcp", str(DASHBOARD_PORT), [IAP_RANGE], [TAG_RENDEZVOUS])
        allow("ssh", "tcp", str(SSH_PORT), [IAP_RANGE], [TAG_RENDEZVOUS, TAG_SWARM])

        if args.nat:
            router = gcp.compute.Router(
                f"{name}-router",
                name=name,
                network=network.id,
                region=args.region,
                opts=child,
            )
            gcp.compute.RouterNat(
                f"{name}-nat",
                name=name,
                router=router.name,
                region=args.region,
                nat_ip_allocate_option="AUTO_ONLY",
                source_subnetwork_ip_ranges_to_nat="ALL_SUBNETWORKS_ALL_IP_RANGES",
                opts=child,
            )

        self.network_id = network.id
        self.subnet_id = subnet.id
        self.internal_address = internal.address
        self.external_address = external.address if external is not None else None
        self.register_outputs(
            {
                "networkId": self.network_id,
                "subnetId": self.subnet_id,
                "internalAddress": self.internal_address,
                "externalAddress": self.external_address,
            }
        )
