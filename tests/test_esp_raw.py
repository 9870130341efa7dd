"""A GPN's SAs without UDP: how their packets leave, what fits the path, and what moves a peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.esp.events import PeerMoved
from protego_cli.esp.outbox import Port, Send
from protego_cli.wire.tags import Tag, TagKind, seal_tag
from tests.support.esp_packets import ipv4, passed
from tests.support.esp_reference import padded, seal
from tests.support.esp_site import DF, V4, frame, inner
from tests.support.esp_world import GCM, GIN, GIN_KEY, VIP, VTEP, World, datagrams, entry, world

OUT, IN = ipv4("10.1.0.5", "10.2.0.9", bytes(100)), ipv4("10.2.0.9", "10.1.0.5", bytes(100))
PEER = "198.51.100.7"
ELSEWHERE = bytes([192, 0, 2, 44])


def site(*, raw: bool = True, **options: Any) -> World:
    """acme/hq without UDP."""
    made = world(**options)
    if raw:
        made.sa().peer = (PEER, 0)
        made.gateway.drop_sa(made.sa().spi_in)
        assert made.gateway.put_sa(entry(made.sa())) == []
    return made


def out(made: World, *packets: bytes) -> list[Send]:
    return made.receive_vxlan(*map(frame, packets or (OUT,)))


def esp(made: World, number: int) -> bytes:
    sa = made.sa()
    return seal(sa.key_in, sa.spi_in, number, padded(IN, 4))


def origin(packet: bytes, address: bytes = ELSEWHERE, port: int = 0) -> bytes:
    return seal_tag(GIN_KEY, Tag(TagKind.ORIGIN, 0, address, port, packet), hmac_sha256)


def probe(made: World) -> None:
    assert made.receive_esp(seal_tag(GIN_KEY, Tag(TagKind.PROBE, 7), hmac_sha256))


def test_its_packets_leave_raw_from_the_vip() -> None:
    made = site()
    sa = made.sa()
    (sent,) = out(made, OUT, OUT)
    assert (sent.way.port, sent.way.dest, sent.way.source) == (Port.RAW, (PEER, 0), VIP)
    assert (sent.way.counter, sent.packets) == ("gpn_sealed", 2)
    sealed = [seal(sa.key_out, sa.spi_out, n, padded(passed(OUT), 4), str(GCM)) for n in (1, 2)]
    assert bytes(sent.data) == b"".join(sealed)


def test_without_a_raw_socket_they_leave_through_a_gin_and_others_do_not() -> None:
    made = site(raw_through_gins=True)
    assert out(made) == []
    assert made.counters.nonzero() == {"gpn_drop_no_gin": 1}
    probe(made)
    (sent,) = out(made)
    assert (sent.way.port, sent.way.dest, sent.way.source) == (Port.ESP, GIN, None)
    assert bytes(sent.data[:8]) == made.sa().spi_in.to_bytes(4) + bytes(map(int, VIP.split(".")))
    annex = made.receive_vxlan(frame(ipv4("10.1.0.5", "10.2.9.9", bytes(100))))
    assert [(each.way.port, each.way.dest, each.way.source) for each in annex] == [
        (Port.ESP, made.sa("acme/annex").peer, VIP)
    ]


def test_through_gins_it_is_for_the_gin_to_know() -> None:
    made = site(through_gins=True)
    probe(made)
    (sent,) = out(made)
    assert (sent.way.port, sent.way.dest) == (Port.ESP, GIN)


@pytest.mark.parametrize("length", [1439, 1446, 1447])
def test_eight_bytes_more_fit_its_path(length: int) -> None:
    packet = inner(DF, length)
    for raw, limit in ((True, 1446), (False, 1438)):
        made = site(raw=raw)
        sent = [each for each in out(made, packet) if each.way.port is not Port.VXLAN]
        assert bool(sent) is (length <= limit)
        if sent:
            assert len(sent[0].data) + (20 if raw else 28) <= 1500


FORMS: Sequence[tuple[bool, int]] = [(True, 0), (True, 4500), (True, 61000), (False, 0)]


@pytest.mark.parametrize(("raw", "port"), FORMS)
@pytest.mark.parametrize("address", [ELSEWHERE, bytes(map(int, PEER.split(".")))], ids=["elsewhere", "there"])
def test_either_form_opens_and_moves_nothing(raw: bool, port: int, address: bytes) -> None:
    """Of an SA without UDP nothing moves the peer, of one with UDP nothing that came without."""
    made = site(raw=raw)
    before = made.sa().peer
    opened = made.receive_esp(origin(esp(made, 5), address, port))
    assert [dest for dest, _ in datagrams(opened)] == [VTEP]
    assert not [event for event in made.gateway.take_events() if isinstance(event, PeerMoved)]
    assert [dest for dest, _ in datagrams(out(made))] == [before]


def test_as_the_kernel_of_a_gin_passes_it_on_it_moves_nothing_either() -> None:
    made = site()
    opened = made.receive_esp(esp(made, 1), source=(PEER, 4500))
    assert [dest for dest, _ in datagrams(opened)] == [VTEP]
    assert made.gateway.take_events()[1:] == []
    assert [dest for dest, _ in datagrams(out(made))] == [(PEER, 0)]


def test_forged_packets_of_another_form_open_nothing() -> None:
    made = site()
    packet = esp(made, 1)
    assert made.receive_esp(origin(packet[:-1] + bytes([packet[-1] ^ 1]), port=4500)) == []
    assert made.counters.nonzero() == {"gpn_drop_auth": 1}


def test_what_was_parked_before_the_form_was_known_moves_nothing() -> None:
    """A GIN expects a peer that is dialled where IKE is: what comes without UDP is in ORIGIN tags."""
    made = world()
    sa = made.sa()
    made.gateway.drop_sa(sa.spi_in)
    made.gateway.park(sa.spi_in)
    assert made.receive_esp(origin(esp(made, 1), bytes(map(int, PEER.split("."))))) == []
    sa.peer = (PEER, 0)
    assert [dest for dest, _ in datagrams(made.gateway.put_sa(entry(sa)))] == [VTEP]
    assert [dest for dest, _ in datagrams(out(made))] == [(PEER, 0)]


def test_another_mtu_holds_for_it_at_once() -> None:
    made = site()
    made.gateway.put_sa(replace(entry(made.sa()), mtu=1000))
    sent = [each for each in out(made, inner(V4, 1200)) if each.way.port is Port.RAW]
    sizes = [each.size + 20 for each in sent]
    assert sizes
    assert max(sizes) <= 1000
