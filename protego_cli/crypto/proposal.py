"""Proposals as people write them: algorithm keywords joined by "-", as strongSwan and others have them.

An IKE proposal names one cipher, one PRF and one key exchange group: "aes256gcm16-prfsha256-x25519".
An ESP proposal names one cipher and, for a rekey with a fresh key exchange, one group:
"aes256gcm16-x25519" or "aes256gcm16". The order of the keywords is free; `str()` of a proposal is the
canonical one. What the keywords mean is the registry's, so a plugin's algorithm works everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass

from protego_cli.crypto.algorithms import Algorithm, Encryption, KeGroup, Prf, Registry, TransformType

_KINDS = {TransformType.ENCR: "cipher", TransformType.PRF: "PRF", TransformType.KE: "key exchange group"}


@dataclass(frozen=True)
class IkeProposal:
    """A complete suite for an IKE_SA (RFC 7296 3.3.3; with an AEAD there is no integrity transform)."""

    encryption: Encryption
    prf: Prf
    group: KeGroup

    def __str__(self) -> str:
        return f"{self.encryption.keyword}-{self.prf.keyword}-{self.group.keyword}"


@dataclass(frozen=True)
class EspProposal:
    """A suite for a CHILD_SA; with a group, a rekey makes a fresh key exchange."""

    encryption: Encryption
    group: KeGroup | None

    def __str__(self) -> str:
        return f"{self.encryption.keyword}-{self.group.keyword}" if self.group else self.encryption.keyword


def parse_ike(text: str, registry: Registry) -> IkeProposal:
    """Raises ValueError; its text says what is wrong and what is known."""
    found = _resolve(text, registry)
    encryption, prf, group = found.encryption, found.prf, found.group
    if encryption is None:
        raise _missing(text, "IKE", TransformType.ENCR, registry)
    if prf is None:
        raise _missing(text, "IKE", TransformType.PRF, registry)
    if group is None:
        raise _missing(text, "IKE", TransformType.KE, registry)
    return IkeProposal(encryption, prf, group)


def parse_esp(text: str, registry: Registry) -> EspProposal:
    """Raises ValueError; its text says what is wrong and what is known."""
    found = _resolve(text, registry)
    if found.prf is not None:
        raise ValueError(
            f"ESP proposal {text!r} names the PRF {found.prf.keyword!r}: only an IKE proposal has one; "
            "keys of ESP come from the PRF of its IKE SA"
        )
    if found.encryption is None:
        raise _missing(text, "ESP", TransformType.ENCR, registry)
    return EspProposal(found.encryption, found.group)


@dataclass(slots=True)
class _Found:
    """At most one algorithm of each kind."""

    encryption: Encryption | None = None
    prf: Prf | None = None
    group: KeGroup | None = None


def _resolve(text: str, registry: Registry) -> _Found:
    found = _Found()
    previous: Algorithm | None
    for keyword in text.split("-"):
        algorithm = registry.get(keyword)
        match algorithm:
            case Encryption():
                previous, found.encryption = found.encryption, algorithm
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


def _unknown(text: str, keyword: str, registry: Registry) -> ValueError:
    if not keyword:
        return ValueError(f'proposal {text!r} has an empty keyword; join keywords by a single "-"')
    known = registry.keywords()
    close = difflib.get_close_matches(keyword.lower(), known, n=1, cutoff=0.75)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {_list(known)}"
    return ValueError(f"unknown algorithm {keyword!r} in proposal {text!r}; {hint}")


def _missing(text: str, protocol: str, kind: TransformType, registry: Registry) -> ValueError:
    known = [word for word in registry.keywords() if _is(registry.get(word), kind)]
    return ValueError(f"{protocol} proposal {text!r} names no {_KINDS[kind]}; known are {_list(known)}")


def _is(algorithm: Algorithm | None, kind: TransformType) -> bool:
    return algorithm is not None and algorithm.type == kind


def _list(keywords: Collection[str]) -> str:
    return ", ".join(keywords) or "none (no plugin provides any)"
