"""A GMN as it runs, and the test in the place of its GIN: real envelopes, and a real engine as the peer."""

from __future__ import annotations

from protego_cli.config.model import Cluster
from protego_cli.config.secrets import read_secret
from protego_cli.control.channel.agent import Agent
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.operator_messages import GetStatus, Status, TunnelStatus
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.ike.events import Path
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.roles.policies import policy_of
from protego_cli.wire.envelope import Envelope, open_envelope, seal_envelope
from tests.support.control import FakePlane, until
from tests.support.network import Network, Site

VIP, PEER, TUNNEL = "203.0.113.10", "198.51.100.7", "acme/hq"


class Rig:
    """A running GMN with its nodes; the peer's engine behind the GIN's socket."""

    def __init__(self, cluster: Cluster, socket: UdpSocket) -> None:
        self.cluster = cluster
        self.planes = {node.name: FakePlane() for node in cluster.nodes if node.role != "gmn"}
        node = cluster.nodes[0]
        self.gmn = (node.address, node.ports.fabric)
        self.socket = socket
        self.agents: list[Agent] = []
        self.network = Network(1)
        tunnel = cluster.tunnels()[0]
        ours = policy_of(tunnel, read_secret(tunnel.auth.file))
        self.peer = Site(self.network, PEER, [ours.mirrored(VIP)])

    @property
    def key(self) -> bytes:
        return self.planes["gin-1"].welcomes[-1].envelope_key

    def receive(self, batch: Batch) -> None:
        envelope = open_envelope(self.key, bytes(batch.view), hmac_sha256)
        path = Path(PEER, envelope.remote_port, VIP, envelope.local_port)
        self.peer.engine.receive_datagram(bytes(envelope.data), path, self.network.now)
        self.flush()

    def flush(self) -> None:
        """What the peer has to say goes to the GMN."""
        self.peer.settle()
        for path, data in self.network.sent:
            self.send(
                seal_envelope(
                    self.key, Envelope(VIP, path.remote_port, PEER, path.local_port, data), hmac_sha256
                )
            )
        self.network.sent.clear()

    def send(self, datagram: bytes) -> None:
        assert self.socket.send(datagram, len(datagram), self.gmn)

    async def status(self) -> Status:
        reply = await ask(self.cluster, GetStatus())
        assert isinstance(reply, Status)
        return reply

    async def tunnel(self) -> TunnelStatus:
        return (await self.status()).tunnels[0]

    async def up(self) -> None:
        self.peer.dial(TUNNEL, VIP, port=4500)
        self.flush()
        await until(lambda: self.peer.children)
