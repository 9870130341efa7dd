"""The GMN's front door: who gets in, and that those who do not cost nothing and keep nobody out."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel import pki
from protego_cli.control.channel.listener import Listener
from protego_cli.control.channel.pki import Identity
from protego_cli.control.channel.rpc import connect
from protego_cli.control.channel.tls import TlsStream
from protego_cli.errors import EnvironmentFault, Refused, Unreachable
from tests.support.control import at_port, make_certified, running_gmn, until

GMN = Identity("demo", "gmn", "gmn-1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return make_certified(Path(tmp_path_factory.mktemp("pki")))


class Door:
    """A listener that writes down whom it let in."""

    def __init__(self, cluster: Cluster, **options: float) -> None:
        self.welcomed: list[Identity] = []
        self.port = 0
        context = pki.server_context(cluster, cluster.nodes[0])
        self.listener = Listener(cluster, context, self._welcome, **options)  # type: ignore[arg-type]

    async def _welcome(self, stream: TlsStream, identity: Identity) -> None:
        self.welcomed.append(identity)
        await stream.receive()

    async def open(self, nursery: trio.Nursery) -> None:
        _, self.port = await nursery.start(self.listener.serve, "127.0.0.1", 0)


def forged(cluster: Cluster, directory: Path, identity: Identity) -> ssl.SSLContext:
    """A context with a certificate that the cluster's own CA signed, for this identity."""
    ca = x509.load_pem_x509_certificate((cluster.pki / "ca.pem").read_bytes())
    ca_key = load_pem_private_key((cluster.pki / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri())]), critical=False
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, SHA256())
    )
    file = directory / "forged.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(pem + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(file)
    context.load_verify_locations(cluster.pki / "ca.pem")
    return context


async def closed(stream: TlsStream) -> None:
    """Wait until the other side has closed."""
    with trio.fail_after(10):
        assert await stream.receive() == b""


@pytest.mark.parametrize("name", ["gin-1", "gen-1", "gpn-1", "operator"])
async def test_data_nodes_and_the_operator_get_in(cluster: Cluster, name: str) -> None:
    door = Door(cluster)
    async with trio.open_nursery() as nursery:
        await door.open(nursery)
        stream = await connect("127.0.0.1", door.port, pki.client_context(cluster, name), GMN, 5)
        await until(lambda: door.welcomed)
        assert door.welcomed[0].name == name
        stream.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (Identity("other", "gpn", "gpn-1"), "is of another cluster"),
        (Identity("demo", "gin", "gpn-1"), "is no data node of the cluster file"),
        (Identity("demo", "gpn", "gpn-9"), "is no data node of the cluster file"),
        (Identity("demo", "gmn", "gmn-1"), "is no data node of the cluster file"),
        (Identity("demo", "ca", "ca"), "is no data node of the cluster file"),
        (Identity("demo", "operator", "gpn-1"), "is no operator"),
    ],
)
async def test_others_with_a_certificate_of_the_ca_do_not(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, identity: Identity, reason: str
) -> None:
    door = Door(cluster)
    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            await door.open(nursery)
            stream = await connect("127.0.0.1", door.port, forged(cluster, tmp_path, identity), GMN, 5)
            await closed(stream)
            stream.close()
            nursery.cancel_scope.cancel()
    assert door.welcomed == []
    assert f"connection refused from=127.0.0.1 reason={identity} {reason}" in caplog.text


async def test_a_gpn_cannot_pass_for_a_gmn(cluster: Cluster, tmp_path: Path) -> None:
    """Even with a certificate that may serve, and on the GMN's address."""
    for identity in (Identity("demo", "gpn", "gpn-1"), Identity("demo", "gmn", "gmn-2")):
        forged(cluster, tmp_path, identity)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(tmp_path / "forged.pem")
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        left: list[bytes] = []

        async def serve(
            tcp: trio.SocketStream, server: ssl.SSLContext = server, left: list[bytes] = left
        ) -> None:
            stream = TlsStream.wrap(tcp, server, server_side=True)
            await stream.handshake()
            left.append(await stream.receive())
            stream.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            with pytest.raises(Refused, match=f"is {identity}, but {GMN} was expected"):
                await connect("127.0.0.1", port, pki.client_context(cluster, "gpn-2"), GMN, 5)
            await until(lambda left=left: len(left) == 1)  # type: ignore[misc]
            nursery.cancel_scope.cancel()


async def test_without_a_certificate_nobody_gets_in(cluster: Cluster) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cluster.pki / "ca.pem")
    await turned_away(cluster, context)


async def test_with_a_foreign_certificate_nobody_gets_in(cluster: Cluster) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cluster.pki / "ca.pem")
    trustme.CA().issue_cert("gpn-1").configure_cert(context)
    await turned_away(cluster, context)


