"""The cluster's own certificate authority, and TLS contexts that trust nothing else.

1. `init` makes, in `cluster.pki` (0700): `ca.pem`, `ca.key`; `NODE.pem`, `NODE.key` for every node of the
   cluster file; `operator.pem`, `operator.key`. Keys are 0600. What exists is left as it is, so running it
   again after adding a node makes that node's files only, and a CA is never replaced.
2. A certificate says who its holder is in one URI: `protego://CLUSTER/ROLE/NAME` (RFC 5280 4.2.1.6). The
   GMN's allows only the server's seat of TLS, all others only the client's (extended key usage, 4.2.1.12).
3. The key that the GMN's state is sealed under (`vault.py`) is made with them, as 64 hexadecimal digits.
4. `server_context` and `client_context`: TLS 1.3 (RFC 8446), certificates on both sides, this CA alone.
   Host names mean nothing here; after the handshake each side compares the other's `Identity` with the
   cluster file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import stat
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protego_cli.config.model import Cluster, Node
from protego_cli.control.state.vault import make_master_key
from protego_cli.errors import EnvironmentFault

Parsed = TypeVar("Parsed")

OPERATOR = "operator"
_CA = "ca"
_SCHEME = "protego://"
_CA_LIFETIME = timedelta(days=3650)
_LEAF_LIFETIME = timedelta(days=1825)
_CLOCK_SKEW = timedelta(hours=1)


class Identity(NamedTuple):
    """Who holds a certificate. `role` is a node's role or "operator" (whose name is "operator" too)."""

    cluster: str
    role: str
    name: str

    def uri(self) -> str:
        return _SCHEME + "/".join(quote(part, safe="") for part in self)

    def __str__(self) -> str:
        return self.uri()


def identity_of(certificate: x509.Certificate) -> Identity | None:
    """The identity that a certificate states, or None unless it states exactly one, in its canonical form."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(names) != 1 or len(uris) != 1 or not uris[0].startswith(_SCHEME):
        return None
    parts = [unquote(part) for part in uris[0].removeprefix(_SCHEME).split("/")]
    if len(parts) != 3 or not all(parts):
        return None
    identity = Identity(*parts)
    return identity if identity.uri() == uris[0] else None


# ---- making the files


def init(cluster: Cluster) -> list[Path]:
    """Make what is missing in `cluster.pki`; returns the files made. Raises EnvironmentFault."""
    directory = cluster.pki
    made: list[Path] = []
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) & 0o022:
            raise EnvironmentFault(
                f"{directory}: others can write to this directory; run `chmod 700 {directory}`"
            )
        subjects = [Identity(cluster.name, node.role, node.name) for node in cluster.nodes]
        subjects.append(Identity(cluster.name, OPERATOR, OPERATOR))
        ca, ca_key = _authority(cluster, made)
        for subject in subjects:
            _issue_missing(cluster, subject, ca, ca_key, made)
        if make_master_key(cluster.master_key):
            made.append(cluster.master_key)
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or directory}: cannot write the cluster's certificates: {error.strerror}"
        ) from error
    return made


def _authority(
    cluster: Cluster, made: list[Path]
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey | None]:
    """The CA's certificate and, where it is kept, its key; makes both in an empty directory only."""
    certificate_file, key_file = cluster.pki / "ca.pem", cluster.pki / "ca.key"
    if certificate_file.exists():
        ca = _load_ca(cluster)
        key = _load_key(key_file) if key_file.exists() else None
        if key is not None and key.public_key() != ca.public_key():
            raise EnvironmentFault(
                f"{key_file}: this key does not belong to {certificate_file}; restore the right one"
            )
        return ca, key
    issued = sorted(path.name for path in cluster.pki.glob("*.pem"))
    if issued:
        raise EnvironmentFault(
            f"{certificate_file} is missing beside {issued[0]}, which it signed; restore it, "
            "or choose an empty directory"
        )
    key = _load_key(key_file) if key_file.exists() else _make_key(key_file, made)
    subject = Identity(cluster.name, _CA, _CA)
    builder = _builder(subject, key.public_key(), key.public_key(), _CA_LIFETIME, issuer=_name(subject))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(ca=True), critical=True)
    ca = builder.sign(key, hashes.SHA256())
    _publish(certificate_file, ca.public_bytes(Encoding.PEM), 0o644, made)
    return ca, key


