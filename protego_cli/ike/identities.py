"""Identities: from the text of the cluster file to ID payloads and back (RFC 7296 3.5).

The type is chosen from the text by the conventions that strongSwan's users know:

| text | type |
|---|---|
| `198.51.100.7`, `2001:db8::7` | ID_IPV4_ADDR, ID_IPV6_ADDR |
| `gw@example.org`, `@@gw@example.org` | ID_RFC822_ADDR |
| `@gw.example.org`, `gw.example.org` | ID_FQDN |
| `@#6b6579` | ID_KEY_ID, from hexadecimal digits |
| `fqdn:…`, `email:…`, `ipv4:…`, `ipv6:…`, `keyid:…` | as named |
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum

from protego_cli.wire.payloads import IdI, IdR


class IdKind(IntEnum):
    IPV4_ADDR = 1
    FQDN = 2
    RFC822_ADDR = 3
    IPV6_ADDR = 5
    DER_ASN1_DN = 9
    DER_ASN1_GN = 10
    KEY_ID = 11


_PREFIXES = {
    "fqdn": IdKind.FQDN,
    "dns": IdKind.FQDN,
    "email": IdKind.RFC822_ADDR,
    "rfc822": IdKind.RFC822_ADDR,
    "userfqdn": IdKind.RFC822_ADDR,
    "ipv4": IdKind.IPV4_ADDR,
    "ipv6": IdKind.IPV6_ADDR,
    "keyid": IdKind.KEY_ID,
}
_TEXTUAL: frozenset[int] = frozenset({IdKind.FQDN, IdKind.RFC822_ADDR})
_ADDRESSES: dict[int, int] = {IdKind.IPV4_ADDR: 4, IdKind.IPV6_ADDR: 16}


@dataclass(frozen=True, slots=True)
class Identity:
    kind: int
    data: bytes

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """Raises ValueError for text that names no identity we can prove or check."""
        prefix, separator, rest = text.partition(":")
        kind = _PREFIXES.get(prefix.lower())
        if separator and kind is not None:
            data = ipaddress.ip_address(rest).packed if kind in _ADDRESSES else rest.encode()
            if len(data) != _ADDRESSES.get(kind, len(data)):
                raise ValueError(f"identity {text!r} is not an {prefix} address")
            return cls(kind, data)
        if text.startswith("@#"):
            return cls(IdKind.KEY_ID, bytes.fromhex(text[2:]))
        if text.startswith("@@"):
            return cls(IdKind.RFC822_ADDR, text[2:].encode())
        if text.startswith("@"):
            return cls(IdKind.FQDN, text[1:].encode())
        if "=" in text:
            raise ValueError(f"identity {text!r} is a distinguished name, which needs certificates")
        if "@" in text:
            return cls(IdKind.RFC822_ADDR, text.encode())
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return cls(IdKind.FQDN, text.encode())
        return cls(IdKind.IPV4_ADDR if address.version == 4 else IdKind.IPV6_ADDR, address.packed)

    @classmethod
    def of(cls, payload: IdI | IdR) -> Identity:
        return cls(payload.kind, payload.data)

    @property
    def key(self) -> tuple[int, bytes]:
        """Equal for identities that name the same party: names do not tell case apart."""
        return self.kind, self.data.lower() if self.kind in _TEXTUAL else self.data

    def __str__(self) -> str:
        if _ADDRESSES.get(self.kind) == len(self.data):
            return str(ipaddress.ip_address(self.data))
        if self.kind in _TEXTUAL:  # a peer may send anything: nothing of it may act on a terminal
            text = self.data.decode("ascii", "backslashreplace")
            return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
        if self.kind == IdKind.KEY_ID:
            return f"@#{self.data.hex()}"
        return f"{self.kind}#{self.data.hex()}"
