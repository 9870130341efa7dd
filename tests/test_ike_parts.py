"""The engine's parts one by one: keys, identities, narrowing, negotiation, cookies, windows, the law."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.crypto.algorithms import Prf, TransformType
from protego_cli.crypto.proposal import EspProposal, IkeProposal, parse_esp, parse_ike
from protego_cli.errors import InvalidKePayload, InvalidSyntax, Malformed, TsUnacceptable
from protego_cli.ike.auth import Signer
from protego_cli.ike.cookies import LIFETIME, Cookies
from protego_cli.ike.half_open import HalfOpen
from protego_cli.ike.identities import Identity, IdKind
from protego_cli.ike.keys import child_keys, ike_keys, rekeyed_skeyseed, skeyseed
from protego_cli.ike.narrowing import MAX_SELECTORS, covered, narrow
from protego_cli.ike.negotiation import answer_ke, choose, confirm, difference, propose, without_groups
from protego_cli.ike.protect import NotAuthentic, Opener, Sealer
from protego_cli.ike.rations import Allowance, Ration
from protego_cli.ike.transitions import SENDS, TAKES, TRANSITIONS, State, Trigger, after
from protego_cli.ike.window import ReceiveWindow, SendWindow, Verdict
from protego_cli.wire.ike import Header
from protego_cli.wire.payloads import IdI, Ke, Nonce
from protego_cli.wire.proposals import Proposal, Transform
from protego_cli.wire.selectors import TrafficSelector
from tests.support.ike_strategies import selector_lists
from tests.support.network import DEFAULTS, REGISTRY

SHA1 = Prf("prfsha1", 2, 20, lambda key, data: hmac.digest(key, data, "sha1"))
CBC = parse_ike("aes256-sha256-x25519", REGISTRY)
IKE = parse_ike("aes256gcm16-prfsha256-x25519", REGISTRY)
ESP = parse_esp("aes256gcm16-noesn", REGISTRY)
PFS = parse_esp("aes256gcm16-x25519-noesn", REGISTRY)


# ---- keys


def test_ike_keys_by_the_cavp_vector() -> None:
    """NIST CAVP, SP 800-135 IKEv2, HMAC-SHA1."""
    nonces = (bytes.fromhex("32b50d5f4a3763f3"), bytes.fromhex("9206a04b26564cb1"))
    spis = (bytes.fromhex("34c9e7c188868785"), bytes.fromhex("3ff77d760d2b2199"))
    shared = bytes.fromhex("4b2c1f971981a8ad8d0abeafabf38cf75fc8349c148142465ed9c8b516b8be52")
    fresh = bytes.fromhex("863f3c9d06efd39d2b907b97f8699e5dd5251ef64a2a176f36ee40c87d4f9330")
    material = bytes.fromhex(
        "a14293677cc80ff8f9cc0eee30d895da9d8f405666e30ef0dfcb63c634a46002a2a63080e514a062768b76606f9fa5e9"
        "92204fc5a670bde3f10d6b027113936a5c55b648a194ae587b0088d52204b702c979fa280870d2ed41efa9c549fd1119"
        "8af1670b143d384bd275c5f594cf266b05ebadca855e4249520a441a81157435a7a56cc4"
    )
    seed = skeyseed(SHA1, *nonces, shared)
    assert seed.hex() == "a9a7b222b59f8f48645f28a1db5b5f5d7479cba7"
    keys = ike_keys(replace(IKE, prf=SHA1), seed, nonces, spis)
    assert keys.d + keys.ei + keys.er + keys.pi + keys.pr == material
    assert keys.ai == keys.ar == b""
    sha1 = REGISTRY.integrity("sha1")
    mixed = ike_keys(replace(CBC, prf=SHA1, integrity=sha1), seed, nonces, spis)
    found = mixed.d + mixed.ai + mixed.ar + mixed.ei + mixed.er + mixed.pi + mixed.pr
    assert found[: len(material)] == material[: len(found)]
    assert [len(key) for key in (mixed.ai, mixed.ar, mixed.ei, mixed.er)] == [20, 20, 32, 32]
    again = rekeyed_skeyseed(SHA1, keys.d, *nonces, fresh)
    assert again.hex() == "63e81194946ebd05df7df5ebf5d8750056bf1f1d"


@pytest.mark.parametrize("shared", [b"", b"fresh secret"])
def test_child_keys_recomputed(shared: bytes) -> None:
    key, nonces = b"SK_d", (b"i" * 16, b"r" * 16)
    blocks, block = b"", b""
    for number in (1, 2, 3):
        block = hmac.digest(key, block + shared + nonces[0] + nonces[1] + bytes((number,)), "sha256")
        blocks += block
    assert child_keys(IKE.prf, key, ESP, nonces, shared) == (blocks[:36], blocks[36:72])


def test_auth_recomputed() -> None:
    signer = Signer(IKE.prf, b"message", b"nonce", b"SK_p")
    identity = IdI(2, b"gw.example.org")
    octets = b"message" + b"nonce" + hmac.digest(b"SK_p", b"\x02\0\0\0gw.example.org", "sha256")
    key = hmac.digest(b"secret", b"Key Pad for IKEv2", "sha256")
    auth = signer.sign(b"secret", identity)
    assert (auth.method, auth.data) == (2, hmac.digest(key, octets, "sha256"))
    assert signer.verify(b"secret", identity, auth)
    assert not signer.verify(b"other", identity, auth)
    assert not signer.verify(b"secret", identity, replace(auth, method=1))


def test_nothing_secret_in_a_repr() -> None:
    keys = ike_keys(IKE, b"seed", (b"i", b"r"), (b"I", b"R"))
    assert repr(keys) == "IkeKeys()"
    assert "SK_p" not in repr(Signer(IKE.prf, b"", b"", b"SK_p"))


# ---- the SK payload


def sealed(epoch: int = 3, suite: IkeProposal = IKE) -> tuple[Sealer, Opener]:
    key = bytes(range(suite.encryption.keymat_length))
    mac_key = bytes(range(suite.integrity.key_length)) if suite.integrity else b""
    random = iter(range(100)).__next__
    sealer = Sealer(suite, key, mac_key, epoch, lambda count: bytes([random()]) * count)
    return sealer, Opener(suite, key, mac_key)


def test_ivs_are_epoch_and_counter_and_never_repeat() -> None:
    sealer, opener = sealed(epoch=0x10007)
    header = Header(b"initiate", b"responds", 37, True, False, 1)
    messages = [sealer.seal(header, (Nonce(bytes(16)),)) for _ in range(20)]
    ivs = [message[32:40].hex() for message in messages]
    assert ivs[:2] == ["0007000000000000", "0007000000000001"]
    assert len(set(ivs)) == 20
    assert opener.open_untrusted(messages[7]) == bytes((0, 0, 0, 20)) + bytes(16)


@given(st.sampled_from([IKE, CBC]), st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(suite: IkeProposal, at: int, change: int) -> None:
    sealer, opener = sealed(suite=suite)
    data = bytearray(sealer.seal(Header(b"initiate", b"responds", 37, True, False, 1), ()))
    data[at % len(data)] ^= change
    with pytest.raises(NotAuthentic):
        opener.open_untrusted(bytes(data))


@pytest.mark.parametrize(("suite", "lengths"), [(IKE, [0, 28, 32, 40, 56]), (CBC, [0, 32, 48, 64, 79, 81])])
def test_a_short_or_uneven_sk_payload_is_malformed(suite: IkeProposal, lengths: list[int]) -> None:
    for length in lengths:
        with pytest.raises(Malformed):
            sealed(suite=suite)[1].open_untrusted(bytes(length))


@given(st.binary(min_size=16, max_size=64))
def test_encrypt_then_mac_recomputed(nonce: bytes) -> None:
    """AES-CBC, HMAC over all before the ICV; padding fills the last block (RFC 7296 3.14)."""
    sealer, opener = sealed(suite=CBC)
    data = sealer.seal(Header(b"initiate", b"responds", 37, True, False, 1), (Nonce(nonce),))
    assert int.from_bytes(data[24:28]) == len(data)
    assert int.from_bytes(data[30:32]) == len(data) - 28
    iv, ciphertext, icv = data[32:48], data[48:-16], data[-16:]
    encryptor = Cipher(AES(bytes(range(32))), modes.ECB()).encryptor()
    assert iv == encryptor.update(bytes(16)), "what the source gave, encrypted: nobody can foretell it"
    assert icv == hmac.digest(bytes(range(32)), data[:-16], "sha256")[:16]
    decryptor = Cipher(AES(bytes(range(32))), modes.CBC(iv)).decryptor()
    plain = decryptor.update(ciphertext) + decryptor.finalize()
    payload = bytes((0, 0)) + (4 + len(nonce)).to_bytes(2) + nonce
    assert plain[: len(payload)] == payload
    assert plain[-1] == len(plain) - len(payload) - 1 < 16
    assert opener.open_untrusted(data) == payload
    again = sealer.seal(Header(b"initiate", b"responds", 37, True, False, 1), (Nonce(nonce),))
    chained = bytes(byte ^ 1 for byte in data[-32:-16])
    assert again[32:48] == encryptor.update(chained)


@pytest.mark.parametrize("padding", [0, 15, 16, 255])
def test_padding_of_an_authentic_sk_payload_is_bounded(padding: int) -> None:
    """The peer may pad beyond a block, but not beyond the payload."""
    key, mac_key = bytes(range(32)), bytes(range(32))
    text = bytes(31) + bytes((padding,))
    encryptor = Cipher(AES(key), modes.CBC(bytes(16))).encryptor()
    body = bytes(32) + bytes(16) + encryptor.update(text) + encryptor.finalize()
    data = body + hmac.digest(mac_key, body, "sha256")[:16]
    opener = Opener(CBC, key, mac_key)
    if padding < len(text):
        assert opener.open_untrusted(data) == bytes(31 - padding)
    else:
        with pytest.raises(Malformed):
            opener.open_untrusted(data)


# ---- identities


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("198.51.100.7", IdKind.IPV4_ADDR, ipaddress.ip_address("198.51.100.7").packed),
        ("2001:db8::7", IdKind.IPV6_ADDR, ipaddress.ip_address("2001:db8::7").packed),
        ("ipv4:198.51.100.7", IdKind.IPV4_ADDR, bytes((198, 51, 100, 7))),
        ("gw.example.org", IdKind.FQDN, b"gw.example.org"),
        ("@gw.example.org", IdKind.FQDN, b"gw.example.org"),
        ("@198.51.100.7", IdKind.FQDN, b"198.51.100.7"),
        ("fqdn:gw", IdKind.FQDN, b"gw"),
        ("gw@example.org", IdKind.RFC822_ADDR, b"gw@example.org"),
        ("@@gw@example.org", IdKind.RFC822_ADDR, b"gw@example.org"),
        ("@#0aff", IdKind.KEY_ID, b"\x0a\xff"),
        ("keyid:site 7", IdKind.KEY_ID, b"site 7"),
    ],
)
def test_identity_from_text(text: str, kind: IdKind, data: bytes) -> None:
    assert Identity.from_text(text) == Identity(kind, data)


@pytest.mark.parametrize("text", ["C=CH, O=example", "ipv4:gw", "ipv4:2001:db8::7", "@#xyz"])
def test_identity_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError):
        Identity.from_text(text)


def test_identities_as_text_and_as_the_same() -> None:
    assert str(Identity.from_text("198.51.100.7")) == "198.51.100.7"
    assert str(Identity(IdKind.FQDN, b"gw\xff")) == "gw\\xff"
    assert str(Identity(IdKind.IPV4_ADDR, b"abc")) == "1#616263"
    assert Identity.from_text("GW.example.org").key == Identity.from_text("gw.example.ORG").key
    assert Identity.from_text("@#aa").key != Identity.from_text("@#ab").key


# ---- narrowing


def ts(prefix: str, protocol: int = 0, start: int = 0, end: int = 65535) -> TrafficSelector:
    return replace_ports(TrafficSelector.from_prefix(prefix), protocol, start, end)


def replace_ports(selector: TrafficSelector, protocol: int, start: int, end: int) -> TrafficSelector:
    return TrafficSelector(selector.start, selector.end, protocol, start, end)


@pytest.mark.parametrize(
    ("offered", "ours", "result"),
    [
        ([ts("0.0.0.0/0")], [ts("10.1.0.0/24")], [ts("10.1.0.0/24")]),
        ([ts("10.1.0.7/32", 17, 53, 53), ts("10.1.0.0/16")], [ts("10.1.0.0/24")], [ts("10.1.0.0/24")]),
        ([ts("10.9.0.1/32"), ts("10.1.0.0/16")], [ts("10.1.0.0/24")], [ts("10.1.0.0/24")]),
        (
            [ts("10.0.0.0/8"), ts("fd00::/8")],
            [ts("10.1.0.0/24"), ts("10.3.0.0/24"), ts("fd00:1::/64")],
            [ts("10.1.0.0/24"), ts("10.3.0.0/24"), ts("fd00:1::/64")],
        ),
        ([ts("10.1.0.0/24", 6)], [ts("10.1.0.0/24", 17)], []),
        ([ts("10.1.0.0/24", 6, 65535, 0)], [ts("10.1.0.0/24")], []),  # OPAQUE
        ([ts("192.0.2.0/24")], [ts("10.1.0.0/24")], []),
        ([], [ts("10.1.0.0/24")], []),
    ],
)
def test_narrowing(
    offered: list[TrafficSelector], ours: list[TrafficSelector], result: list[TrafficSelector]
) -> None:
    assert list(narrow(offered, ours)) == result


@given(selector_lists, selector_lists)
def test_narrowing_stays_inside_both(
    offered: tuple[TrafficSelector, ...], ours: tuple[TrafficSelector, ...]
) -> None:
    result = narrow(offered, ours)
    assert covered(result, offered)
    assert covered(result, ours)
    assert not any(a is not b and a.contains(b) for a in result for b in result)


def test_narrowing_is_bounded() -> None:
    many = [ts(f"10.{n}.0.0/24") for n in range(MAX_SELECTORS + 1)]
    assert narrow([ts("0.0.0.0/0")], many[1:]) == tuple(many[1:])
    with pytest.raises(TsUnacceptable):
        narrow([ts("0.0.0.0/0")], many)


# ---- rations


def test_a_ration_is_of_each_second_anew() -> None:
    ration = Ration(2)
    assert [ration.allow(now) for now in (7.0, 7.5, 7.9, 8.0, 8.1, 8.2)] == [True, True, False] * 2


def test_an_allowance_is_so_much_at_once_and_so_much_a_second() -> None:
    allowance = Allowance(3.0, 2.0, 7.0)
    assert [allowance.allow(7.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.allow(7.5) for _ in range(2)] == [True, False]
    assert [allowance.allow(60.0) for _ in range(4)] == [True, True, True, False]


# ---- negotiation


def offer(*suites: EspProposal) -> tuple[Proposal, ...]:
    return propose(suites, b"peer")


@pytest.mark.parametrize(
    ("ke", "error"),
    [
        (None, InvalidKePayload),
        (Ke(14, bytes(32)), InvalidKePayload),
        (Ke(31, bytes(31)), InvalidSyntax),
        (Ke(31, bytes(33)), InvalidSyntax),
    ],
)
def test_a_key_exchange_of_no_use_costs_no_private_value(ke: Ke | None, error: type[Exception]) -> None:
    def drawn(length: int) -> bytes:
        raise AssertionError("a private value was made")

    with pytest.raises(error) as raised:
        answer_ke(CBC.group, ke, drawn)
    if error is InvalidKePayload:
        assert raised.value.data == b"\0\x1f"


def test_our_preference_decides() -> None:
    chosen = choose((PFS, ESP), offer(ESP, PFS), 4)
    assert chosen is not None
    assert (chosen.suite, chosen.answer.number, chosen.spi) == (PFS, 2, b"peer")


def test_one_proposal_with_many_transforms() -> None:
    crowd = (
        Transform(1, 12, 256),
        *PFS.transforms,
        Transform(1, 20, 128),
        Transform(4, 14),
        Transform(5, 1),
    )
    chosen = choose((PFS,), (Proposal(1, 3, b"peer", crowd),), 4)
    assert chosen is not None
    assert chosen.answer.transforms == PFS.transforms


def test_none_may_be_offered_beside_an_aead_and_comes_back() -> None:
    none = Transform(TransformType.INTEG, 0)
    chosen = choose((ESP,), (Proposal(1, 3, b"peer", (*ESP.transforms, none)),), 4)
    assert chosen is not None
    assert none in chosen.answer.transforms
    assert confirm((ESP,), (Proposal(1, 3, b"peer", chosen.answer.transforms),), 4) is not None


@pytest.mark.parametrize(
    "extra",
    [
        Transform(TransformType.INTEG, 12),  # integrity without NONE beside an AEAD
        Transform(6, 36),  # an additional key exchange that we do not know
    ],
)
def test_types_we_cannot_satisfy_are_not_chosen(extra: Transform) -> None:
    assert choose((ESP,), (Proposal(1, 3, b"peer", (*ESP.transforms, extra)),), 4) is None


def test_esn_alone_and_unknown_attributes_are_not_chosen() -> None:
    esn = tuple(Transform(5, 1) if t.type == 5 else t for t in ESP.transforms)
    strange = tuple(replace(t, others=((0x8001, b"\0\1"),)) if t.type == 1 else t for t in ESP.transforms)
    for offered in (esn, strange):
        assert choose((ESP,), (Proposal(1, 3, b"peer", offered),), 4) is None


def test_an_spi_of_the_wrong_length_is_not_chosen() -> None:
    assert choose((ESP,), propose((ESP,), b"12345678"), 4) is None


def test_groups_are_overlooked_in_ike_auth() -> None:
    assert without_groups((PFS, ESP)) == (ESP,)
    chosen = choose(without_groups((PFS,)), offer(PFS), 4, ignore_groups=True)
    assert chosen is not None
    assert chosen.answer.transforms == ESP.transforms


def test_an_answer_must_be_one_of_ours() -> None:
    assert confirm((PFS, ESP), offer(ESP), 4) is not None
    assert confirm((ESP,), offer(ESP, PFS), 4) is None
    both = Proposal(1, 3, b"peer", (*ESP.transforms, Transform(1, 12, 256)))
    assert confirm((ESP,), (both,), 4) is None


def test_difference_names_both_sides() -> None:
    theirs = Proposal(1, 1, b"", (Transform(1, 12, 128), Transform(3, 12), *IKE.transforms[1:]))
    text = difference((IKE,), (theirs,), REGISTRY)
    assert "ours: aes256gcm16 prfsha256 x25519" in text
    assert "theirs: aes128 sha256 prfsha256 x25519" in text
    assert text.endswith("differs: ENCR aes256gcm16 against aes128, INTEG nothing against sha256")


# ---- cookies and half-open handshakes


def test_cookies_are_bound_to_address_spi_nonce_and_time() -> None:
    cookies = Cookies(lambda count: hashlib.sha256(bytes(count)).digest()[:count])
    cookie = cookies.make("192.0.2.1", b"initiate", b"nonce", 0.0)
    assert cookies.valid(cookie, "192.0.2.1", b"initiate", b"nonce", LIFETIME * 1.9)
    assert not cookies.valid(cookie, "192.0.2.2", b"initiate", b"nonce", LIFETIME * 1.9)
    assert not cookies.valid(cookie, "192.0.2.1", b"Initiate", b"nonce", LIFETIME * 1.9)
    assert not cookies.valid(cookie, "192.0.2.1", b"initiate", b"Nonce", LIFETIME * 1.9)
    assert not cookies.valid(b"", "192.0.2.1", b"initiate", b"nonce", LIFETIME * 1.9)
    assert not cookies.valid(cookie, "192.0.2.1", b"initiate", b"nonce", LIFETIME * 2.1)


def test_an_old_secret_does_not_outlive_a_pause() -> None:
    cookies = Cookies(lambda count: bytes(count))
    cookie = cookies.make("192.0.2.1", b"initiate", b"nonce", 0.0)
    assert not cookies.valid(cookie, "192.0.2.1", b"initiate", b"nonce", LIFETIME * 50)


def test_half_open_limits() -> None:
    half_open = HalfOpen(40)
    for number in range(4):
        assert not half_open.wants_cookie
        half_open.add(f"192.0.2.{number}")
    assert half_open.wants_cookie
    for _ in range(10):
        assert half_open.admits("198.51.100.1", named=True)
        half_open.add("198.51.100.1")
    assert not half_open.admits("198.51.100.1", named=True)
    assert half_open.admits("198.51.100.2", named=True)
    for _ in range(10):
        half_open.remove("198.51.100.1")
    assert half_open.admits("198.51.100.1", named=True)
    assert half_open.total == 4
    for number in range(10):
        half_open.add(f"2001:db8::{number}")
    assert not half_open.admits("2001:db8::ffff", named=True)
    assert half_open.admits("2001:db8:0:1::1", named=False)
    for number in range(6):
        half_open.add(f"203.0.113.{number}")
    assert not half_open.admits("2001:db8:0:1::1", named=False)
    assert half_open.admits("2001:db8:0:1::1", named=True)


# ---- windows


def test_send_window_backs_off_and_gives_up() -> None:
    window = SendWindow(DEFAULTS)
    window.begin(b"request", 0.0)
    pauses, now = [], 0.0
    while window.deadline is not None:
        pauses.append(window.deadline - now)
        now = window.deadline
        if window.retransmit(now) is None:
            break
    assert pauses == pytest.approx([1.8**n for n in range(7)])
    assert window.expects(0)
    assert not window.expects(1)
    window.finish()
    assert (window.next_id, window.outstanding, window.deadline) == (1, False, None)


def test_receive_window_tells_new_from_again() -> None:
    window = ReceiveWindow()
    assert window.classify(0) is Verdict.NEW
    assert window.classify(1) is Verdict.OUTSIDE
    window.accept(0)
    assert window.classify(0) is Verdict.HELD
    assert window.classify(1) is Verdict.OUTSIDE  # a window of one: the response comes first
    window.answer(b"response")
    assert window.classify(1) is Verdict.NEW
    assert window.classify(0) is Verdict.AGAIN
    window.accept(1)
    assert window.response is None
    assert window.classify(0) is Verdict.OUTSIDE
    window.answer(b"response")
    assert window.classify(2) is Verdict.NEW


# ---- the law


def test_every_state_is_in_every_table() -> None:
    for table in (TRANSITIONS, TAKES, SENDS):
        assert set(table) == set(State)


def test_every_state_is_reachable_and_ends() -> None:
    reached, todo = {State.START}, [State.START]
    while todo:
        for state in TRANSITIONS[todo.pop()].values():
            if state not in reached:
                reached.add(state)
                todo.append(state)
    assert reached == set(State)
    for state in set(State) - {State.START, State.CLOSED}:
        assert TRANSITIONS[state][Trigger.GONE] is State.CLOSED


def test_what_the_table_does_not_know_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="AUTH_HELD is not possible in state ESTABLISHED"):
        after(State.ESTABLISHED, Trigger.AUTH_HELD)
