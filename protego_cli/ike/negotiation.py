"""Choosing a proposal, saying what differed when none fits (RFC 7296 2.7, 3.3), answering a key exchange.

Each proposal of ours names one transform of every type (ESP may leave open whether sequence numbers are
extended), so a proposal of the peer matches when it offers all of them, and nothing of another type that it
does not let us leave out by offering NONE (INTEG beside an AEAD, RFC 5282 8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from protego_cli.crypto.algorithms import KeGroup, RandomSource, Registry, TransformType
from protego_cli.crypto.proposal import EspProposal, IkeProposal
from protego_cli.crypto.shares import KeyShare
from protego_cli.errors import InvalidKePayload, InvalidSyntax, StateError
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import Ke, Notify
from protego_cli.wire.proposals import Proposal, Protocol, Transform

Suite = TypeVar("Suite", IkeProposal, EspProposal)

ESP_SPI_LENGTH = 4
LISTED = 24  # names in one list of a text
IKE_SPI_LENGTH = 8

_NAMES: dict[tuple[int, int], str] = {
    (TransformType.ENCR, 3): "3DES",
    (TransformType.ENCR, 11): "NULL",
    (TransformType.ENCR, 12): "AES_CBC",
    (TransformType.ENCR, 13): "AES_CTR",
    (TransformType.ENCR, 16): "AES_CCM_16",
    (TransformType.ENCR, 18): "AES_GCM_8",
    (TransformType.ENCR, 19): "AES_GCM_12",
    (TransformType.ENCR, 20): "AES_GCM_16",
    (TransformType.ENCR, 28): "CHACHA20_POLY1305",
    (TransformType.PRF, 1): "HMAC_MD5",
    (TransformType.PRF, 2): "HMAC_SHA1",
    (TransformType.PRF, 4): "AES128_XCBC",
    (TransformType.PRF, 5): "HMAC_SHA2_256",
    (TransformType.PRF, 6): "HMAC_SHA2_384",
    (TransformType.PRF, 7): "HMAC_SHA2_512",
    (TransformType.PRF, 8): "AES128_CMAC",
    (TransformType.INTEG, 0): "NONE",
    (TransformType.INTEG, 1): "HMAC_MD5_96",
    (TransformType.INTEG, 2): "HMAC_SHA1_96",
    (TransformType.INTEG, 5): "AES_XCBC_96",
    (TransformType.INTEG, 8): "AES_CMAC_96",
    (TransformType.INTEG, 12): "HMAC_SHA2_256_128",
    (TransformType.INTEG, 13): "HMAC_SHA2_384_192",
    (TransformType.INTEG, 14): "HMAC_SHA2_512_256",
    (TransformType.KE, 0): "NONE",
    (TransformType.KE, 2): "MODP_1024",
    (TransformType.KE, 5): "MODP_1536",
    (TransformType.KE, 14): "MODP_2048",
    (TransformType.KE, 15): "MODP_3072",
    (TransformType.KE, 16): "MODP_4096",
    (TransformType.KE, 19): "ECP_256",
    (TransformType.KE, 20): "ECP_384",
    (TransformType.KE, 21): "ECP_521",
    (TransformType.KE, 31): "CURVE25519",
    (TransformType.KE, 32): "CURVE448",
    (TransformType.KE, 35): "ML_KEM_512",
    (TransformType.KE, 36): "ML_KEM_768",
    (TransformType.KE, 37): "ML_KEM_1024",
    (TransformType.ESN, 0): "NO_ESN",
    (TransformType.ESN, 1): "ESN",
    (6, 35): "KE1_ML_KEM_512",  # additional key exchanges (RFC 9370), which are not offered or chosen here
    (6, 36): "KE1_ML_KEM_768",
    (6, 37): "KE1_ML_KEM_1024",
}


class Chosen(NamedTuple, Generic[Suite]):
    suite: Suite
    answer: Proposal  # without SPI
    spi: bytes  # the peer's


def propose(suites: Sequence[IkeProposal | EspProposal], spi: bytes) -> tuple[Proposal, ...]:
    """What we offer, in order of preference."""
    protocol = Protocol.IKE if isinstance(suites[0], IkeProposal) else Protocol.ESP
    return tuple(
        Proposal(number, protocol, spi, suite.transforms) for number, suite in enumerate(suites, start=1)
    )


def without_groups(suites: Iterable[EspProposal]) -> tuple[EspProposal, ...]:
    """What IKE_AUTH can negotiate: it has no KE payload of its own (RFC 7296 1.2)."""
    return tuple(dict.fromkeys(suite.groupless for suite in suites))


def choose(
    suites: Sequence[Suite], offered: Sequence[Proposal], spi_length: int, *, ignore_groups: bool = False
) -> Chosen[Suite] | None:
    """The first of our suites that the peer offers; `ignore_groups` overlooks groups offered in IKE_AUTH."""
    for suite in [settled for ours in suites for settled in ours.settled()]:
        protocol = Protocol.IKE if isinstance(suite, IkeProposal) else Protocol.ESP
        for proposal in offered:
            if proposal.protocol != protocol or len(proposal.spi) != spi_length:
                continue
            theirs = without_ke(proposal.transforms) if ignore_groups else proposal.transforms
            answer = _match(suite.transforms, theirs)
            if answer is not None:
                return Chosen(suite, Proposal(proposal.number, protocol, b"", answer), proposal.spi)
    return None


def confirm(
    suites: Sequence[Suite], answered: Sequence[Proposal], spi_length: int, *, ignore_groups: bool = False
) -> Chosen[Suite] | None:
    """The suite that the peer chose from ours, None when its answer is not one of them."""
    if len(answered) != 1:
        return None
    chosen = choose(suites, answered, spi_length, ignore_groups=ignore_groups)
    if chosen is None or len({t.type for t in answered[0].transforms}) != len(answered[0].transforms):
        return None
    return chosen


def difference(
    suites: Sequence[IkeProposal | EspProposal],
    offered: Sequence[Proposal],
    registry: Registry,
    *,
    ignore_groups: bool = False,
) -> str:
    """Why nothing was chosen: both sides' proposals, and the types of transform with nothing in common."""
    ours = [suite.transforms for suite in suites]
    theirs = [
        without_ke(proposal.transforms) if ignore_groups else proposal.transforms for proposal in offered
    ]
    text = f"ours: {_listing(ours, registry)}; theirs: {_listing(theirs, registry)}"
    clashes = []
    for kind in TransformType:
        mine = dict.fromkeys(t for proposal in ours for t in proposal if t.type == kind)
        others = dict.fromkeys(t for proposal in theirs for t in proposal if t.type == kind)
        optional = not mine and (not others or Transform(kind, 0) in others)
        if not optional and not mine.keys() & others.keys():
            clashes.append(f"{kind.name} {_names(mine, registry)} against {_names(others, registry)}")
    return f"{text}; differs: {', '.join(clashes) or 'no proposal of theirs holds all of one of ours'}"


