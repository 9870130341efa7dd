"""IKE_SAs under every suite, engine to engine: handshake, a rekey, liveness, and nothing dropped."""

from __future__ import annotations

import itertools

import pytest

from protego_cli.crypto.algorithms import CbcEncryption, Encryption, Integrity, KeGroup, Prf
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.ike.events import Alive, ChildEstablished, IkeEstablished
from tests.support.ike_pairs import connected, matched

AEADS = [a.keyword for a in ALGORITHMS if isinstance(a, Encryption)]
CBCS = [a.keyword for a in ALGORITHMS if isinstance(a, CbcEncryption)]
INTEGRITY = [a.keyword for a in ALGORITHMS if isinstance(a, Integrity)]
PRFS = [a.keyword for a in ALGORITHMS if isinstance(a, Prf)]
GROUPS = [a.keyword for a in ALGORITHMS if isinstance(a, KeGroup)]
IKE = [
    *(f"{cipher}-{prf}-x25519" for cipher, prf in itertools.product(AEADS, PRFS)),
    *(f"{cipher}-{mac}-x25519" for cipher, mac in itertools.product(CBCS, INTEGRITY)),
    *(f"aes256-sha256-{prf}-x25519" for prf in PRFS),
    *(f"aes256-sha256-{group}" for group in GROUPS),
]
NEW = 0x22222222


@pytest.mark.parametrize("ike", dict.fromkeys(IKE))
def test_an_ike_sa_of_every_suite(ike: str) -> None:
    network, gateway, peer = connected(ike=(ike,))
    (established,) = peer.of(IkeEstablished)
    assert set(ike.split("-")) <= set(established.suite.split("-"))
    token = gateway.rekey(gateway.child.spi_in, NEW)
    network.run(lambda: NEW in gateway.children and len(peer.children) == 2)
    assert isinstance(gateway.outcome(token), ChildEstablished)
    peer.check_alive()
    network.settle()
    assert peer.of(Alive)
    assert matched(gateway, peer) == 2
    assert not gateway.counters.nonzero()
    assert not peer.counters.nonzero()


def test_the_first_proposal_that_both_have_wins() -> None:
    ours = ("aes256-sha512-ecp521", "aes128-sha1-modp2048", "aes256-sha256-x25519")
    theirs = ("aes256-sha256-x25519", "aes128-sha1-modp2048")
    _, _, peer = connected(gateway={"ike": ours}, peer={"ike": theirs})
    (established,) = peer.of(IkeEstablished)
    assert established.suite == "aes128-sha1-prfsha1-modp2048"
