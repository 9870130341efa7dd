"""IKE_SA_INIT and IKE_AUTH between two engines: paths, groups, cookies, proofs, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from protego_cli.errors import NoProposalChosen, TemporaryFailure
from protego_cli.ike.events import (
    Alive,
    ChildEstablished,
    ChildOffered,
    Datagram,
    ExchangeFailed,
    IkeClosed,
    IkeEstablished,
    NegotiationFailed,
    Path,
    PeerMoved,
)
from protego_cli.ike.natd import natd_hash
from protego_cli.wire.ike import Header, build_message, parse_header_untrusted, parse_message_untrusted
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import ExchangeType, Ke, Notify, Opaque, Payload
from protego_cli.wire.selectors import TrafficSelector
from tests.support.ike_pairs import (
    GATEWAY,
    GATEWAY_POLICY,
    PEER,
    PEER_POLICY,
    SPI,
    TUNNEL,
    connected,
    crowd,
    matched,
    pair,
)
from tests.support.network import DEFAULTS, Network, Site


def notifies(datagram: Datagram) -> dict[int, bytes]:
    """The notifications of an unprotected message."""
    payloads = parse_message_untrusted(datagram.data).payloads
    return {payload.kind: payload.data for payload in payloads if isinstance(payload, Notify)}


def dialled(seed: int = 0, **changes: Any) -> tuple[Network, Site, Site, int]:
    network, gateway, peer = pair(seed, **changes)
    token = peer.dial(TUNNEL, GATEWAY, SPI)
    network.settle()
    return network, gateway, peer, token


# ---- the good cases


@pytest.mark.parametrize("dialler", ["peer", "gateway"])
def test_either_side_may_dial(dialler: str) -> None:
    network, gateway, peer = pair()
    token = peer.dial(TUNNEL, GATEWAY) if dialler == "peer" else gateway.dial(TUNNEL, PEER)
    network.settle()
    assert matched(gateway, peer) == 1
    caller, callee = (peer, gateway) if dialler == "peer" else (gateway, peer)
    first, second = caller.events
    assert isinstance(first, IkeEstablished)
    assert isinstance(second, ChildEstablished)
    assert (first.token, second.token) == (token, token)
    assert first.initiator
    established, offered = callee.events
    assert isinstance(established, IkeEstablished)
    assert isinstance(offered, ChildOffered)
    assert (established.token, established.initiator, offered.replaces) == (None, False, None)
    assert established.suite == "aes256gcm16-prfsha256-x25519"
    assert len(network.sent) == 4
    assert not gateway.counters.nonzero()
    assert not peer.counters.nonzero()


def test_port_500_floats_to_4500_on_both_ends() -> None:
    network, gateway, peer, _ = dialled()
    assert [datagram.path.remote_port for datagram in network.sent] == [500, 500, 4500, 4500]
    assert peer.child.path == Path(PEER, 4500, GATEWAY, 4500)
    assert gateway.child.path == Path(GATEWAY, 4500, PEER, 4500)


def test_encapsulation_is_forced_by_a_source_that_matches_nothing() -> None:
    network, _, _, _ = dialled()
    request, response = network.sent[:2]
    for datagram, spi_r in ((request, bytes(8)), (response, parse_header_untrusted(response.data).spi_r)):
        spi_i, path, said = datagram.data[:8], datagram.path, notifies(datagram)
        assert said[NotifyType.NAT_DETECTION_SOURCE_IP] == natd_hash(spi_i, spi_r, "0.0.0.0", 0)
        assert said[NotifyType.NAT_DETECTION_DESTINATION_IP] == natd_hash(
            spi_i, spi_r, path.remote, path.remote_port
        )


@pytest.mark.parametrize("port", [4500, 14500])
def test_a_peer_may_dial_4500_or_any_port_straight_away(port: int) -> None:
    network, gateway, peer = pair()
    peer.dial(TUNNEL, GATEWAY, port=port)
    network.settle()
    assert matched(gateway, peer) == 1
    assert {datagram.path.remote_port for datagram in network.sent} == {port}


def test_a_peer_behind_a_nat_is_followed_when_its_port_changes() -> None:
    network, gateway, peer = pair(gateway={"remote": None})
    network.masquerade[PEER] = ("192.0.2.50", 61000)
    peer.dial(TUNNEL, GATEWAY, port=4500)
    network.settle()
    assert gateway.child.path == Path(GATEWAY, 4500, "192.0.2.50", 61000)
    network.masquerade[PEER] = ("192.0.2.50", 62000)
    peer.check_alive()
    network.settle()
    (moved,) = gateway.of(PeerMoved)
    assert isinstance(moved, PeerMoved)
    assert moved.path == Path(GATEWAY, 4500, "192.0.2.50", 62000)
    gateway.check_alive()
    network.settle()
    assert network.sent[-2].path == moved.path


def test_such_a_peer_is_followed_by_what_comes_on_its_child_sas() -> None:
    """For a long time it may send nothing else: what it is asked must not go to where it was."""
    network, gateway, peer = pair(gateway={"remote": None})
    network.masquerade[PEER] = ("192.0.2.50", 61000)
    peer.dial(TUNNEL, GATEWAY, port=4500)
    network.settle()
    network.masquerade[PEER] = ("192.0.2.50", 62000)
    token = gateway.check_alive()  # lost
    assert gateway.engine.follow(gateway.ike, "192.0.2.50", 62000)
    network.settle(10)
    assert gateway.outcome(token) == Alive(token)  # asked again
    assert network.sent[-2].path == Path(GATEWAY, 4500, "192.0.2.50", 62000)
    assert not gateway.engine.follow(gateway.ike + 1, "192.0.2.50", 62000)


def test_a_peer_without_a_nat_is_not_followed() -> None:
    """Its port cannot change by itself: whoever changed it wants the answers (RFC 7296 2.23)."""
    network = Network(0)
    gateway = Site(network, GATEWAY, [replace(GATEWAY_POLICY, remote=None)])
    peer = Site(network, PEER, [replace(PEER_POLICY, encapsulation="auto")])
    peer.dial(TUNNEL, GATEWAY)
    network.settle()
    path = gateway.child.path
    network.masquerade[PEER] = ("192.0.2.50", 62000)
    token = peer.check_alive()
    network.settle()
    assert peer.outcome(token) == Alive(token)  # the answer goes where the request came from
    assert not gateway.of(PeerMoved)
    assert not gateway.engine.follow(gateway.ike, "192.0.2.50", 62000)
    gateway.check_alive()
    assert network.sent[-1].path == path


def test_identities_by_name_and_tunnels_told_apart_by_them() -> None:
    network = Network(0)
    others = [
        replace(
            GATEWAY_POLICY, tunnel=f"acme/{n}", remote=None, remote_id=f"site{n}@example.org", psk=b"%d" % n
        )
        for n in range(5)
    ]
    gateway = Site(network, GATEWAY, others)
    mine = replace(PEER_POLICY, local_id="Site3@example.org", psk=b"3")
    peer = Site(network, PEER, [mine])
    peer.dial(TUNNEL, GATEWAY)
    network.settle()
    assert gateway.child.tunnel == "acme/3"


def test_tunnels_of_one_peer_told_apart_by_selectors() -> None:
    network, gateway, peer = pair()
    other = replace(
        GATEWAY_POLICY, tunnel="acme/other", local_ts=(TrafficSelector.from_prefix("10.77.0.0/24"),)
    )
    gateway.engine.set_policies([other, GATEWAY_POLICY])
    peer.dial(TUNNEL, GATEWAY)
    network.settle()
    assert gateway.child.tunnel == TUNNEL


def test_selectors_are_narrowed_never_echoed() -> None:
    wide = tuple(map(TrafficSelector.from_prefix, ("10.2.0.0/16", "0.0.0.0/0", "::/0")))
    first = TrafficSelector(b"\x0a\x01\x00\x09", b"\x0a\x01\x00\x09", 17, 53, 53)
    _, gateway, peer, _ = dialled(
        peer={"local_ts": wide, "remote_ts": (first, TrafficSelector.from_prefix("10.0.0.0/8"))}
    )
    assert matched(gateway, peer) == 1
    assert gateway.child.local_ts == GATEWAY_POLICY.local_ts
    assert gateway.child.remote_ts == GATEWAY_POLICY.remote_ts


def test_the_peer_may_offer_what_we_do_not_know() -> None:
    """Vendor ids, notifications of extensions and unknown payloads that are not critical."""
    network, gateway, peer = pair()

    def decorate(datagram: Datagram) -> bytes:
        message = parse_message_untrusted(datagram.data)
        if message.header.exchange != ExchangeType.IKE_SA_INIT or message.header.response:
            return datagram.data
        extra: tuple[Payload, ...] = (Notify(16430), Notify(16418), Opaque(43, b"vendor"), Opaque(210, b"?"))
        return build_message(message.header, (*message.payloads, *extra))

    network.tap = decorate
    peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: bool(gateway.counters.nonzero() or gateway.ikes or peer.of(ExchangeFailed)), limit=5)
    # The signatures differ, as they must when someone rewrites the first message; but it was answered.
    assert [failure.notify for failure in gateway.of(NegotiationFailed)] == [24]


# ---- groups and cookies


def test_we_follow_an_invalid_ke_payload() -> None:
    both = ("aes256gcm16-prfsha256-ecp256", "aes256gcm16-prfsha256-x25519")
    network, gateway, peer, _ = dialled(peer={"ike": both})
    assert matched(gateway, peer) == 1
    assert notifies(network.sent[1]) == {NotifyType.INVALID_KE_PAYLOAD: b"\x00\x1f"}
    groups = [
        payload.group
        for datagram in (network.sent[0], network.sent[2])
        for payload in parse_message_untrusted(datagram.data).payloads
        if isinstance(payload, Ke)
    ]
    assert groups == [19, 31]
    assert len(gateway.ikes) == 1


def test_a_crowd_must_show_cookies() -> None:
    network, gateway, peer = pair(settings=msgspec.structs.replace(DEFAULTS, half_open_max=40))
    crowd(gateway, 4)
    network.sent.clear()
    peer.dial(TUNNEL, GATEWAY)
    network.settle()
    assert matched(gateway, peer) == 1
    assert list(notifies(network.sent[1])) == [NotifyType.COOKIE]
    assert next(iter(notifies(network.sent[2]))) == NotifyType.COOKIE
    assert gateway.context.half_open.total == 4


def test_cookie_and_group_together() -> None:
    network, gateway, peer = pair(
        settings=msgspec.structs.replace(DEFAULTS, half_open_max=10),
        peer={"ike": ("aes256gcm16-prfsha256-ecp256", "aes256gcm16-prfsha256-x25519")},
    )
    crowd(gateway, 1)
    peer.dial(TUNNEL, GATEWAY)
    network.settle()
    assert matched(gateway, peer) == 1


def test_the_same_cookie_again_changes_nothing() -> None:
    network, gateway, peer = pair(settings=msgspec.structs.replace(DEFAULTS, half_open_max=10))
    crowd(gateway, 1)
    network.sent.clear()
    peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: len(network.sent) == 3)
    late = network.sent[1]
    peer.engine.receive_datagram(late.data, Path(PEER, 500, GATEWAY, 500), network.now)
    assert peer.engine.datagrams_to_send() == []
    network.settle()
    assert matched(gateway, peer) == 1


@pytest.mark.parametrize("payloads", [(), (Opaque(210, b"", critical=True),)])
def test_an_answer_is_no_longer_than_what_it_answers(payloads: tuple[Payload, ...]) -> None:
    _, gateway, _ = pair()
    data = build_message(Header(b"initiate", bytes(8), 34, True, False, 0), payloads)
    gateway.engine.receive_datagram(data, Path(GATEWAY, 500, PEER, 500), 0.0)
    assert gateway.engine.datagrams_to_send() == []
    assert gateway.counters.nonzero() == {"ike_drop_unexpected": 1}


def test_endless_redirection_ends() -> None:
    """A liar who answers every request with another cookie costs us a few messages, not a loop."""
    network, _, peer = pair()

    def lie(datagram: Datagram) -> bytes | None:
        header = parse_header_untrusted(datagram.data)
        if header.response:
            return None
        answer = replace(header, initiator=False, response=True)
        cookie = Notify(NotifyType.COOKIE, len(network.sent).to_bytes(4, "big"))
        path = datagram.path
        forged = build_message(answer, (cookie,))
        peer.engine.receive_datagram(
            forged, Path(path.local, path.local_port, path.remote, path.remote_port), network.now
        )
        return None

    network.tap = lie
    token = peer.dial(TUNNEL, GATEWAY)
    network.settle(300)
    assert isinstance(peer.outcome(token), ExchangeFailed)
    assert len(network.sent) < 20
    assert peer.engine.timer() is None


def test_half_open_handshakes_are_bounded_and_time_out() -> None:
    network, gateway, peer = pair(settings=msgspec.structs.replace(DEFAULTS, half_open_max=10))
    crowd(gateway, 1)
    for _ in range(3):
        gateway.context.half_open.add(PEER)
    peer.dial(TUNNEL, GATEWAY)
    network.settle(1)
    assert gateway.counters["ike_drop_half_open"]
    for _ in range(3):
        gateway.context.half_open.remove(PEER)
    network.settle(DEFAULTS.half_open_timeout + 1)
    assert gateway.context.half_open.total == 0
    assert len(gateway.context.by_spi) == len(gateway.ikes)


def test_the_same_first_message_again_gets_the_same_answer() -> None:
    network, gateway, peer = pair()
    gateway.hold = True
    peer.dial(TUNNEL, GATEWAY)
    request = network.sent[0]
    path = Path(GATEWAY, 500, PEER, 500)
    answers = []
    for _ in range(3):
        gateway.engine.receive_datagram(request.data, path, network.now)
        answers += [datagram.data for datagram in gateway.engine.datagrams_to_send()]
    assert len(answers) == 3
    assert len(set(answers)) == 1
    assert len(gateway.context.by_spi) == 1
    assert gateway.counters["ike_replayed_response"] == 2


# ---- refusals


def test_wrong_psk() -> None:
    network, gateway, peer, token = dialled(peer={"psk": b"another secret"})
    (failed,) = gateway.of(NegotiationFailed)
    assert isinstance(failed, NegotiationFailed)
    assert (failed.tunnel, failed.notify) == (TUNNEL, 24)
    assert "pre-shared key is not ours" in failed.detail
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.AUTHENTICATION_FAILED
    assert not gateway.ikes
    assert not peer.ikes
    network.settle(DEFAULTS.half_open_timeout + 1)
    assert not gateway.context.by_spi
    assert gateway.engine.timer() is None


@pytest.mark.parametrize(
    "change", [{"local_id": "someone.example.org"}, {"remote_id": "elsewhere.example.org"}]
)
def test_unknown_identities(change: dict[str, str]) -> None:
    _, gateway, peer, token = dialled(peer=change)
    (failed,) = gateway.of(NegotiationFailed)
    assert isinstance(failed, NegotiationFailed)
    assert failed.notify == NotifyType.AUTHENTICATION_FAILED
    assert next(iter(change.values())) in failed.detail
    assert f"{PEER} to {GATEWAY}" in failed.detail
    assert isinstance(peer.outcome(token), ExchangeFailed)


def test_a_responder_that_cannot_prove_itself_is_told_and_left() -> None:
    """The gateway believes the peer, the peer does not believe the gateway."""
    network, gateway, peer = pair()
    gateway.hold = True
    token = peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: bool(gateway.tickets))
    gateway.engine.set_policies([replace(GATEWAY_POLICY, local_id="other.example")])
    gateway.grant(gateway.tickets[0])
    gateway.settle()
    network.settle()
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert "calls itself other.example" in outcome.detail
    (closed,) = gateway.of(IkeClosed)
    assert isinstance(closed, IkeClosed)
    assert closed.reason == "the peer said AUTHENTICATION_FAILED"
    assert not peer.context.by_spi


def test_no_common_ike_proposal() -> None:
    _, gateway, peer, token = dialled(peer={"ike": ("chacha20poly1305-prfsha384-x25519",)})
    (failed,) = gateway.of(NegotiationFailed)[:1]
    assert isinstance(failed, NegotiationFailed)
    assert failed.notify == NotifyType.NO_PROPOSAL_CHOSEN
    assert "ENCR aes256gcm16 against chacha20poly1305" in failed.detail
    assert "PRF prfsha256 against prfsha384" in failed.detail
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.NO_PROPOSAL_CHOSEN
    assert not gateway.context.by_spi


def test_a_forged_refusal_does_not_stop_the_handshake() -> None:
    network, gateway, peer = pair()
    token = peer.dial(TUNNEL, GATEWAY)
    request = parse_header_untrusted(network.sent[0].data)
    forged = Header(request.spi_i, b"forgery!", ExchangeType.IKE_SA_INIT, False, True, 0)
    data = build_message(forged, (Notify(NotifyType.NO_PROPOSAL_CHOSEN),))
    peer.engine.receive_datagram(data, Path(PEER, 500, GATEWAY, 500), network.now)
    network.settle()
    assert isinstance(peer.outcome(token), ChildEstablished)
    assert matched(gateway, peer) == 1


def test_no_common_esp_proposal_keeps_the_ike_sa() -> None:
    _, gateway, peer, token = dialled(peer={"esp": ("chacha20poly1305",)})
    (failed,) = gateway.of(NegotiationFailed)
    assert isinstance(failed, NegotiationFailed)
    assert (failed.tunnel, failed.notify) == (TUNNEL, NotifyType.NO_PROPOSAL_CHOSEN)
    assert "ENCR aes256gcm16 against chacha20poly1305" in failed.detail
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.NO_PROPOSAL_CHOSEN
    assert gateway.ikes
    assert peer.ikes
    peer.check_alive()


def test_foreign_selectors_keep_the_ike_sa() -> None:
    foreign = (TrafficSelector.from_prefix("192.168.0.0/16"),)
    _, gateway, peer, token = dialled(peer={"local_ts": foreign})
    (failed,) = gateway.of(NegotiationFailed)
    assert isinstance(failed, NegotiationFailed)
    assert failed.notify == NotifyType.TS_UNACCEPTABLE
    assert "remote 10.2.0.0/24" in failed.detail
    assert "remote 192.168.0.0/16" in failed.detail
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.TS_UNACCEPTABLE
    assert gateway.ikes
    assert peer.ikes


@pytest.mark.parametrize("error", [NoProposalChosen("no"), TemporaryFailure("later")])
def test_the_driver_may_refuse_the_child(error: Any) -> None:
    network, gateway, peer = pair()
    gateway.hold = True
    token = peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: bool(gateway.tickets))
    gateway.engine.reject(gateway.tickets[0].ticket, error, network.now)
    gateway.settle()
    network.settle()
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == error.notify
    assert gateway.ikes
    assert peer.ikes
    gateway.accept(gateway.tickets[0].ticket)  # void by now
    assert not gateway.context.by_ticket


def test_a_driver_that_never_decides_is_decided_for() -> None:
    network, gateway, peer = pair()
    gateway.hold = True
    token = peer.dial(TUNNEL, GATEWAY)
    network.run(lambda: peer.outcome(token) is not None)
    network.settle()
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.TEMPORARY_FAILURE


def test_while_a_ticket_is_held_the_request_may_come_again() -> None:
    network, gateway, peer = pair()
    gateway.hold = True
    peer.dial(TUNNEL, GATEWAY)
    network.settle(10)
    (ticket,) = gateway.tickets
    assert peer.counters["ike_retransmitted"] >= 2
    assert not gateway.counters.nonzero()
    gateway.grant(ticket)
    gateway.settle()
    network.settle()
    assert matched(gateway, peer) == 1


def test_nobody_there() -> None:
    network, _, peer = pair()
    del network.sites[GATEWAY]
    token = peer.dial(TUNNEL, GATEWAY)
    network.settle(300)
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify is None
    assert len({datagram.data for datagram in network.sent}) == 1
    assert len(network.sent) == 1 + DEFAULTS.retransmit_tries
    assert peer.engine.timer() is None
    assert not peer.context.by_spi


def test_an_unknown_tunnel_fails_at_once() -> None:
    _, _, peer = pair()
    assert isinstance(peer.outcome(peer.dial("acme/none", GATEWAY)), ExchangeFailed)


def test_a_critical_payload_we_do_not_know_is_refused() -> None:
    network, gateway, peer = pair()
    peer.dial(TUNNEL, GATEWAY)
    message = parse_message_untrusted(network.sent[0].data)
    data = build_message(message.header, (*message.payloads, Opaque(210, b"", critical=True)))
    gateway.engine.receive_datagram(data, Path(GATEWAY, 500, PEER, 500), network.now)
    (answer,) = gateway.engine.datagrams_to_send()
    assert notifies(answer) == {NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD: b"\xd2"}
    assert not gateway.context.by_spi


# ---- more than one IKE_SA


def test_initial_contact_closes_the_old_ones() -> None:
    network, gateway, _ = connected()
    fresh = Site(
        network,
        PEER,
        [PEER_POLICY],
        seed=1,
    )
    fresh.dial(TUNNEL, GATEWAY, 0x77777777)
    network.settle()
    (closed,) = gateway.of(IkeClosed)
    assert isinstance(closed, IkeClosed)
    assert closed.reason == "the peer has started anew"
    assert matched(gateway, fresh) == 1


def test_initial_contact_that_another_handshake_has_crossed_leaves_one_on_both_sides() -> None:
    network, gateway, peer = pair()
    peer.dial(TUNNEL, GATEWAY)
    peer.dial(TUNNEL, GATEWAY, 0x88888888)
    network.settle()
    assert len(gateway.ikes) == len(peer.ikes) == 1
    assert [event.reason for event in peer.of(IkeClosed)] == ["the peer deleted it"]
    assert matched(gateway, peer) == 1


def test_without_initial_contact_both_live_until_there_are_too_many() -> None:
    network, gateway, peer = connected()
    for number in range(2, 12):
        peer.dial(TUNNEL, GATEWAY, 0x1000 + number)
        network.settle()
        assert len(gateway.ikes) == min(number, 8)
    assert {event.reason for event in gateway.of(IkeClosed)} == {"too many IKE_SAs of this tunnel"}
