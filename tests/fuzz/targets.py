"""The entrances of Protego: what takes bytes from a network, with seeds of what belongs there.

A target runs one input; whatever it raises is a bug, since it swallows what its entrance may raise. It keeps
its state from input to input where the real one would.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import msgpack

from protego_cli.control.channel import frames
from protego_cli.control.channel.desired_records import Tenant, Vtep
from protego_cli.control.channel.node_messages import GetMarks, Hello, Sync
from protego_cli.control.pools import joining
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.crypto.proposal import parse_ike
from protego_cli.errors import Malformed, StateError
from protego_cli.esp.packet import Dropped, unwrap
from protego_cli.esp.peer import PeerTunnel
from protego_cli.ike.events import Path
from protego_cli.ike.protect import NotAuthentic, Opener, Sealer
from protego_cli.net import answers
from protego_cli.wire import bundle, envelope, ike, inner, payloads, tags, vxlan
from protego_cli.wire.checksum import checksum
from protego_cli.wire.proposals import Proposal, Transform
from protego_cli.wire.selectors import TrafficSelector
from tests.support import questions
from tests.support.esp_packets import ipv4, ipv6, partial, ports
from tests.support.esp_reference import padded, seal
from tests.support.esp_slices import slices
from tests.support.esp_world import GCM, GEN, GEN_KEY, GIN, GIN_KEY, VTEP, entry, sas, world
from tests.support.ike_pairs import GATEWAY, PEER, SPI, TUNNEL, connected, pair
from tests.support.ike_restarts import fresh
from tests.support.network import REGISTRY, Network, Site
from tests.support.senders import RecordingSender


@dataclass(frozen=True)
class Target:
    name: str
    run: Callable[[bytes], None]
    seeds: Sequence[bytes]


def targets() -> list[Target]:
    return [
        *_codecs(),
        _cbc(),
        _established(),
        _authenticated(),
        _handshakes(),
        _states(),
        _esp("esp", GCM),
        _slices(),
        _esp("esp-cbc", REGISTRY.esp_suite("aes256", "sha256", esn=True)),
        _vxlan(),
        _small_path(),
        _answers(),
        _peer(),
    ]


# ---- codecs

TAG = tags.Tag(tags.TagKind.ORIGIN, 7, bytes([192, 0, 2, 1]), 4500, bytes(range(48)))
ENVELOPE = envelope.Envelope(GATEWAY, 4500, PEER, 4500, b"an IKE message")
FRAMES = (
    Hello("boot", "0.1.0", 3),
    GetMarks((1, 2, 3)),
    Sync(1, 2, (Tenant("acme", 1001, bytes(6), (Vtep("10.1.0.0/24", "10.20.0.5", 4789, bytes(6)),)),)),
)
INNER = (
    ipv4("10.1.0.5", "10.2.0.9", ports(7, 9)),
    ipv6("fd00:1::5", "fd00:2::9", ports(7, 9)),
)


EVERYTHING = ike.build_message(
    ike.Header(b"initiate", b"responds", 34, True, False, 7),
    (
        payloads.Sa((Proposal(1, 1, b"", (Transform(1, 20, 256), Transform(2, 5), Transform(4, 31))),)),
        payloads.Ke(31, bytes(32)),
        payloads.Nonce(bytes(24)),
        payloads.IdI(2, b"peer"),
        payloads.IdR(1, bytes(4)),
        payloads.Auth(2, bytes(32)),
        payloads.Notify(16393, b"", 3, b"spi!"),
        payloads.Delete(3, (b"aaaa", b"bbbb")),
        payloads.TsI((TrafficSelector.from_prefix("10.1.0.0/24"), TrafficSelector.from_prefix("fd00::/8"))),
        payloads.TsR((TrafficSelector.from_prefix("10.2.0.0/24"),)),
        payloads.Vendor(b"somebody"),
        payloads.Opaque(200, b"unknown", critical=True),
    ),
)


def csr() -> bytes:
    """A certificate request."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _codecs() -> list[Target]:
    recorded = [*_recorded(), EVERYTHING]

    def codec(name: str, decode: Callable[[bytes], object], seeds: Sequence[bytes]) -> Target:
        def run(data: bytes) -> None:
            with contextlib.suppress(Malformed, Dropped):
                decode(data)

        return Target(name, run, seeds)

    def transport(data: bytes) -> object:
        return inner.parse_transport(data, inner.parse(data))

    return [
        codec("ike", ike.parse_message_untrusted, recorded),
        codec(
            "chain",
            lambda data: payloads.parse_chain_untrusted(data[0] if data else 0, data[1:]),
            [message[16:17] + message[28:] for message in recorded],
        ),
        codec(
            "tag",
            lambda data: tags.open_tag(GIN_KEY, data, hmac_sha256),
            [tags.seal_tag(GIN_KEY, TAG, hmac_sha256)],
        ),
        codec(
            "bundle",
            lambda data: bundle.parse(memoryview(data)),
            [bytes(8).join(bundle.build((3, 8), 8)), bytes(69).join(bundle.build((4, 64, 5, 5), 69))],
        ),
        codec(
            "envelope",
            lambda data: envelope.open_envelope(GIN_KEY, data, hmac_sha256),
            [envelope.seal_envelope(GIN_KEY, ENVELOPE, hmac_sha256)],
        ),
        codec("frame", frames.decode, [frames.encode(1, message)[4:] for message in FRAMES]),
        codec(
            "stream",
            lambda data: list(frames.FrameBuffer(1 << 12).feed(data)),
            [frames.encode(1, message) for message in FRAMES],
        ),
        codec(
            "join-request",
            joining.parse_request_untrusted,
            [msgpack.encode(each) for each in (joining.GetCa(), joining.Join(bytes(12), bytes(32), csr()))],
        ),
        codec(
            "join-reply",
            joining.parse_reply_untrusted,
            [
                msgpack.encode(each)
                for each in (joining.Ca(b"der"), joining.Joined(b"der"), joining.Denied("no"))
            ],
        ),
        codec("csr", joining.parse_csr_untrusted, [csr()]),
        codec(
            "join-token",
            lambda data: joining.parse_token_untrusted(data.decode(errors="replace")),
            [joining.Token("demo", "gpn-1", bytes(32), bytes(12), bytes(32)).text().encode()],
        ),
        codec("inner", inner.parse, INNER),
        codec("transport", transport, INNER),
        codec("vxlan", vxlan.parse, [b"\x08\0\0\0\0\3\xe9\0" + bytes(14) + packet for packet in INNER]),
        codec("unwrap", unwrap, [padded(INNER[0], 4), padded(INNER[1], 6)]),
    ]


