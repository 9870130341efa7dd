"""How nodes of a pool get certificates: over real TLS, with tokens good and bad; and what old ones open."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import structs

from protego_cli.config.model import Cluster, Node, PoolConfig, ProvisionerConfig
from protego_cli.control.channel import pki
from protego_cli.control.channel.fabric import Fabric
from protego_cli.control.channel.pki import Identity
from protego_cli.control.channel.pool_messages import JoinToken
from protego_cli.control.channel.rpc import connect
from protego_cli.control.channel.tls import Broken, TlsStream
from protego_cli.control.operating.events import EventLog
from protego_cli.control.pools import admissions as admissions_module
from protego_cli.control.pools.admissions import Admissions
from protego_cli.control.pools.joining import (
    LIMIT,
    Ca,
    Denied,
    GetCa,
    Join,
    Joined,
    JoinReply,
    JoinRequest,
    frame,
    join,
    parse_csr_untrusted,
    parse_reply_untrusted,
    parse_token_untrusted,
    receive,
)
from protego_cli.control.state.journal import Journal
from protego_cli.errors import EnvironmentFault, Malformed, NotFound, Refused, UsageError
from tests.support.control import at_port, make_cluster
from tests.support.stores import MemoryStore

POOL = PoolConfig("spare", "gpn", ("127.1.0.20", "127.1.0.29"), 0, 3, ProvisionerConfig("static"))


class Door:
    """A GMN's fabric with a pool, of which one node is in use; and a node's own directory."""

    def __init__(self, directory: Path, cluster: Cluster, store: MemoryStore) -> None:
        self.cluster = cluster
        self.time = 1000.0
        self.store = store
        self.journal = Journal(store, dict(store.load()))
        self.admissions = Admissions(cluster, self.journal, EventLog(), lambda: self.time)
        self.fabric = Fabric(
            structs.replace(cluster, nodes=(*cluster.nodes, *POOL.nodes(2))),
            1,
            self.journal,
            admissions=self.admissions,
        )
        self.home = directory
        self.port = 0

    def node(self, name: str) -> Node:
        node = self.cluster.node(name)
        assert node is not None
        return node

    def view(self, of: str = "node") -> Cluster:
        """The cluster file as a node reads it, with a PKI directory of its own."""
        return at_port(structs.replace(self.cluster, pki=self.home / of), self.port)

    async def ask(self, request: JoinRequest | bytes) -> JoinReply:
        stream = await self.dial()
        with contextlib.closing(stream):
            stream.send(frame(request) if not isinstance(request, bytes) else request)
            return parse_reply_untrusted(await receive(stream))

    async def dial(self) -> TlsStream:
        tcp = await trio.open_tcp_stream("127.0.0.1", self.port)
        stream = TlsStream.wrap(tcp, pki.guest_context(None))
        await stream.handshake()
        return stream

    async def let_in(self, view: Cluster, name: str) -> bool:
        """Whether a node's certificate opens the door: then a TLS connection stays open."""
        expected = Identity(self.cluster.name, "gmn", "gmn-1")
        stream = await connect("127.0.0.1", self.port, pki.client_context(view, name), expected, 5)
        with contextlib.closing(stream), trio.move_on_after(0.3):
            try:
                return bool(await stream.receive())
            except Broken:
                return False
        return True


@asynccontextmanager
async def door(directory: Path, store: MemoryStore | None = None) -> AsyncIterator[Door]:
    cluster = structs.replace(make_cluster(directory), pools=(POOL,))
    pki.init(cluster)
    async with trio.open_nursery() as nursery:
        found = Door(directory, cluster, store or MemoryStore(delay=0.0))
        nursery.start_soon(found.journal.run)
        _, found.port = await nursery.start(found.fabric.serve)
        with trio.fail_after(20):
            yield found
        nursery.cancel_scope.cancel()


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


