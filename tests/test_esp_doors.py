"""A GPN whose packets to peers go through GINs (`return = "gin"`)."""

from __future__ import annotations

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.esp.doors import SILENCE
from protego_cli.esp.gateway import Neighbour
from protego_cli.esp.outbox import Port, Send
from protego_cli.wire.tags import Tag, TagKind, seal_tag
from tests.support.esp_packets import ipv4, passed
from tests.support.esp_reference import padded, seal
from tests.support.esp_site import frame
from tests.support.esp_world import GCM, GEN, GEN_KEY, GIN, GIN_KEY, NOW, VIP, VTEP, World, world

GIN2, KEY2 = ("10.10.0.4", 4501), bytes(range(64, 96))
OUT, IN = ipv4("10.1.0.5", "10.2.0.9", bytes(100)), ipv4("10.2.0.9", "10.1.0.5", bytes(100))
SHORT = ipv4("10.1.0.5", "10.2.0.9", bytes(40))


def site() -> World:
    made = world(through_gins=True)
    made.gateway.put_neighbour("gin-2", Neighbour(GIN2[0], None, KEY2))
    return made


def probe(made: World, gin: tuple[str, int] = GIN, now: float = NOW) -> None:
    key = GIN_KEY if gin is GIN else KEY2
    (echo,) = made.receive_esp(seal_tag(key, Tag(TagKind.PROBE, 7), hmac_sha256), source=gin, now=now)
    assert echo.way.dest == gin


def come_by(made: World, gin: tuple[str, int], number: int) -> None:
    sa = made.sa()
    assert made.receive_esp(seal(sa.key_in, sa.spi_in, number, padded(IN, 4)), source=gin)


def out(made: World, *packets: bytes) -> list[Send]:
    return made.receive_vxlan(*map(frame, packets or (OUT,)))


def way(made: World) -> tuple[str, int]:
    (sent,) = out(made)
    assert sent.way.source is None
    return sent.way.dest


def test_packets_go_to_a_gin_behind_a_header_that_says_whose_they_are() -> None:
    made = site()
    probe(made)
    sa = made.sa()
    header = sa.spi_in.to_bytes(4) + bytes(map(int, VIP.split(".")))
    (sent,) = out(made, OUT, OUT, SHORT)
    assert (sent.way.port, sent.way.dest, sent.way.source) == (Port.ESP, GIN, None)
    assert (sent.way.counter, sent.packets) == ("gpn_sealed", 3)
    expected = [
        header + seal(sa.key_out, sa.spi_out, number, padded(passed(inner), 4), str(GCM))
        for number, inner in enumerate((OUT, OUT, SHORT), start=1)
    ]
    assert bytes(sent.data) == b"".join(expected)
    assert sent.size == len(expected[0])


def test_they_carry_their_tos_through_the_gin() -> None:
    made = world(through_gins=True, dscp=46)
    assert out(made) == [], "no GIN yet, so no way that could have a TOS"
    probe(made)
    (sent,) = out(made)
    assert (sent.way.dest, sent.way.tos) == (GIN, 46 << 2)


def test_without_a_gin_nothing_is_sealed() -> None:
    made = site()
    assert out(made, OUT, OUT) == []
    assert made.counters.nonzero() == {"gpn_drop_no_gin": 2}
    assert made.gateway.usage()[0].next_out == 1
    probe(made)
    assert way(made) == GIN


def test_they_leave_by_the_gin_that_the_peer_came_by_and_by_another_when_it_is_silent() -> None:
    made = site()
    probe(made)
    probe(made, GIN2)
    assert way(made) == GIN, "the first there is"
    come_by(made, GIN2, 1)
    assert way(made) == GIN2
    come_by(made, ("192.0.2.1", 4500), 2)
    assert way(made) == GIN2, "a kernel that steers leaves the peer's own address"
    later = NOW + SILENCE
    probe(made, GIN, later)
    made.gateway.expire(later)
    assert way(made) == GIN
    probe(made, GIN2, later)
    assert way(made) == GIN2, "it is back"


def test_where_all_gins_are_silent_it_was_the_gpn_that_was_stopped() -> None:
    made = site()
    probe(made)
    probe(made, GIN2)
    come_by(made, GIN2, 1)
    later = NOW + SILENCE
    made.gateway.expire(later)
    assert way(made) == GIN2, "their probes wait in its socket"
    probe(made, GIN, later)
    made.gateway.expire(later)
    assert way(made) == GIN, "one of them has gone"


def test_a_clock_set_back_leaves_no_gin_for_ever() -> None:
    made = site()
    probe(made)
    earlier = NOW - 3600
    made.gateway.expire(earlier)
    assert way(made) == GIN, "nothing says yet that it is not there"
    probe(made, GIN2, earlier)
    made.gateway.expire(earlier)
    assert way(made) == GIN2


def test_a_gin_that_leaves_the_cluster_is_used_no_more() -> None:
    made = site()
    probe(made)
    probe(made, GIN2)
    made.gateway.drop_neighbour("gin-1")
    assert way(made) == GIN2


def test_a_forged_probe_makes_no_gin() -> None:
    made = site()
    forged = seal_tag(bytes(32), Tag(TagKind.PROBE, 7), hmac_sha256)
    assert made.receive_esp(forged, source=GIN) == []
    assert out(made) == []
    assert made.counters.nonzero() == {"gpn_drop_tag": 1, "gpn_drop_no_gin": 1}


def test_a_peer_that_moves_changes_nothing_here() -> None:
    made = site()
    probe(made)
    come_by(made, GIN, 1)
    made.gateway._pairs[made.sa().spi_in].move_peer(("198.51.100.8", 61000))  # what an ORIGIN does
    assert way(made) == GIN, "the GIN hears of it from the GMN"


def test_what_a_gen_should_have_goes_to_one_that_is_there() -> None:
    made, gen2, nowhere = world(), ("10.10.0.5", 4789), frame(ipv4("10.1.0.5", "10.9.9.9", b"lost"))
    made.gateway.put_neighbour("gen-2", Neighbour(gen2[0], gen2, KEY2))

    def hear(gen: tuple[str, int], key: bytes, now: float) -> None:
        tag = seal_tag(key, Tag(TagKind.PROBE, 7), hmac_sha256)
        made.receive_vxlan(tag, source=gen, now=now)

    def passed_on() -> tuple[str, int]:
        (sent,) = made.receive_vxlan(nowhere, source=VTEP)
        assert sent.way.counter == "gpn_returned"
        return sent.way.dest

    assert passed_on() == GEN, "the first, while nobody has been heard"
    hear(gen2, KEY2, NOW)
    assert passed_on() == gen2
    hear(GEN, GEN_KEY, NOW)
    assert passed_on() == GEN
    later = NOW + SILENCE
    hear(gen2, KEY2, later)
    made.gateway.expire(later)
    assert passed_on() == gen2, "the first is silent"
    made.gateway.expire(later + SILENCE)
    assert passed_on() == gen2, "all are: then it was the GPN that was stopped"
    made.gateway.drop_neighbour("gen-2")
    assert passed_on() == GEN
    hear((GEN[0], 9), GEN_KEY, later)
    assert passed_on() == GEN, "from no GEN's socket"
