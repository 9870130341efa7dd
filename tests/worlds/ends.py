"""Where packets begin and end: on-premises gateways, and the tenants' VTEPs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from protego_cli.esp.peer import PeerTunnel
from protego_cli.ike.events import ChildDeleteOffered, ChildSa, Event, Path
from protego_cli.net.udp import Address
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from tests.support.gmn_cluster import VIP
from tests.support.gmn_peer import Peer
from tests.support.network import REGISTRY
from tests.worlds.judge import Broken, Flow
from tests.worlds.net import MARKER, Socket

if TYPE_CHECKING:
    from tests.worlds.realm import Realm

LINGER = 0.3  # seconds that a peer opens an SA which it has deleted itself
IKE_PORT, ESP_PORT = 500, 4500


@dataclass(eq=False)
class Site(Peer):
    """A peer that seals and opens. `abrupt`: it closes an SA the instant the gateway deletes it, as some do.
    One that it deletes itself it opens a little longer: the answer may overtake packets.
    """

    realm: Realm = None  # type: ignore[assignment]
    abrupt: bool = False
    sealing: int | None = None  # its inbound SPI
    socket: Socket = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tunnel = PeerTunnel(self.random.randbytes)
        self.socket = self.realm.net.bind(self.address, ESP_PORT, handler=self.datagram)
        self.ike = self.realm.net.bind(self.address, IKE_PORT, handler=self.message)
        self.realm.net.outside.add(self.address)

    def send(self) -> None:
        """The next packet of its network."""
        packet = self.realm.judge.packet(Flow(self.config.tenant, "in"))
        for datagram in self.tunnel.seal([packet]):
            self.socket.send(datagram, len(datagram), (VIP, ESP_PORT))

    def datagram(self, data: bytes, source: Address) -> None:
        if source != (VIP, ESP_PORT):
            raise Broken(f"{self.address} hears from {source}")
        if data[:4] == MARKER:
            self.receive(data[4:], Path(self.address, self.port, *source))
            return
        for packet in self.tunnel.open([data]):
            self.realm.judge.deliver(Flow(self.config.tenant, "out"), packet)
        for spi in self.tunnel.take_first():
            if spi in self.opens:
                self._use(self.opens[spi])

    def message(self, data: bytes, source: Address) -> None:
        """On the IKE port."""
        self.receive(data, Path(self.address, IKE_PORT, *source))

    def tell(self, path: Path, data: bytes) -> None:
        """Send an IKE message: on the NAT traversal port behind its marker."""
        socket, data = (self.ike, data) if path.local_port == IKE_PORT else (self.socket, MARKER + data)
        socket.send(data, len(data), (path.remote, path.remote_port))

    def _act(self, event: Event) -> None:
        self._at_once = self.abrupt and isinstance(event, ChildDeleteOffered)
        super()._act(event)
        if self.sealing is None and self.opens:  # however lazy: it has no other
            self._use(self.newest)

    def _take(self, child: ChildSa) -> None:
        super()._take(child)
        for key in (child.key_in, child.key_out):
            self.realm.judge.key(key, (self.address, child.spi_in))
        suite = REGISTRY.esp_suite(child.encryption, child.integrity, esn=child.esn)
        self.tunnel.install(
            *(child.spi_in, child.spi_out, suite, child.key_in, child.key_out),
            *(child.local_ts, child.remote_ts),
        )

    def _use(self, child: ChildSa) -> None:
        if child.spi_out not in self.seals:
            self.tunnel.select(child.spi_in)
            self.sealing = child.spi_in
        super()._use(child)

    def _lose(self, spi_in: int) -> None:
        super()._lose(spi_in)
        if self.sealing == spi_in:
            self.sealing = None
            for child in self.seals.values():
                self.tunnel.select(child.spi_in)
                self.sealing = child.spi_in
        if self._at_once:
            self.tunnel.drop(spi_in)
        else:
            self.realm.tasks.start_soon(self._linger, spi_in)

    async def _linger(self, spi_in: int) -> None:
        await trio.sleep(LINGER)
        self.tunnel.drop(spi_in)


class Vtep:
    """A tenant's network. `learns`: it sends to whichever node a packet came from last, as VXLAN has it; else
    to a GEN.
    """

    def __init__(
        self, realm: Realm, tenant: str, vni: int, address: str, gens: list[Address], learns: bool
    ) -> None:
        self.tenant = tenant
        self.learns = learns
        self._realm = realm
        self._gens = gens
        self._mac = realm.mac(address)
        self._out = build_frame_header(vni, realm.gateway_mac, self._mac, ETHERTYPE_IPV4)
        self._in = build_frame_header(vni, self._mac, realm.gateway_mac, ETHERTYPE_IPV4)
        self._learned: Address | None = None
        self._socket = realm.net.bind(address, 4789, handler=self._datagram)

    def send(self) -> None:
        frame = self._out + self._realm.judge.packet(Flow(self.tenant, "out"))
        to = self._learned if self.learns and self._learned else self._gens[0]
        self._socket.send(frame, len(frame), to)

    def turn(self) -> None:
        """To the other GEN from now on; what was learned is forgotten."""
        self._gens.reverse()
        self._learned = None

    def _datagram(self, data: bytes, source: Address) -> None:
        header = data[: len(self._in)]
        if header != self._in:
            raise Broken(f"the VTEP of {self.tenant} gets {header.hex()}, not {self._in.hex()}")
        self._learned = source
        self._realm.judge.deliver(Flow(self.tenant, "in"), data[len(self._in) :])