def without_ke(offered: Sequence[Transform]) -> tuple[Transform, ...]:
    return tuple(transform for transform in offered if transform.type != TransformType.KE)


def _match(wanted: tuple[Transform, ...], offered: tuple[Transform, ...]) -> tuple[Transform, ...] | None:
    """`wanted` and the NONEs that complete it, or None when the offer does not hold them."""
    if wanted == offered:
        return wanted
    if not set(wanted) <= set(offered):
        return None
    answer = list(wanted)
    for kind in dict.fromkeys(t.type for t in offered if t.type not in {w.type for w in wanted}):
        none = Transform(kind, 0)
        if none not in offered:
            return None
        answer.append(none)
    return tuple(answer)


def _listing(proposals: Iterable[Iterable[Transform]], registry: Registry) -> str:
    shown = [" ".join(_few(name_of(t, registry) for t in proposal)) for proposal in proposals]
    return " | ".join(_few(dict.fromkeys(shown))) or "nothing"


def _names(found: Iterable[Transform], registry: Registry) -> str:
    return "/".join(_few(name_of(transform, registry) for transform in found)) or "nothing"


def _few(names: Iterable[str]) -> Iterator[str]:
    """What a person would read of them: a peer may send thousands."""
    for count, name in enumerate(names):
        if count == LISTED:
            yield "…"
            return
        yield name


def name_of(transform: Transform, registry: Registry) -> str:
    """Its keyword, or the name that it has elsewhere."""
    algorithm = registry.find(transform.type, transform.id, transform.key_bits)
    if algorithm is not None:
        return algorithm.keyword
    name = _NAMES.get((transform.type, transform.id), f"transform {transform.type}:{transform.id}")
    return name if transform.key_bits is None else f"{name}_{transform.key_bits}"


def wanted_group(error: Notify, offered: Iterable[IkeProposal | EspProposal]) -> KeGroup | None:
    """The group that an INVALID_KE_PAYLOAD asks for, if it is of one of these proposals."""
    if error.kind != NotifyType.INVALID_KE_PAYLOAD:
        return None
    wanted = int.from_bytes(error.data, "big")
    groups = (proposal.group for proposal in offered)
    return next((group for group in groups if group and group.transform_id == wanted), None)


def share_again(keyword: str, seed: bytes, offered: Iterable[IkeProposal | EspProposal]) -> KeyShare:
    """Our half of a key exchange, as it was stored with a request of these proposals. Raises StateError."""
    groups = (proposal.group for proposal in offered)
    group = next((group for group in groups if group and group.keyword == keyword), None)
    if group is None:
        raise StateError(f"a request in the group {keyword}, which it does not offer")
    return KeyShare.again(group, seed)


def answer_ke(group: KeGroup, ke: Ke | None, random: RandomSource) -> tuple[Ke, bytes]:
    """Our KE payload and the shared secret, in answer to a peer's for the group of the suite that was chosen.

    Raises InvalidKePayload, which names the group, for a payload of another one or none (RFC 7296 1.2, 1.3);
    InvalidSyntax for a value that the group does not have.
    """
    if ke is None or ke.group != group.transform_id:
        got = "no key exchange" if ke is None else f"group {ke.group}"
        raise InvalidKePayload(f"{got} instead of {group.keyword}", data=group.transform_id.to_bytes(2))
    if len(ke.data) != group.public_length:  # before a private value is made for a stranger
        raise InvalidSyntax(f"a value of {len(ke.data)} bytes, which is none of the group {group.keyword}")
    private = group.generate(random)
    shared = private.shared(ke.data)
    return Ke(group.transform_id, private.public), shared