async def test_a_node_joins_with_nothing_but_a_token(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        token = parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1")))
        view = gmn.view()
        await join(view, token)
        files = {path.name: path.stat().st_mode & 0o777 for path in view.pki.iterdir()}
        assert files == {"ca.pem": 0o644, "spare-1.pem": 0o644, "spare-1.key": 0o600, "spare-1.joined": 0o600}
        assert not (gmn.cluster.pki / "spare-1.key").exists(), (
            "the key is where it was made, and nowhere else"
        )
        certificate = x509.load_pem_x509_certificate((view.pki / "spare-1.pem").read_bytes())
        assert pki.identity_of(certificate) == Identity("demo", "gpn", "spare-1")
        assert await gmn.let_in(view, "spare-1")
        before = (view.pki / "spare-1.pem").read_bytes()
        await join(view, token)  # started anew, by the same command
        assert (view.pki / "spare-1.pem").read_bytes() == before


async def test_a_token_is_good_once_for_one_key(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        token = parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1")))
        first = await gmn.ask(Join(token.id, token.secret, csr(KEY)))
        assert isinstance(first, Joined)
        assert isinstance(await gmn.ask(Join(token.id, token.secret, csr(KEY))), Joined), (
            "the answer was lost"
        )
        again = await gmn.ask(Join(token.id, token.secret, csr(OTHER)))
        assert isinstance(again, Denied)
        assert "used up" in again.reason


@pytest.mark.parametrize("wrong", ["id", "secret", "expired", "superseded", "revoked", "no pool"])
async def test_bad_tokens_all_sound_the_same_and_leave_nothing(tmp_path: Path, wrong: str) -> None:
    async with door(tmp_path) as gmn:
        node = gmn.node("spare-1")
        token = parse_token_untrusted(gmn.admissions.issue(node, 60))
        await gmn.journal.stored()
        identifier = bytes(12) if wrong == "id" else token.id
        secret = bytes(32) if wrong == "secret" else token.secret
        if wrong == "expired":
            gmn.time += 61
        elif wrong == "superseded":
            gmn.admissions.issue(node)
        elif wrong == "revoked":
            gmn.admissions.revoke("spare-1")
        elif wrong == "no pool":
            gmn.admissions.cluster = structs.replace(gmn.cluster, pools=())
        await gmn.journal.stored()
        before = dict(gmn.store.held)
        reply = await gmn.ask(Join(identifier, secret, csr(KEY)))
        assert reply == Denied("the token is not known here, is used up, or has expired: get another one")
        assert gmn.store.held == before


@pytest.mark.parametrize(
    "request_",
    [b"", b"nonsense", csr(KEY)[:-1], csr(rsa.generate_private_key(65537, 2048)), csr(KEY)[:-4] + bytes(4)],
    ids=["empty", "nonsense", "short", "rsa", "signature"],
)
async def test_a_bad_request_does_not_use_the_token_up(tmp_path: Path, request_: bytes) -> None:
    async with door(tmp_path) as gmn:
        token = parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1")))
        assert isinstance(await gmn.ask(Join(token.id, token.secret, request_)), Denied)
        assert not gmn.admissions.bound("spare-1")
        assert isinstance(await gmn.ask(Join(token.id, token.secret, csr(KEY))), Joined)


@pytest.mark.parametrize("hostile", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", frame(GetCa()) * 2, b"\0\0\0\0"])
async def test_hostile_bytes_end_the_connection(tmp_path: Path, hostile: bytes) -> None:
    async with door(tmp_path) as gmn:
        stream = await gmn.dial()
        with contextlib.closing(stream):
            stream.send(hostile)
            with contextlib.suppress(Broken):
                while await stream.receive():
                    pass
        assert isinstance(await gmn.ask(GetCa()), Ca), "and others are served"


async def test_guests_are_few_and_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions_module, "BURST", 3.0)
    monkeypatch.setattr(admissions_module, "RATE", 0.0)
    async with door(tmp_path) as gmn:
        gmn.admissions._credit = 3.0
        for _ in range(3):
            assert isinstance(await gmn.ask(GetCa()), Ca)
        with pytest.raises((Broken, Malformed)):
            await gmn.ask(GetCa())


async def test_an_idle_guest_is_shown_out_and_keeps_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admissions_module, "TIMEOUT", 0.1)
    monkeypatch.setattr(admissions_module, "GUESTS", 1)
    async with door(tmp_path) as gmn:
        stream = await gmn.dial()
        with contextlib.closing(stream), contextlib.suppress(Broken):
            assert await stream.receive() == b""
        assert isinstance(await gmn.ask(GetCa()), Ca)


async def test_the_certificate_of_an_earlier_life_opens_nothing(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        old, new = gmn.view("old"), gmn.view("new")
        await join(old, parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1"))))
        assert await gmn.let_in(old, "spare-1")
        gmn.admissions.revoke("spare-1")
        assert not await gmn.let_in(old, "spare-1")
        await join(new, parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1"))))
        assert await gmn.let_in(new, "spare-1")
        assert not await gmn.let_in(old, "spare-1")
        await gmn.journal.stored()
        store = gmn.store.reborn()
    async with door(tmp_path, store) as reborn:
        for view, good in (("new", True), ("old", False)):
            assert await reborn.let_in(reborn.view(view), "spare-1") is good, "another life of the GMN knows"


async def test_a_certificate_of_the_ca_alone_makes_no_node_of_a_pool(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        (gmn.home / "forged").mkdir()
        view = gmn.view("forged")
        der = pki.certify(gmn.cluster, gmn.node("spare-2"), KEY.public_key())
        for name, pem in (
            ("ca.pem", (gmn.cluster.pki / "ca.pem").read_bytes()),
            ("spare-2.pem", x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)),
        ):
            (view.pki / name).write_bytes(pem)
        key = view.pki / "spare-2.key"
        key.touch(mode=0o600)
        key.write_bytes(
            KEY.private_bytes(Encoding.PEM, pki.PrivateFormat.PKCS8, pki.NoEncryption())  # type: ignore[attr-defined]
        )
        assert not await gmn.let_in(view, "spare-2")


async def test_a_node_that_is_not_in_use_stays_out(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        view = gmn.view()
        await join(view, parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-3"))))
        assert not await gmn.let_in(view, "spare-3")


async def test_the_node_takes_no_other_cluster_for_its_own(tmp_path: Path) -> None:
    async with door(tmp_path / "one") as gmn, door(tmp_path / "two") as impostor:
        token = parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1")))
        view = structs.replace(impostor.view(), pki=tmp_path / "node")
        with pytest.raises(Refused, match="not of the cluster that made the join token"):
            await join(view, token)
        assert not (view.pki / "spare-1.pem").exists()
        other = structs.replace(gmn.view(), pki=impostor.cluster.pki)
        with pytest.raises(EnvironmentFault, match="made by another CA"):
            await join(other, token)


async def test_what_is_kept_of_a_token_is_not_the_token(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        token = parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1")))
        await gmn.journal.stored()
        held = b"".join(key + value for key, value in gmn.store.held.items())
        assert token.id in held
        assert token.secret not in held
        assert token.secret.hex() not in repr(token)
        assert repr(token.secret) not in repr(token)
        assert repr(token.secret) not in repr(Join(token.id, token.secret, b""))
        assert token.text() not in repr(JoinToken("spare-1", token.text(), 0.0))


async def test_tokens_name_their_node(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        assert gmn.admissions.node("spare", None).name == "spare-1"
        await join(gmn.view(), parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1"))))
        assert gmn.admissions.node("spare", None).name == "spare-2"
        assert gmn.admissions.node("spare", "spare-3").name == "spare-3"
        for pool, name in (("other", None), ("spare", "spare-4"), ("spare", "gpn-1")):
            with pytest.raises(NotFound):
                gmn.admissions.node(pool, name)
        wrong = structs.replace(gmn.view(), name="prod")
        with pytest.raises(UsageError, match="spare-1 of cluster 'demo'"):
            await join(wrong, parse_token_untrusted(gmn.admissions.issue(gmn.node("spare-1"))))


async def test_a_node_that_has_not_joined_is_told_how(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        view = structs.replace(gmn.view(), pki=gmn.cluster.pki)
        with pytest.raises(
            EnvironmentFault, match="spare-1 joins with a token: `protego pki token --pool spare"
        ):
            pki.client_context(view, "spare-1")


async def test_without_the_ca_s_key_there_are_no_tokens(tmp_path: Path) -> None:
    async with door(tmp_path) as gmn:
        (gmn.cluster.pki / "ca.key").unlink()
        with pytest.raises(EnvironmentFault, match=r"ca\.key is not on the GMN's machine"):
            gmn.admissions.issue(gmn.node("spare-1"))


@pytest.mark.parametrize(
    "text", ["", "protego-join.", "protego-join.####", "x" * 100, "protego-join." + "A" * 9000]
)
def test_what_is_no_token_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_token_untrusted(text)


def test_a_request_tells_its_key_and_nothing_else() -> None:
    assert parse_csr_untrusted(csr(KEY)) == KEY.public_key()
    assert len(csr(KEY)) < LIMIT // 8
