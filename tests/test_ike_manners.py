"""What RFC 7296 lets anybody say at any time, and what comes of it: other versions, payloads and
notifications nobody knows, notes about SPIs, windows, a DELETE in every state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from protego_cli.ike.context import COMPLAINTS_PER_SECOND
from protego_cli.ike.events import (
    Alive,
    ChildEstablished,
    ExchangeFailed,
    IkeClosed,
    IkeEstablished,
    Path,
)
from protego_cli.ike.protect import Sealer
from protego_cli.ike.sa import IkeSa
from protego_cli.ike.transitions import State
from protego_cli.wire.ike import Header, build_message, parse_header_untrusted, parse_message_untrusted
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import Delete, ExchangeType, Nonce, Notify, Opaque, Payload
from tests.support.ike_asker import ask, error
from tests.support.ike_pairs import GATEWAY, PEER, SPI, TUNNEL, connected, crowd, matched, pair
from tests.support.network import DEFAULTS, Network, Site

NEW = 0x22222222
PATH = Path(GATEWAY, 4500, PEER, 4500)
PADDING = (Opaque(200, bytes(20)),)


def answers(site: Site, data: bytes, path: Path = PATH) -> list[bytes]:
    site.engine.receive_datagram(data, path, site.now)
    return [datagram.data for datagram in site.engine.datagrams_to_send()]


def sealed(sa: IkeSa, epoch: int, header: Header, payloads: Sequence[Payload]) -> bytes:
    """A message of the initiator, under an epoch of its own so that no IV comes twice."""
    return Sealer(sa.suite, sa.keys.ei, sa.keys.ai, epoch, sa.context.random).seal(header, payloads)


def alive(network: Network, site: Site) -> bool:
    token = site.check_alive()
    network.settle(1)
    return isinstance(site.outcome(token), Alive)


# ---- versions


def of_version(version: int, *, response: bool = False, payloads: tuple[Payload, ...] = PADDING) -> bytes:
    header = Header(b"initiate", b"responds", 77, True, response, 9)
    return build_message(replace(header, version=version << 4), payloads)


def test_a_later_version_is_told_which_one_we_speak() -> None:
    _, gateway, _ = connected()
    (answer,) = answers(gateway, of_version(3))
    header = parse_header_untrusted(answer)
    assert (header.spi_i, header.spi_r, header.exchange, header.message_id) == (
        b"initiate",
        b"responds",
        77,
        9,
    )
    assert (header.major, header.response, header.initiator) == (2, True, False)
    assert parse_message_untrusted(answer).payloads == (Notify(NotifyType.INVALID_MAJOR_VERSION),)
    assert gateway.counters.nonzero() == {"ike_drop_version": 1}


def test_but_rarely_and_never_at_greater_length() -> None:
    _, gateway, _ = connected()
    assert answers(gateway, of_version(3, payloads=())) == []
    assert answers(gateway, of_version(3, response=True)) == []
    assert answers(gateway, of_version(1)) == []
    many = [answer for _ in range(100) for answer in answers(gateway, of_version(4))]
    assert len(many) == COMPLAINTS_PER_SECOND
    gateway.network.settle(1)
    assert len(answers(gateway, of_version(4))) == 1


def test_a_later_minor_version_is_ours() -> None:
    network, gateway, peer = pair()
    network.tap = lambda datagram: datagram.data[:17] + b"\x27" + datagram.data[18:]
    peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: len(network.sent) == 2)
    assert parse_header_untrusted(network.sent[1].data).response
    assert gateway.context.by_spi


# ---- what nobody knows


@pytest.mark.parametrize("kind", [ExchangeType.INFORMATIONAL, ExchangeType.CREATE_CHILD_SA])
def test_an_unknown_critical_payload_in_a_request(kind: ExchangeType) -> None:
    network, gateway, peer = connected()
    answer = ask(network, peer, kind, Opaque(210, b"?", critical=True))
    assert answer.notifies() == [Notify(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xd2")]
    assert matched(gateway, peer) == 1
    assert alive(network, peer)


def test_an_unknown_critical_payload_in_a_response_is_the_end() -> None:
    network, gateway, peer = connected()
    sa = peer.context.by_handle[peer.ike]
    respond = sa.respond
    sa.respond = lambda payloads: respond((Opaque(210, b"", critical=True),))  # type: ignore[method-assign]
    token = gateway.check_alive()
    network.settle(1)
    failed = gateway.outcome(token)
    assert isinstance(failed, ExchangeFailed)
    assert "critical payload of type 210" in failed.detail
    assert not gateway.ikes
    assert not peer.ikes  # it was told


def test_an_unknown_critical_payload_in_ike_auth_leaves_nothing() -> None:
    network, gateway, peer = pair()
    peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: bool(gateway.context.by_spi))
    (sa,) = gateway.context.by_spi.values()
    header = Header(sa.spi_i, sa.spi_r, ExchangeType.IKE_AUTH, True, False, 1)
    data = sealed(sa, 9, header, (Opaque(210, b"", critical=True),))
    assert len(answers(gateway, data)) == 1
    assert sa.state is State.FINAL
    gateway.network.sites.pop(PEER)
    network.settle(DEFAULTS.half_open_timeout + 1)
    assert not gateway.context.by_spi
    assert not gateway.of(IkeEstablished)


@pytest.mark.parametrize("kind", [ExchangeType.INFORMATIONAL, ExchangeType.CREATE_CHILD_SA])
@pytest.mark.parametrize(
    "notify", [8191, 16383, 40959, 65535, NotifyType.SET_WINDOW_SIZE, NotifyType.INVALID_SPI]
)
def test_notifications_that_do_not_matter_in_a_request(kind: ExchangeType, notify: int) -> None:
    """Unknown errors and statuses are ignored (3.10.1), a larger window is not used (2.3), a note about an
    SPI is that (1.5); an unknown payload that is not critical is skipped (2.5).
    """
    network, gateway, peer = connected()
    child = (Notify(NotifyType.REKEY_SA, b"", 3, b"none"), Nonce(bytes(32)))
    noise = (Notify(notify, b"\0\0\0\x20"), Opaque(211, b"whatever"))
    answer = ask(network, peer, kind, *noise, *(child if kind == ExchangeType.CREATE_CHILD_SA else ()))
    expected = NotifyType.CHILD_SA_NOT_FOUND if kind == ExchangeType.CREATE_CHILD_SA else None
    assert error(answer) == expected
    assert matched(gateway, peer) == 1


@pytest.mark.parametrize(("notify", "fails"), [(8191, True), (16383, True), (16384, False), (40959, False)])
def test_an_unknown_error_in_a_response_is_a_refusal_and_a_status_is_not(notify: int, fails: bool) -> None:
    network, gateway, peer = connected()
    sa = peer.context.by_handle[peer.ike]
    respond = sa.respond
    sa.respond = lambda payloads: respond((*payloads, Notify(notify)))  # type: ignore[method-assign]
    token = gateway.create(NEW)
    network.settle(1)
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ExchangeFailed if fails else ChildEstablished)
    if isinstance(outcome, ExchangeFailed):
        assert outcome.notify == notify
    assert gateway.ikes


# ---- notes about SPIs (2.21.4): nothing unprotected changes anything, and nothing is answered


@pytest.mark.parametrize(
    "kind", [NotifyType.INVALID_IKE_SPI, NotifyType.INVALID_SPI, NotifyType.INVALID_MESSAGE_ID]
)
@pytest.mark.parametrize("response", [False, True])
def test_an_unprotected_note_is_dropped(kind: NotifyType, response: bool) -> None:
    network, gateway, peer = connected()
    sa = gateway.context.by_handle[gateway.ike]
    gateway.check_alive()
    for spis in ((sa.spi_i, sa.spi_r), (b"another1", b"another2")):
        header = Header(*spis, ExchangeType.INFORMATIONAL, not sa.initiator, response, 0)
        assert answers(gateway, build_message(header, (Notify(kind, b"\0\0\0\1"),))) == []
    assert sum(gateway.counters.nonzero().values()) == 2
    network.settle(1)
    assert matched(gateway, peer) == 1
    assert alive(network, gateway)


def test_a_request_for_an_ike_sa_we_do_not_have_is_dropped() -> None:
    _, gateway, peer = connected()
    sa = peer.context.by_handle[peer.ike]
    header = Header(sa.spi_i, b"unknown!", ExchangeType.INFORMATIONAL, True, False, sa.sender.next_id)
    data = sealed(sa, 9, header, (Delete(1),))
    assert answers(gateway, data) == []
    assert gateway.counters.nonzero() == {"ike_drop_unknown_spi": 1}


# ---- cookies


def test_a_cookie_holds_for_another_port_of_the_same_address() -> None:
    """A NAT may give the retry another port (2.6): address, SPI and nonce are what it is bound to."""
    network, gateway, peer = pair(settings=msgspec.structs.replace(DEFAULTS, half_open_max=10))
    crowd(gateway, 1)
    network.sent.clear()
    network.masquerade[PEER] = (PEER, 1024)
    peer.inside_port = 500
    peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: len(network.sent) == 3)
    before = len(gateway.context.by_spi)
    network.masquerade[PEER] = (PEER, 1025)
    network.run(lambda: len(network.sent) == 4)
    assert len(gateway.context.by_spi) == before + 1


# ---- DELETE in every state


def test_a_delete_without_an_established_ike_sa_is_dropped() -> None:
    """Before IKE_AUTH nobody has the right to say it, whatever the keys."""
    network, gateway, peer = pair()
    gateway.hold = True
    peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: bool(gateway.context.by_spi))
    (sa,) = gateway.context.by_spi.values()

    def delete(message_id: int) -> bytes:
        header = Header(sa.spi_i, sa.spi_r, ExchangeType.INFORMATIONAL, True, False, message_id)
        return sealed(sa, 9, header, (Delete(1),))

    assert sa.state is State.HALF_OPEN
    assert answers(gateway, delete(1)) == []
    network.run(lambda: bool(gateway.tickets))
    assert sa.state is State.AUTH_HELD
    assert answers(gateway, delete(2)) == []
    gateway.hold = False
    gateway.grant(gateway.tickets[0])
    gateway.settle()
    network.settle(1)
    assert matched(gateway, peer) == 1
    peer.close()
    network.settle(1)
    assert len(gateway.of(IkeClosed)) == 1
    assert sa.state is State.FINAL
    assert answers(gateway, delete(sa.receiver.current + 1)) == []


# ---- windows (2.3)


def test_a_window_of_one_even_if_the_peer_allows_more() -> None:
    network, gateway, peer = connected()
    ask(network, peer, ExchangeType.INFORMATIONAL, Notify(NotifyType.SET_WINDOW_SIZE, b"\0\0\0\x10"))
    before = len(network.sent)
    for number in range(4):
        gateway.create(0x5000 + number)
    assert len(network.sent) == before + 1
    network.settle(5)
    assert matched(gateway, peer) == 5


def test_a_request_ahead_of_the_window_waits_for_its_turn() -> None:
    network, gateway, peer = connected()
    sa = peer.context.by_handle[peer.ike]

    def request(ahead: int) -> bytes:
        message_id = sa.sender.next_id + ahead
        header = Header(sa.spi_i, sa.spi_r, ExchangeType.INFORMATIONAL, True, False, message_id)
        return sealed(sa, 9 + ahead, header, ())

    path = gateway.child.path
    first, second = request(0), request(1)
    assert answers(gateway, second, path) == []
    assert gateway.counters.nonzero() == {"ike_drop_message_id": 1}
    (answer,) = answers(gateway, first, path)
    assert answers(gateway, first, path) == [answer]  # the very same bytes
    assert len(answers(gateway, second, path)) == 1
    assert answers(gateway, first, path) == []  # too old by now
    assert alive(network, gateway)
    assert SPI in peer.children