def _recorded() -> list[bytes]:
    """The datagrams of a handshake, a rekey and a DELETE."""
    network, _, peer = connected()
    peer.rekey(SPI, 0x22222222)
    network.settle()
    peer.delete(SPI)
    network.settle()
    return list(dict.fromkeys(datagram.data for datagram in network.sent))


# ---- a GEN's own addresses


def _answers() -> Target:
    """Whatever a tenant's VTEP sends to the gateway's addresses."""
    made = answers.Answers(RecordingSender(), Counters())
    vtep = answers.Vtep("10.1.0.0/24", "10.20.0.5", 4789, bytes((2, 0, 0, 0, 0, 5)))
    gateway = ["10.1.0.1", "2001:db8:1::1"]
    made.put_tenant(answers.Tenant(1001, bytes.fromhex("025000001001"), gateway, [vtep]))
    return Target(
        "answers",
        lambda data: made.receive(1001, vtep.address, memoryview(data), len(data)),
        questions.ALL,
    )


# ---- the IKE engine

FAMILIAR = Path(GATEWAY, 4500, PEER, 4500)


def _cbc() -> Target:
    """SK payloads under encrypt-then-MAC, whose lengths alone are looked at before the ICV."""
    suite = parse_ike("aes256-sha256-x25519", REGISTRY)
    header = ike.Header(b"initiate", b"responds", 37, True, False, 1)
    message = Sealer(suite, bytes(32), bytes(32), 1, bytes).seal(header, (payloads.Nonce(bytes(20)),))
    opener = Opener(suite, bytes(32), bytes(32))

    def run(data: bytes) -> None:
        with contextlib.suppress(Malformed, NotAuthentic):
            opener.open_untrusted(data)

    return Target("sk-cbc", run, [message])


def _established() -> Target:
    """A gateway whose IKE_SA stands, and datagrams without proof that bear its SPIs."""
    network, gateway, peer = connected()
    network.sent.clear()
    for site in (peer, gateway):  # requests and responses of the peer, and one of ours left unanswered
        site.check_alive()
        network.settle(1)
    seeds = [datagram.data for datagram in network.sent if datagram.path.local == PEER]
    network.tap = lambda _: None
    gateway.check_alive()

    def run(data: bytes) -> None:
        gateway.engine.receive_datagram(data, FAMILIAR, network.now)
        gateway.settle()
        if not gateway.ikes:
            raise AssertionError("a datagram without proof has ended an IKE_SA")

    return Target("engine", run, seeds)


