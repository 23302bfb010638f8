"""The arithmetic of addresses."""

import pytest

from lab.cloud.compute import addressing
from lab.cloud.compute.addressing import NoAddressError


def test_the_first_host_of_a_subnet_is_2_and_four_addresses_are_kept() -> None:
    assert addressing.first_internal("10.10.0.0/20", set()) == "10.10.0.2"
    assert addressing.first_internal("10.10.0.0/20", {"10.10.0.2"}) == "10.10.0.3"
    assert addressing.gateway("10.10.0.0/20") == "10.10.0.1"
    usable = [n for n in range(8) if addressing.usable("10.0.0.0/29", f"10.0.0.{n}")]
    assert usable == [2, 3, 4, 5]
    assert not addressing.usable("10.0.0.0/29", "10.0.1.2")
    assert not addressing.usable("10.0.0.0/29", "nonsense")
    with pytest.raises(NoAddressError, match="exhausted"):
        addressing.first_internal("10.0.0.0/29", {f"10.0.0.{n}" for n in range(2, 6)})


def test_external_addresses_are_documentation_ranges() -> None:
    assert addressing.first_external(set()) == "203.0.113.1"
    everything: set[str] = set()
    for _ in range(3 * 254):
        everything.add(addressing.first_external(everything))
    with pytest.raises(NoAddressError):
        addressing.first_external(everything)
