"""IKE between peers and the GMN: enveloped, authenticated, through the right socket."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from protego_cli.counters import Counters
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.net.callers import BURST, FIRST
from protego_cli.net.relay import IkeRelay
from protego_cli.net.udp import Address, Batch
from protego_cli.wire.envelope import Envelope, open_envelope, seal_envelope
from protego_cli.wire.tags import Tag, TagKind, seal_tag
from tests.support.senders import RecordingSender

KEY = bytes(range(32))
GMN = ("10.10.0.1", 4501)
VIP = "203.0.113.10"
PEER = ("198.51.100.7", 61234)
MESSAGE = bytes(range(100))


class Relay(NamedTuple):
    relay: IkeRelay
    counters: Counters
    fabric: RecordingSender
    natt: RecordingSender
    ike: RecordingSender

    def from_fabric(self, *datagrams: bytes, source: Address = GMN) -> None:
        self.relay.from_fabric(Batch(memoryview(b"".join(datagrams)), len(datagrams[0]), source))


@pytest.fixture
def bench() -> Relay:
    counters = Counters()
    fabric, natt, ike = RecordingSender(), RecordingSender((VIP, 4500)), RecordingSender((VIP, 500))
    relay = IkeRelay(fabric, GMN, counters)
    relay.attach([natt], [ike])
    relay.key = KEY
    return Relay(relay, counters, fabric, natt, ike)


def envelope(port: int, key: bytes = KEY, local: str = VIP) -> bytes:
    return seal_envelope(key, Envelope(local, port, *PEER, MESSAGE), hmac_sha256)


def test_a_peers_message_reaches_the_gmn_with_its_addresses(bench: Relay) -> None:
    bench.relay.from_peer((VIP, 4500), memoryview(MESSAGE), PEER)
    [(data, size, dest, _)] = bench.fabric.sent
    assert (size, dest) == (len(data), GMN)
    assert open_envelope(KEY, data, hmac_sha256) == Envelope(VIP, 4500, *PEER, MESSAGE)
    assert bench.counters.nonzero() == {"gin_ike_in": 1}


def test_the_gmns_answer_leaves_by_the_port_it_names(bench: Relay) -> None:
    bench.from_fabric(envelope(4500))
    bench.from_fabric(envelope(500))
    assert bench.natt.sent == [(bytes(4) + MESSAGE, 104, PEER, 0)]
    assert bench.ike.sent == [(MESSAGE, 100, PEER, 0)]
    assert bench.counters.nonzero() == {"gin_ike_out": 2}


def test_several_envelopes_in_one_batch(bench: Relay) -> None:
    bench.from_fabric(envelope(4500), envelope(4500))
    assert len(bench.natt.sent) == 2


def test_without_an_ike_port_the_other_takes_its_place(bench: Relay) -> None:
    bench.relay.attach([bench.natt], [])
    bench.from_fabric(envelope(500))
    assert bench.natt.sent == [(bytes(4) + MESSAGE, 104, PEER, 0)]


@pytest.mark.parametrize(
    ("datagram", "source", "counted"),
    [
        (envelope(4500, key=bytes(32)), GMN, "gin_drop_envelope"),
        (envelope(4500), ("10.10.0.1", 4502), "gin_drop_envelope"),
        (envelope(4500), ("10.10.0.2", 4501), "gin_drop_envelope"),
        (envelope(4500, local="203.0.113.99"), GMN, "gin_drop_envelope"),
        (b"garbage", GMN, "gin_drop_envelope"),
        (b"", GMN, "gin_drop_envelope"),
        (seal_tag(KEY, Tag(TagKind.PROBE_ECHO, 1), hmac_sha256), ("10.10.0.9", 4500), "gin_drop_tag"),
    ],
)
def test_forged_and_foreign_datagrams_are_counted(
    bench: Relay, datagram: bytes, source: Address, counted: str
) -> None:
    bench.from_fabric(datagram, source=source)
    assert bench.counters.nonzero() == {counted: 1}
    assert not bench.natt.sent


def test_without_a_key_nothing_passes(bench: Relay) -> None:
    bench.relay.key = None
    bench.relay.from_peer((VIP, 4500), MESSAGE, PEER)
    bench.from_fabric(envelope(4500, key=b""))
    assert bench.counters.nonzero() == {"gin_drop_send": 1, "gin_drop_envelope": 1}
    assert not bench.fabric.sent


def test_what_the_kernel_refuses_is_counted(bench: Relay) -> None:
    bench.fabric.accepting = bench.natt.accepting = False
    bench.relay.from_peer((VIP, 4500), MESSAGE, PEER)
    bench.from_fabric(envelope(4500))
    assert bench.counters.nonzero() == {"gin_drop_send": 2}


def test_a_flood_of_first_messages_leaves_room_for_the_others() -> None:
    now = [100.0]
    counters, fabric = Counters(), RecordingSender()
    relay = IkeRelay(fabric, GMN, counters, lambda: now[0])
    relay.key = KEY
    first = bytes(range(8)) + bytes(8) + MESSAGE[16:]
    for _ in range(int(BURST) + 5):
        relay.from_peer((VIP, 500), memoryview(first), PEER)
    for _ in range(3):
        relay.from_peer((VIP, 500), memoryview(MESSAGE), PEER)
    assert len(fabric.sent) == BURST + 3
    assert counters.nonzero() == {"gin_ike_in": BURST + 3, "gin_drop_first": 5}
    now[0] += 2.5 / FIRST
    for _ in range(3):
        relay.from_peer((VIP, 500), memoryview(first), PEER)
    assert counters["gin_drop_first"] == 6
    for _ in range(int(BURST) + 50):
        relay.from_peer((VIP, 4500), memoryview(MESSAGE), PEER)
    assert counters["gin_drop_stranger"] > 0
    relay.attach([RecordingSender((VIP, 4500))], [RecordingSender((VIP, 500))])
    answer = seal_envelope(KEY, Envelope(VIP, 500, *PEER, first), hmac_sha256)
    relay.from_fabric(Batch(memoryview(answer), len(answer), GMN))
    before = len(fabric.sent)
    for _ in range(3):
        relay.from_peer((VIP, 500), memoryview(first), PEER)
    assert len(fabric.sent) == before + 1, "with a cookie, once"
    relay.callers.expect(PEER[0])
    before = len(fabric.sent)
    for message in (first, MESSAGE):
        relay.from_peer((VIP, 500), memoryview(message), PEER)
    assert len(fabric.sent) == before + 2
