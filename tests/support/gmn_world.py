"""The GMN with a real IKE engine, its peers with real engines, and data nodes in memory, on a mock clock.

`World.watch` holds the gateway to its promise after every change of a node or a peer:
- on whatever SA a peer may seal, every GIN steers to a GPN that holds or parks it;
- whatever a GEN routes, or a VTEP sends straight, meets a Rule whose SA the peer can open; where a tunnel has
  several CHILD_SAs with prefixes in common, on whichever of their GPNs the GEN may send it to.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from random import Random
from typing import Literal

import trio

from protego_cli.config.model import (
    Cluster,
    Lifetimes,
    TunnelConfig,
)
from protego_cli.control.channel.desired_records import Route, Rule, Sa, Steer
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.node_messages import FirstPacket
from protego_cli.control.channel.operator_messages import GetStatus, Status, TunnelStatus
from protego_cli.control.operating.commands import Commands
from protego_cli.control.operating.events import EventLog
from protego_cli.control.operating.held import Held
from protego_cli.control.operating.reload import Intent, Reloads
from protego_cli.control.operating.status import Operations
from protego_cli.control.packing.placement import Packer
from protego_cli.control.pools.admissions import Admissions
from protego_cli.control.pools.gpn_operations import GpnOperations
from protego_cli.control.pools.roster import Opened, Roster
from protego_cli.control.procedures.ageing import Ageing
from protego_cli.control.procedures.driver import Driver
from protego_cli.control.procedures.keeper import Keeper
from protego_cli.control.procedures.membership import Membership
from protego_cli.control.procedures.migration import Migrations
from protego_cli.control.procedures.recovery import Recovery
from protego_cli.control.procedures.renewal import Renewals
from protego_cli.control.procedures.restart import Restart
from protego_cli.control.procedures.tunnels import Tunnels
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.spis import SpiAllocator
from protego_cli.control.sas.tunnel import Tunnel
from protego_cli.control.state.journal import ENGINE, Journal
from protego_cli.counters import Counters
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import ProtegoError
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import (
    ChildSa,
    Path,
)
from protego_cli.net.udp import Address
from protego_cli.plugins.packing_policies import FirstFitDecreasing, Spread
from protego_cli.wire.envelope import Envelope, seal_envelope
from protego_cli.wire.ike import parse_header_untrusted
from protego_cli.wire.payloads import ExchangeType
from tests.support.gmn_cluster import VIP, make_cluster, policy_of
from tests.support.gmn_fabric import DataNodes
from tests.support.gmn_peer import Peer
from tests.support.gmn_socket import KEY, EnvelopeSocket
from tests.support.network import REGISTRY
from tests.support.stores import MemoryStore, MortalStore

TUNNEL = "acme/hq"
WALL = 1.8e9  # what the wall clock says when the mock clock says 0
Exchange = ExchangeType


class World:
    def __init__(
        self,
        cluster: Cluster,
        tasks: trio.Nursery,
        seed: int,
        delay: tuple[float, float] = (0.0001, 0.002),
        store: MortalStore | None = None,
    ) -> None:
        self.cluster = cluster
        self.store = store or MemoryStore()
        self.tasks = tasks
        self.seed = seed
        self.random = Random(seed)
        self.nodes = self.make_nodes(delay)
        self.nodes.watch = self.watch
        self.watching = True
        self.interrupted: set[str] = set()  # tunnels that are not watched: a reload makes them anew
        self.wire_delay = (0.0005, 0.003)
        self.lost: Callable[[str, int, bool], bool] = lambda sender, exchange, response: False
        self.file = cluster  # as it would be read
        self.secrets: dict[str, bytes] = {}  # those that are not PSK
        self.fault: ProtegoError | None = None  # of the file
        self.lives = 0
        self.provisioners: dict[str, Opened] = {}  # of the pools
        self.peers: dict[str, Peer] = {}
        self._timers: dict[Peer, trio.Event] = {}
        for tunnel in cluster.tunnels():
            self.add_peer(tunnel)

    # ---- what another world makes of more

    def make_nodes(self, delay: tuple[float, float]) -> DataNodes:
        return DataNodes(self.cluster, self.tasks, self.seed, delay)

    def make_socket(self) -> EnvelopeSocket:
        return EnvelopeSocket(self.to_peer)

    def make_peer(self, tunnel: TunnelConfig, seed: int) -> Peer:
        return Peer(self, tunnel, seed)

    # ---- the GMN's lives

    async def begin(self) -> None:
        """A life of the GMN begins, with what the last has stored."""
        self.lives += 1
        await self.tasks.start(self._live)

    async def _live(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._ended = trio.Event()
        async with trio.open_nursery() as life:
            self._life = life
            await self._assemble(life)
            task_status.started()
            await trio.sleep_forever()
        self._ended.set()

    async def _assemble(self, life: trio.Nursery) -> None:
        """As in roles/gmn.py."""
        cluster = self.file
        self.store = self.store.reborn()
        self.journal = Journal(self.store, dict(self.store.load()), self.store.offload)
        self.nodes.attach(self.journal)
        self.counters = Counters()
        self.socket = self.make_socket()
        self.spis = SpiAllocator(self.random.randbytes, trio.current_time, journal=self.journal)
        self.engine = Engine(
            [policy_of(tunnel) for tunnel in cluster.tunnels()],
            REGISTRY,
            cluster.ike,
            self.random.randbytes,
            self.spis.allocate,
            self.lives,
            self.counters,
            raw_esp=self.nodes.raw_esp,
            wall=WALL,
        )
        self.engine.restore((state for _, state in self.journal.found(ENGINE)), trio.current_time())
        self.journal.engine = self.engine
        self.driver = Driver(
            self.engine,
            self.socket,
            cluster.nodes_of("gin"),
            lambda gin: KEY,
            lambda: self.nodes.connected("gin"),
            self.counters,
            self.journal.release,
        )
        life.start_soon(self.journal.run)
        self.sad = Sad(
            cluster,
            self.nodes,
            Packer(Spread(), "test"),
            self.spis,
            life,
            self.journal,
            EventLog(clock=lambda: WALL + trio.current_time()),
        )
        self.tunnels = Tunnels(self.sad, self.driver, life)
        self.recovery = Recovery(self.sad)
        self.migrations = Migrations(self.sad, self.driver, self.recovery)
        self.renewals = Renewals(self.sad, self.migrations, life)
        self.keeper = Keeper(self.sad, self.tunnels, self.driver, self.random.randbytes)
        self.ageing = Ageing(self.sad, self.tunnels, self.renewals, self.random.randbytes, life)
        self.nodes.observer = Membership(self.sad, self.tunnels, self.recovery, self.renewals, self.ageing)
        packers = {policy.name: Packer(policy, "test") for policy in (Spread(), FirstFitDecreasing())}
        admissions = Admissions(cluster, self.journal, self.sad.events)
        self.roster = Roster(cluster, self.journal, admissions, self.provisioners, self.sad.events)
        self.nodes.reload(self.roster.cluster())
        self.gpns = GpnOperations(
            cluster, 1, self.sad, self.migrations, packers, life, self.roster, admissions
        )
        self.held = Held(self.journal)
        self.commands = Commands(self.sad, self.driver, self.keeper, self.migrations, self.held)
        self.reloads = Reloads(
            self._intent(),
            self._read,
            self.engine,
            self.nodes,
            self.driver,
            self.sad,
            self.keeper,
            self.renewals,
            self.commands,
            self.roster,
            self.gpns.elastic,
            life,
        )
        self.operations = Operations(
            cluster.nodes[0],
            1,
            self.sad,
            self.migrations,
            self.commands,
            self.gpns,
            self.counters,
            lambda: 0.0,
            self.reloads,
        )
        restart = Restart(
            self.roster.cluster(),
            self.journal,
            self.engine,
            self.driver,
            self.sad,
            self.tunnels,
            self.migrations,
            self.keeper,
            self.renewals,
            life,
        )
        restart.restore()
        await self.journal.stored()
        life.start_soon(self.driver.run)
        life.start_soon(self.ageing.run)
        life.start_soon(self.gpns.run, self.nodes)

    def kill_gmn(self) -> None:
        """The GMN ends at this very point: nothing that it does after that has any effect."""
        self.store.alive = self.socket.alive = False
        self.nodes.note("gmn killed")
        self.nodes.gmn_died()
        self._life.cancel_scope.cancel()

    async def gmn_ended(self) -> None:
        await self._ended.wait()

    def life_task(self, call: Callable[..., Awaitable[object]], *args: object) -> None:
        """Something the GMN does; what becomes of it is not looked at."""

        async def run() -> None:
            with contextlib.suppress(ProtegoError):
                await call(*args)

        self._life.start_soon(run)

    async def gmn_returns(self, *, keeper: bool = False) -> None:
        """Its next life begins, and the nodes that run connect to it."""
        await self._ended.wait()
        await self.begin()
        for node in self.nodes.all.values():
            if node.runs:
                self.tasks.start_soon(self._return, node.name)
        if keeper:
            self._life.start_soon(self.keeper.run)

    async def _return(self, name: str) -> None:
        life = self.lives
        await trio.sleep(self.random.uniform(0, 1))
        if (
            life == self.lives
            and self.socket.alive
            and self.nodes.all[name].runs
            and not self.nodes.all[name].linked
        ):
            await self.nodes.start(name, restarted=False)

    def add_peer(self, tunnel: TunnelConfig) -> Peer:
        """The gateway of a tunnel's other side."""
        peer = self.peers[tunnel.peer or ""] = self.make_peer(tunnel, self.seed * 1000 + len(self.peers))
        self.tasks.start_soon(self._keep_time, peer)
        return peer

    def _intent(self) -> Intent:
        secrets = self.secrets
        policies = [policy_of(tunnel) for tunnel in self.file.tunnels()]
        return Intent(
            self.file,
            tuple(replace(policy, psk=secrets.get(policy.tunnel, policy.psk)) for policy in policies),
            Packer(Spread(), "test"),
        )

    async def _read(self) -> Intent:
        if self.fault is not None:
            raise self.fault
        return self._intent()

    # ---- shorthand

    @property
    def log(self) -> list[tuple[object, ...]]:
        return self.nodes.log

    @property
    def tunnel(self) -> Tunnel:
        return self.sad.tunnels[TUNNEL]

    @property
    def peer(self) -> Peer:
        return next(iter(self.peers.values()))

    async def start_nodes(self) -> None:
        for name in self.nodes.all:
            await self.nodes.start(name)

    async def until(
        self, condition: Callable[[], object], limit: float = 120.0, every: float = 0.002
    ) -> None:
        """Let simulated time pass until the condition holds."""
        with trio.fail_after(limit):
            while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of the test
                await trio.sleep(every)

    async def settle(self, seconds: float = 0.5) -> None:
        await trio.sleep(seconds)

    def agreed(self) -> bool:
        """Whether all that was under way has come to its end: both sides have the same, and nobody waits."""
        return (
            self.is_up()
            and all(node.synced for node in self.nodes.all.values())
            and all(len(tunnel.sas) == 1 and tunnel.settled for tunnel in self.sad.tunnels.values())
            and all(len(tunnel.ikes) == 1 for tunnel in self.sad.tunnels.values())
            and all(len(peer.opens) == 1 and len(peer.ikes) == 1 for peer in self.peers.values())
            and not any(peer.waits for peer in self.peers.values())
            and not self.sad.asked
            and not any(sa.renewing or not sa.opens for _, sa in self.sad.all())
        )

    def is_up(self) -> bool:
        return all(
            tunnel.sealing is not None and tunnel.sealing.standing for tunnel in self.sad.tunnels.values()
        )

    async def up(self, *, by: Literal["peer", "gateway"] = "peer") -> None:
        """Every tunnel is established, by whoever begins."""
        if by == "peer":
            for peer in self.peers.values():
                peer.dial()
        else:
            self.tasks.start_soon(self.keeper.run)
        await self.until(lambda: self.is_up() and all(peer.opens for peer in self.peers.values()))
        await self.until(lambda: all(tunnel.settled for tunnel in self.sad.tunnels.values()))

    def tunnels_of_engine(self) -> set[str]:
        """The tunnels that the gateway's engine has an IKE_SA for."""
        return {sa.name for sa in self.engine._context.by_handle.values()}

    async def tunnel_status(self) -> TunnelStatus:
        return (await self.status()).tunnels[0]

    async def status(self) -> Status:
        reply = await self.operations.answer(GetStatus())
        assert isinstance(reply, Status)
        return reply

    def on(self, node: str, kind: str) -> set[int | str]:
        """Keys of the records of a type that a node acts on."""
        return {key for found, key in self.nodes.all[node].held if found == kind}

    def check_clean(self) -> None:
        """Every tunnel lies on one GPN with SAs that seal, and no node holds or is to hold anything else."""
        sas = [placed for tunnel in self.sad.tunnels.values() for placed in tunnel.seals]
        for tunnel in self.sad.tunnels.values():
            assert tunnel.sas
            assert set(tunnel.sas.values()) == set(tunnel.seals), tunnel.id
            assert tunnel.settled
            assert not tunnel.scattered
        for node in self.nodes.all.values():
            if node.role == "gpn":
                here = [placed for placed in sas if placed.gpn == node.name]
                wanted: set[Key] = {("sa", placed.spi) for placed in here}
                wanted |= {("rule", placed.strand.name) for placed in here}
            elif node.role == "gin":
                wanted = {("steer", placed.spi) for placed in sas}
            else:
                wanted = {("route", placed.strand.name) for placed in sas}
            assert set(node.desired) == wanted, node.name
            if node.up:
                assert node.held == node.desired, f"{node.name} holds {node.held}, not {node.desired}"

    def ordered(self, *steps: tuple[object, ...]) -> None:
        """Each step is in the log behind the one before. A step matches an entry with the same first two
        fields that holds its other fields anywhere.
        """
        last = -1
        for step in steps:
            found = next((i for i, entry in enumerate(self.log) if i > last and _matches(step, entry)), None)
            assert found is not None, f"{step} does not come after entry {last}:\n{self.text()}"
            last = found

    def never_before(self, step: tuple[object, ...], other: tuple[object, ...]) -> None:
        """`step` does not occur before the first `other`."""
        end = next(i for i, entry in enumerate(self.log) if _matches(other, entry))
        assert not any(_matches(step, entry) for entry in self.log[:end]), (
            f"{step} is before {other}:\n{self.text()}"
        )

    def text(self) -> str:
        return "\n".join(map(str, self.log))

    # ---- the wire

    def to_peer(self, envelope: Envelope) -> None:
        peer = self.peers.get(envelope.remote)
        header = parse_header_untrusted(bytes(envelope.data))
        self.nodes.note("wire", "gmn", Exchange(header.exchange).name, header.response)
        if peer is not None and not self.lost("gmn", header.exchange, header.response):
            path = Path(envelope.remote, envelope.remote_port, envelope.local, envelope.local_port)
            self.tasks.start_soon(self._later, peer.receive, bytes(envelope.data), path)

    def first_message(self) -> bytes:
        """The envelope of a peer's IKE_SA_INIT request."""
        peer = self.peer
        path = Path(peer.address, peer.port, VIP, 4500)
        peer.engine.initiate(peer.config.id, path, peer.spi(), trio.current_time())
        (datagram,) = peer.engine.datagrams_to_send()
        return seal_envelope(KEY, Envelope(VIP, 4500, peer.address, peer.port, datagram.data), hmac_sha256)

    def to_gateway(self, peer: Peer, path: Path, data: bytes) -> None:
        header = parse_header_untrusted(data)
        self.nodes.note("wire", "peer", Exchange(header.exchange).name, header.response)
        gins = [node.name for node in self.nodes.running("gin")]
        if gins and not self.lost("peer", header.exchange, header.response):
            name = self.random.choice(gins)
            gin = self.file.node(name) or self.cluster.node(name)
            assert gin is not None
            envelope = Envelope(path.remote, path.remote_port, path.local, path.local_port, data)
            sealed = seal_envelope(KEY, envelope, hmac_sha256)
            self.tasks.start_soon(self._later, self._to_gmn, sealed, (gin.address, gin.ports.fabric))

    def _to_gmn(self, sealed: bytes, source: Address) -> None:
        if self.socket.alive:
            self.socket.put(sealed, source)

    async def _later(self, call: Callable[..., None], *args: object) -> None:
        await trio.sleep(self.random.uniform(*self.wire_delay))
        call(*args)

    def packet(self, spi: int) -> None:
        """A peer's packet goes out on an SPI."""
        self.tasks.start_soon(self._packet, spi)

    async def _packet(self, spi: int) -> None:
        await trio.sleep(self.random.uniform(*self.wire_delay))
        for gin in self.nodes.running("gin"):
            steer = gin.held.get(("steer", spi))
            if isinstance(steer, Steer) and steer.gpn in self.nodes.all:
                await self._open(self.nodes.all[steer.gpn].name, spi)
                return

    async def _open(self, gpn: str, spi: int) -> None:
        node = self.nodes.all[gpn]
        while node.up and ("park", spi) in node.held and ("sa", spi) not in node.held:  # noqa: ASYNC110
            await trio.sleep(0.001)  # it waits in the parking buffer
        if node.up and ("sa", spi) in node.held:
            self.nodes.notify(gpn, FirstPacket(spi))

    # ---- time

    def timer_changed(self, peer: Peer) -> None:
        if peer in self._timers:
            self._timers[peer].set()

    async def _keep_time(self, peer: Peer) -> None:
        while True:
            self._timers[peer] = trio.Event()
            deadline = peer.engine.timer()
            with trio.move_on_at(float("inf") if deadline is None else deadline):
                await self._timers[peer].wait()
            if deadline is not None and deadline <= trio.current_time():
                peer.engine.handle_timer(trio.current_time())
                peer.work()

    # ---- the promise

    def watch(self) -> None:
        if not self.watching:
            return
        for peer in self.peers.values():
            for spi in peer.seals if peer.config.id not in self.interrupted else ():
                self._check_inbound(spi)
        for node in self.nodes.all.values():
            if node.up:
                routes = [record for record in node.held.values() if isinstance(record, Route)]
                for record in list(node.held.values()):
                    if isinstance(record, Route):
                        for gpn in {other.gpn for other in routes if _meet(record, other)}:
                            self._check_rule(gpn, record.tunnel)
                    elif isinstance(record, Rule) and record.direct:
                        self._check_rule(node.name, record.tunnel)

    def _check_inbound(self, spi: int) -> None:
        for gin in self.nodes.running("gin"):
            steer = gin.held.get(("steer", spi))
            assert isinstance(steer, Steer), f"{gin.name} does not steer {spi:08x}"
            gpn = self.nodes.all[steer.gpn]
            if gpn.up:
                assert ("sa", spi) in gpn.held or ("park", spi) in gpn.held, (
                    f"{spi:08x} is lost on {gpn.name}"
                )

    def _check_rule(self, gpn: str, name: str) -> None:
        tunnel = name.partition("#")[0]
        if tunnel in self.interrupted:
            return
        node = self.nodes.all[gpn]
        config = self.sad.tunnels[tunnel].config
        peer = self.peers[config.peer or ""]
        if not node.up or not peer.opens:
            return
        rule = node.held.get(("rule", name))
        assert isinstance(rule, Rule), f"{name} is routed to {gpn}, which has no rule for it"
        sa = node.held.get(("sa", rule.spi_in))
        assert isinstance(sa, Sa), f"{gpn} seals {name} on an SA it does not have"
        if not peer.heard_of(sa.spi_out) and not any(_share(sa, child) for child in peer.opens.values()):
            return  # these packets had no way before, as with the tunnel's first SA
        assert sa.spi_out in peer.opens, f"{gpn} seals {name} on {sa}, which its peer cannot open"


