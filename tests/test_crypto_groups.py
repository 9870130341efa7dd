"""Key exchange groups: published vectors, agreement, and peers that send nonsense."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protego_cli.crypto import groups
from protego_cli.crypto.algorithms import KeGroup, RandomSource
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.crypto.primes import MODP_2048, MODP_3072, MODP_4096
from protego_cli.errors import InvalidSyntax

GROUPS = {algorithm.keyword: algorithm for algorithm in ALGORITHMS if isinstance(algorithm, KeGroup)}
PRIMES = {"modp2048": MODP_2048, "modp3072": MODP_3072, "modp4096": MODP_4096}
OUR_EXPONENT = 0x1234567890ABCDEF  # of MODP groups, wherever a test chooses it


def number(value: int) -> RandomSource:
    """A source that draws this one number, in as many bytes as are asked for."""
    return lambda length: value.to_bytes(length, "big")


def seeded(seed: int) -> RandomSource:
    return random.Random(seed).randbytes


each_group = pytest.mark.parametrize("group", GROUPS.values(), ids=list(GROUPS))
each_prime = pytest.mark.parametrize(("keyword", "prime"), PRIMES.items(), ids=list(PRIMES))


# ---- published vectors


def test_x25519_agrees_as_in_rfc_7748() -> None:
    alice_private = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    alice = GROUPS["x25519"].generate(lambda _: alice_private)
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    bob_public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.shared(bob_public).hex() == secret


# RFC 5903 8.1 to 8.3: our private value, our public value, theirs, the secret
ECP_VECTORS = {
    "ecp256": (
        "c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433",
        (
            "dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c3772581180"
            "5271a0461cdb8252d61f1c456fa3e59ab1f45b33accf5f58389e0577b8990bb3"
        ),
        (
            "d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf63"
            "56fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab"
        ),
        "d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de",
    ),
    "ecp384": (
        "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655e35b538041e649ee3faef896783ab194",
        (
            "667842d7d180ac2cde6f74f37551f55755c7645c20ef73e31634fe72b4c55ee6de3ac808acb4bdb4c88732aee95f41aa"
            "9482ed1fc0eeb9cafc4984625ccfc23f65032149e0e144ada024181535a0f38eeb9fcff3c2c947dae69b4c634573a81c"
        ),
        (
            "e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d0d1ac43a0336def96fda41d0774a3571"
            "dcfbec7aacf3196472169e838430367f66eebe3c6e70c416dd5f0c68759dd1fff83fa40142209dff5eaad96db9e6386c"
        ),
        "11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4d603135569b9e9d09cf5d4a270f59746",
    ),
    "ecp521": (
        (
            "0037ade9319a89f4dabdb3ef411aaccca5123c61acab57b5393dce47608172a095aa85a30fe1c2952c6771d937ba9777"
            "f5957b2639bab072462f68c27a57382d4a52"
        ),
        (
            "0015417e84dbf28c0ad3c278713349dc7df153c897a1891bd98bab4357c9ecbee1e3bf42e00b8e380aeae57c2d107564"
            "941885942af5a7f4601723c4195d176ced3e"
            "017cae20b6641d2eeb695786d8c946146239d099e18e1d5a514c739d7cb4a10ad8a788015ac405d7799dc75e7b7d5b6c"
            "f2261a6a7f1507438bf01beb6ca3926f9582"
        ),
        (
            "00d0b3975ac4b799f5bea16d5e13e9af971d5e9b984c9f39728b5e5739735a219b97c356436adc6e95bb0352f6be64a6"
            "c2912d4ef2d0433ced2b6171640012d9460f"
            "015c68226383956e3bd066e797b623c27ce0eac2f551a10c2c724d9852077b87220b6536c5c408a1d2aebb8e86d678ae"
            "49cb57091f4732296579ab44fcd17f0fc56a"
        ),
        (
            "01144c7d79ae6956bc8edb8e7c787c4521cb086fa64407f97894e5e6b2d79b04d1427e73ca4baa240a34786859810c06"
            "b3c715a3a8cc3151f2bee417996d19f3ddea"
        ),
    ),
}


@pytest.mark.parametrize("keyword", ECP_VECTORS)
def test_ecp_agrees_as_in_rfc_5903(keyword: str) -> None:
    private, our_public, their_public, secret = map(bytes.fromhex, ECP_VECTORS[keyword])
    ours = GROUPS[keyword].generate(number(int.from_bytes(private, "big") - 1))
    assert ours.public == our_public
    assert ours.shared(their_public) == secret


@pytest.mark.parametrize(
    ("keyword", "bits", "offset"),
    [("modp2048", 2048, 124476), ("modp3072", 3072, 1690314), ("modp4096", 4096, 240904)],
)
def test_modp_primes_are_the_formulas_of_rfc_3526(keyword: str, bits: int, offset: int) -> None:
    scaled_pi = pi_times_two_to_the(bits - 130)
    assert PRIMES[keyword] == 2**bits - 2 ** (bits - 64) - 1 + 2**64 * (scaled_pi + offset)


def pi_times_two_to_the(bits: int) -> int:
    """floor(pi * 2^bits), by Machin's formula with 64 guard bits."""
    one = 1 << (bits + 64)

    def arctan_of_inverse(x: int) -> int:
        term = total = one // x
        odd, sign = 3, -1
        while term:
            term //= x * x
            total += sign * (term // odd)
            odd, sign = odd + 2, -sign
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> 64


@each_prime
def test_modp_agrees_with_plain_arithmetic(keyword: str, prime: int) -> None:
    ours = GROUPS[keyword].generate(number(OUR_EXPONENT))
    length = prime.bit_length() // 8
    assert ours.public == pow(2, OUR_EXPONENT, prime).to_bytes(length, "big")
    theirs = pow(2, 0xFEDCBA, prime)
    assert ours.shared(theirs.to_bytes(length, "big")) == pow(theirs, OUR_EXPONENT, prime).to_bytes(
        length, "big"
    )


@each_prime
def test_modp_secret_keeps_its_leading_zeros(keyword: str, prime: int) -> None:
    """RFC 7296 2.14: g^ir is padded to the length of the modulus."""
    length = prime.bit_length() // 8
    root = pow(OUR_EXPONENT, -1, (prime - 1) // 2)
    theirs = pow(4, root, prime)  # raised to our exponent it is 4: one byte behind zeros
    ours = GROUPS[keyword].generate(number(OUR_EXPONENT))
    assert ours.shared(theirs.to_bytes(length, "big")) == bytes(length - 1) + b"\x04"


# ---- every group


@each_group
def test_two_sides_agree_and_strangers_do_not(group: KeGroup) -> None:
    ours, theirs, stranger = (group.generate(seeded(seed)) for seed in (1, 2, 3))
    assert len(ours.public) == group.public_length
    assert ours.public != theirs.public
    assert ours.shared(theirs.public) == theirs.shared(ours.public)
    assert ours.shared(stranger.public) != ours.shared(theirs.public)


@each_group
def test_the_injected_source_is_the_only_randomness(group: KeGroup) -> None:
    assert group.generate(seeded(7)).public == group.generate(seeded(7)).public


@each_group
@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: p + b"\0", lambda _: b"", lambda p: p * 2])
def test_a_public_value_of_another_length_is_invalid(
    group: KeGroup, change: Callable[[bytes], bytes]
) -> None:
    ours = group.generate(seeded(1))
    with pytest.raises(InvalidSyntax, match="bytes"):
        ours.shared(change(group.generate(seeded(2)).public))