def _issue_missing(
    cluster: Cluster,
    subject: Identity,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey | None,
    made: list[Path],
) -> None:
    certificate_file, key_file = cluster.pki / f"{subject.name}.pem", cluster.pki / f"{subject.name}.key"
    if certificate_file.exists():
        _check_leaf(certificate_file, _read_certificate(certificate_file, ""), ca, subject, "")
        return
    if ca_key is None:
        raise EnvironmentFault(
            f"{cluster.pki / 'ca.key'} is not here, so no certificate for {subject.name} can be made; "
            "run this where the CA's key is kept"
        )
    key = _load_key(key_file) if key_file.exists() else _make_key(key_file, made)
    certificate = _certify(subject, key.public_key(), ca, ca_key)
    _publish(certificate_file, certificate.public_bytes(Encoding.PEM), 0o644, made)


def _certify(
    subject: Identity,
    public: ec.EllipticCurvePublicKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    usage = ExtendedKeyUsageOID.SERVER_AUTH if subject.role == "gmn" else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(subject, public, ca_key.public_key(), _LEAF_LIFETIME, issuer=ca.subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(ca=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _name(subject: Identity) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"protego {subject.role} {subject.name}"[:64])])


def _builder(
    subject: Identity,
    public: ec.EllipticCurvePublicKey,
    issuer_public: ec.EllipticCurvePublicKey,
    lifetime: timedelta,
    *,
    issuer: x509.Name,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(subject.uri())]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _make_key(path: Path, made: list[Path]) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _publish(path, pem, 0o600, made)
    return key


def _publish(path: Path, data: bytes, mode: int, made: list[Path]) -> None:
    """Write a file whole or not at all, and never over another."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from the start
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    made.append(path)


# ---- nodes that join (`joining.py`)


def authority(cluster: Cluster) -> x509.Certificate:
    """The CA's certificate. Raises EnvironmentFault."""
    return _load_ca(cluster)


def fingerprint(der: bytes) -> bytes:
    """What tells a certificate from any other."""
    return hashlib.sha256(der).digest()


def certify(cluster: Cluster, node: Node, public: ec.EllipticCurvePublicKey) -> bytes:
    """A certificate for a node that keeps its key to itself, as DER. Raises EnvironmentFault where the CA's
    key is not.
    """
    ca, key = _authority(cluster, [])
    if key is None:
        raise EnvironmentFault(
            f"{cluster.pki / 'ca.key'} is not on the GMN's machine, so no node can join: put it there, "
            "readable by the GMN alone"
        )
    return _certify(Identity(cluster.name, node.role, node.name), public, ca, key).public_bytes(Encoding.DER)


def can_certify(cluster: Cluster) -> bool:
    return (cluster.pki / "ca.key").exists()


def guest_context(ca: x509.Certificate | None) -> ssl.SSLContext:
    """The TLS context of a node that has no certificate yet; without a CA it trusts whoever answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=ca.public_bytes(Encoding.PEM).decode("ascii"))
    return context


# ---- using them


def server_context(cluster: Cluster, node: Node) -> ssl.SSLContext:
    """The GMN's TLS context. Raises EnvironmentFault for files missing, foreign or open to others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # every connection proves itself anew
    _prepare(context, cluster, Identity(cluster.name, node.role, node.name))
    if cluster.pools:
        context.verify_mode = ssl.CERT_OPTIONAL  # whoever has none may join, and nothing else
    return context


def client_context(cluster: Cluster, name: str) -> ssl.SSLContext:
    """The TLS context of a data node, or of the operator (`name` is "operator"). Raises EnvironmentFault."""
    node = cluster.node(name)
    role = node.role if node is not None else OPERATOR
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the identity in the certificate is checked instead, by `rpc.connect`
    return _prepare(context, cluster, Identity(cluster.name, role, name))