def _meet(one: Route, other: Route) -> bool:
    """Whether both are of one tunnel, and may take the same packet."""
    if one.tunnel.partition("#")[0] != other.tunnel.partition("#")[0]:
        return False
    prefixes, others = map(ip_network, one.prefixes), tuple(map(ip_network, other.prefixes))
    return any(prefix.overlaps(its) for prefix in prefixes for its in others)


def _share(sa: Sa, child: ChildSa) -> bool:
    """Whether the peer's CHILD_SA may take the same packet."""
    return all(
        any(mine.intersect(its) for mine in ours for its in theirs)
        for ours, theirs in ((sa.local_ts, child.remote_ts), (sa.remote_ts, child.local_ts))
    )


def _matches(step: tuple[object, ...], entry: tuple[object, ...]) -> bool:
    return len(entry) >= 2 and entry[:2] == step[:2] and all(part in entry for part in step[2:])


@asynccontextmanager
async def world(
    seed: int = 1,
    *,
    tunnels: int = 1,
    start: Literal["wait", "auto"] = "wait",
    delay: tuple[float, float] = (0.0001, 0.002),
    nodes: bool = True,
    store: MortalStore | None = None,
    gins: int = 2,
    lifetimes: Lifetimes | None = None,
    cluster: Cluster | None = None,
    **settings: float,
) -> AsyncIterator[World]:
    """A gateway whose nodes are up, and peers that have not dialled. `store` keeps the GMN's state; `cluster`
    is one that is made already.
    """
    cluster = cluster or make_cluster(tunnels, start, gins, lifetimes, **settings)
    async with trio.open_nursery() as tasks:
        found = World(cluster, tasks, seed, delay, store)
        await found.begin()
        if nodes:
            await found.start_nodes()
        yield found
        tasks.cancel_scope.cancel()
