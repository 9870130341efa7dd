"""Tags: layout, what the MAC covers, and that hostile bytes raise Malformed and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import Malformed
from protego_cli.wire.tags import ORIGIN_LENGTH, TAG_LENGTH, Tag, TagKind, is_tag, open_tag, seal_tag

KEY = bytes(range(32))
NONCE = 0x0102030405060708
ORIGIN = Tag(TagKind.ORIGIN, 7, bytes([192, 0, 2, 1]), 4500, bytes(range(100)))

nonces = st.integers(0, 2**64 - 1)
plain_kinds = st.sampled_from([kind for kind in TagKind if kind < TagKind.ORIGIN])
plain_tags = st.builds(lambda kind, nonce: Tag(kind, nonce), plain_kinds, nonces)
origin_tags = st.builds(
    Tag,
    st.sampled_from([TagKind.ORIGIN, TagKind.RETURN]),
    nonces,
    st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16),
    st.integers(0, 65535),
    st.binary(min_size=16, max_size=200),
)


def seal(tag: Tag, key: bytes = KEY) -> bytes:
    return seal_tag(key, tag, hmac_sha256)


def test_layout_is_the_documented_one() -> None:
    data = seal(ORIGIN)
    assert data[:16] == bytes([0, 0, 0, 5]) + (7).to_bytes(8) + bytes([0, 4]) + (4500).to_bytes(2)
    assert data[16:32] == hmac_sha256(KEY, data[:16] + data[32:36] + ORIGIN.packet[:16])[:16]
    assert data[32:] == ORIGIN.address + ORIGIN.packet
    assert len(data) == ORIGIN_LENGTH + len(ORIGIN.packet)
    assert len(seal(Tag(TagKind.PROBE, NONCE))) == TAG_LENGTH


@given(plain_tags | origin_tags)
def test_round_trip(tag: Tag) -> None:
    data = seal(tag)
    assert is_tag(data[:4])
    assert open_tag(KEY, memoryview(data), hmac_sha256) == tag


@given(plain_tags | origin_tags, st.data())
def test_any_changed_byte_under_the_mac_is_refused(tag: Tag, draw: st.DataObject) -> None:
    data = bytearray(seal(tag))
    covered = TAG_LENGTH + len(tag.address) + min(16, len(tag.packet))
    data[draw.draw(st.integers(0, covered - 1))] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(Malformed):
        open_tag(KEY, bytes(data), hmac_sha256)


@given(st.binary(max_size=100))
def test_hostile_bytes_raise_only_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        open_tag(KEY, data, hmac_sha256)


def test_another_key_is_refused() -> None:
    with pytest.raises(Malformed, match="MAC"):
        open_tag(bytes(32), seal(ORIGIN), hmac_sha256)


@pytest.mark.parametrize(
    "tag",
    [
        Tag(TagKind.ORIGIN, 1),
        Tag(TagKind.ORIGIN, 1, bytes(4), 4500, bytes(15)),
        Tag(TagKind.ORIGIN, 1, bytes(5), 4500, bytes(20)),
        Tag(TagKind.PROBE, 1, bytes(4)),
        Tag(TagKind.BARRIER, 1, b"", 4500),
        Tag(TagKind.BARRIER_ECHO, 1, b"", 0, b"more"),
        Tag(6, 1),  # type: ignore[arg-type]  # a kind that does not exist
    ],
)
def test_what_a_kind_does_not_bear_is_refused_even_with_a_good_mac(tag: Tag) -> None:
    with pytest.raises(Malformed):
        open_tag(KEY, seal(tag), hmac_sha256)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (bytes([0, 0, 0, 0]), False),  # the non-ESP marker
        (bytes([0, 0, 0, 1]), True),
        (bytes([0, 0, 0, 255]), True),
        (bytes([0, 0, 1, 0]), False),
        (bytes([8, 0, 0, 0]), False),  # VXLAN
        (bytes([0, 0, 1]), False),
        (b"", False),
    ],
)
def test_is_tag(first: bytes, expected: bool) -> None:
    assert is_tag(first) is expected


def test_echoes() -> None:
    assert Tag(TagKind.PROBE, 5).echo() == Tag(TagKind.PROBE_ECHO, 5)
    assert Tag(TagKind.BARRIER, 6).echo() == Tag(TagKind.BARRIER_ECHO, 6)
