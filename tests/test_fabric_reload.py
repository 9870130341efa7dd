"""Another cluster file under running nodes, over real mTLS: who comes and goes, what others hear."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from protego_cli.config.model import Cluster, Node, VtepConfig, VxlanAttach
from protego_cli.control.channel import pki
from protego_cli.control.channel.desired_records import Neighbour, Steer, Tenant
from protego_cli.control.channel.fabric import NodeDown
from protego_cli.errors import NotFound
from tests.support import gmn_cluster
from tests.support.control import FakePlane, make_certified, running_gmn, until

GPN3 = Node("gpn-3", "gpn", "127.1.0.5")
REFUSED = "gpn-2 is no data node of the cluster file"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return make_certified(tmp_path)


def with_node(cluster: Cluster, node: Node) -> Cluster:
    """The cluster with a node, in the place of the one of its name."""
    others = [other for other in cluster.nodes if other.name != node.name]
    return msgspec.structs.replace(cluster, nodes=(*others, node))


def without(cluster: Cluster, name: str) -> Cluster:
    return msgspec.structs.replace(cluster, nodes=tuple(n for n in cluster.nodes if n.name != name))


def neighbour(plane: FakePlane, name: str) -> Neighbour:
    record = plane.records["neighbour", name]
    assert isinstance(record, Neighbour)
    return record


async def test_the_same_file_sends_nothing(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        planes = {name: (await gmn.join(name))[0] for name in ("gin-1", "gen-1", "gpn-1")}
        before = {name: list(plane.log) for name, plane in planes.items()}
        gmn.fabric.reload(msgspec.structs.replace(cluster))
        for name in planes:
            await gmn.fabric.applied(name)
        assert {name: plane.log for name, plane in planes.items()} == before


async def test_a_new_node_gets_its_pairs_and_no_other_changes(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        planes = {name: (await gmn.join(name))[0] for name in ("gin-1", "gen-1", "gpn-1")}
        for plane in planes.values():
            plane.log.clear()
        with pytest.raises(NotFound):
            gmn.fabric.desire("gpn-3")
        gmn.fabric.reload(with_node(cluster, GPN3))
        gmn.cluster = with_node(gmn.cluster, GPN3)
        made = pki.init(gmn.cluster)
        assert [path.name for path in made] == ["gpn-3.key", "gpn-3.pem"]
        for name in planes:
            await gmn.fabric.applied(name)
        new, _ = await gmn.join("gpn-3")
        for edge in ("gin-1", "gen-1"):
            assert planes[edge].log == [("put", ("neighbour", "gpn-3"))]
            assert neighbour(planes[edge], "gpn-3").tag_key == neighbour(new, edge).tag_key
            assert neighbour(planes[edge], "gpn-3").tag_key != neighbour(planes[edge], "gpn-1").tag_key
        assert planes["gpn-1"].log == []
        assert new.records["tenant", 1001] == planes["gpn-1"].records["tenant", 1001]
        assert gmn.fabric.connected("gpn") == ["gpn-1", "gpn-3"]


async def test_a_node_that_left_is_let_in_no_more(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    async with running_gmn(cluster) as gmn:
        gin, _ = await gmn.join("gin-1")
        gpn, _ = await gmn.join("gpn-1")
        agent, _ = await gmn.start("gpn-2", FakePlane())
        # the agent is connected before the GMN hears it
        await until(lambda: ("up", "gpn-2") in gmn.observer.log)
        key = neighbour(gin, "gpn-2").tag_key
        gmn.fabric.reload(without(cluster, "gpn-2"))
        await until(lambda: ("down", "gpn-2") in gmn.observer.log)
        await gmn.fabric.applied("gin-1")
        assert ("neighbour", "gpn-2") not in gin.records
        assert gpn.log[-1][0] == "put"
        gmn.fabric.desire("gpn-2", put=[Steer(7000, "gpn-1", "192.0.2.1", 4500)])  # what was under way
        with pytest.raises(NodeDown, match="gpn-2: has left the cluster"):
            await gmn.fabric.applied("gpn-2")
        with pytest.raises(NotFound):
            gmn.fabric.desire("gpn-9")
        assert [node.name for node in gmn.fabric.nodes()] == ["gin-1", "gen-1", "gpn-1"]
        await until(lambda: REFUSED in caplog.text)  # it has tried again
        assert not agent.connected

        gmn.fabric.reload(cluster)
        await until(lambda: agent.connected)
        await gmn.fabric.applied("gin-1")
        assert neighbour(gin, "gpn-2").tag_key != key


async def test_a_node_that_leaves_while_it_connects(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Between its Hello and its Sync: it gets none."""
    async with running_gmn(cluster) as gmn:
        gmn.observer.on_connecting = lambda node: gmn.fabric.reload(without(cluster, "gpn-2"))
        plane = FakePlane()
        agent, _ = await gmn.start("gpn-2", plane)
        await until(lambda: ("connecting", "gpn-2") in gmn.observer.log)
        await until(lambda: REFUSED in caplog.text)
        assert not agent.connected
        assert plane.records == {}
        assert ("up", "gpn-2") not in gmn.observer.log


