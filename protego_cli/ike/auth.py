"""The AUTH payload with a shared secret (RFC 7296 2.15)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from protego_cli.crypto.algorithms import Prf
from protego_cli.wire.payloads import Auth, IdI, IdR

SHARED_KEY = 2  # Shared Key Message Integrity Code
_PAD = b"Key Pad for IKEv2"


@dataclass(frozen=True)
class Signer:
    """What one side's AUTH covers: its IKE_SA_INIT message, the other's nonce, its own identity."""

    prf: Prf
    message: bytes
    peer_nonce: bytes
    key_p: bytes = field(repr=False)  # SK_pi or SK_pr, of the side that signs

    def sign(self, psk: bytes, identity: IdI | IdR) -> Auth:
        octets = self.message + self.peer_nonce + self.prf.compute(self.key_p, identity.body())
        return Auth(SHARED_KEY, self.prf.compute(self.prf.compute(psk, _PAD), octets))

    def verify(self, psk: bytes, identity: IdI | IdR, auth: Auth) -> bool:
        """In constant time; False as well for a method other than the shared key."""
        return auth.method == SHARED_KEY and hmac.compare_digest(self.sign(psk, identity).data, auth.data)
