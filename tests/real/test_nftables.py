"""Steering by the kernel where it can go wrong: nft missing, refused, killed or slow; fragments."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
import trio
import trio.testing

from protego_cli.config.model import Cluster, Node, Ports
from protego_cli.control.channel.desired_records import Neighbour, Sa, Steer, Tenant, Vtep
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.errors import EnvironmentFault
from protego_cli.net import nft, nftables
from protego_cli.net.nft import Nft, NftFailed
from protego_cli.net.nftables import NftIngress
from protego_cli.net.steering import Door, Gpn, choose
from protego_cli.net.udp import Address
from protego_cli.plugins.steering_backends import Mux, Nftables
from protego_cli.roles.gin import GinPlane
from protego_cli.roles.gpn import GpnPlane
from tests.support.control import until
from tests.support.datagrams import esp, station
from tests.support.esp_reference import padded, seal
from tests.support.gin_world import SPI, SPI2, World, gin_world, serving
from tests.support.gpn_packets import FRAME_IN, GATEWAY_MAC, IN, LOCAL, REMOTE, VNI, VTEP_MAC
from tests.support.netns import Namespace, inside, namespaces
from tests.support.senders import RecordingSender

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

BACKENDS = {"mux": Mux(), "nftables": Nftables()}
DOOR = Door("demo.gin-1", ("203.0.113.10", "203.0.113.11"), 4500)
TABLE = "table ip protego.demo.gin-1"
PEER = ("198.51.100.7", 4500)


@pytest.fixture
def space() -> Iterator[Namespace]:
    with namespaces("nft") as (made,), inside(made), patch.object(nftables, "PATIENCE", 20.0):
        yield made


@pytest.fixture
async def ingress(space: Namespace) -> AsyncIterator[NftIngress]:
    """One by which the kernel steers, nothing yet."""
    with ExitStack() as stack:
        made = NftIngress(RecordingSender(), Counters(), DOOR)
        stack.callback(made.close)
        for number in (1, 2):
            made.put_gpn(Gpn(f"gpn-{number}", (f"10.10.0.2{number}", 4500), bytes(32)))
        await made.tend()
        yield made


@pytest.fixture
async def world() -> AsyncIterator[tuple[World, Namespace]]:
    with gin_world("nftables") as (made, space):
        assert space is not None
        async with serving(made):
            yield made, space


def ruleset(space: Namespace) -> str:
    return space.run("nft", "list", "ruleset")


def elements(space: Namespace) -> dict[int, str]:
    """The kernel's map."""
    listed = space.run("nft", "-nn", "list", "map", "ip", "protego.demo.gin-1", "spis")
    if "elements" not in listed:
        return {}
    pairs = listed.split("elements = {")[1].split("}")[0].split(",")
    return {int(spi, 0): address.strip() for spi, address in (pair.split(" : ") for pair in pairs)}


def child() -> int:
    """The nft that this process runs."""
    (own,) = [
        int(status.parent.name)
        for status in Path("/proc").glob("[0-9]*/status")
        if f"\nPPid:\t{os.getpid()}\n" in (text := _read(status)) and text.startswith("Name:\tnft\n")
    ]
    return own


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # it has ended
        return ""


# ---- the map


async def test_the_map_follows_every_kind_of_change(space: Namespace, ingress: NftIngress) -> None:
    ingress.steer(SPI, "gpn-1", PEER)
    ingress.steer(SPI2, "gpn-3", PEER)  # not known yet
    await ingress.settle()
    assert elements(space) == {SPI: "10.10.0.21"}
    ingress.put_gpn(Gpn("gpn-3", ("10.10.0.23", 4500), bytes(32)))
    ingress.steer(SPI, "gpn-2", PEER)
    await ingress.settle()
    assert elements(space) == {SPI: "10.10.0.22", SPI2: "10.10.0.23"}
    ingress.put_gpn(Gpn("gpn-2", ("10.10.0.29", 4500), bytes(32)))
    ingress.put_gpn(Gpn("gpn-3", ("10.10.0.23", 4600), bytes(32)))  # another port: this process sends there
    await ingress.settle()
    assert elements(space) == {SPI: "10.10.0.29"}
    ingress.drop_gpn("gpn-2")
    ingress.unsteer(SPI2)
    await ingress.settle()
    assert elements(space) == {}
    with pytest.raises(ValueError, match="reserved"):
        ingress.steer(255, "gpn-1", PEER)
    ingress.unsteer(0xDEAD0000)
    ingress.steer(SPI, "gpn-1", PEER)
    ingress.unsteer(SPI)
    await ingress.settle()
    assert elements(space) == {}


