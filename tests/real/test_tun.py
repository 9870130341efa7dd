"""One Linux machine is a whole VPN gateway: a strongSwan peer, every role on one machine, a tenant that is a
network namespace of it, reached through a TUN device that the GEN makes. And the device by itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from protego_cli.counters import Counters
from protego_cli.errors import EnvironmentFault
from protego_cli.net.attachment import Attachments, Spec
from protego_cli.net.tun import INNER_MTU, TunDevice
from protego_cli.net.udp import Batch
from protego_cli.wire.vxlan import FRAME_LENGTH
from tests.support.netns import Namespace, namespaces, run, stop, wait_until
from tests.support.site import (
    CUSTOMER_INNER,
    CUSTOMER_INNER6,
    TENANT_INNER,
    TENANT_INNER6,
    Site,
    site,
    swanctl_conf,
)
from tests.support.traffic import without_loss

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

REMOTE, REMOTE6 = "10.2.0.0/24", "fd00:2::/64"


def routes(space: Namespace, device: str = "acme0") -> set[str]:
    """What is routed to the device, but for its own addresses' networks."""
    found: set[str] = set()
    for family in ("-4", "-6"):
        shown = run("ip", family, "-n", space.name, "route", "show", "dev", device, check=False)
        found |= {line.split()[0] for line in shown.splitlines() if "proto kernel" not in line}
    return found


def devices(space: Namespace) -> str:
    return space.ip("-o", "link")


def iperf(place: Site, *options: str) -> float:
    """Gbit/s of a TCP transfer from the customer to the tenant, or back with -R."""
    out = place.customer.run(
        *("iperf3", "-c", TENANT_INNER, "-B", CUSTOMER_INNER, "-n", "20M", "-J", *options), timeout=60
    )
    end: dict[str, Any] = json.loads(out)["end"]
    assert end["sum_sent"]["bytes"] >= 20 << 20
    return float(end["sum_received"]["bits_per_second"]) / 1e9


def test_one_machine_is_a_whole_gateway(tmp_path: Path) -> None:
    with site(tmp_path, tun=True) as place:
        assert re.search(rf"acme0: .*UP.* mtu {INNER_MTU} ", devices(place.tenant))
        assert routes(place.tenant) == set()
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        wait_until(lambda: routes(place.tenant) == {REMOTE, REMOTE6}, "the peer's prefixes routed")

        for source, dest in ((CUSTOMER_INNER, TENANT_INNER), (CUSTOMER_INNER6, TENANT_INNER6)):
            place.customer.run("ping", "-c", "3", "-i", "0.05", "-W", "2", "-I", source, dest)
            place.tenant.run("ping", "-c", "3", "-i", "0.05", "-W", "2", "-I", dest, source)
            whole = ("-M", "do", "-s", str(INNER_MTU - (48 if ":" in dest else 28)))
            place.tenant.run("ping", "-c", "1", "-W", "2", *whole, "-I", dest, source)

        server = place.tenant.popen("iperf3", "-s", log=tmp_path / "iperf3.log")
        try:
            wait_until(lambda: ":5201" in place.tenant.run("ss", "-ltn"), "iperf3 listens")
            print({"to the tenant, Gbit/s": iperf(place), "to the peer": iperf(place, "-R")})
        finally:
            stop(server)

        def move() -> list[dict[str, Any]]:
            other = next(name for name in place.gpns if name != place.tunnel()["gpn"])
            back = next(name for name in place.gpns if name != other)
            return [place.migrate(to) for to in (other, back, other)]

        assert len(without_loss(place, move)["action"]) == 3
        assert routes(place.tenant) == {REMOTE, REMOTE6}
        place.swan.terminate()
        wait_until(lambda: routes(place.tenant) == set(), "the routes gone with the tunnel")
        assert "acme0" in devices(place.tenant)
        place.swan.initiate()
        wait_until(lambda: routes(place.tenant) == {REMOTE, REMOTE6}, "the routes back with it")

        gen = place.roles.pop("gen-1")
        assert stop(gen) == 0
        assert "acme0" not in devices(place.tenant)
        assert routes(place.tenant) == set()
        place.start("gen-1")
        wait_until(lambda: routes(place.tenant) == {REMOTE, REMOTE6}, "device and routes back with the GEN")
        place.customer.run("ping", "-c", "1", "-W", "5", "-I", CUSTOMER_INNER, TENANT_INNER)


