"""The GMN's side of the control channel: who is there, and what each node should hold.

1. `serve` listens. A certificate of a data node opens a session, the operator's a line to `operator_handler`.
2. A session (`session.py`): `Hello` -> `Welcome`; the observer may still change what is desired
   (`node_connecting`); `Sync`; `node_up`; what the node reports; `node_down` when its link is gone.
3. `desire` changes what a node should hold, and `member.py` delivers it: at once with `push`, and `applied`
   waits until the node acts on it. What is desired outlives connections.
4. From the cluster file the fabric itself desires, with keys that stay the same when the GMN starts anew:
   `Neighbour` records for every pair of a GPN with a GIN or GEN, and `Tenant` records for GENs and GPNs,
   and the `Tun` records of GENs.
   A GIN gets the key of its envelopes with `Welcome`.
5. `reload` takes up another cluster file: new pairs get keys, and no record changes that need not. A node
   that has left may still be desired of and waited for by what was under way: that is as if it were down.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio
from msgspec import structs

from protego_cli.config.model import Cluster, Node, Role, TenantConfig
from protego_cli.control.channel.attachments import known_to, tenant_record, tun_records
from protego_cli.control.channel.desired_records import AnyRecord, Neighbour, Peer, Tenant
from protego_cli.control.channel.frames import NODE_LIMIT
from protego_cli.control.channel.listener import Listener
from protego_cli.control.channel.member import DEADLINE, Member, NodeDown
from protego_cli.control.channel.message import Failed, Key, Reply
from protego_cli.control.channel.messages import AnyRequest
from protego_cli.control.channel.node_messages import GetMarks, Hello, Marks, Report, Welcome
from protego_cli.control.channel.operator_messages import OperatorRequest
from protego_cli.control.channel.pki import OPERATOR, Identity, server_context
from protego_cli.control.channel.rpc import SILENCE, Link
from protego_cli.control.channel.session import FabricObserver, Reported, Session
from protego_cli.control.channel.tls import TlsStream
from protego_cli.control.pools.admissions import Admissions
from protego_cli.control.state.journal import NODE, Journal
from protego_cli.errors import NotFound, ProtegoError, Refused

__all__ = ["Fabric", "FabricObserver", "NodeDown", "NodeState", "Reported"]

log = logging.getLogger(__name__)

OperatorHandler = Callable[[OperatorRequest], Awaitable[Reply]]

OPERATORS: Final = 32  # connections at once
OPERATIONS: Final = 64  # operator requests at once
OPERATOR_SILENCE: Final = 300.0
_KEY_LENGTH: Final = 32
_PAIR: Final = "pair"  # kind of record: two names -> the key that they share


@dataclass(frozen=True)
class NodeState:
    """A data node as it is now."""

    name: str
    role: Role
    address: str
    connected: bool  # and its Sync applied
    boot: str | None  # random per process of the node
    report: Report | None  # the last, also of a node that is gone
    silent: tuple[str, ...]  # GPNs whose probes it misses
    capacity: float = 1.0  # of a GPN
    bandwidth: int = 0  # of a GPN
    raw_esp: bool | None = None  # of a GIN: whether it does without UDP; None while it has not said
    refused: Mapping[Key, str] = field(default_factory=dict)  # what it cannot act on now, and why


class _NoObserver:
    async def node_connecting(self, node: str, restarted: bool) -> None:
        pass

    async def node_up(self, node: str) -> None:
        pass

    async def reported(self, node: str, request: Reported) -> None:
        pass

    async def node_down(self, node: str, reason: str = "") -> None:
        pass


def _state(member: Member) -> NodeState:
    report = member.report
    return NodeState(
        name=member.node.name,
        role=member.node.role,
        address=member.node.address,
        connected=member.up,
        boot=member.boot,
        report=report,
        silent=report.silent if report else (),
        capacity=member.node.capacity,
        bandwidth=member.node.bandwidth,
        raw_esp=member.raw_esp,
        refused=member.refused,
    )


class Fabric:
    """Membership and desired state of all data nodes."""

    def __init__(
        self,
        cluster: Cluster,
        epoch: int,
        journal: Journal,
        *,
        node: Node | None = None,
        deadline: float = DEADLINE,
        silence: float = SILENCE,
        admissions: Admissions | None = None,
    ) -> None:
        """`node` is this GMN (the first of the file when left out); `deadline`, seconds for an Update. What
        an earlier life knew of the nodes comes from the journal. `admissions`: where there are pools.
        """
        self._admissions = admissions
        self.epoch = epoch
        self._journal = journal
        self.observer: FabricObserver = _NoObserver()
        self.operator_handler: OperatorHandler | None = None
        self._silence = silence
        self._pair_keys: dict[bytes, bytes] = {}
        known = {node.name.encode() for node in cluster.nodes}
        for pair, key in journal.found(_PAIR):
            if known.issuperset(pair.split()):
                self._pair_keys[pair] = msgspec.msgpack.decode(key, type=bytes)
            else:  # who left, knows it still
                journal.put(_PAIR, pair, None)
        self._boots = {
            name.decode(): msgspec.msgpack.decode(boot, type=str) for name, boot in journal.found(NODE)
        }
        self._deadline = deadline
        self._cluster = cluster
        self._node = node or cluster.nodes_of("gmn")[0]
        self._listener: Listener | None = None
        self._members: dict[str, Member] = {}
        self._left: set[str] = set()  # members that were
        self._sessions: dict[str, Session] = {}
        self._envelope_keys: dict[str, bytes] = {}
        self._operators = 0
        self._operations = 0
        self._admit(cluster.nodes)
        self._serve_tenants(cluster, cluster, self._members)

    # ---- what the GMN asks

    def nodes(self) -> list[NodeState]:
        """All data nodes of the cluster file, in its order."""
        return [_state(member) for member in self._members.values()]

    def node(self, name: str) -> NodeState | None:
        """One of them."""
        member = self._members.get(name)
        return None if member is None else _state(member)

    def connected(self, role: Role) -> list[str]:
        """The nodes of this role whose Sync is applied and whose link stands."""
        return [name for name, member in self._members.items() if member.node.role == role and member.up]

    def refusing(self, keys: Sequence[Key]) -> set[str]:
        """The nodes that cannot act on one of these records."""
        refusing = [(name, refused) for name, member in self._members.items() if (refused := member.refused)]
        return {name for name, refused in refusing if not refused.keys().isdisjoint(keys)}

    def raw_esp(self) -> bool:
        """Whether all GINs that have ever been there can do without UDP: a peer's packets may come to any."""
        known = [m.raw_esp for m in self._members.values() if m.node.role == "gin" and m.raw_esp is not None]
        return bool(known) and all(known)

    def is_connected(self, node: str) -> bool:
        member = self._members.get(node)
        return member is not None and member.up

    def envelope_key(self, gin: str) -> bytes:
        """The key of the envelopes between this GMN and a GIN."""
        return self._envelope_keys[gin]

    def desire(self, node: str, put: Iterable[AnyRecord] = (), drop: Iterable[Key] = ()) -> None:
        """Change what a node should hold; it hears of it with the next `push`, `applied` or Sync. Puts before
        drops.
        """
        if node not in self._left:
            self._member(node).desire(put, drop)

    def push(self, node: str) -> None:
        """Let a node hear of what is desired of it, if it is there, without waiting for it."""
        if (member := self._members.get(node)) is not None:
            member.push()

    async def applied(self, node: str, barriers: Sequence[str] = (), needs: Iterable[Key] = ()) -> None:
        """Return when a node's data path acts on all that is desired of it and the barriers are passed.

        Sends nothing where the node has heard of all. Raises NodeDown when the node is not there, goes, or
        misses the deadline (what is desired comes with the next Sync); Refused when it cannot act on a record
        that the caller `needs`, or when a barrier is not echoed; NotFound for a node that the cluster file
        does not have.
        """
        if node in self._left:
            raise NodeDown(f"{node}: has left the cluster")
        await self._member(node).flush(needs, tuple(barriers))

    async def marks(self, spis: Sequence[int]) -> dict[int, int]:
        """The highest ESP number that any connected GIN has forwarded for each SPI; empty without GINs, and
        without the SPIs that some GIN cannot know the mark of: one that is missing may be the highest.

        Raises NodeDown when one of them goes or does not answer.
        """
        highest: dict[int, int] = {}
        unknown: set[int] = set()
        failures: list[ProtegoError] = []

        async def ask(name: str) -> None:
            try:
                reply = await self._members[name].live().call(GetMarks(tuple(spis)), DEADLINE)
            except ProtegoError as error:
                failures.append(error)
                return
            marks = reply.marks if isinstance(reply, Marks) else {}
            unknown.update(spi for spi in spis if spi not in marks)
            for spi, mark in marks.items():
                highest[spi] = max(highest.get(spi, 0), mark)

        async with trio.open_nursery() as nursery:
            for name in self.connected("gin"):
                nursery.start_soon(ask, name)
        if failures:
            raise NodeDown(str(failures[0])) from failures[0]
        return {spi: highest[spi] for spi in spis if spi in highest and spi not in unknown}

    # ---- the cluster file

    def reload(self, cluster: Cluster) -> None:
        """Take up another cluster file: nodes and tenants come, change and go. What is equal stays."""
        before, self._cluster = self._cluster, cluster
        if self._listener is not None:
            self._listener.cluster = cluster
        stay = {node.name: node.role for node in cluster.nodes}
        for name, member in list(self._members.items()):
            if stay.get(name) != member.node.role:
                self._dismiss(name)
        self._serve_tenants(before, cluster, self._admit(cluster.nodes))

    def _admit(self, nodes: Iterable[Node]) -> list[str]:
        """The members from now on, each known to those that it speaks with; the names of the new ones."""
        new: list[str] = []
        members: dict[str, Member] = {}  # in the order of the file
        for node in nodes:
            if node.role == "gmn":
                continue
            member = self._members.get(node.name)
            if member is None:
                member = Member(node, self.epoch, self._deadline, self._journal.instruct)
                member.boot = self._boots.pop(node.name, None)
                new.append(node.name)
                self._left.discard(node.name)
            member.node = node
            members[node.name] = member
            if node.role == "gin" and node.name not in self._envelope_keys:
                self._envelope_keys[node.name] = self._pair_key(self._node.name, node.name)
        self._members = members
        gpns = [member for member in members.values() if member.node.role == "gpn"]
        for edge in members.values():
            for gpn in gpns if edge.node.role != "gpn" else ():
                key = self._pair_key(edge.node.name, gpn.node.name)
                edge.desire((_neighbour(gpn.node, key),), ())
                gpn.desire((_neighbour(edge.node, key),), ())
        return new

    def _dismiss(self, name: str) -> None:
        """A node has left the cluster."""
        del self._members[name]
        self._left.add(name)
        self._envelope_keys.pop(name, None)
        self._journal.put(NODE, name.encode(), None)
        for pair in [pair for pair in self._pair_keys if name.encode() in pair.split()]:
            del self._pair_keys[pair]
            self._journal.put(_PAIR, pair, None)
        for member in self._members.values():
            member.desire((), (("neighbour", name),))
        if name in self._sessions:
            self._sessions[name].dismiss(f"{name} is no node of {self._cluster.file} any more")

    def _serve_tenants(self, before: Cluster, cluster: Cluster, new: Collection[str]) -> None:
        """The tenants' records for GENs and GPNs, their peers for GINs: the `new` ones get all, the others
        what differs.
        """
        if before is not cluster and before.tenants is cluster.tenants and not new:
            return  # a node has left, and that is all
        old, now = _tenants(before), _tenants(cluster)
        changed = [entry for vni, entry in now.items() if entry != old.get(vni)]
        drop: list[Key] = [("tenant", vni) for vni in old.keys() - now.keys()]
        were, peers = _peers(before), _peers(cluster)
        for member in self._members.values():
            node = member.node
            if node.role in ("gen", "gpn"):
                known = now.values() if node.name in new else changed
                member.desire([known_to(node, tenant, record) for tenant, record in known], drop)
            if node.role == "gin":
                fresh = peers if node.name in new else peers - were
                member.desire(map(Peer, fresh), [("peer", address) for address in were - peers])
            if node.role == "gen":
                tuns, was = tun_records(cluster, node), tun_records(before, node)
                member.desire(tuns, {tun.key for tun in was} - {tun.key for tun in tuns})

    def _pair_key(self, one: str, other: str) -> bytes:
        """The key of a pair of nodes: from its first day to the end of one of them."""
        pair = f"{one} {other}".encode()
        if pair not in self._pair_keys:
            self._pair_keys[pair] = secrets.token_bytes(_KEY_LENGTH)
            self._journal.put(_PAIR, pair, self._pair_keys[pair])
        return self._pair_keys[pair]

    def _member(self, name: str) -> Member:
        try:
            return self._members[name]
        except KeyError:
            raise NotFound(f"no data node {name!r} in {self._cluster.file}") from None

    # ---- serving

    async def serve(
        self, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve for ever; started with the address and port that are bound. Raises EnvironmentFault."""
        context = server_context(self._cluster, self._node)
        async with trio.open_nursery() as tasks:

            async def welcome(stream: TlsStream, identity: Identity) -> None:
                if identity.role == OPERATOR:
                    await self._serve_operator(stream, identity, tasks)
                else:
                    member = self._members[identity.name]
                    session = Session(member, self.observer, self._sessions, self._greet, self._journal)
                    await session.run(stream, identity, self._silence)

            self._listener = Listener(self._cluster, context, welcome, self._admissions)
            task_status.started(
                await tasks.start(self._listener.serve, self._node.address, self._node.ports.control)
            )

    def _greet(self, hello: Hello, node: Node) -> Reply:
        member = self._members.get(node.name)
        if member is None or member.node is not node:
            raise Refused(f"{node.name} is no node of {self._cluster.file} any more")
        if hello.epoch > self.epoch:
            log.error(
                "a node has seen an epoch above ours: another GMN is active, or the state was lost; stop "
                "this one; if it is the only one, write into %s what was seen, move state.* beside it away, "
                "and start it again node=%s seen=%d ours=%d",
                *(self._cluster.state / "epoch", node.name, hello.epoch, self.epoch),
            )
            raise Refused(
                f"this GMN's epoch {self.epoch} is below {hello.epoch}, which {node.name} has seen: another "
                "GMN is active, or the state directory was lost; the GMN's log says what to do"
            )
        member.raw_esp = hello.raw_esp
        return Welcome(self.epoch, self._envelope_keys.get(node.name, b""))

    # ---- operators

    async def _serve_operator(self, stream: TlsStream, identity: Identity, tasks: trio.Nursery) -> None:
        if self._operators >= OPERATORS:
            log.warning("operator turned away connected=%d", OPERATORS)
            return
        self._operators += 1
        try:
            link = Link(
                stream,
                identity,
                self._operate,
                tasks,
                limit=NODE_LIMIT,
                silence=OPERATOR_SILENCE,
                release=self._journal.release,
            )
            await link.run()
        finally:
            self._operators -= 1

    def _operate(self, request: AnyRequest) -> Reply | Awaitable[Reply]:
        if not isinstance(request, OperatorRequest):
            return Failed(f"an operator may not send {type(request).__name__}")
        if self.operator_handler is None:
            return Failed("this GMN is still starting; try again")
        if self._operations >= OPERATIONS:
            return Failed(f"{OPERATIONS} operator requests are being worked on; try again")
        self._operations += 1
        return self._work(self.operator_handler(request))

    async def _work(self, answer: Awaitable[Reply]) -> Reply:
        try:
            return await answer
        finally:
            self._operations -= 1


def _neighbour(node: Node, key: bytes) -> Neighbour:
    return Neighbour(
        name=node.name,
        role=node.role,
        address=node.address,
        esp_port=node.ports.esp if node.role == "gpn" else 0,
        vxlan_port=node.ports.vxlan if node.role in ("gpn", "gen") else 0,
        tag_key=key,
    )


def _peers(cluster: Cluster) -> set[str]:
    """The addresses of peers that the cluster file names."""
    return {tunnel.peer for tunnel in cluster.tunnels() if tunnel.peer is not None}


def _tenants(cluster: Cluster) -> dict[int, tuple[TenantConfig, Tenant]]:
    """What nodes hold of each VNI's tenant follows from this."""
    return {
        tenant.vni: (structs.replace(tenant, tunnels=()), tenant_record(cluster, tenant))
        for tenant in cluster.tenants
    }
