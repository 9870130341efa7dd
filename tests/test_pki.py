"""The cluster's certificates: what `init` makes, keeps and refuses, and what the TLS contexts refuse."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from protego_cli.config.model import Node
from protego_cli.control.channel import pki
from protego_cli.control.channel.pki import Identity, identity_of
from protego_cli.errors import EnvironmentFault
from tests.support.control import NAMES, make_cluster


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_init_makes_everything_once(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    made = pki.init(cluster)
    names = {"ca", "gmn-1", *NAMES, "operator"}
    files = {f"{name}.{end}" for name in names for end in ("pem", "key")}
    assert {path.name for path in made} == files | {"state.key"}
    assert {path.name for path in cluster.pki.iterdir()} == {path.name for path in made}
    before = {path: path.read_bytes() for path in made}
    assert pki.init(cluster) == []
    assert {path: path.read_bytes() for path in made} == before


def test_modes(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    assert stat.S_IMODE(cluster.pki.stat().st_mode) == 0o700
    for path in cluster.pki.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_node_gets_its_files_from_the_same_ca(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    ca = (cluster.pki / "ca.pem").read_bytes()
    larger = msgspec.structs.replace(cluster, nodes=(*cluster.nodes, Node("gpn-3", "gpn", "127.1.0.9")))
    assert {path.name for path in pki.init(larger)} == {"gpn-3.pem", "gpn-3.key"}
    assert (cluster.pki / "ca.pem").read_bytes() == ca
    load(cluster.pki / "gpn-3.pem").verify_directly_issued_by(load(cluster.pki / "ca.pem"))


@pytest.mark.parametrize(
    ("name", "role", "usage"),
    [
        ("gmn-1", "gmn", ExtendedKeyUsageOID.SERVER_AUTH),
        ("gpn-1", "gpn", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("operator", "operator", ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
)
def test_what_a_certificate_says(tmp_path: Path, name: str, role: str, usage: x509.ObjectIdentifier) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    certificate, ca = load(cluster.pki / f"{name}.pem"), load(cluster.pki / "ca.pem")
    assert identity_of(certificate) == Identity("demo", role, name)
    assert identity_of(certificate).uri() == f"protego://demo/{role}/{name}"  # type: ignore[union-attr]
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    key_usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert key_usage.critical
    assert key_usage.value.digital_signature
    assert not key_usage.value.key_cert_sign
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert issuer == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


@pytest.mark.parametrize(
    "uri",
    [
        "protego://demo/gmn",
        "protego://demo/gmn/gmn-1/x",
        "protego:///gmn/gmn-1",
        "https://demo/gmn/gmn-1",
        "protego://d%65mo/gmn/gmn-1",  # not the canonical form
        "PROTEGO://demo/gmn/gmn-1",
    ],
)
def test_other_uris_are_no_identity(tmp_path: Path, uri: str) -> None:
    assert identity_of(with_names(tmp_path, x509.UniformResourceIdentifier(uri))) is None


def test_two_names_are_no_identity(tmp_path: Path) -> None:
    uri = x509.UniformResourceIdentifier("protego://demo/gmn/gmn-1")
    assert identity_of(with_names(tmp_path, uri)) == Identity("demo", "gmn", "gmn-1")
    assert identity_of(with_names(tmp_path, uri, uri)) is None
    assert identity_of(with_names(tmp_path, uri, x509.DNSName("gmn-1"))) is None


def with_names(tmp_path: Path, *names: x509.GeneralName) -> x509.Certificate:
    """A certificate of the cluster's real CA with these names."""
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    ca, leaf = load(cluster.pki / "ca.pem"), load(cluster.pki / "gpn-1.pem")
    key = load_pem_private_key((cluster.pki / "ca.key").read_bytes(), None)
    builder = x509.CertificateBuilder(
        ca.subject,
        leaf.subject,
        leaf.public_key(),
        x509.random_serial_number(),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
    ).add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, leaf.signature_hash_algorithm)  # type: ignore[arg-type]


# ---- what init refuses


def test_a_ca_of_another_cluster_is_refused(tmp_path: Path) -> None:
    pki.init(make_cluster(tmp_path))
    with pytest.raises(EnvironmentFault, match="CA of cluster 'demo', not of 'other'"):
        pki.init(make_cluster(tmp_path, name="other"))


