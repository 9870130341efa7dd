"""Frames that are guessed, and batches known by their looks: what a peer may make of them."""

from __future__ import annotations

from typing import Final
from unittest.mock import patch

import pytest

from protego_cli.counters import Counters
from protego_cli.esp import frames
from protego_cli.esp.rows import SizedRow
from protego_cli.esp.sa import InboundSa
from protego_cli.esp.tenants import Vtep
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from tests.support.esp_packets import ipv4
from tests.support.esp_reference import padded, seal
from tests.support.esp_slices import slices
from tests.support.esp_world import (
    ACME,
    BLUE,
    BLUE_VTEP,
    GATEWAY_MAC,
    GCM,
    NOW,
    VTEP,
    VTEP_MAC,
    World,
    marked,
    world,
)

HERE, THERE = "10.1.0.5", "10.2.0.9"
COUNT: Final = 12


def _beside_the_reference(w: World, rows: list[list[bytes]]) -> None:
    """Plaintexts of a batch each, as a peer seals them: what is sent and what is counted."""
    sa, number, sent = w.sa(), 0, []
    with slices(everywhere=True):
        for row in rows:
            packets = []
            for text in row:
                number += 1
                packets.append(seal(sa.key_in, sa.spi_in, number, text))
                w.reference.receive_esp(packets[-1])
            sent += marked(w.receive_esp(*packets))
    assert sent == w.reference.sent_in
    assert w.counters.nonzero() == dict(w.reference.counts)


def test_no_peer_writes_headers_by_what_lies_where_they_were_in_batches_of_another_length() -> None:
    """A peer that knows where frames lie gets a batch known by its looks, in which its packets are long; then
    it has frames laid out for shorter packets with more padding, and sends what looks, where the long ones
    were, as these did, behind headers of another tenant's.
    """
    long = padded(ipv4(THERE, HERE, bytes(50)), 4)
    short = ipv4(THERE, HERE, bytes(30)) + bytes(range(1, 21)) + bytes((20, 4))
    assert len(long) == len(short) == 72
    evil = build_frame_header(BLUE, VTEP_MAC, GATEWAY_MAC, ETHERTYPE_IPV4)
    image = evil + (long + evil[2:]) * (2 * COUNT)
    crafted = [image[at : at + 72] for at in range(22, len(image) - 72, 72)]
    rows = [[long] * COUNT] * 3 + [[short] * COUNT] * 2
    _beside_the_reference(world(), [*rows, crafted[: 2 * COUNT], crafted[:COUNT]])


def test_looks_are_forgotten_with_the_network_that_they_were_judged_by() -> None:
    w, text = world(), padded(ipv4(THERE, HERE, bytes(50)), 4)
    sa, number = w.sa(), 0

    def reached() -> set[object]:
        nonlocal number
        numbers, number = range(number + 1, number + 1 + COUNT), number + COUNT
        sent = marked(w.receive_esp(*[seal(sa.key_in, sa.spi_in, each, text) for each in numbers]))
        return {dest for dest, _, _ in sent}

    with slices(everywhere=True):
        assert [reached() for _ in range(4)] == [{VTEP}] * 4
        w.gateway.put_tenant(ACME, GATEWAY_MAC, [Vtep("10.1.0.0/24", *BLUE_VTEP, VTEP_MAC)])
        assert [reached() for _ in range(4)] == [{BLUE_VTEP}] * 4
        w.gateway.drop_tenant(ACME)
        assert reached() == set()
    assert w.counters.nonzero() == {"gpn_drop_no_vtep": COUNT}


@pytest.mark.parametrize("most", [1, 2])
def test_looks_serve_their_own_sa_however_few_are_remembered(most: int) -> None:
    """Two tunnels of one tenant, behind the same headers: what looks right in one is none of the other's."""
    w, text = world(), padded(ipv4("10.2.8.9", HERE, bytes(50)), 4)
    hq, annex = w.sa(), w.sa("acme/annex")
    own = padded(ipv4("10.2.9.9", HERE, bytes(50)), 4)
    with slices(everywhere=True), patch.object(frames, "MAX_FAMILIAR", most):
        for turn in range(4):
            numbers = range(1 + turn * COUNT, 1 + (turn + 1) * COUNT)
            for sa, inner in ((hq, text), (annex, own)):
                assert (
                    len(marked(w.receive_esp(*[seal(sa.key_in, sa.spi_in, n, inner) for n in numbers]))) == 12
                )
        numbers = range(1 + 4 * COUNT, 1 + 5 * COUNT)
        assert w.receive_esp(*[seal(annex.key_in, annex.spi_in, n, text) for n in numbers]) == []
    assert w.counters.nonzero() == {"gpn_drop_selector_in": COUNT}


@pytest.mark.parametrize("extra", [0, 4, 1])
def test_of_odd_padding_nothing_is_guessed(extra: int) -> None:
    """What is guessed of it would never be right (RFC 4303 2.7), or it could not be opened into place."""
    w, number, calls = world(), 0, []
    sa = w.sa()
    inner = ipv4(THERE, HERE, bytes(50 + extra))
    text = padded(inner[:2] + (70).to_bytes(2) + inner[4:], 4)
    text = text if extra != 1 else inner[:2] + (71).to_bytes(2) + inner[4:] + bytes((0, 4))
    with slices(everywhere=True), patch.object(InboundSa, "open_rows", autospec=True) as opened:
        opened.side_effect = lambda *_: None
        for _ in range(3):
            packets = [seal(sa.key_in, sa.spi_in, n, text) for n in range(number + 1, number + 7)]
            number += len(packets)
            assert len(marked(w.receive_esp_train(*packets, most=2))) == len(packets)
            calls.append(opened.call_count)
    assert calls == ([0, 1, 2] if not extra else [0, 0, 0])


def test_a_layout_that_is_new_is_opened_once() -> None:
    (key, everything), counters = (bytes(range(36)), (TrafficSelector.from_prefix("0.0.0.0/0"),)), Counters()
    sa = InboundSa(300, GCM, key, local_ts=everything, remote_ts=everything)
    text = bytes(1236)
    data = b"".join([seal(key, 300, number, text) for number in (1, 2, 3)])
    slots = [memoryview(bytearray(len(text))) for _ in range(3)]
    opened = sa.open_rows([SizedRow((1, 2, 3), data, len(data) // 3, slots)], counters, NOW)
    assert [list(places) for places in opened or ()] == [[0, 1, 2]]
    assert [bytes(slot) for slot in slots] == [text] * 3
    assert sa.highest == 3
