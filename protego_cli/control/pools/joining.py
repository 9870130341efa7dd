"""How a node of a pool gets its certificate: a one-time token in, a certificate for a key of its own out.

The node has the cluster file and a token, nothing else. On the GMN's control port, by TLS without a
certificate:

    node -> GMN   GetCa                       answered by the CA's certificate: believed if the token names it
    node -> GMN   Join(id, secret, request)   on a second connection, whose server that CA has certified
    GMN -> node   Joined(certificate)

1. A token is text: the cluster, the node, the CA's fingerprint, an id and a secret of 256 bits.
2. The node makes its key (`NODE.key` in `cluster.pki`), and a certificate request (RFC 2986), which proves
   that it has the key. Nothing else in the request counts: who it is, the token says.
3. A token is good for one key. A node that did not get the answer asks again with the same key; one that
   starts anew, with the same token, has its certificate and asks nothing.

A connection carries one request and one answer: a length of 4 bytes, and msgpack. Hostile bytes raise
`Malformed`. The GMN's side is `admissions.py`."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import struct
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel import pki
from protego_cli.control.channel.message import Message
from protego_cli.control.channel.pki import Identity
from protego_cli.control.channel.rpc import connect
from protego_cli.control.channel.tls import Broken, TlsStream
from protego_cli.errors import EnvironmentFault, Malformed, Refused, Unreachable, UsageError

TOKEN_VARIABLE: Final = "PROTEGO_JOIN"  # noqa: S105 - the name of the environment's variable
LIMIT: Final = 8192  # bytes of a request or an answer
TIMEOUT: Final = 5.0
ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 32
_PREFIX: Final = "protego-join."
_LENGTH: Final = struct.Struct("!I")
_BACKOFF: Final = (0.2, 5.0)


_T = TypeVar("_T")


class Token(Message, frozen=True, array_like=True):
    cluster: str
    node: str
    ca: bytes  # the fingerprint of the CA's certificate
    id: bytes
    secret: bytes

    def text(self) -> str:
        return _PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


class GetCa(Message, frozen=True, tag=True):
    """Whose certificates are good here?"""


class Join(Message, frozen=True, tag=True):
    id: bytes
    secret: bytes
    request: bytes  # a PKCS#10 certificate request, DER


class Ca(Message, frozen=True, tag=True):
    certificate: bytes  # DER


class Joined(Message, frozen=True, tag=True):
    certificate: bytes  # DER


class Denied(Message, frozen=True, tag=True):
    reason: str


JoinRequest = GetCa | Join
JoinReply = Ca | Joined | Denied

_token: Final = msgspec.msgpack.Decoder(Token)
_request: Final[msgspec.msgpack.Decoder[JoinRequest]] = msgspec.msgpack.Decoder(JoinRequest)
_reply: Final[msgspec.msgpack.Decoder[JoinReply]] = msgspec.msgpack.Decoder(JoinReply)


# ---- bytes


def parse_token_untrusted(text: str) -> Token:
    """Raises Malformed."""
    body = text.strip().removeprefix(_PREFIX)
    if len(body) > LIMIT or not text.strip().startswith(_PREFIX):
        raise Malformed("it does not begin as a join token does")
    try:
        token = _token.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, RecursionError):  # its text could hold the secret
        raise Malformed("it is not whole") from None
    if len(token.id) != ID_LENGTH or len(token.secret) != SECRET_LENGTH:
        raise Malformed("it is not whole")
    return token


def parse_request_untrusted(data: bytes) -> JoinRequest:
    """Raises Malformed."""
    return _decoded(data, _request)


def parse_reply_untrusted(data: bytes) -> JoinReply:
    """Raises Malformed."""
    return _decoded(data, _reply)


def _decoded(data: bytes, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError):
        raise Malformed("a message of joining does not decode") from None


def parse_csr_untrusted(der: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a certificate request is for, and whose private half has signed it. Raises Malformed."""
    try:
        request = x509.load_der_x509_csr(der)
        public = request.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise Malformed("the request is not for a key on P-256")
        if not request.is_signature_valid:
            raise Malformed("the request is not signed by its own key")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Malformed("this is no certificate request") from None
    return public


async def receive(stream: TlsStream) -> bytes:
    """The one message of the other side. Raises Malformed or Broken."""
    data = bytearray()
    while True:
        if len(data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data)
            if length > LIMIT or len(data) > _LENGTH.size + length:
                raise Malformed("a message of joining has no such length")
            if len(data) == _LENGTH.size + length:
                return bytes(data[_LENGTH.size :])
        chunk = await stream.receive()
        if not chunk:
            raise Broken("the connection was closed")
        data += chunk


def frame(message: JoinRequest | JoinReply) -> bytes:
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


# ---- the node's side


async def join(cluster: Cluster, token: Token) -> None:
    """Have a certificate in `cluster.pki` that this token is good for; wait for a GMN if need be. Raises
    Refused when it is not taken, and EnvironmentFault.
    """
    node = cluster.pooled(token.node)
    if token.cluster != cluster.name or node is None:
        raise UsageError(
            f"the join token is for {token.node} of cluster {token.cluster!r}, which is no node of a pool in "
            f"{cluster.file}"
        )
    files = _Files(cluster, node)
    if files.joined(token):
        return
    key = files.key(token)
    shortest, longest = _BACKOFF
    pause = shortest
    while True:
        try:
            certificate = await _ask_all(cluster, files, token, key)
        except Unreachable:
            await trio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)
        else:
            files.keep(certificate, key)
            return


