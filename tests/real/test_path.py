"""A path to a real peer that is smaller than a tenant's packets: whoever must hears of it, nothing is lost.

tenant, MTU 1500 -- VXLAN -- gateway -- MTU 1300 -- strongSwan
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.netns import Namespace, wait_until
from tests.support.site import (
    CUSTOMER_INNER,
    CUSTOMER_INNER6,
    GATEWAY_INNER,
    GATEWAY_INNER6,
    TENANT_INNER,
    TENANT_INNER6,
    LanProgram,
    Site,
    site,
    swanctl_conf,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PATH = 1300
INNER = 1238  # 1,300 less IP, UDP, ESP, IV, ICV, in blocks of 4, less the trailer's 2


def narrow(place: Site) -> None:
    """The path is small, the tenant does not know, the gateway does."""
    for space, device, mtu in (
        *((place.customer, "wan", PATH), (place.gateway, "wan", PATH)),
        *((place.tenant, "lan", 1600), (place.gateway, "lan", 1600), (place.tenant, "vx0", 1500)),
    ):
        space.ip("link", "set", device, "mtu", str(mtu))
    place.cluster.write_text(place.cluster.read_text() + f"mtu = {PATH}\n")
    place.protego("reload")


def snmp(space: Namespace, name: str) -> int:
    """A counter of the kernel's IP or ICMP in a namespace."""
    rows = [line.split() for line in space.run("cat", "/proc/net/snmp").splitlines()]
    return next(
        int(values[names.index(name)])
        for names, values in zip(rows[0::2], rows[1::2], strict=True)
        if name in names
    )


def ping(space: Namespace, source: str, dest: str, size: int, *, df: bool, check: bool = True) -> str:
    how = "do" if df else "dont"
    return space.run(
        *("ping", "-c", "1", "-W", "5", "-M", how, "-s", str(size), "-I", source, dest), check=check
    )


def test_the_gateway_is_a_hop(tmp_path: Path) -> None:
    """RFC 4301 5.1.2.1: it takes one off the TTL each way, and says where a packet's has run out."""
    ends = (
        (TENANT_INNER, CUSTOMER_INNER, GATEWAY_INNER, "Time to live exceeded"),
        (TENANT_INNER6, CUSTOMER_INNER6, GATEWAY_INNER6, "Time exceeded: Hop limit"),
    )
    with site(tmp_path, gpns=1) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        for tenant, customer, gateway, told in ends:
            for space, source, dest in (
                (place.tenant, tenant, customer),
                (place.customer, customer, tenant),
            ):
                hops = ("ping", "-c", "1", "-W", "5", "-I", source, dest, "-t")
                out = space.run(*hops, "1", check=False)
                assert f"From {gateway}" in out, out
                assert told in out, out
                assert "ttl=63" in space.run(*hops, "3"), "the answer has come through it, too"


def transfer(place: Site, port: str) -> int:
    """Send TCP from the tenant until 200 kB have arrived whole; the MSS that it came to use."""
    sink = LanProgram(place.customer, "sink", CUSTOMER_INNER, port)
    source = LanProgram(place.tenant, "source", TENANT_INNER, CUSTOMER_INNER, port, "12500000")
    seen = {}

    def enough() -> bool:
        told = place.tenant.run("ss", "-tin", "dst", f"{CUSTOMER_INNER}:{port}")
        seen.update(re.findall(r" (mss|bytes_acked):(\d+)", told))
        return int(seen.get("bytes_acked", 0)) > 200_000

    wait_until(enough, "a TCP transfer")
    sent, sunk = source.finish(), sink.result()
    assert sunk["intact"], sunk
    assert sunk["bytes"] == sent["bytes"], (sunk, sent)
    return int(seen["mss"])


def test_a_smaller_path_is_told_and_kept_to(tmp_path: Path) -> None:
    with site(tmp_path, gpns=1) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        narrow(place)
        to_customer = (place.tenant, TENANT_INNER, CUSTOMER_INNER)

        whole = snmp(place.gateway, "FragCreates")
        out = ping(*to_customer, 1400, df=True, check=False)
        assert f"From {GATEWAY_INNER} " in out
        assert f"Frag needed and DF set (mtu = {INNER})" in out
        ping(*to_customer, INNER - 28, df=True)
        place.tenant.ip("route", "flush", "cache")
        ping(*to_customer, 2000, df=False)

        place.tenant.ip("route", "flush", "cache")  # so that TCP has to find out by itself
        assert transfer(place, "7002") > INNER - 40 - 12 - 100
        assert snmp(place.gateway, "FragCreates") == whole, "no ESP packet left in fragments"

        place.cluster.write_text(place.cluster.read_text() + 'mss = "auto"\n')
        place.protego("reload")
        place.tenant.ip("route", "flush", "cache")
        told = snmp(place.tenant, "InDestUnreachs")
        assert transfer(place, "7003") == INNER - 40 - 12, "what the SYNs allow, less a timestamp"
        assert snmp(place.tenant, "InDestUnreachs") == told, "nobody had to be told"

        out = ping(place.tenant, TENANT_INNER6, CUSTOMER_INNER6, 1400, df=True, check=False)
        assert f"From {GATEWAY_INNER6} " in out
        assert "Packet too big: mtu=1280" in out
        ping(place.tenant, TENANT_INNER6, CUSTOMER_INNER6, 1280 - 48, df=True)
        assert snmp(place.gateway, "FragCreates") > whole, "1,280 bytes do not fit once sealed"

        together = snmp(place.gateway, "ReasmOKs")
        ping(place.customer, CUSTOMER_INNER, TENANT_INNER, 1400, df=False)
        assert snmp(place.gateway, "ReasmOKs") > together, "the peer's ESP came in fragments"
