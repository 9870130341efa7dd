"""The IKEv2 codec: inverse of itself, never anything but Malformed, and agreeing with scapy."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.ikev2 import (
    IKEv2,
    IKEv2_KE,
    IKEv2_Nonce,
    IKEv2_Notify,
    IKEv2_Proposal,
    IKEv2_SA,
    IKEv2_TSi,
    IPv4TrafficSelector,
)

from protego_cli.errors import Malformed
from protego_cli.wire.ike import (
    HEADER_LENGTH,
    Header,
    Message,
    build_message,
    parse_header_untrusted,
    parse_message_untrusted,
)
from protego_cli.wire.notifies import NotifyType, notify_name
from protego_cli.wire.payloads import (
    LEGAL,
    MAX_PAYLOADS,
    Delete,
    Ke,
    Nonce,
    Notify,
    Opaque,
    PayloadType,
    Sa,
    TsI,
    Vendor,
    build_chain,
    parse_chain_untrusted,
)
from protego_cli.wire.proposals import Proposal, Transform, parse_proposals_untrusted
from protego_cli.wire.reader import Reader
from protego_cli.wire.selectors import TrafficSelector
from tests.support.ike_strategies import messages, mutations

HEADER = Header(b"initiate", b"responds", 34, True, False, 7)
SAMPLE = build_message(
    HEADER,
    (
        Sa((Proposal(1, 1, b"", (Transform(1, 20, 256), Transform(2, 5), Transform(4, 31))),)),
        Ke(31, bytes(range(32))),
        Nonce(bytes(range(24))),
        Notify(NotifyType.REKEY_SA, b"", 3, b"spi!"),
        Delete(3, (b"aaaa", b"bbbb")),
        TsI((TrafficSelector.from_prefix("10.1.0.0/24"), TrafficSelector.from_prefix("fd00::/8"))),
        Opaque(200, b"unknown", critical=True),
    ),
)


@given(messages)
def test_parse_undoes_build(message: Message) -> None:
    data = build_message(message.header, message.payloads)
    parsed = parse_message_untrusted(data)
    assert parsed.payloads == message.payloads
    first = message.payloads[0].type if message.payloads else 0
    assert parsed.header == replace(message.header, first=first, length=len(data))
    assert build_message(parsed.header, parsed.payloads) == data


@given(st.binary(max_size=400))
def test_any_bytes_parse_or_are_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        parse_message_untrusted(data)


@given(mutations(SAMPLE))
def test_mutated_messages_parse_or_are_malformed(data: bytes) -> None:
    try:
        message = parse_message_untrusted(data)
    except Malformed:
        return
    assert len(message.payloads) <= MAX_PAYLOADS


@given(st.integers(0, 255), st.binary(max_size=200))
def test_any_chain_parses_or_is_malformed(first: int, data: bytes) -> None:
    with contextlib.suppress(Malformed):
        parse_chain_untrusted(first, data)


@pytest.mark.parametrize("kind", sorted({*LEGAL, 200}))
@pytest.mark.parametrize("length", range(4))
def test_a_payload_length_below_its_header_is_malformed(kind: int, length: int) -> None:
    chain = bytes((kind, 0, 0, length)) * 2
    with pytest.raises(Malformed, match=f"with length {length}"):
        parse_chain_untrusted(kind, chain)


def test_length_of_the_message_must_be_exact() -> None:
    for data in (SAMPLE[:-1], SAMPLE + b"\0", SAMPLE[: HEADER_LENGTH - 1], b""):
        with pytest.raises(Malformed):
            parse_header_untrusted(data)


def test_other_versions_have_a_header_and_no_payloads() -> None:
    data = SAMPLE[:17] + b"\x30" + SAMPLE[18:]
    assert parse_header_untrusted(data).major == 3
    with pytest.raises(Malformed):
        parse_message_untrusted(data)


def test_number_of_payloads_is_bounded() -> None:
    parse_chain_untrusted(*build_chain([Vendor(b"")] * MAX_PAYLOADS))
    with pytest.raises(Malformed, match="payloads"):
        parse_chain_untrusted(*build_chain([Vendor(b"")] * (MAX_PAYLOADS + 1)))


def test_number_of_proposals_and_transforms_is_bounded() -> None:
    crowd = Sa((Proposal(1, 1, b"", ()),) * 65)
    wide = Sa((Proposal(1, 1, b"", (Transform(1, 20, 256),) * 129),))
    for payload in (crowd, wide):
        with pytest.raises(Malformed, match="more than"):
            parse_proposals_untrusted(Reader(payload.body()))


@pytest.mark.parametrize(
    "payload",
    [
        bytes.fromhex("00000000"),  # a proposal of length zero
        bytes.fromhex("00000008 0101 0001"),  # promises a transform that is not there
        bytes.fromhex("03000008 0101 0000"),  # followed by what cannot follow
        bytes.fromhex("00000010 0101 0001 00000008 01000014 ff"),  # bytes beyond the end
        bytes.fromhex("00000018 0101 0001 00000010 01000014 800e0100 800e0080"),  # two key lengths
    ],
)
def test_broken_proposals_are_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        parse_proposals_untrusted(Reader(payload))


@pytest.mark.parametrize("length", [0, 15, 257])
def test_nonce_length_is_checked(length: int) -> None:
    with pytest.raises(Malformed):
        parse_chain_untrusted(*build_chain([Nonce(bytes(length))]))


def test_delete_cannot_claim_more_than_it_holds() -> None:
    for body in ("03 04 ffff 00000001", "03 00 ffff"):
        chain = bytes.fromhex(f"0000 {4 + len(bytes.fromhex(body)):04x}") + bytes.fromhex(body)
        with pytest.raises(Malformed):
            parse_chain_untrusted(PayloadType.DELETE, chain)


def test_selectors_of_unknown_type_are_skipped() -> None:
    body = bytes.fromhex("02000000 09000008 00000000 0700001000 00ffff 0a010000 0a0100ff")
    chain = bytes.fromhex(f"0000 {4 + len(body):04x}") + body
    (payload,) = parse_chain_untrusted(PayloadType.TS_I, chain)
    assert payload == TsI((TrafficSelector.from_prefix("10.1.0.0/24"),))


def test_every_payload_type_has_its_places() -> None:
    assert set(LEGAL) == set(PayloadType) - {PayloadType.NONE}
    assert all(
        protected or exchange in range(34, 38) for places in LEGAL.values() for exchange, protected in places
    )


def test_notify_names() -> None:
    assert notify_name(14) == "NO_PROPOSAL_CHOSEN"
    assert notify_name(40000) == "notify 40000"


def test_scapy_reads_what_we_build() -> None:
    packet = IKEv2(SAMPLE)
    assert (packet.init_SPI, packet.resp_SPI, packet.exch_type, packet.id) == (
        b"initiate",
        b"responds",
        34,
        7,
    )
    assert packet.flags.Initiator
    assert packet.length == len(SAMPLE)
    sa = packet[IKEv2_SA]
    proposal = sa.prop
    assert isinstance(proposal, IKEv2_Proposal)
    assert (proposal.proposal, proposal.proto, proposal.trans_nb) == (1, 1, 3)
    first = proposal.trans
    assert (first.transform_type, first.transform_id, first.key_length) == (1, 20, 256)
    assert packet[IKEv2_KE].group == 31
    assert bytes(packet[IKEv2_KE].ke) == bytes(range(32))
    assert bytes(packet[IKEv2_Nonce].nonce) == bytes(range(24))
    assert (packet[IKEv2_Notify].type, packet[IKEv2_Notify].SPI) == (NotifyType.REKEY_SA, b"spi!")
    selector = packet[IKEv2_TSi].traffic_selector[0]
    assert isinstance(selector, IPv4TrafficSelector)
    assert (selector.starting_address_v4, selector.ending_address_v4) == ("10.1.0.0", "10.1.0.255")


def test_we_read_what_scapy_builds() -> None:
    packet = (
        IKEv2(
            init_SPI=b"initiate", resp_SPI=b"responds", next_payload=40, exch_type=34, flags="Initiator", id=7
        )
        / IKEv2_Nonce(next_payload=34, nonce=bytes(range(24)))
        / IKEv2_KE(group=31, ke=bytes(32))
    )
    message = parse_message_untrusted(bytes(packet))
    assert message.payloads == (Nonce(bytes(range(24))), Ke(31, bytes(32)))
    assert message.header.initiator
    assert message.header.message_id == 7