# ---- the device alone


@pytest.fixture
def space() -> Iterator[Namespace]:
    with namespaces("tun") as (made,):
        yield made


def spec(space: Namespace, **changes: Any) -> Spec:
    values: dict[str, Any] = {
        "tenant": "acme",
        "vni": 1001,
        "mac": b"\2\0\0\0\0\5",
        "gateway_mac": b"\2\0\0\0\0\1",
        "device": "acme0",
        "netns": space.name,
        "addresses": ("10.1.0.1/24", "fd00:1::1/64"),
        "mtu": 1380,
    }
    return Spec(**values | changes)


def test_what_is_in_the_way_is_one_clear_sentence(space: Namespace) -> None:
    space.ip("link", "add", "acme0", "type", "bridge")
    with ExitStack() as stack:
        attachments = Attachments(Counters(), stack)
        remedy = rf"tenants\.acme\.attach: a device 'acme0' exists .*`ip -n {space.name} link del acme0`"
        with pytest.raises(EnvironmentFault, match=remedy):
            attachments.put(spec(space))
        with pytest.raises(EnvironmentFault, match=r"no network namespace 'nowhere'.*ip netns add nowhere"):
            attachments.put(spec(space, netns="nowhere"))
        with pytest.raises(EnvironmentFault, match=r"`ip` refused .*address add 10\.1\.0\.300/24"):
            attachments.put(spec(space, device="acme1", addresses=("10.1.0.300/24",)))
        assert "acme1" not in devices(space)
        space.ip("link", "del", "acme0")
        attachments.put(spec(space))
        assert "acme0" in devices(space)
    assert "acme0" not in devices(space)


def test_a_device_goes_to_another_vni_before_the_one_that_had_it_is_dropped(space: Namespace) -> None:
    """So a message of the GMN comes when a tenant has changed its VNI, or two their devices."""
    with ExitStack() as stack:
        attachments = Attachments(Counters(), stack)
        attachments.put(spec(space))
        attachments.put(spec(space, vni=1002, device="blue0", addresses=()))
        attachments.put(spec(space, vni=1003))
        attachments.drop(1001)
        assert all(name in devices(space) for name in ("acme0", "blue0"))
        attachments.put(spec(space, vni=1003, device="blue0"))
        attachments.put(spec(space, vni=1002))
        assert all(name in devices(space) for name in ("acme0", "blue0"))
        attachments.drop(1003)
        assert "acme0" in devices(space)
        assert "blue0" not in devices(space)


