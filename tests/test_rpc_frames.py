"""Frames of the control channel: hostile bytes are Malformed and nothing else, whatever they are."""

from __future__ import annotations

import math
import struct

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protego_cli.control.channel.desired_records import Park, Route, Steer
from protego_cli.control.channel.frames import Frame, FrameBuffer, decode, encode
from protego_cli.control.channel.message import Failed, Reply, Request
from protego_cli.control.channel.messages import AnyReply, AnyRequest
from protego_cli.control.channel.node_messages import (
    Applied,
    FirstPacket,
    Hello,
    Marks,
    OfferedLoad,
    PeerAddress,
    Report,
    SaUsage,
    SuiteCost,
    Sync,
    Update,
)
from protego_cli.control.channel.operator_messages import GetEvents
from protego_cli.control.channel.pool_messages import GetJob, MakeToken
from protego_cli.errors import Malformed

MESSAGES: list[AnyRequest | AnyReply] = [
    Hello("boot", "1.0", 2**40),
    Sync(3, 9, (Park(300), Steer(301, "gpn-1", "192.0.2.1", 4500))),
    Update(
        3, 10, (Route("acme/hq", 1, ("10.0.0.0/8",), "gpn-1"),), (("park", 300), ("rule", "a/b")), ("gpn-1",)
    ),
    Report(0.25, (SaUsage(1, 2, 3, 4, 5, 6, 7),), {"gpn_opened": 3}, ("gpn-2",)),
    FirstPacket(0xFFFFFFFF),
    Applied(10),
    Marks({300: 2**64 - 1}),
    Failed("no", 4),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_decoded(message: AnyRequest | AnyReply) -> None:
    frame = encode(77, message)
    assert decode(frame[4:]) == Frame(77, message)
    assert struct.unpack("!I", frame[:4])[0] == len(frame) - 4


@given(st.data())
def test_frames_survive_any_cutting(data: st.DataObject) -> None:
    stream = b"".join(encode(i, message) for i, message in enumerate(MESSAGES))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    buffer, found = FrameBuffer(1 << 20), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += list(buffer.feed(stream[start:stop]))
    assert found == [Frame(i, message) for i, message in enumerate(MESSAGES)]


@given(st.binary(max_size=200))
@example(b"\x93\x00\x01" + b"\x91" * 100_000)  # nested beyond any stack
@example(b"\x93\x00\x01\x82\xa4type\xa5Hello\xa4boot\xa2\xff\xfe")  # not UTF-8
@example(b"\x93\x02\x01\xc0")
@example(b"")
def test_any_bytes_are_a_frame_or_malformed(body: bytes) -> None:
    try:
        frame = decode(body)
    except Malformed:
        return
    assert isinstance(frame.message, Request | Reply)


@given(st.sampled_from(MESSAGES), st.data())
def test_mutated_frames_are_frames_or_malformed(message: Request | Reply, data: st.DataObject) -> None:
    body = bytearray(encode(1, message)[4:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        frame = decode(bytes(body))
    except Malformed:
        return
    assert isinstance(frame.message, Request | Reply)


def test_the_decoder_is_entered_by_the_mutations() -> None:
    """The two tests above prove nothing if nothing decodes."""
    assert isinstance(decode(encode(1, MESSAGES[2])[4:]).message, Update)


def test_a_length_above_the_limit_is_refused_on_sight() -> None:
    buffer = FrameBuffer(1000)
    with pytest.raises(Malformed, match="a frame of 1001 bytes is above the limit of 1000"):
        list(buffer.feed(struct.pack("!I", 1001)))


def test_a_frame_at_the_limit_is_taken() -> None:
    frame = encode(1, Failed("x" * 100))
    assert len(list(FrameBuffer(len(frame) - 4).feed(frame))) == 1


def test_a_request_sent_as_a_reply_is_malformed() -> None:
    with pytest.raises(Malformed):
        decode(msgspec.msgpack.encode((1, 5, FirstPacket(1))))
    with pytest.raises(Malformed):
        decode(msgspec.msgpack.encode((0, 5, Applied(1))))


def test_a_malformed_frame_does_not_quote_what_it_held() -> None:
    body = msgspec.msgpack.encode((0, 5, {"type": "Sync", "epoch": "SECRET-KEY"}))
    with pytest.raises(Malformed) as caught:
        decode(body)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "message",
    [
        *(GetEvents(wait=wait) for wait in (math.nan, math.inf, -1.0)),
        GetJob("drain-1", wait=math.nan),
        MakeToken("cloud", valid=math.inf),
        Report(math.nan),
        Report(0.0, counters={"gpn_opened": 1 << 60}),
        Report(0.0, (SaUsage(1, -1, 3, 4, 5, 6, 7),)),
        Report(0.0, (SaUsage(1, 2, 2**64 - 1, 4, 5, 6, 7),)),
        Report(0.0, offered=(OfferedLoad(1, -5),)),
        Report(0.0, costs=(SuiteCost("aes256gcm16", 0.0, math.nan, 0.0, 0.0),)),
        PeerAddress(1, "192.0.2.1", 1 << 16),
        Marks({1: -1}),
    ],
    ids=repr,
)
def test_a_number_that_measures_nothing_is_malformed(message: Request | Reply) -> None:
    """NaN would end whoever waits for so long, and sums without a bound fit into no message."""
    with pytest.raises(Malformed):
        decode(encode(1, message)[4:])