async def test_what_changes_while_the_map_is_filled_is_in_it(
    space: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nftables, "PIECE", 10)
    ingress = NftIngress(RecordingSender(), Counters(), DOOR)
    for number in (1, 2):
        ingress.put_gpn(Gpn(f"gpn-{number}", (f"10.10.0.2{number}", 4500), bytes(32)))
    wanted = {}
    for spi in range(300, 1300):
        ingress.steer(spi, "gpn-1", PEER)
        wanted[spi] = "10.10.0.21"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ingress.tend)
        for step in range(300, 1300, 3):
            ingress.steer(step, "gpn-2", PEER)
            ingress.unsteer(step + 1)
            await ingress.settle()  # at once, or when the kernel has it
            wanted |= {step: "10.10.0.22"}
            wanted.pop(step + 1, None)
            assert ingress.forward(step, esp(step, 1), 100, 1, 1, PEER, 0)
            await trio.lowlevel.checkpoint()
    await ingress.settle()
    assert elements(space) == wanted
    ingress.close()


async def test_many_changes_at_once_are_one_transaction(space: Namespace, ingress: NftIngress) -> None:
    for spi in range(1000, 21000):
        ingress.steer(spi, f"gpn-{1 + spi % 2}", PEER)
    await ingress.settle()
    generation = int(space.run("nft", "-a", "list", "tables") and _generation())
    for spi in range(1000, 21000):
        ingress.steer(spi, f"gpn-{2 - spi % 2}", PEER)
    await ingress.settle()
    assert _generation() == generation + 1
    found = elements(space)
    assert len(found) == 20000
    assert all(found[spi] == f"10.10.0.2{2 - spi % 2}" for spi in found)


def _generation() -> int:
    """How many transactions the kernel has taken in this namespace (NFT_MSG_GETGEN)."""
    request = nft._HEADER.pack(20, 10 << 8 | 16, 1, 1, 0) + bytes(4)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.send(request)
        answer = sock.recv(4096)
    return int.from_bytes(nft._attributes(answer[20:])[1])


async def test_changes_of_several_messages_at_once(space: Namespace, ingress: NftIngress) -> None:
    async def change(spi: int) -> None:
        ingress.steer(spi, "gpn-1", PEER)
        await ingress.settle()
        assert spi in ingress._there

    async with trio.open_nursery() as nursery:
        for spi in range(300, 400):
            nursery.start_soon(change, spi)
    assert set(elements(space)) == set(range(300, 400))


async def test_a_message_that_is_given_up_leaves_no_half(space: Namespace, ingress: NftIngress) -> None:
    ingress.steer(SPI, "gpn-1", PEER)
    with trio.CancelScope() as scope:
        scope.cancel()
        await ingress.settle()
    ingress.steer(SPI2, "gpn-2", PEER)
    await ingress.settle()
    assert elements(space) == {SPI: "10.10.0.21", SPI2: "10.10.0.22"}


# ---- packets


async def test_fragments_arrive_whole(world: tuple[World, Namespace]) -> None:
    gin, space = world
    space.ip("link", "set", "lo", "mtu", "1500")
    large = esp(SPI, 1, 4000)
    gin.peer.say(gin.vip, large)
    while (heard := await gin.gpn.hear())[0][:4] != SPI.to_bytes(4):
        pass
    assert heard == (large, gin.fabric), "through the socket, which has it whole"
    names, values = [
        line.split()[1:] for line in space.run("cat", "/proc/net/snmp").splitlines() if line[:3] == "Ip:"
    ]
    assert int(dict(zip(names, values, strict=True))["ReasmOKs"]) >= 1
    await gin.counted(gin_esp_forwarded=1)