async def _ask_all(cluster: Cluster, files: _Files, token: Token, key: ec.EllipticCurvePrivateKey) -> bytes:
    reason = Unreachable("the cluster file names no GMN")
    for gmn in cluster.nodes_of("gmn"):
        try:
            ca = files.authority(token)
            if ca is None:
                ca = await _fetch_ca(gmn, token)
                files.keep_authority(ca)
            context = pki.guest_context(ca)
            expected = Identity(cluster.name, "gmn", gmn.name)
            stream = await connect(gmn.address, gmn.ports.control, context, expected, TIMEOUT)
            reply = await _ask(stream, Join(token.id, token.secret, _csr(key)))
        except Unreachable as error:
            reason = error
            continue
        if isinstance(reply, Joined):
            return reply.certificate
        why = reply.reason if isinstance(reply, Denied) else "it answered something else"
        raise Refused(f"{gmn.name} does not let {token.node} join: {why}")
    raise reason


async def _fetch_ca(gmn: Node, token: Token) -> x509.Certificate:
    place = f"{gmn.address}:{gmn.ports.control}"
    with trio.move_on_after(TIMEOUT):
        try:
            tcp = await trio.open_tcp_stream(gmn.address, gmn.ports.control)
            stream = TlsStream.wrap(tcp, pki.guest_context(None))
        except (OSError, Broken) as error:
            raise Unreachable(f"nothing answers at {place}") from error
        try:
            await stream.handshake()
        except Broken as error:
            stream.close()
            raise Unreachable(f"{place}: {error}") from error
        reply = await _ask(stream, GetCa())
        if not isinstance(reply, Ca) or pki.fingerprint(reply.certificate) != token.ca:
            raise Refused(f"{place} is not of the cluster that made the join token")
        try:
            return x509.load_der_x509_certificate(reply.certificate)
        except ValueError as error:
            raise Refused(f"{place} has sent no certificate") from error
    raise Unreachable(f"{place} did not answer within {TIMEOUT:g} s")


async def _ask(stream: TlsStream, request: JoinRequest) -> JoinReply:
    """One question and its answer; closes the stream. Raises Unreachable."""
    with contextlib.closing(stream), trio.move_on_after(TIMEOUT):
        stream.send(frame(request))
        try:
            return parse_reply_untrusted(await receive(stream))
        except (Broken, Malformed) as error:
            raise Unreachable(f"the GMN has not answered: {error}") from error
    raise Unreachable(f"the GMN did not answer within {TIMEOUT:g} s")


def _csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request that says nothing but the key: the token says the rest."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


class _Files:
    """What a node that joins keeps in `cluster.pki`: its key, both certificates, and the token's id."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster = cluster
        self._directory = cluster.pki
        self._key = cluster.pki / f"{node.name}.key"
        self._certificate = cluster.pki / f"{node.name}.pem"
        self._token = cluster.pki / f"{node.name}.joined"

    def joined(self, token: Token) -> bool:
        return self._for(token) and self._certificate.exists()

    def _for(self, token: Token) -> bool:
        """Whether the key was made for this token."""
        try:
            return self._token.read_text().strip() == token.id.hex() and self._key.exists()
        except OSError:
            return False

    def key(self, token: Token) -> ec.EllipticCurvePrivateKey:
        """The key for this token; with another one, a new key in the place of the old life's."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._for(token):
                key = load_pem_private_key(self._key.read_bytes(), password=None)
                if isinstance(key, ec.EllipticCurvePrivateKey):
                    return key
            made = ec.generate_private_key(ec.SECP256R1())
            self._certificate.unlink(missing_ok=True)
            self._token.unlink(missing_ok=True)
            _write(self._key, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
            _write(self._token, token.id.hex().encode() + b"\n", 0o600)
        except OSError as error:
            raise EnvironmentFault(
                f"{error.filename or self._directory}: the node's key cannot be kept: {error.strerror}"
            ) from error
        except ValueError as error:
            raise EnvironmentFault(f"{self._key}: this is no private key; remove it") from error
        return made

    def authority(self, token: Token) -> x509.Certificate | None:
        """The CA's certificate, if it is here. Raises EnvironmentFault when it is another one's."""
        if not (self._directory / "ca.pem").exists():
            return None
        ca = pki.authority(self._cluster)
        if pki.fingerprint(ca.public_bytes(Encoding.DER)) != token.ca:
            raise EnvironmentFault(
                f"{self._directory / 'ca.pem'}: the join token was made by another CA; remove this file, or "
                "get a token of this cluster"
            )
        return ca

    def keep_authority(self, ca: x509.Certificate) -> None:
        _write(self._directory / "ca.pem", ca.public_bytes(Encoding.PEM), 0o644)

    def keep(self, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> None:
        try:
            parsed = x509.load_der_x509_certificate(certificate)
            if parsed.public_key() != key.public_key():
                raise Refused("the GMN has certified another key")
        except ValueError as error:
            raise Refused("the GMN has sent no certificate") from error
        _write(self._certificate, parsed.public_bytes(Encoding.PEM), 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all, in the place of what is there. Raises EnvironmentFault."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from error
