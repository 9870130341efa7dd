"""A tenant with several VTEPs: the longest prefix decides where an opened packet goes, and to which MAC."""

from __future__ import annotations

import ipaddress

import pytest

from protego_cli.esp.tenants import Tenant, Vtep

GATEWAY_MAC = bytes.fromhex("025000001001")
ROUTER, OTHER, HOST = (bytes((2, 0, 0, 0, 0, number)) for number in (5, 6, 7))
VTEPS = [
    Vtep("10.1.0.0/16", "10.20.0.5", 4789, ROUTER),
    Vtep("10.1.7.7/32", "10.20.0.5", 4789, HOST),  # a machine by itself, on the first VTEP's segment
    Vtep("10.1.7.0/24", "10.20.0.6", 4790, OTHER),
    Vtep("fd00:1::/48", "10.20.0.6", 4790, OTHER),
    Vtep("fd00:1::7/128", "10.20.0.5", 4789, HOST),
]


@pytest.mark.parametrize("vteps", [VTEPS, VTEPS[::-1]], ids=["as-listed", "reversed"])
@pytest.mark.parametrize(
    ("destination", "vtep", "mac"),
    [
        ("10.1.0.1", ("10.20.0.5", 4789), ROUTER),
        ("10.1.7.6", ("10.20.0.6", 4790), OTHER),
        ("10.1.7.7", ("10.20.0.5", 4789), HOST),
        ("fd00:1::6", ("10.20.0.6", 4790), OTHER),
        ("fd00:1::7", ("10.20.0.5", 4789), HOST),
    ],
)
def test_the_longest_prefix_wins(
    vteps: list[Vtep], destination: str, vtep: tuple[str, int], mac: bytes
) -> None:
    address = ipaddress.ip_address(destination)
    delivery = Tenant(1001, GATEWAY_MAC, vteps).deliver(address.packed)
    assert delivery is not None
    assert delivery.way.dest == vtep
    ethertype = "0800" if address.version == 4 else "86dd"
    assert delivery.header.hex() == f"080000000003e900{mac.hex()}{GATEWAY_MAC.hex()}{ethertype}"


@pytest.mark.parametrize("destination", ["10.2.0.1", "fd00:2::1"])
def test_what_nobody_serves_goes_nowhere(destination: str) -> None:
    assert Tenant(1001, GATEWAY_MAC, VTEPS).deliver(ipaddress.ip_address(destination).packed) is None


def test_packets_are_taken_from_all_of_them() -> None:
    tenant = Tenant(1001, GATEWAY_MAC, VTEPS)
    assert [tenant.takes_from(f"10.20.0.{host}", ()) for host in (4, 5, 6)] == [False, True, True]


def test_a_vtep_inside_a_gen_speaks_from_the_gens_socket_only() -> None:
    gens = (("10.10.0.3", 4789),)
    inside = Tenant(1001, GATEWAY_MAC, [Vtep("0.0.0.0/0", "10.10.0.3", 4789, ROUTER)])
    assert not inside.takes_from("10.10.0.3", gens)
    beside = Tenant(1001, GATEWAY_MAC, [Vtep("0.0.0.0/0", "10.10.0.3", 4790, ROUTER)])
    assert beside.takes_from("10.10.0.3", gens)
