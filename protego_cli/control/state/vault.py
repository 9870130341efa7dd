"""The GMN's state at rest: sealed values in a state store, under a key that is kept elsewhere.

1. `open_vault` takes `cluster.state` (0700) for this process's life: a lock on the file `lock` in it.
2. The *master key* is in a file outside `cluster.state`: `cluster.state_key`, or `state.key` in
   `cluster.pki`, made by `protego pki init`. It wraps the *data key*, which lies in the store beside the
   format's version, the cluster's name and a random id. Another cluster's state, another key, a newer format:
   refused.
3. A value is sealed by AES-256-GCM with its key as associated data: nothing can be changed or put in
   another's place unnoticed. Each life of a GMN draws a salt and seals under HMAC-SHA256(data key, salt) with
   nonces that count from zero, so none repeats, whatever copy of the state a life began from. A value names
   its salt.

Who has the state directory without the master key has nothing; who gets both finds what is live (and see
`sqlite.py` on what was deleted).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protego_cli.config.model import Cluster
from protego_cli.control.state.store import Change, StateStore, Store
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import EnvironmentFault

FORMAT: Final = 1
KEY_LENGTH: Final = 32
META: Final = b"meta"

_SALT: Final = 16
_COUNTER: Final = 8
_NONCE: Final = 12
_OPEN: Final = "{0}: others can enter this directory; run `chmod 700 {0}`"


class _Meta(msgspec.Struct, frozen=True):
    """The one value that is not sealed."""

    format: int
    cluster: str
    id: str
    wrapped: bytes  # the data key: nonce, ciphertext


class _Format(msgspec.Struct, frozen=True):
    """What every version of `_Meta` has."""

    format: int


class Vault:
    """A `Store` over a `Store`: what goes in is sealed, what comes out is authentic."""

    def __init__(
        self, store: Store, found: dict[bytes, bytes], data_key: bytes, place: str, release: ExitStack
    ) -> None:
        """`found`: what the store holds; `place`: its name in errors; `release` gives back what was taken."""
        self._store = store
        self._found = found
        self._data_key = data_key
        self._place = place
        self._release = release
        self._salt = secrets.token_bytes(_SALT)
        self._counter = 0
        self._seal = self._cipher(self._salt)

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        found, self._found = self._found, {}
        ciphers: dict[bytes, AESGCM] = {}
        for key, value in found.items():
            salt = value[:_SALT]
            cipher = ciphers.get(salt) or ciphers.setdefault(salt, self._cipher(salt))
            nonce = value[_SALT : _SALT + _COUNTER].rjust(_NONCE, b"\0")
            try:
                yield key, cipher.decrypt(nonce, value[_SALT + _COUNTER :], key)
            except InvalidTag:
                raise EnvironmentFault(
                    f"{self._place}: the record {key!r} is damaged; nothing was changed. If nothing can be "
                    "restored, move the state away: the GMN then begins anew, and every peer must dial again"
                ) from None

    def commit(self, changes: Sequence[Change]) -> None:
        self._store.commit([(key, self._sealed(key, value)) for key, value in changes])

    def tend(self) -> None:
        self._store.tend()

    def close(self) -> None:
        self._release.close()

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(hmac_sha256(self._data_key, salt))

    def _sealed(self, key: bytes, value: bytes | None) -> bytes | None:
        if value is None:
            return None
        counter = self._counter.to_bytes(_COUNTER)
        self._counter += 1
        return self._salt + counter + self._seal.encrypt(counter.rjust(_NONCE, b"\0"), value, key)


def open_vault(cluster: Cluster, kind: StateStore) -> Vault:
    """The cluster's state, this process's own until `close`. Raises EnvironmentFault."""
    with ExitStack() as stack:
        _take(cluster.state, stack)
        master = _read_master_key(cluster)
        store = kind.open(cluster.state)
        stack.callback(store.close)
        place = f"{cluster.state} ({kind.name})"
        found = dict(store.load())
        meta = found.pop(META, None)
        if meta is None and found:
            raise EnvironmentFault(
                f"{place}: this state names no cluster, so it is damaged or not Protego's; nothing was "
                "changed. Choose another directory as `cluster.state`"
            )
        data_key = _begin(cluster, store, master) if meta is None else _unwrap(cluster, place, meta, master)
        return Vault(store, found, data_key, place, stack.pop_all())


def _take(state: Path, stack: ExitStack) -> None:
    """Make the directory if need be, and lock it."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(state.stat().st_mode) & 0o077:
            raise EnvironmentFault(_OPEN.format(state))
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise EnvironmentFault(
                f"{state}: another GMN works on this state (process {pid}); stop it first"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise EnvironmentFault(
            f"{state}: the GMN's state cannot be kept here: {error.strerror}; choose another directory as "
            "`cluster.state`, or mend its permissions"
        ) from error


def unfit(cluster: Cluster) -> Iterator[str]:
    """What would keep this process from `cluster.state`. Changes nothing."""
    try:
        _read_master_key(cluster)
    except EnvironmentFault as fault:
        yield str(fault)
    state = cluster.state
    place = next(path for path in (state, *state.parents) if os.path.exists(path))
    if not os.access(place, os.W_OK | os.X_OK):
        yield (
            f"{state}: the GMN's state cannot be kept here: {place} is not writable for this user; choose "
            "another directory as `cluster.state`, or mend its permissions"
        )
    elif place == state and stat.S_IMODE(state.stat().st_mode) & 0o077:
        yield _OPEN.format(state)


def _begin(cluster: Cluster, store: Store, master: bytes) -> bytes:
    """A new state: draw its id and its data key."""
    data_key, identifier = secrets.token_bytes(KEY_LENGTH), secrets.token_hex(16)
    nonce = secrets.token_bytes(_NONCE)
    wrapped = nonce + AESGCM(master).encrypt(nonce, data_key, _bound(cluster.name, identifier))
    store.commit([(META, msgspec.json.encode(_Meta(FORMAT, cluster.name, identifier, wrapped)))])
    return data_key


def _unwrap(cluster: Cluster, place: str, data: bytes, master: bytes) -> bytes:
    try:
        version = msgspec.json.decode(data, type=_Format).format
        if version > FORMAT:
            raise EnvironmentFault(
                f"{place}: this state was written by a newer Protego (format {version}, this one knows "
                f"{FORMAT}); nothing was changed. Start that version"
            )
        meta = msgspec.json.decode(data, type=_Meta)
    except msgspec.DecodeError as error:
        raise EnvironmentFault(
            f"{place}: the record {META!r} is damaged ({error}); nothing was changed"
        ) from error
    if meta.cluster != cluster.name:
        raise EnvironmentFault(
            f"{place}: this is the state of cluster {meta.cluster!r}, not of {cluster.name!r}; nothing was "
            "changed. Choose another directory as `cluster.state`"
        )
    try:
        nonce, wrapped = meta.wrapped[:_NONCE], meta.wrapped[_NONCE:]
        return AESGCM(master).decrypt(nonce, wrapped, _bound(meta.cluster, meta.id))
    except (InvalidTag, ValueError):
        raise EnvironmentFault(
            f"{cluster.master_key}: this key does not open {place}; nothing was changed. Restore the key "
            "that was there when the state was made"
        ) from None


def _bound(name: str, identifier: str) -> bytes:
    return f"protego data key of {name} {identifier}".encode()


# ---- the master key


def make_master_key(path: Path) -> bool:
    """Make the file unless it exists; whether it was made. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(KEY_LENGTH) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return True


def _read_master_key(cluster: Cluster) -> bytes:
    path, remedy = cluster.master_key, f"run `protego pki init -c {cluster.file}`"
    if path.resolve().is_relative_to(cluster.state.resolve()):
        raise EnvironmentFault(
            f"{path}: the key of the state must not lie beside it; set `cluster.state_key` to a file outside "
            f"{cluster.state}"
        )
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise EnvironmentFault(f"{path}: others can read the key of the state; run `chmod 600 {path}`")
        text = path.read_bytes()[:256].strip()
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{path}: the key of the GMN's state is missing; restore it, or, for a new cluster, {remedy}"
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot read the key of the GMN's state: {error.strerror}; it must belong to the user "
            "that the GMN runs as"
        ) from error
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_LENGTH:
        raise EnvironmentFault(
            f"{path}: this is not the key of a state ({2 * KEY_LENGTH} hexadecimal digits); restore the "
            f"right one, or, for a new cluster, remove it and {remedy}"
        )
    return key