class _Sealing:
    """A peer that is authentic and malicious: any payloads, properly sealed."""

    def __init__(self) -> None:
        self.network: Network
        self.gateway: Site
        self.peer: Site
        self.restart()

    def restart(self) -> None:
        self.network, self.gateway, self.peer = connected()

    def run(self, data: bytes) -> None:
        """`data`: exchange type, then payloads as type, length and body."""
        if not self.gateway.ikes or not self.peer.ikes:
            self.restart()
        (sa,) = self.peer.context.by_handle.values()
        (theirs,) = self.gateway.context.by_handle.values()
        exchange = 35 + (data[0] % 3 if data else 0)
        header = ike.Header(sa.spi_i, sa.spi_r, exchange, sa.initiator, False, theirs.receiver._expected)
        sent = sa._seal(header, _chopped(data[1:]))
        self.gateway.engine.receive_datagram(sent, FAMILIAR, self.network.now)
        self.gateway.settle()


def _chopped(data: bytes) -> list[payloads.Payload]:
    chopped: list[payloads.Payload] = []
    while len(data) > 2 and len(chopped) < 40:
        kind, length = data[0], data[1]
        if kind != payloads.PayloadType.SK:
            chopped.append(payloads.Opaque(kind or 41, data[2 : 2 + length], bool(length & 1)))
        data = data[2 + length :]
    return chopped


def _authenticated() -> Target:
    sealing = _Sealing()
    seeds = []
    for bodies in (
        [payloads.Delete(3, (b"abcd",))],
        [payloads.Delete(1)],
        [payloads.Notify(16393, b"", 3, b"abcd"), payloads.Nonce(bytes(32))],
        [payloads.TsI((TrafficSelector.from_prefix("10.2.0.0/24"),)), payloads.Ke(31, bytes(32))],
        [],
    ):
        chain = b"".join(bytes((each.type, len(each.body()))) + each.body() for each in bodies)
        seeds += [bytes((exchange,)) + chain for exchange in range(3)]
    return Target("authenticated", sealing.run, seeds)


def _handshakes() -> Target:
    """A gateway and a peer in the middle of a handshake, each taking what the other never sent."""
    network, gateway, peer = pair()
    peer.dial(TUNNEL, GATEWAY, SPI)
    seeds = [datagram.data for datagram in network.sent]
    network.run(lambda: len(network.sent) > 1)
    seeds = [datagram.data for datagram in network.sent]

    def run(data: bytes) -> None:
        source = Path(GATEWAY, 500, PEER, 1024 + len(data))
        gateway.engine.receive_datagram(data, source, network.now)
        gateway.settle()
        peer.engine.receive_datagram(data, Path(PEER, 500, GATEWAY, 500), network.now)
        peer.settle()
        network.now += 1.0
        for site in (gateway, peer):
            site.engine.handle_timer(network.now)
            site.settle()
        network.sent.clear()

    return Target("handshake", run, seeds)


def _states() -> Target:
    """Stored states of IKE_SAs: whatever is restored has to work, too."""
    network, gateway, peer = connected()
    gateway.rekey(gateway.child.spi_in, 0x22222222)
    seeds = [state for site in (gateway, peer) for _, state in site.engine.changes() if state]

    def run(data: bytes) -> None:
        engine = fresh(2)
        with contextlib.suppress(StateError):
            engine.restore([data], network.now)
            engine.handle_timer(network.now + 1e6)
            engine.changes()

    return Target("state", run, seeds)


# ---- the data path

SA = sas()[0]


def _rows(data: bytes) -> list[bytes]:
    """An input as datagrams that came one after another: its first byte says how many."""
    count = 1 + (data[0] % 4 if data else 0)
    return [data[1:]] * count


def _gathered(data: bytes) -> bool:
    """Whether its datagrams come as batches of one, worked on together."""
    return bool(data) and bool(data[0] & 4)


