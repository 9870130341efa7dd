"""Key exchange groups over the `cryptography` package, each with its private value from the injected source.

Flow of one exchange: `generate(random)` draws the private value, `public` goes into our KE payload,
`shared(theirs)` checks the peer's value and agrees. A peer's value is network input: whatever is wrong with
it (length, not on the curve, a point of small order, outside 2..p-2) is InvalidSyntax and nothing else. What
costs most is done when it is first asked for, so that a responder who calls `shared` first spends little on
the bad value of a stranger.

RFC 8031 (Curve25519), RFC 5903 (the NIST curves: x and y without a format octet, x alone is the secret),
RFC 3526 (MODP), RFC 6989 (which checks each kind of group needs).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric import dh, ec, x25519
from cryptography.utils import CryptographyDeprecationWarning

from protego_cli.crypto.algorithms import KeGroup, KePrivate, RandomSource
from protego_cli.errors import InvalidSyntax


def _check_length(group: str, public: bytes, expected: int) -> None:
    if len(public) != expected:
        raise InvalidSyntax(f"public value of {group} has {len(public)} bytes, not {expected}")


# ---- Curve25519

_X25519_LENGTH = 32


class _X25519:
    """RFC 8031. An all-zero secret, which points of small order give, is refused (RFC 7748 6.1)."""

    __slots__ = ("_private", "public")

    def __init__(self, random: RandomSource) -> None:
        self._private = x25519.X25519PrivateKey.from_private_bytes(random(_X25519_LENGTH))
        self.public = self._private.public_key().public_bytes_raw()

    def shared(self, peer_public: bytes) -> bytes:
        _check_length("x25519", peer_public, _X25519_LENGTH)
        try:
            return self._private.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise InvalidSyntax("public value of x25519 has small order") from None


def x25519_group(keyword: str, transform_id: int) -> KeGroup:
    return KeGroup(keyword, transform_id, _X25519_LENGTH, _X25519)


# ---- the NIST curves

_EXCESS = 8  # surplus random bytes: the bias of the reduction is below 2^-64 (FIPS 186-5 A.2.1)
_UNCOMPRESSED = b"\x04"  # SEC 1 2.3.3; RFC 5903 leaves this octet out


class _Ecp:
    def __init__(self, curve: ec.EllipticCurve, order: int, random: RandomSource) -> None:
        self._curve = curve
        self._length = (curve.key_size + 7) // 8
        excess = int.from_bytes(random((order.bit_length() + 7) // 8 + _EXCESS), "big")
        self._value = excess % (order - 1) + 1

    @cached_property
    def _private(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(self._value, self._curve)

    @property
    def public(self) -> bytes:
        point = self._private.public_key().public_numbers()
        return point.x.to_bytes(self._length, "big") + point.y.to_bytes(self._length, "big")

    def shared(self, peer_public: bytes) -> bytes:
        _check_length(self._curve.name, peer_public, 2 * self._length)
        try:
            peer = ec.EllipticCurvePublicKey.from_encoded_point(self._curve, _UNCOMPRESSED + peer_public)
        except ValueError:
            raise InvalidSyntax(f"public value is no point of {self._curve.name}") from None
        return self._private.exchange(ec.ECDH(), peer)


def ecp_group(keyword: str, transform_id: int, curve: ec.EllipticCurve, order: int) -> KeGroup:
    """A prime-order curve; `order` is that of its base point."""

    def generate(random: RandomSource) -> KePrivate:
        return _Ecp(curve, order, random)

    return KeGroup(keyword, transform_id, 2 * ((curve.key_size + 7) // 8), generate)


# ---- MODP

_GENERATOR = 2  # of every group of RFC 3526


@contextmanager
def _finite_field() -> Iterator[None]:
    """`cryptography` warns at each call that finite field DH is deprecated; peers without a curve remain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


class _Modp:
    """One exchange in a group with a safe prime, so 1 < y < p - 1 is all there is to check (RFC 6989 2.1)."""

    def __init__(self, keyword: str, prime: int, exponent_length: int, random: RandomSource) -> None:
        self._keyword = keyword
        self._exponent = int.from_bytes(random(exponent_length), "big")
        with _finite_field():
            self._parameters = dh.DHParameterNumbers(prime, _GENERATOR)
            self._generator = dh.DHPublicNumbers(_GENERATOR, self._parameters)

    @cached_property
    def _private(self) -> dh.DHPrivateKey:
        # A private key wants its public value, which is what we are after: agreeing with the generator
        # itself yields generator^exponent by the library's own constant-time arithmetic.
        with _finite_field():
            return dh.DHPrivateNumbers(self._exponent, self._generator).private_key()

    @cached_property
    def public(self) -> bytes:
        with _finite_field():
            return self._private.exchange(self._generator.public_key())

    def shared(self, peer_public: bytes) -> bytes:
        _check_length(self._keyword, peer_public, (self._parameters.p.bit_length() + 7) // 8)
        value = int.from_bytes(peer_public, "big")
        if not 1 < value < self._parameters.p - 1:
            raise InvalidSyntax(f"public value of {self._keyword} is outside 2..p-2")
        try:
            with _finite_field():
                return self._private.exchange(dh.DHPublicNumbers(value, self._parameters).public_key())
        except ValueError:
            raise InvalidSyntax(f"public value of {self._keyword} is not acceptable") from None


def modp_group(keyword: str, transform_id: int, prime: int, exponent_bits: int) -> KeGroup:
    """A group of RFC 3526; `exponent_bits` is at least twice the group's strength (its section 8)."""

    def generate(random: RandomSource) -> KePrivate:
        return _Modp(keyword, prime, exponent_bits // 8, random)

    return KeGroup(keyword, transform_id, (prime.bit_length() + 7) // 8, generate)
