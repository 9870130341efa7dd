"""A GIN's data path: the VIP's batches sorted, ESP steered, everything else counted."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.config.model import Rate
from protego_cli.counters import Counters
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.net.gso import segments
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.steering import Gpn
from protego_cli.net.udp import Address, Batch
from protego_cli.net.vip import VipPort
from protego_cli.wire.tags import ORIGIN_LENGTH, Tag, TagKind, open_tag
from tests.support.datagrams import esp
from tests.support.senders import RecordingSender

KEY = bytes(range(32))
PEER = ("198.51.100.7", 4500)
GPN1 = Gpn("gpn-1", ("10.10.0.21", 4500), KEY)
GPN2 = Gpn("gpn-2", ("10.10.0.22", 4500), bytes(32))
SPI1, SPI2 = 0x11223344, 0xAABBCCDD
IKE = bytes(4) + bytes(range(1, 61))  # behind its non-ESP marker


class Gin(NamedTuple):
    fabric: RecordingSender
    counters: Counters
    steering: MuxIngress
    port: VipPort
    ike: list[tuple[bytes, Address]]

    def receive(self, *packets: bytes, source: Address = PEER, tos: int = 0) -> None:
        """A batch on port 4500: equal packets, the last perhaps shorter."""
        self.port.receive_natt(Batch(memoryview(b"".join(packets)), len(packets[0]), source, tos))


@pytest.fixture
def gin() -> Gin:
    return _gin()


def _gin() -> Gin:
    fabric, counters = RecordingSender(), Counters()
    steering = MuxIngress(fabric, counters, lambda: 1.0)
    for gpn in (GPN1, GPN2):
        steering.put_gpn(gpn)
    steering.steer(SPI1, "gpn-1", PEER)
    steering.steer(SPI2, "gpn-2", PEER)
    messages: list[tuple[bytes, Address]] = []
    port = VipPort(lambda data, source: messages.append((bytes(data), source)), steering, counters)
    return Gin(fabric, counters, steering, port, messages)


def test_a_batch_of_one_spi_goes_on_whole_and_untouched(gin: Gin) -> None:
    packets = [esp(SPI1, seq) for seq in range(1, 45)]
    gin.receive(*packets, tos=0x28)
    assert gin.fabric.sent == [(b"".join(packets), 100, GPN1.address, 0x28)]
    assert gin.counters.nonzero() == {"gin_esp_forwarded": 44}


def test_several_spis_are_sorted_each_in_order(gin: Gin) -> None:
    packets = [esp(SPI1 if seq % 3 else SPI2, seq) for seq in range(1, 10)] + [esp(SPI1, 10, 40)]
    gin.receive(*packets)
    first = [packet for packet in packets if packet[:4] == SPI1.to_bytes(4)]
    second = [packet for packet in packets if packet[:4] == SPI2.to_bytes(4)]
    assert sorted(gin.fabric.sent) == sorted(
        [(b"".join(first), 100, GPN1.address, 0), (b"".join(second), 100, GPN2.address, 0)]
    )
    assert gin.counters.nonzero() == {"gin_esp_forwarded": 10}


def test_marks_are_the_highest_sequence_numbers(gin: Gin) -> None:
    gin.receive(esp(SPI1, 7), esp(SPI1, 0x01000002), esp(SPI1, 0x00FFFFFF), esp(SPI1, 9, 20))
    gin.receive(esp(SPI1, 12))
    assert gin.steering.marks([SPI1, SPI2, 0x999]) == {SPI1: 0x01000002, SPI2: 0, 0x999: 0}


def test_marks_of_several_spis_in_one_batch(gin: Gin) -> None:
    gin.receive(esp(SPI2, 900), esp(SPI1, 7), esp(SPI2, 1000), esp(SPI1, 3), esp(SPI2, 2))
    assert gin.steering.marks([SPI1, SPI2]) == {SPI1: 7, SPI2: 1000}


def test_steering_again_moves_the_spi_and_keeps_its_mark(gin: Gin) -> None:
    gin.receive(esp(SPI1, 50))
    gin.steering.steer(SPI1, "gpn-2", PEER)
    gin.receive(esp(SPI1, 40))
    assert [dest for _, _, dest, _ in gin.fabric.sent] == [GPN1.address, GPN2.address]
    assert gin.steering.marks([SPI1]) == {SPI1: 50}
    gin.steering.unsteer(SPI1)
    gin.receive(esp(SPI1, 51))
    assert gin.counters["gin_drop_unknown_spi"] == 1
    assert gin.steering.marks([SPI1]) == {SPI1: 0}


def test_a_gpn_may_be_known_after_its_spis_and_may_move_and_go(gin: Gin) -> None:
    gin.steering.steer(0x5000, "gpn-3", PEER)
    gin.receive(esp(0x5000, 1))
    assert gin.counters["gin_drop_unknown_spi"] == 1
    for address in (("10.10.0.23", 4500), ("10.10.0.33", 4500)):
        gin.steering.put_gpn(Gpn("gpn-3", address, KEY))
        gin.receive(esp(0x5000, 2))
        assert gin.fabric.sent.pop() == (esp(0x5000, 2), 100, address, 0)
    gin.steering.drop_gpn("gpn-3")
    gin.receive(esp(0x5000, 3))
    assert not gin.fabric.sent
    gin.steering.put_gpn(Gpn("gpn-3", ("10.10.0.23", 4500), KEY))
    gin.receive(esp(0x5000, 4))
    assert len(gin.fabric.sent) == 1


def test_a_reserved_spi_is_never_steered(gin: Gin) -> None:
    with pytest.raises(ValueError, match="reserved"):
        gin.steering.steer(255, "gpn-1", PEER)


def test_packets_from_elsewhere_go_in_origin_tags(gin: Gin) -> None:
    packets = [esp(SPI1, seq) for seq in range(1, 4)] + [esp(SPI1, 4, 60)]
    gin.receive(*packets, source=("198.51.100.9", 1027))
    [(data, size, dest, _)] = gin.fabric.sent
    assert (size, dest) == (100 + ORIGIN_LENGTH, GPN1.address)
    opened = [open_tag(KEY, part, hmac_sha256) for part in segments(memoryview(data), size)]
    assert opened == [Tag(TagKind.ORIGIN, 0, bytes([198, 51, 100, 9]), 1027, packet) for packet in packets]
    gin.receive(esp(SPI1, 5), source=(PEER[0], PEER[1] + 1))
    assert open_tag(KEY, gin.fabric.sent[-1][0], hmac_sha256).port == PEER[1] + 1


def test_ike_loses_its_marker_and_goes_to_the_relay(gin: Gin) -> None:
    gin.receive(IKE)
    gin.receive(esp(SPI1, 1, 64), IKE, esp(SPI1, 2, 64), IKE[:40])
    assert gin.ike == [(IKE[4:], PEER), (IKE[4:], PEER), (IKE[4:40], PEER)]
    assert gin.fabric.sent == [(esp(SPI1, 1, 64) + esp(SPI1, 2, 64), 64, GPN1.address, 0)]


def test_ike_of_odd_length_in_a_batch(gin: Gin) -> None:
    message = bytes(4) + bytes(range(1, 62))
    gin.receive(message, message, message[:-1])
    assert [data for data, _ in gin.ike] == [message[4:], message[4:], message[4:-1]]


def test_the_ike_port_takes_raw_messages(gin: Gin) -> None:
    gin.port.receive_ike(Batch(memoryview(bytes(range(28)) + bytes(27)), 28, PEER))
    assert gin.ike == [(bytes(range(28)), PEER)]
    assert gin.counters.nonzero() == {"gin_drop_short": 1}


@pytest.mark.parametrize(
    ("packets", "counted"),
    [
        ([b"\xff"], {"gin_drop_keepalive": 1}),
        ([b"\xff", b"\xff", b"\x00"], {"gin_drop_keepalive": 2, "gin_drop_short": 1}),
        ([b""], {"gin_drop_short": 1}),
        ([b"abc"], {"gin_drop_short": 1}),
        ([bytes(15), bytes(15), bytes(2)], {"gin_drop_short": 3}),
        ([bytes(31)], {"gin_drop_short": 1}),  # a marker with less than an IKE header
        ([esp(SPI1, 1), b"\xff"], {"gin_esp_forwarded": 1, "gin_drop_keepalive": 1}),
        ([esp(SPI1, 1), b"abc"], {"gin_esp_forwarded": 1, "gin_drop_short": 1}),
        ([esp(1, 1), esp(255, 2), esp(5, 3)], {"gin_drop_tag_outside": 3}),
        ([esp(256, 1), esp(0xDEADBEEF, 1)], {"gin_drop_unknown_spi": 2}),
        ([esp(0xDEADBEEF, 1, 101), esp(SPI1, 1, 101)], {"gin_drop_unknown_spi": 1, "gin_esp_forwarded": 1}),
    ],
)
def test_what_is_dropped_is_counted_by_its_reason(
    gin: Gin, packets: list[bytes], counted: dict[str, int]
) -> None:
    gin.receive(*packets)
    assert gin.counters.nonzero() == counted


def test_what_the_kernel_refuses_is_counted(gin: Gin) -> None:
    gin.fabric.accepting = False
    gin.receive(esp(SPI1, 1), esp(SPI1, 2))
    assert gin.counters.nonzero() == {"gin_drop_send": 2}


@given(st.binary(max_size=400), st.integers(1, 120))
def test_every_packet_of_a_hostile_batch_is_counted_once(data: bytes, size: int) -> None:
    counters, ike = Counters(), []
    steering = MuxIngress(RecordingSender(), counters)
    port = VipPort(lambda message, source: ike.append(message), steering, counters)
    port.receive_natt(Batch(memoryview(data), min(size, len(data)), PEER))
    packets = max(1, -(-len(data) // size))
    assert sum(counters.values()) + len(ike) == packets


def test_what_comes_is_counted_by_spi_and_told_when_it_has_changed(gin: Gin) -> None:
    gin.receive(*[esp(SPI1, seq) for seq in range(1, 11)], esp(SPI1, 11, 40))
    gin.receive(esp(SPI2, 1))
    assert {each.of: (each.packets, each.bytes) for each in gin.steering.offered()} == {
        SPI1: (11, 1040),
        SPI2: (1, 100),
    }
    gin.receive(esp(SPI2, 2))
    assert [(each.of, each.packets, each.bytes) for each in gin.steering.offered()] == [(SPI2, 2, 200)]
    assert gin.steering.offered() == []


def test_what_is_above_a_ceiling_is_not_offered(gin: Gin) -> None:
    gin.steering.limit(SPI1, Rate(8_000, 1_000))
    gin.receive(*[esp(SPI1, seq) for seq in range(1, 101)])
    (offered,) = gin.steering.offered()
    assert offered.packets == 100 - gin.counters["gin_drop_limit"] < 100


SHORT = st.tuples(
    st.sampled_from([SPI1, SPI1, SPI1, SPI1, SPI2, 0, 7, 0x999]),
    st.integers(0, 3),  # what the number lacks
    st.sampled_from([8, 16, 40, 100]),
    st.integers(1, 4),
    st.integers(0, 20),  # bytes that the last lacks
    st.sampled_from([PEER, PEER, PEER, PEER, ("198.51.100.8", 4500)]),
    st.sampled_from([0, 0, 0x28]),
)


@given(st.lists(SHORT, min_size=1, max_size=6), st.booleans(), st.booleans())
def test_short_batches_go_together_as_they_would_one_by_one(
    shapes: list[tuple[int, int, int, int, int, Address, int]], limited: bool, accepting: bool
) -> None:
    train, number = [], 0
    for spi, less, size, count, lacking, source, tos in shapes:
        packets = b"".join(esp(spi, (number := number + 1) - min(less, number), size) for _ in range(count))
        packets = packets[: max(len(packets) - lacking, 1)]
        train.append(Batch(memoryview(packets), min(size, len(packets)), source, tos))
    together, singly = _gin(), _gin()
    for gin in (together, singly):
        gin.fabric.accepting = accepting
        if limited:
            gin.steering.limit(SPI1, Rate(8_000, 1_000))
    if not together.port.receive_natt_row(train):
        assert not together.fabric.sent
        assert together.counters.nonzero() == {}
        for batch in train:
            together.port.receive_natt(batch)
    for batch in train:
        singly.port.receive_natt(batch)
    assert together.fabric.sent == singly.fabric.sent
    assert together.ike == singly.ike
    assert together.counters.nonzero() == singly.counters.nonzero()
    assert together.steering.marks([SPI1, SPI2]) == singly.steering.marks([SPI1, SPI2])
    assert together.steering.offered() == singly.steering.offered()


def test_short_batches_of_one_spi_are_looked_at_together(gin: Gin) -> None:
    train = [
        Batch(memoryview(esp(SPI1, 9 - size // 10, size)), size, PEER, tos)
        for size, tos in ((60, 1), (40, 2))
    ]
    assert gin.port.receive_natt_row(train)
    assert [(size, dest, tos) for _, size, dest, tos in gin.fabric.sent] == [
        *((60, GPN1.address, 1), (40, GPN1.address, 2))
    ]
    assert gin.steering.marks([SPI1]) == {SPI1: 5}
    assert gin.counters.nonzero() == {"gin_esp_forwarded": 2}