async def test_old_tls_is_not_spoken(cluster: Cluster) -> None:
    context = pki.client_context(cluster, "gpn-1")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    await turned_away(cluster, context)


async def turned_away(cluster: Cluster, context: ssl.SSLContext) -> None:
    door = Door(cluster)
    async with trio.open_nursery() as nursery:
        await door.open(nursery)
        tcp = await trio.open_tcp_stream("127.0.0.1", door.port)
        stream = trio.SSLStream(tcp, context, https_compatible=False)
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()  # in TLS 1.3 the client learns of its refusal after its handshake
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()
    assert door.welcomed == []


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000, b"\x16\x03\x01\xff\xff" + b"x" * 70000]
)
async def test_what_is_no_tls_is_closed_and_the_door_stays_open(cluster: Cluster, data: bytes) -> None:
    door = Door(cluster)
    async with trio.open_nursery() as nursery:
        await door.open(nursery)
        tcp = await trio.open_tcp_stream("127.0.0.1", door.port)
        await until_closed(tcp, data)
        stream = await connect("127.0.0.1", door.port, pki.client_context(cluster, "gpn-1"), GMN, 5)
        await until(lambda: door.welcomed)
        stream.close()
        nursery.cancel_scope.cancel()


async def test_a_handshake_that_stalls_is_ended(cluster: Cluster) -> None:
    door = Door(cluster, handshake=0.05)
    async with trio.open_nursery() as nursery:
        await door.open(nursery)
        tcp = await trio.open_tcp_stream("127.0.0.1", door.port)
        await until_closed(tcp, b"\x16\x03\x01")
        nursery.cancel_scope.cancel()


async def test_idle_strangers_keep_nobody_out(cluster: Cluster) -> None:
    door = Door(cluster, guests=4, handshake=60)
    async with trio.open_nursery() as nursery:
        await door.open(nursery)
        strangers = [await trio.open_tcp_stream("127.0.0.1", door.port) for _ in range(4)]
        stream = await connect("127.0.0.1", door.port, pki.client_context(cluster, "gpn-1"), GMN, 5)
        await until(lambda: door.welcomed)
        ended: list[int] = []

        async def watch(number: int) -> None:
            assert await strangers[number].receive_some() == b""
            ended.append(number)

        async with trio.open_nursery() as watchers:
            for number in range(4):
                watchers.start_soon(watch, number)
            await until(lambda: ended)
            watchers.cancel_scope.cancel()
        assert ended == [0]  # the oldest made room, the others may still become somebody
        for stranger in strangers:
            await stranger.aclose()
        stream.close()
        nursery.cancel_scope.cancel()


async def test_a_flood_of_refusals_is_one_line(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(cluster)
    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            await door.open(nursery)
            for _ in range(20):
                tcp = await trio.open_tcp_stream("127.0.0.1", door.port)
                await until_closed(tcp, b"nonsense" * 10)
            nursery.cancel_scope.cancel()
    assert 1 <= sum("connection refused" in line for line in caplog.messages) <= 5


async def until_closed(tcp: trio.SocketStream, data: bytes) -> None:
    """Send this and wait until the other side has had enough."""
    with trio.fail_after(10):
        try:
            await tcp.send_all(data)
            while await tcp.receive_some():
                pass
        except trio.BrokenResourceError:
            pass  # closed with some of it unread: a reset
    await tcp.aclose()


async def test_an_occupied_port_says_what_to_do(cluster: Cluster) -> None:
    door, second = Door(cluster), Door(cluster)
    async with trio.open_nursery() as nursery:
        await door.open(nursery)
        with pytest.raises(EnvironmentFault) as caught:
            await second.listener.serve("127.0.0.1", door.port)
        nursery.cancel_scope.cancel()
    text = str(caught.value)
    assert f"127.0.0.1:{door.port}" in text
    assert "`ports.control`" in text


async def test_nobody_answering_is_unreachable(cluster: Cluster) -> None:
    with pytest.raises(Unreachable, match=r"nothing answers at 127\.0\.0\.1:1"):
        await connect("127.0.0.1", 1, pki.client_context(cluster, "gpn-1"), GMN, 5)


async def test_a_node_removed_from_the_cluster_file_is_out(cluster: Cluster) -> None:
    smaller = msgspec.structs.replace(cluster, nodes=tuple(n for n in cluster.nodes if n.name != "gpn-2"))
    async with running_gmn(smaller) as gmn:
        port = gmn.cluster.nodes[0].ports.control
        whole = at_port(cluster, port)
        node = whole.node("gpn-2")
        assert isinstance(node, Node)
        stream = await connect("127.0.0.1", port, pki.client_context(whole, "gpn-2"), GMN, 5)
        await closed(stream)
        stream.close()