def _esp(name: str, suite: EspSuite) -> Target:
    w = world(suite=suite)
    sa = sas(suite)[0]
    w.gateway.park(0x31323334)

    def run(data: bytes) -> None:
        if _gathered(data):
            w.receive_esp_train(*_rows(data), most=1)
        else:
            w.receive_esp(*_rows(data), source=GIN)

    text = padded(INNER[0], 4, suite=sa.suite)
    packets = [seal(sa.key_in, sa.spi_in, number, text, sa.suite) for number in (1, 2, 3)]
    packets += [tags.seal_tag(GIN_KEY, TAG, hmac_sha256), b"\x31\x32\x33\x34" + bytes(60)]
    packets.append(tags.seal_tag(GIN_KEY, TAG._replace(packet=packets[0]), hmac_sha256))
    packets.append(tags.seal_tag(GIN_KEY, tags.Tag(tags.TagKind.BARRIER, 9), hmac_sha256))
    fresh = seal(sa.key_in, sa.spi_in, 4, text, sa.suite)
    seeds = [bytes((row,)) + packet for packet in packets for row in (0, 3, 7)]
    return Target(name, run, [*seeds, b"\x07" + fresh])


def _slices() -> Target:
    """Forged packets, and hostile ones that a peer has sealed, in batches that are opened into slots."""
    w = world()
    sa, numbers, inner = w.sa(), itertools.count(1), ipv4("10.2.0.9", "10.1.0.5", bytes(20))
    usual = padded(inner, 4)

    def sealed(text: bytes) -> bytes:
        return seal(sa.key_in, sa.spi_in, next(numbers), text, sa.suite)

    def fitting(data: bytes, length: int) -> bytes:
        return data[:length].ljust(length, b"\0")

    def run(data: bytes) -> None:
        with slices(everywhere=True):
            w.receive_esp(sealed(usual), sealed(usual))
            good, hostile, forged = sealed(usual), sealed(fitting(data, len(usual))), sealed(usual)
            w.receive_esp(good, hostile, forged[:8] + fitting(data, len(forged) - 8))

    return Target("slices", run, [usual, sealed(usual)[8:], padded(inner[:-4], 4, extra=4)])


def _vxlan() -> Target:
    w = world()

    def run(data: bytes) -> None:
        for source in (GEN, VTEP):
            if _gathered(data):
                w.receive_vxlan_train(*_rows(data), most=1, source=source)
            else:
                w.receive_vxlan(*_rows(data), source=source)

    head = bytes((8, 0, 0, 0, 0, 3, 0xE9, 0)) + bytes(12)
    packets = [head + b"\x08\x00" + INNER[0], head + b"\x86\xdd" + INNER[1]]
    packets.append(tags.seal_tag(GEN_KEY, tags.Tag(tags.TagKind.BARRIER, 9), hmac_sha256))
    return Target("overlay", run, [bytes((row,)) + packet for packet in packets for row in (0, 3, 7)])


def _small_path() -> Target:
    """Packets that are too long, cut, clamped and finished, over a tunnel that takes little."""
    w = world()
    w.gateway.put_sa(replace(entry(w.sa()), mtu=576, mss="auto"))

    def run(data: bytes) -> None:
        w.receive_vxlan(*_rows(data), source=GEN)

    head = bytes((8, 0, 0, 0, 0, 3, 0xE9, 0)) + bytes(12)
    syn = bytes(12) + bytes((0x60, 2)) + bytes(6) + bytes((2, 4, 5, 0xB4))
    there, there6 = ("10.1.0.5", "10.2.0.9"), ("fd00:1::5", "fd00:2::9")
    seeds = [head + b"\x08\x00" + ipv4(*there, load, protocol=6) for load in (syn, syn + bytes(1500))]
    seeds += [head + b"\x86\xdd" + ipv6(*there6, load, protocol=6) for load in (syn, syn + bytes(1500))]
    seeds += [partial(seed) for seed in seeds]
    datagram = ports(7, 9, bytes(700))
    for field in (0, 0x4000, 0x2005):  # to be cut, to be told of, a fragment already
        packet = ipv4(*there, datagram, fragment=field)
        packet = packet[:10] + checksum(packet[:10], packet[12:20]) + packet[12:]
        seeds.append(head + b"\x08\x00" + packet)
    return Target("small-path", run, [bytes((row,)) + seed for seed in seeds for row in (0, 3)])


def _peer() -> Target:
    tunnel = PeerTunnel(bytes, Counters())
    local, remote = (tuple(map(TrafficSelector.from_prefix, side)) for side in (SA.local, SA.remote))
    tunnel.install(SA.spi_in, SA.spi_out, GCM, SA.key_in, SA.key_out, local, remote)
    tunnel.select(SA.spi_in)

    def run(data: bytes) -> None:
        tunnel.open([data])
        tunnel.seal([data])

    return Target("peer", run, [seal(SA.key_in, SA.spi_in, 1, padded(INNER[0], 4)), INNER[0]])
