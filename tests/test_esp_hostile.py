"""Whatever arrives, in whatever batches: nothing is raised, and every datagram is sent on or counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.wire.tags import Tag, TagKind, seal_tag
from tests.support.esp_packets import ipv4, ipv6, ports
from tests.support.esp_reference import padded, seal
from tests.support.esp_world import GEN, GEN_KEY, GIN, GIN_KEY, VTEP, World, sas, world

SA = sas()[0]
IN4 = ipv4("10.2.0.9", "10.1.0.5", ports(7, 9, b"payload"))
OUT4, OUT6 = ipv4("10.1.0.5", "10.2.0.9", ports(7, 9)), ipv6("fd00:1::5", "fd00:2::9", ports(7, 9))
HEADER = bytes((8, 0, 0, 0, 0, 3, 0xE9, 0)) + bytes(12)

VALID_ESP = st.sampled_from(
    [
        *[seal(SA.key_in, SA.spi_in, number, padded(IN4, 4)) for number in (1, 2, 3)],
        *[seal_tag(GIN_KEY, Tag(kind, 7), hmac_sha256) for kind in (TagKind.PROBE, TagKind.BARRIER)],
        seal_tag(
            GIN_KEY,
            Tag(TagKind.ORIGIN, 1, bytes(4), 9, seal(SA.key_in, SA.spi_in, 4, padded(IN4, 4))),
            hmac_sha256,
        ),
    ]
)
VALID_VXLAN = st.sampled_from(
    [
        HEADER + b"\x08\x00" + OUT4,
        HEADER + b"\x86\xdd" + OUT6,
        seal_tag(GEN_KEY, Tag(TagKind.BARRIER, 7), hmac_sha256),
    ]
)


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """A valid datagram with bytes changed, cut off or added."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return bytes(data[:cut]) + draw(st.one_of(st.just(b""), st.binary(max_size=40)))


def datagrams(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    repeated = st.tuples(st.one_of(mutated(valid), valid, st.binary(max_size=80)), st.integers(1, 4))
    return st.lists(repeated, min_size=1, max_size=12).map(
        lambda rows: [data for data, times in rows for _ in range(times)]
    )


def outcomes(w: World, sent: int) -> int:
    return sent + sum(w.counters.nonzero().values())


@given(datagrams(VALID_ESP), st.sampled_from([GIN, ("10.66.6.6", 1)]))
def test_on_the_esp_port(packets: list[bytes], source: tuple[str, int]) -> None:
    w = world()
    w.gateway.park(0x31323334)
    sends = w.receive_esp(*packets, source=source)
    assert outcomes(w, sum(send.packets for send in sends)) == len(packets)


@given(datagrams(VALID_VXLAN), st.sampled_from([GEN, VTEP, ("10.66.6.6", 1)]))
def test_on_the_vxlan_port(packets: list[bytes], source: tuple[str, int]) -> None:
    w = world()
    sends = w.receive_vxlan(*packets, source=source)
    assert outcomes(w, sum(send.packets for send in sends)) == len(packets)