def test_without_privilege_it_says_what_is_needed(space: Namespace) -> None:
    program = (
        "from protego_cli.net.tun import TunDevice\n"
        "TunDevice.open('acme0', {}, mtu=1400, addresses=(), where='here')"
    )
    for netns, needed in ((repr(space.name), "CAP_SYS_ADMIN"), ("None", "CAP_NET_ADMIN")):
        done = subprocess.run(
            ["setpriv", "--bounding-set=-all", "--inh-caps=-all",
             sys.executable, "-c", program.format(netns)],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert "EnvironmentFault: here: " in done.stderr
        assert needed in done.stderr


def test_the_callers_namespace_stays_as_it_was(space: Namespace) -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    device = TunDevice.open("acme0", space.name, mtu=1400, addresses=("10.1.0.1/24",), where="here")
    assert Path("/proc/thread-self/ns/net").readlink() == before
    assert "10.1.0.1/24" in space.ip("addr", "show", "acme0")
    device.close()
    device.close()
    assert "acme0" not in devices(space)


async def until(condition: Callable[[], bool], what: str) -> None:
    with trio.move_on_after(20):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert condition(), what


def echo_request(source: str = "10.1.0.9", dest: str = "10.1.0.1", size: int = 56, tos: int = 0) -> bytes:
    return bytes(IP(src=source, dst=dest, tos=tos) / ICMP(seq=1) / Raw(bytes(size)))


async def test_it_is_made_anew_when_somebody_deletes_it(space: Namespace) -> None:
    heard: list[bytes] = []
    counters = Counters()
    frame = bytes(FRAME_LENGTH) + echo_request()

    def answered() -> bool:
        attachments.deliver(1001, memoryview(frame), len(frame))
        return any(len(each) == len(frame) and each[22 + 20] == 0 for each in heard)

    def hear(batch: Batch) -> None:
        assert batch.source == ("", 0)
        heard.extend(bytes(batch.view[at : at + batch.size]) for at in range(0, len(batch.view), batch.size))

    with ExitStack() as stack:
        attachments = Attachments(counters, stack)
        attachments.put(spec(space))
        attachments.put_route("acme/hq", 1001, ("10.2.0.0/24", "fd00:2::/64"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attachments.serve, hear)
            await until(answered, "an answer to a ping")
            assert heard[-1][:22].hex() == "08000000" + "0003e900" + "020000000001" + "020000000005" + "0800"
            await until(lambda: routes(space) == {REMOTE, REMOTE6}, "routes")
            space.ip("link", "del", "acme0")
            attachments.deliver(1001, memoryview(frame), len(frame))
            assert counters["gen_drop_tun"] == 1
            heard.clear()
            await until(answered, "an answer again")
            await until(lambda: routes(space) == {REMOTE, REMOTE6}, "routes again")
            attachments.drop(1001)
            assert "acme0" not in devices(space)
            attachments.deliver(1001, memoryview(frame), len(frame))
            assert counters["gen_drop_tun"] >= 2
            nursery.cancel_scope.cancel()


async def test_congestion_on_the_way_is_told_to_the_tenant_and_by_it(space: Namespace) -> None:
    """RFC 6040: a ping's answer bears the TOS of the ping, and here leaves in VXLAN of that TOS."""
    heard: list[tuple[int, int]] = []  # TOS outside and inside
    counters = Counters()

    def hear(batch: Batch) -> None:
        inner = bytes(batch.view[FRAME_LENGTH:])
        if inner[0] == 0x45 and inner[9] == 1:
            heard.append((batch.tos, inner[1]))

    with ExitStack() as stack:
        attachments = Attachments(counters, stack)
        attachments.put(spec(space))
        attachments.put_route("acme/hq", 1001, ("10.2.0.0/24",))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attachments.serve, hear)
            for outer, inner, outgoing in ((0, 0x28, 0x28), (3, 0x2A, 0x2B), (0xB9, 2, 1), (3, 3, 3)):

                def answered(outer: int = outer, inner: int = inner, outgoing: int = outgoing) -> bool:
                    frame = bytes(FRAME_LENGTH) + echo_request(tos=inner)
                    attachments.deliver(1001, memoryview(frame), len(frame), outer)
                    return (outgoing, outgoing) in heard

                await until(answered, f"an answer of TOS {outgoing}")
            delivered = counters["gen_delivered"]
            frame = bytes(FRAME_LENGTH) + echo_request(tos=0x28)
            attachments.deliver(1001, memoryview(frame * 3), len(frame), 3)
            assert counters["gen_drop_ecn"] == 3
            assert counters["gen_delivered"] == delivered
            nursery.cancel_scope.cancel()


async def test_a_route_that_is_taken_is_logged_and_left_alone(
    space: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    space.ip("link", "add", "other", "type", "bridge")
    space.ip("link", "set", "other", "up")
    space.ip("route", "add", "10.2.0.0/24", "dev", "other")
    with ExitStack() as stack:
        attachments = Attachments(Counters(), stack)
        attachments.put_route("acme/hq", 1001, ("10.2.0.0/24", "10.3.0.0/24"))
        attachments.put(spec(space))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attachments.serve, lambda _: None)
            await until(lambda: routes(space) == {"10.3.0.0/24"}, "the other route")
            await until(lambda: "routes not installed" in caplog.text, "a line in the log")
            assert "device=acme0 prefixes=10.2.0.0/24 reason=RTNETLINK answers: File exists" in caplog.text
            space.ip("route", "del", "10.2.0.0/24", "dev", "other")
            attachments.put_route("acme/lab", 1001, ("10.4.0.0/24",))  # with the next change
            await until(lambda: routes(space) == {"10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24"}, "all")
            attachments.put_route("acme/hq", 1001, ("10.4.0.0/24",))
            await until(lambda: routes(space) == {"10.4.0.0/24"}, "what one tunnel still has")
            attachments.drop_route("acme/hq")
            attachments.drop_route("acme/lab")
            await until(lambda: routes(space) == set(), "none")
            nursery.cancel_scope.cancel()