def validity(cluster: Cluster, name: str) -> tuple[float, float]:
    """From when to when a node's certificate is valid, in seconds since 1970. Raises EnvironmentFault."""
    certificate = _read_certificate(cluster.pki / f"{name}.pem", _remedy(cluster, name))
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def _remedy(cluster: Cluster, name: str) -> str:
    """What to do about a certificate that is not as it should be."""
    node = cluster.node(name)
    if node is not None and node.pool:
        return (
            f"; {name} joins with a token: `protego pki token --pool {node.pool} --node {name}` makes one, "
            "and `protego up --role gpn --join TOKEN` uses it"
        )
    return f"; run `protego pki init -c {cluster.file}`"


def _prepare(context: ssl.SSLContext, cluster: Cluster, subject: Identity) -> ssl.SSLContext:
    remedy = _remedy(cluster, subject.name)
    certificate_file, key_file = cluster.pki / f"{subject.name}.pem", cluster.pki / f"{subject.name}.key"
    ca = _load_ca(cluster, remedy)
    _check_leaf(certificate_file, _read_certificate(certificate_file, remedy), ca, subject, remedy)
    again = f"; remove it and its key{remedy}"  # what is here is kept, so no key is made for it
    if not key_file.exists() and certificate_file.exists():
        raise EnvironmentFault(
            f"{certificate_file}: {key_file.name} is not beside it; restore that, or have both made anew"
            f"{again}"
        )
    _check_private(key_file, remedy)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate_file, key_file, password="")
        context.load_verify_locations(cadata=ca.public_bytes(Encoding.PEM).decode("ascii"))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or "it cannot be read"
        raise EnvironmentFault(
            f"{certificate_file}: {key_file.name} does not serve as its key ({reason}){again}"
        ) from error
    return context


def _load_ca(cluster: Cluster, remedy: str = "") -> x509.Certificate:
    path = cluster.pki / "ca.pem"
    ca = _read_certificate(path, remedy)
    identity = identity_of(ca)
    if identity is None or identity.role != _CA:
        raise EnvironmentFault(
            f"{path}: this is not the certificate of a Protego CA; choose another `cluster.pki`"
        )
    if identity.cluster != cluster.name:
        raise EnvironmentFault(
            f"{path}: this is the CA of cluster {identity.cluster!r}, not of {cluster.name!r}; "
            "choose another directory as `cluster.pki`"
        )
    return ca


def _check_leaf(
    path: Path, certificate: x509.Certificate, ca: x509.Certificate, subject: Identity, remedy: str
) -> None:
    """Raises EnvironmentFault unless `certificate` is a valid one of this CA for `subject`."""
    again = f"; remove it and its key{remedy}" if remedy else "; remove it and its key, then run this again"
    identity = identity_of(certificate)
    if identity != subject:
        stated = f"states {identity}" if identity else "states no identity of Protego"
        raise EnvironmentFault(f"{path}: the certificate {stated}, but {subject} is needed{again}")
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise EnvironmentFault(
            f"{path}: the certificate was not issued by this cluster's ca.pem{again}"
        ) from error
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise EnvironmentFault(
            f"{path}: expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC{again}"
        )


def _read_certificate(path: Path, remedy: str) -> x509.Certificate:
    return _read(path, x509.load_pem_x509_certificate, "certificate", remedy)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    _check_private(path, "")
    key = _read(path, lambda data: load_pem_private_key(data, password=None), "private key", "")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EnvironmentFault(
            f"{path}: not a private key that `protego pki init` made; remove it and run this again"
        )
    return key


def _read(path: Path, parse: Callable[[bytes], Parsed], what: str, remedy: str) -> Parsed:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot read the {what}: {error.strerror}{remedy}") from error
    try:
        return parse(data)
    except (ValueError, TypeError) as error:
        raise EnvironmentFault(f"{path}: this is not a {what}; remove it{remedy}") from error


def _check_private(path: Path, remedy: str) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot read the private key: {error.strerror}{remedy}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise EnvironmentFault(f"{path}: others can read this private key; run `chmod 600 {path}`")
