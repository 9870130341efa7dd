"""Proposals as people write them: algorithm keywords joined by "-", as strongSwan and others have them.

An IKE proposal names a cipher, a PRF and a key exchange group, and an integrity algorithm unless the cipher
is an AEAD: "aes256gcm16-prfsha256-x25519", "aes256-sha256-prfsha384-ecp384". Without a PRF it is that of the
integrity algorithm's hash: "aes256-sha256-modp2048".
An ESP proposal names a cipher, an integrity algorithm likewise and, for a rekey with a fresh key exchange, a
group: "aes256gcm16-x25519", "aes128-sha1". "esn" asks for extended sequence numbers alone, "noesn" for none;
without either both will do, and extended ones are preferred.
The order of the keywords is free; `str()` of a proposal is the canonical one. What the keywords mean is the
registry's, so a plugin's algorithm works everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Final

from protego_cli.crypto.algorithms import (
    Algorithm,
    CbcEncryption,
    Cipher,
    Encryption,
    Integrity,
    KeGroup,
    Prf,
    Registry,
    TransformType,
)
from protego_cli.wire.proposals import Transform

_KINDS = {
    TransformType.ENCR: "cipher",
    TransformType.PRF: "PRF",
    TransformType.INTEG: "integrity algorithm",
    TransformType.KE: "key exchange group",
}

ESN_OR_NOT: Final = (True, False)
PROPOSALS: Final = 256  # remembered, so that all tunnels share what is known of them
_ESN: Final = {"esn": True, "noesn": False}


@dataclass(frozen=True)
class IkeProposal:
    """A complete suite for an IKE_SA (RFC 7296 3.3.3); with an AEAD there is no integrity transform."""

    encryption: Cipher
    prf: Prf
    group: KeGroup
    integrity: Integrity | None = None

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return "-".join(_keywords(self.encryption, self.integrity, self.prf, self.group))

    @cached_property
    def transforms(self) -> tuple[Transform, ...]:
        """As it goes over the wire."""
        return tuple(_transforms(self.encryption, self.integrity, self.prf, self.group))

    def settled(self) -> tuple[IkeProposal]:
        """The ways to agree on it."""
        return (self,)


@dataclass(frozen=True)
class EspProposal:
    """A suite for a CHILD_SA; with a group, a rekey makes a fresh key exchange."""

    encryption: Cipher
    group: KeGroup | None
    integrity: Integrity | None = None
    esn: tuple[bool, ...] = ESN_OR_NOT  # what will do, in order of preference; a single one once agreed

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        words = _keywords(self.encryption, self.integrity, self.group)
        if self.esn != ESN_OR_NOT:
            words += [word for word, esn in _ESN.items() if esn in self.esn]
        return "-".join(words)

    @cached_property
    def transforms(self) -> tuple[Transform, ...]:
        """As it goes over the wire."""
        found = _transforms(self.encryption, self.integrity, self.group)
        return (*found, *(Transform(TransformType.ESN, int(esn)) for esn in self.esn))

    def settled(self) -> tuple[EspProposal, ...]:
        """The ways to agree on it, in order of preference."""
        return self._settled

    @cached_property
    def _settled(self) -> tuple[EspProposal, ...]:
        return tuple(replace(self, esn=(esn,)) for esn in self.esn)

    @cached_property
    def groupless(self) -> EspProposal:
        """The same without a group."""
        return replace(self, group=None)

    @cached_property
    def spoken(self) -> str:
        """As agreed, for people: that there are no extended sequence numbers goes without saying."""
        return str(replace(self, esn=ESN_OR_NOT)) if self.esn == (False,) else str(self)


def _keywords(*parts: Algorithm | None) -> list[str]:
    return [part.keyword for part in parts if part]


def _transforms(*parts: Algorithm | None) -> list[Transform]:
    return [Transform(part.type, part.transform_id, part.key_bits) for part in parts if part]


@lru_cache(PROPOSALS)
def parse_ike(text: str, registry: Registry) -> IkeProposal:
    """Raises ValueError; its text says what is wrong and what is known."""
    found = _resolve(text, registry)
    if found.esn:
        raise ValueError(f"IKE proposal {text!r} speaks of sequence numbers; only an ESP proposal does")
    encryption = _cipher(found, text, "IKE", registry)
    prf, group = found.prf, found.group
    if prf is None and found.integrity is not None:
        implied = registry.get(found.integrity.prf)
        prf = implied if isinstance(implied, Prf) else None
    if prf is None:
        raise _missing(text, "IKE", TransformType.PRF, registry)
    if group is None:
        raise _missing(text, "IKE", TransformType.KE, registry)
    return IkeProposal(encryption, prf, group, found.integrity)


@lru_cache(PROPOSALS)
def parse_esp(text: str, registry: Registry) -> EspProposal:
    """Raises ValueError; its text says what is wrong and what is known."""
    found = _resolve(text, registry)
    if found.prf is not None:
        raise ValueError(
            f"ESP proposal {text!r} names the PRF {found.prf.keyword!r}: only an IKE proposal has one; "
            "keys of ESP come from the PRF of its IKE SA"
        )
    encryption = _cipher(found, text, "ESP", registry)
    esn = tuple(option for option in ESN_OR_NOT if option in found.esn) or ESN_OR_NOT
    return EspProposal(encryption, found.group, found.integrity, esn)


@dataclass(slots=True)
class _Found:
    """At most one algorithm of each kind."""

    encryption: Cipher | None = None
    integrity: Integrity | None = None
    prf: Prf | None = None
    group: KeGroup | None = None
    esn: tuple[bool, ...] = ()


def _resolve(text: str, registry: Registry) -> _Found:
    found = _Found()
    previous: Algorithm | None
    for keyword in text.split("-"):
        if keyword in _ESN:
            if _ESN[keyword] in found.esn:
                raise ValueError(f"proposal {text!r} says {keyword!r} twice")
            found.esn += (_ESN[keyword],)
            continue
        algorithm = registry.get(keyword)
        match algorithm:
            case Encryption() | CbcEncryption():
                previous, found.encryption = found.encryption, algorithm
            case Integrity():
                previous, found.integrity = found.integrity, algorithm
            case Prf():
                previous, found.prf = found.prf, algorithm
            case KeGroup():
                previous, found.group = found.group, algorithm
            case None:
                raise _unknown(text, keyword, registry)
        if previous is not None:
            raise ValueError(
                f"proposal {text!r} names two of a kind, {previous.keyword!r} and {keyword!r} "
                f"({_KINDS[algorithm.type]}); write one proposal for each"
            )
    return found


def _cipher(found: _Found, text: str, protocol: str, registry: Registry) -> Cipher:
    """The cipher, with an integrity algorithm exactly where it needs one."""
    encryption, integrity = found.encryption, found.integrity
    if encryption is None:
        raise _missing(text, protocol, TransformType.ENCR, registry)
    if isinstance(encryption, Encryption) and integrity is not None:
        hint = f"; for the PRF, write {integrity.prf!r}" if protocol == "IKE" and not found.prf else ""
        raise ValueError(
            f"{protocol} proposal {text!r} names the integrity algorithm {integrity.keyword!r}, but "
            f"{encryption.keyword!r} is an AEAD, which needs none: remove it{hint}"
        )
    if isinstance(encryption, CbcEncryption) and integrity is None:
        raise ValueError(
            f"{protocol} proposal {text!r} names no integrity algorithm, which {encryption.keyword!r} needs; "
            f"known are {_list(_known(TransformType.INTEG, registry))}"
        )
    return encryption


def _unknown(text: str, keyword: str, registry: Registry) -> ValueError:
    if not keyword:
        return ValueError(f'proposal {text!r} has an empty keyword; join keywords by a single "-"')
    known = registry.keywords()
    close = difflib.get_close_matches(keyword.lower(), known, n=1, cutoff=0.75)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {_list(known)}"
    return ValueError(f"unknown algorithm {keyword!r} in proposal {text!r}; {hint}")


def _missing(text: str, protocol: str, kind: TransformType, registry: Registry) -> ValueError:
    known = _known(kind, registry)
    return ValueError(f"{protocol} proposal {text!r} names no {_KINDS[kind]}; known are {_list(known)}")


def _known(kind: TransformType, registry: Registry) -> list[str]:
    return [word for word in registry.keywords() if _is(registry.get(word), kind)]


def _is(algorithm: Algorithm | None, kind: TransformType) -> bool:
    return algorithm is not None and algorithm.type == kind


def _list(keywords: Collection[str]) -> str:
    return ", ".join(keywords) or "none (no plugin provides any)"