async def test_a_merged_batch_reaches_both_of_two_gpns(space: Namespace) -> None:
    """As the kernel hands it on: all by the first SPI. The GPN sends the other's packets back, once."""
    spis, key = (0xC0FFEE11, 0xC0FFEE12), bytes(range(36))
    with ExitStack() as stack:
        peer, vtep, gmn = (stack.enter_context(station(f"127.{n}.0.7")) for n in (20, 40, 50))
        nodes = [Node(f"gpn-{n}", "gpn", f"127.10.0.2{n}") for n in (1, 2)]
        gin = Node("gin-1", "gin", "127.10.0.11", Ports(ike=0))
        control = Node("gmn-1", "gmn", gmn.address[0], Ports(fabric=gmn.address[1]))
        none = Path("none")
        cluster = Cluster("demo", none, ("127.30.0.10",), none, none, (control, gin, *nodes), ())
        plane = GinPlane(cluster, gin, Nftables(), stack)
        registry = Registry(("test", algorithm) for algorithm in ALGORITHMS)
        gpns = [GpnPlane(node, registry, stack) for node in nodes]
        for index, (node, gpn, spi) in enumerate(zip(nodes, gpns, spis, strict=True)):
            tag_key = bytes([index]) * 32
            plane.put(Neighbour(node.name, "gpn", node.address, node.ports.esp, node.ports.vxlan, tag_key))
            plane.put(Steer(spi, node.name, *peer.address))
            gpn.put(Neighbour("gin-1", "gin", gin.address, 0, 0, tag_key))
            gpn.put(Tenant("acme", VNI, GATEWAY_MAC, (Vtep("10.1.0.0/24", *vtep.address, VTEP_MAC),)))
            gpn.put(sa(spi, key, peer.address))
        await plane._steering.tend()
        async with trio.open_nursery() as nursery:
            for role in (plane, *gpns):
                nursery.start_soon(role.serve, lambda *_: None)
            await until(lambda: len(plane._bundler._rooms) == len(nodes))
            numbers = range(1, 21)
            peer.say_batch(
                plane.natt[0].address, *(seal(key, spi, n, padded(IN, 4)) for n in numbers for spi in spis)
            )
            for _ in range(2 * len(numbers)):
                assert (await vtep.hear())[0] == FRAME_IN
            nursery.cancel_scope.cancel()
        assert gpns[0].counters.nonzero() == {"gpn_opened": 20, "gpn_esp_returned": 20}
        assert gpns[1].counters.nonzero() == {"gpn_opened": 20}
        assert plane.report().counters == {"gin_esp_forwarded": 21, "gin_esp_returned": 20}


def sa(spi: int, key: bytes, peer: Address) -> Sa:
    return Sa(
        spi_in=spi,
        spi_out=spi,
        tunnel=f"acme/{spi:x}",
        vni=VNI,
        encryption="aes256gcm16",
        key_in=key,
        key_out=key,
        local_ts=LOCAL,
        remote_ts=REMOTE,
        vip="127.30.0.10",
        peer=peer[0],
        peer_port=peer[1],
        seal_lo=1,
        seal_hi=1 << 30,
    )