@each_group
def test_the_private_value_shows_in_no_repr(group: KeGroup) -> None:
    drawn: list[bytes] = []

    def source(length: int) -> bytes:
        drawn.append(seeded(5)(length))
        return drawn[-1]

    shown = repr(group.generate(source))
    assert drawn[0].hex() not in shown
    assert repr(drawn[0]) not in shown


# ---- hostile values

SMALL_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
]


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_x25519_refuses_points_of_small_order(public: str) -> None:
    with pytest.raises(InvalidSyntax, match="small order"):
        GROUPS["x25519"].generate(seeded(1)).shared(bytes.fromhex(public))


@pytest.mark.parametrize("keyword", ECP_VECTORS)
def test_ecp_refuses_what_is_not_on_the_curve(keyword: str) -> None:
    group = GROUPS[keyword]
    ours, good = group.generate(seeded(1)), group.generate(seeded(2)).public
    half = group.public_length // 2
    for public in (
        bytes(group.public_length),  # not even the point at infinity has such coordinates
        b"\xff" * group.public_length,  # beyond the field
        good[:-1] + bytes((good[-1] ^ 1,)),
        good[half:] + good[:half],
    ):
        with pytest.raises(InvalidSyntax, match="no point"):
            ours.shared(public)


@each_prime
def test_modp_refuses_what_generates_a_trivial_subgroup(keyword: str, prime: int) -> None:
    ours, length = GROUPS[keyword].generate(number(OUR_EXPONENT)), prime.bit_length() // 8
    for value in (0, 1, prime - 1, prime, prime + 1, (1 << prime.bit_length()) - 1):
        with pytest.raises(InvalidSyntax, match=r"2\.\.p-2"):
            ours.shared(value.to_bytes(length, "big"))


@pytest.mark.parametrize("keyword", ["x25519", "ecp256", "ecp384", "modp2048"])
@settings(max_examples=50)
@given(data=st.data())
def test_any_bytes_give_a_secret_or_invalid_syntax(keyword: str, data: st.DataObject) -> None:
    group = GROUPS[keyword]
    public = data.draw(st.binary(min_size=group.public_length, max_size=group.public_length) | st.binary())
    try:
        secret = group.generate(seeded(1)).shared(public)
    except InvalidSyntax:
        return
    assert any(secret)


@pytest.mark.parametrize("keyword", ["modp2048", "ecp256"])
def test_a_bad_value_costs_no_private_key(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's value is judged before the arithmetic on ours begins."""

    def costly(private: object) -> None:
        raise AssertionError("a key was made for a value that is no good")

    for kind in (groups._Ecp, groups._Modp):
        monkeypatch.setattr(kind, "_private", property(costly))
    group = GROUPS[keyword]
    for value in (b"", bytes(group.public_length)):
        with pytest.raises(InvalidSyntax):
            group.generate(os.urandom).shared(value)
