"""Hypothesis strategies for everything an IKEv2 message can hold."""

from __future__ import annotations

from hypothesis import strategies as st

from protego_cli.wire.ike import Header, Message
from protego_cli.wire.payloads import (
    Auth,
    Delete,
    IdI,
    IdR,
    Ke,
    Nonce,
    Notify,
    Opaque,
    Payload,
    Sa,
    Sk,
    TsI,
    TsR,
    Vendor,
)
from protego_cli.wire.proposals import Proposal, Transform
from protego_cli.wire.selectors import TrafficSelector

u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
data = st.binary(max_size=60)
KEY_LENGTH = 0x800E

attributes = st.one_of(
    st.tuples(
        st.integers(0x8000, 0xFFFF).filter(lambda kind: kind != KEY_LENGTH), st.binary(min_size=2, max_size=2)
    ),
    st.tuples(st.integers(0, 0x7FFF), st.binary(max_size=12)),
)
transforms = st.builds(Transform, u8, u16, st.none() | u16, st.lists(attributes, max_size=2).map(tuple))
proposals = st.builds(Proposal, u8, u8, st.binary(max_size=8), st.lists(transforms, max_size=6).map(tuple))
selectors = st.one_of(
    *(
        st.builds(TrafficSelector, address, address, u8, u16, u16)
        for address in (st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
    )
)
selector_lists = st.lists(selectors, max_size=6).map(tuple)
spi_lists = st.integers(1, 16).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size), max_size=6).map(tuple)
)

payloads: st.SearchStrategy[Payload] = st.one_of(
    st.builds(Sa, st.lists(proposals, min_size=1, max_size=4).map(tuple)),
    st.builds(Ke, u16, data),
    st.builds(IdI, u8, data),
    st.builds(IdR, u8, data),
    st.builds(Auth, u8, data),
    st.builds(Nonce, st.binary(min_size=16, max_size=256)),
    st.builds(Notify, u16, data, u8, st.binary(max_size=16)),
    st.builds(Delete, u8, spi_lists),
    st.builds(Vendor, data),
    st.builds(TsI, selector_lists),
    st.builds(TsR, selector_lists),
    st.builds(Opaque, st.sampled_from((1, 37, 38, 47, 48, 49, 53, 200, 255)), data, st.booleans()),
)
chains = st.one_of(
    st.lists(payloads, max_size=8).map(tuple),
    st.tuples(st.lists(payloads, max_size=4).map(tuple), st.builds(Sk, u8, data)).map(
        lambda parts: (*parts[0], parts[1])
    ),
)
spis = st.binary(min_size=8, max_size=8)
headers = st.builds(Header, spis, spis, u8, st.booleans(), st.booleans(), u32)
messages = st.builds(Message, headers, chains)


@st.composite
def mutations(draw: st.DrawFn, seed: bytes) -> bytes:
    """A datagram with some bytes changed, cut, doubled or added."""
    mutated = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(mutated) - 1)))
        match draw(st.integers(0, 3)):
            case 0 if mutated:
                mutated[at] = draw(u8)
            case 1:
                del mutated[at : at + draw(st.integers(1, 40))]
            case 2:
                mutated[at:at] = draw(data)
            case _:
                mutated[at:at] = mutated[at : at + draw(st.integers(1, 40))]
    if draw(st.booleans()) and len(mutated) >= 28:
        mutated[24:28] = len(mutated).to_bytes(4, "big")  # get past the length check
    return bytes(mutated)
