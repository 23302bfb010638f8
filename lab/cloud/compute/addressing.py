"""Arithmetic of addresses: which ones a subnet hands out."""

import ipaddress
from collections.abc import Iterator
from typing import Final

EXTERNAL: Final = ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24")
"""Ranges that RFC 5737 keeps for documentation: external addresses here lead nowhere."""


class NoAddressError(Exception):
    """No address is left, or the one asked for cannot be had."""


def usable(cidr: str, address: str) -> bool:
    """Tell whether Compute Engine hands out `address` in the subnet `cidr`.

    It keeps four addresses of each range: the network's, the gateway's, the last but one and the
    broadcast address.
    """
    network = ipaddress.ip_network(cidr)
    try:
        offset = int(ipaddress.ip_address(address)) - int(network.network_address)
    except ValueError:
        return False
    return 2 <= offset <= network.num_addresses - 3


def gateway(cidr: str) -> str:
    """Return a subnet's gateway: its first host."""
    return str(ipaddress.ip_network(cidr)[1])


def first_internal(cidr: str, taken: set[str]) -> str:
    """Return the lowest free address of a subnet; the first one is .2, after the gateway."""
    network = ipaddress.ip_network(cidr)
    for offset in range(2, network.num_addresses - 2):
        address = str(network[offset])
        if address not in taken:
            return address
    message = f"IP space of '{cidr}' is exhausted"
    raise NoAddressError(message)


def first_external(taken: set[str]) -> str:
    """Return the lowest free external address."""
    for address in _externals():
        if address not in taken:
            return address
    message = f"no external address is left ({', '.join(EXTERNAL)} are what this stand-in has)"
    raise NoAddressError(message)


def _externals() -> Iterator[str]:
    for cidr in EXTERNAL:
        yield from (str(host) for host in ipaddress.ip_network(cidr).hosts())


def subnet_problem(cidr: str) -> str | None:
    """Return what is wrong with a subnet's range, or None."""
    try:
        network = ipaddress.IPv4Network(cidr)
    except ValueError as error:
        return f"Must be a valid IPv4 CIDR range: {error}."
    if network.prefixlen > 29 or network.prefixlen < 4:
        return "The prefix length must be between 4 and 29."
    return None


def overlaps(one: str, other: str) -> bool:
    """Tell whether two ranges share addresses."""
    return ipaddress.ip_network(one).overlaps(ipaddress.ip_network(other))