def test_a_lost_ca_certificate_is_not_replaced(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    (cluster.pki / "ca.pem").unlink()
    with pytest.raises(EnvironmentFault, match=r"ca\.pem is missing beside"):
        pki.init(cluster)


def test_without_the_ca_key_nothing_new_is_made(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    (cluster.pki / "ca.key").unlink()
    assert pki.init(cluster) == []
    (cluster.pki / "gpn-1.pem").unlink()
    with pytest.raises(EnvironmentFault, match="where the CA's key is kept"):
        pki.init(cluster)


def test_an_interrupted_init_is_finished(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    key = (cluster.pki / "gpn-1.key").read_bytes()
    (cluster.pki / "gpn-1.pem").unlink()
    assert [path.name for path in pki.init(cluster)] == ["gpn-1.pem"]
    assert (cluster.pki / "gpn-1.key").read_bytes() == key
    pki.client_context(cluster, "gpn-1")


def test_a_node_that_changed_its_role_is_refused(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    nodes = [n if n.name != "gpn-2" else Node("gpn-2", "gin", n.address) for n in cluster.nodes]
    with pytest.raises(EnvironmentFault, match="states protego://demo/gpn/gpn-2"):
        pki.init(msgspec.structs.replace(cluster, nodes=tuple(nodes)))


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    cluster.pki.mkdir()
    cluster.pki.chmod(0o777)
    with pytest.raises(EnvironmentFault, match="chmod 700"):
        pki.init(cluster)


# ---- what the contexts refuse


@pytest.mark.parametrize("missing", ["ca.pem", "gpn-1.pem", "gpn-1.key"])
def test_a_missing_file_says_what_to_run(tmp_path: Path, missing: str) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    (cluster.pki / missing).unlink()
    with pytest.raises(EnvironmentFault) as caught:
        pki.client_context(cluster, "gpn-1")
    assert missing in str(caught.value)
    assert f"run `protego pki init -c {cluster.file}`" in str(caught.value)


@pytest.mark.parametrize("broken", ["ca.pem", "gpn-1.pem", "gpn-1.key"])
def test_garbage_says_what_to_run(tmp_path: Path, broken: str) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    (cluster.pki / broken).write_bytes(b"\xff garbage")
    with pytest.raises(EnvironmentFault, match=f"{broken}.*run `protego pki init -c"):
        pki.client_context(cluster, "gpn-1")


@pytest.mark.parametrize("damage", ["no certificate", "no key", "no", "not of this node", "another key"])
def test_what_it_says_mends_it(tmp_path: Path, damage: str) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    certificate, key = cluster.pki / "gpn-1.pem", cluster.pki / "gpn-1.key"
    other_certificate, other_key = cluster.pki / "gpn-2.pem", cluster.pki / "gpn-2.key"
    match damage:
        case "no certificate":
            certificate.unlink()
        case "no key":
            key.unlink()
        case "no":
            certificate.unlink()
            key.unlink()
        case "not of this node":
            certificate.write_bytes(other_certificate.read_bytes())
        case _:
            key.write_bytes(other_key.read_bytes())
    with pytest.raises(EnvironmentFault) as caught:
        pki.client_context(cluster, "gpn-1")
    advice = str(caught.value)
    if "remove it and its key" in advice:
        assert advice.startswith(f"{certificate}: ")
        certificate.unlink()
        key.unlink(missing_ok=True)
    assert advice.endswith(f"run `protego pki init -c {cluster.file}`")
    pki.init(cluster)
    pki.client_context(cluster, "gpn-1")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    (cluster.pki / "gmn-1.key").chmod(mode)
    with pytest.raises(EnvironmentFault, match="others can read this private key; run `chmod 600"):
        pki.server_context(cluster, cluster.nodes[0])


def test_the_key_of_another_is_refused(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    (cluster.pki / "gpn-1.key").write_bytes((cluster.pki / "gpn-2.key").read_bytes())
    with pytest.raises(EnvironmentFault, match=r"gpn-1\.key.*KEY_VALUES_MISMATCH"):
        pki.client_context(cluster, "gpn-1")


def test_the_certificate_of_another_is_refused(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    for end in ("pem", "key"):
        (cluster.pki / f"gpn-1.{end}").write_bytes((cluster.pki / f"gpn-2.{end}").read_bytes())
    with pytest.raises(EnvironmentFault, match="states protego://demo/gpn/gpn-2"):
        pki.client_context(cluster, "gpn-1")


def test_a_certificate_of_another_ca_of_that_name_is_refused(tmp_path: Path) -> None:
    cluster, twin = make_cluster(tmp_path / "a"), make_cluster(tmp_path / "b")
    pki.init(cluster)
    pki.init(twin)
    for end in ("pem", "key"):
        (cluster.pki / f"gpn-1.{end}").write_bytes((twin.pki / f"gpn-1.{end}").read_bytes())
    with pytest.raises(EnvironmentFault, match=r"not issued by this cluster's ca\.pem"):
        pki.client_context(cluster, "gpn-1")


def test_a_foreign_ca_is_refused(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    trustme.CA().cert_pem.write_to_path(cluster.pki / "ca.pem")
    with pytest.raises(EnvironmentFault, match="not the certificate of a Protego CA"):
        pki.client_context(cluster, "gpn-1")


def test_contexts_trust_this_ca_and_tls_1_3_only(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    for context in (pki.server_context(cluster, cluster.nodes[0]), pki.client_context(cluster, "operator")):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert len(context.get_ca_certs()) == 1


# ---- what OpenSSL itself refuses between two of these contexts


async def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> list[str]:
    """Why each side that refused did so."""
    left, right = trio.testing.memory_stream_pair()
    reasons: list[str] = []

    async def one(stream: trio.SSLStream[Any], use: bool) -> None:
        try:
            await stream.do_handshake()
            if use:
                await stream.receive_some()
            else:
                await stream.send_all(b"x")
        except trio.BrokenResourceError as error:
            reasons.append(str(error.__cause__))
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, trio.SSLStream(left, client, https_compatible=False), True)
        nursery.start_soon(
            one, trio.SSLStream(right, server, server_side=True, https_compatible=False), False
        )
    return reasons


async def test_node_and_gmn_accept_one_another(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    server = pki.server_context(cluster, cluster.nodes[0])
    assert await handshake(pki.client_context(cluster, "gpn-1"), server) == []


async def test_a_data_nodes_certificate_does_not_serve(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    gpn = cluster.node("gpn-1")
    assert gpn is not None
    reasons = await handshake(pki.client_context(cluster, "gpn-2"), pki.server_context(cluster, gpn))
    assert any("certificate purpose" in reason for reason in reasons)


async def test_a_foreign_ca_does_not_serve_nor_connect(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    pki.init(cluster)
    foreign = trustme.CA()
    certificate = foreign.issue_cert("gmn-1", "127.0.0.1")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    certificate.configure_cert(client)
    assert any("verify failed" in r for r in await handshake(pki.client_context(cluster, "gpn-1"), server))
    ours = pki.server_context(cluster, cluster.nodes[0])
    assert any("verify failed" in reason for reason in await handshake(client, ours))
