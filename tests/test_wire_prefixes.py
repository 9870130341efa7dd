"""The longest prefix that holds an address, against the standard library."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.wire.prefixes import Network, PrefixTable

networks: st.SearchStrategy[Network] = st.one_of(
    st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 32)).map(
        lambda it: ipaddress.IPv4Network(it, strict=False)
    ),
    st.tuples(st.integers(0, (1 << 128) - 1), st.integers(0, 128)).map(
        lambda it: ipaddress.IPv6Network(it, strict=False)
    ),
)


@given(st.lists(networks, max_size=12), st.data())
def test_as_a_search_through_all_of_them(prefixes: list[Network], data: st.DataObject) -> None:
    table = PrefixTable((prefix, place) for place, prefix in enumerate(prefixes))
    inside = [prefix.network_address for prefix in prefixes] + [
        prefix.broadcast_address for prefix in prefixes
    ]
    anywhere = st.ip_addresses()
    address = data.draw(st.one_of(st.sampled_from(inside), anywhere) if inside else anywhere)
    holding = [
        (-prefix.prefixlen, place)
        for place, prefix in enumerate(prefixes)
        if prefix.version == address.version and address in prefix
    ]
    assert table.find(address.packed) == (min(holding)[1] if holding else None)