async def test_it_goes_on_without_nft_and_then_with_another(
    world: tuple[World, Namespace], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gin, space = world
    ingress = gin.plane._steering
    assert isinstance(ingress, NftIngress)
    monkeypatch.setattr(ingress, "_pause", 0.3)
    gin.peer.say(gin.vip, esp(SPI, 1))
    assert await gin.hear_at_gpn() == esp(SPI, 1)
    await gin.counted(gin_esp_forwarded=1)
    os.kill(child(), signal.SIGKILL)
    with trio.fail_after(10):
        while "protego" in ruleset(space):
            await trio.testing.wait_all_tasks_blocked(0.01)
    gin.peer.say(gin.vip, esp(SPI, 2))
    while (heard := await gin.gpn.hear())[0][:4] != SPI.to_bytes(4):
        pass
    assert heard == (esp(SPI, 2), gin.fabric), "this process passes it on"
    with trio.fail_after(10):
        while "hook prerouting" not in ruleset(space):
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert "the kernel does not steer" in caplog.text
    assert "nft has ended" in caplog.text
    await gin.put(Steer(SPI, "gpn-2", *gin.peer.address))
    gin.peer.say(gin.vip, esp(SPI, 3))
    assert await gin.hear_at_gpn(gin.gpn2) == esp(SPI, 3)
    await gin.counted(gin_esp_forwarded=3)


async def test_without_nft_nothing_piles_up(
    space: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nft, "SEARCHED", str(tmp_path))
    monkeypatch.setattr(nftables, "RETRY", (0.0, 0.0))
    ingress = NftIngress(RecordingSender(), Counters(), DOOR)
    for spi in range(300, 310):
        ingress.steer(spi, "gpn-1", PEER)
        await ingress.settle()
        await ingress.tend()
        assert not ingress._changed
    assert caplog.text.count("reason=nft is not installed") == 10


async def test_nft_that_hangs_is_ended(
    space: Namespace, ingress: NftIngress, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert TABLE in ruleset(space)
    monkeypatch.setattr(nftables, "PATIENCE", 0.2)
    os.kill(child(), signal.SIGSTOP)
    ingress.steer(SPI, "gpn-1", PEER)
    await ingress.settle()
    assert "nft has not answered for 0.2" in caplog.text
    assert ruleset(space) == ""
    assert ingress.forward(SPI, esp(SPI, 1), 100, 1, 1, PEER, 0)


# ---- what is left behind, and what is not touched


async def test_the_table_is_ours_and_goes_with_us(space: Namespace, ingress: NftIngress) -> None:
    other = "table inet filter {\n\tchain in {\n\t}\n}\n"
    space.run("nft", "add table inet filter; add chain inet filter in")
    ingress.steer(SPI, "gpn-1", PEER)
    await ingress.settle()
    assert other in ruleset(space)
    space.run("nft", "flush", "ruleset")  # as a firewall does that starts again
    assert elements(space) == {SPI: "10.10.0.21"}
    space.run("nft", "add table inet filter; add chain inet filter in")
    again = NftIngress(RecordingSender(), Counters(), DOOR)
    await again.tend()  # a second of the same name takes nothing away
    assert elements(space) == {SPI: "10.10.0.21"}
    again.close()
    ingress.close()
    assert ruleset(space) == other


async def test_it_reads_the_kernels_counter(space: Namespace, ingress: NftIngress) -> None:
    assert nft.counted("protego.demo.gin-2", "forwarded") is None
    assert nft.counted("protego.demo.gin-1", "forwarded") == 0
    assert nft.counted("protego.demo.gin-1", "other") is None
    space.run("nft", "add table ip t; add counter ip t c { packets 7 bytes 8 ; }")
    assert nft.counted("t", "c") == 7


async def test_a_refused_script_is_told_and_changes_nothing(space: Namespace) -> None:
    program = Nft()
    await program.run("add table ip t\nadd map ip t m { type ipv4_addr : ipv4_addr; }\n", 5)
    with pytest.raises(NftFailed, match="No such file or directory"):
        await program.run(
            "add element ip t m { 10.0.0.1 : 10.0.0.2 }\ndelete element ip t m { 10.0.0.9 }\n", 5
        )
    with pytest.raises(NftFailed, match="syntax error"):
        await program.run("add elephant\nand more\n", 5)
    await program.run("add element ip t m { 10.0.0.1 : 10.0.0.3 }\n", 5)
    assert "10.0.0.1 : 10.0.0.3" in ruleset(space)
    program.close()
    assert not program.alive


# ---- whether this machine can


def test_it_runs_here_and_leaves_nothing(space: Namespace) -> None:
    space.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    assert nftables.fault() is None
    assert ruleset(space) == ""
    assert choose(BACKENDS, "auto", "gin").name == "nftables"


def test_without_forwarding_it_says_so(space: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    space.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    with pytest.raises(EnvironmentFault, match=r"nftables: .*`sysctl -w net.ipv4.ip_forward=1`"):
        choose(BACKENDS, "nftables", "gin")
    assert choose(BACKENDS, "nftables", "gen").name == "nftables"
    assert choose(BACKENDS, "auto", "gin").name == "mux"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "backend=nftables reason=the kernel passes no packets on" in line


def test_without_nft_it_says_so(space: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nft, "SEARCHED", str(tmp_path))
    assert "`apt install nftables`" in str(nftables.fault())
    with pytest.raises(NftFailed, match="not installed"):
        Nft()


def test_without_privilege_it_says_so(space: Namespace) -> None:
    program = "from protego_cli.net.nftables import fault\nprint(fault())"
    said = space.run(
        *("setpriv", "--bounding-set=-all", "--inh-caps=-all", os.sys.executable, "-c", program),  # type: ignore[attr-defined]
    )
    assert "run as root or with CAP_NET_ADMIN" in said


def test_a_rule_that_is_refused_is_told(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "_HOOK", nftables._HOOK.replace("notrack", "nothing"))
    said = str(nftables.fault())
    assert "nft or the kernel refuses the rule: syntax error" in said
    assert 'set ingress = "mux"' in said