async def test_another_address_keeps_the_keys(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        gin, _ = await gmn.join("gin-1")
        before = neighbour(gin, "gpn-2")
        gmn.fabric.reload(with_node(cluster, Node("gpn-2", "gpn", "127.1.0.99")))
        await gmn.fabric.applied("gin-1")
        assert neighbour(gin, "gpn-2") == msgspec.structs.replace(before, address="127.1.0.99")


async def test_tenants_come_change_and_go(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        planes = {name: (await gmn.join(name))[0] for name in ("gin-1", "gen-1", "gpn-1")}
        for plane in planes.values():
            plane.log.clear()

        async def reloaded(**tenants: tuple[int, str]) -> dict[int, tuple[str, str]]:
            """With these tenants, as (VNI, VTEP); what the GPN then has of each VNI."""
            (base, *_) = cluster.tenants
            made = []
            for name, (vni, address) in tenants.items():
                attach = VxlanAttach((VtepConfig("10.1.0.0/24", address, bytes(6)),))
                made.append(msgspec.structs.replace(base, name=name, vni=vni, attach=attach, tunnels=()))
            gmn.fabric.reload(msgspec.structs.replace(cluster, tenants=tuple(made)))
            for name in planes:
                await gmn.fabric.applied(name)
            held = [
                {r.vni: (r.name, r.vteps[0].address) for r in plane.records.values() if isinstance(r, Tenant)}
                for plane in (planes["gpn-1"], planes["gen-1"])
            ]
            assert held[0] == held[1]
            return held[0]

        assert await reloaded(a=(1, "127.2.0.1"), b=(2, "127.2.0.2")) == {
            1: ("a", "127.2.0.1"),
            2: ("b", "127.2.0.2"),
        }
        assert await reloaded(a=(2, "127.2.0.1"), b=(1, "127.2.0.2")) == {
            2: ("a", "127.2.0.1"),
            1: ("b", "127.2.0.2"),
        }
        planes["gpn-1"].log.clear()
        assert await reloaded(b=(1, "127.2.0.2")) == {1: ("b", "127.2.0.2")}
        assert planes["gpn-1"].log == [("drop", ("tenant", 2))]
        assert planes["gin-1"].log == []


async def test_gins_know_where_tunnels_have_their_peers(cluster: Cluster) -> None:
    (base, *_) = cluster.tenants
    (tunnel,) = gmn_cluster.make_cluster().tunnels()

    def facing(*peers: str | None) -> Cluster:
        tunnels = tuple(
            msgspec.structs.replace(tunnel, name=f"t{number}", peer=peer) for number, peer in enumerate(peers)
        )
        return msgspec.structs.replace(cluster, tenants=(msgspec.structs.replace(base, tunnels=tunnels),))

    async with running_gmn(cluster) as gmn:
        gmn.fabric.reload(facing("192.0.2.1", "192.0.2.1", "2001:db8::1", None))
        gin, _ = await gmn.join("gin-1")
        gpn, _ = await gmn.join("gpn-1")
        assert {key for key in gin.records if key[0] == "peer"} == {
            ("peer", "192.0.2.1"),
            ("peer", "2001:db8::1"),
        }
        assert not [key for key in gpn.records if key[0] == "peer"]
        gin.log.clear()
        gmn.fabric.reload(facing("192.0.2.1", "192.0.2.3"))
        await gmn.fabric.applied("gin-1")
        assert gin.log == [("put", ("peer", "192.0.2.3")), ("drop", ("peer", "2001:db8::1"))]
