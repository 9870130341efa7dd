"""The tunnels as the engine looks them up: by name, by the peer's address, by identities.

Proposals and identities are parsed once, here; text that does not parse is a ValueError that names the
tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.proposal import EspProposal, IkeProposal, parse_esp, parse_ike
from protego_cli.ike.events import Policy
from protego_cli.ike.identities import Identity


@dataclass(frozen=True)
class Tunnel:
    """A policy, ready for use."""

    policy: Policy
    local_id: Identity
    remote_id: Identity
    ike: tuple[IkeProposal, ...]
    esp: tuple[EspProposal, ...]

    @property
    def name(self) -> str:
        return self.policy.tunnel


class Policies:
    def __init__(
        self, policies: Iterable[Policy], registry: Registry, before: Policies | None = None
    ) -> None:
        """What is as it was `before` is taken over from there, ready as it is."""
        self._by_name: dict[str, Tunnel] = {}
        self._by_remote: dict[str | None, list[Tunnel]] = {}
        for policy in policies:
            known = before.get(policy.tunnel) if before else None
            tunnel = known if known and known.policy == policy else _prepare(policy, registry)
            self._by_name[tunnel.name] = tunnel
            self._by_remote.setdefault(policy.remote, []).append(tunnel)

    def get(self, name: str) -> Tunnel | None:
        return self._by_name.get(name)

    def facing(self, remote: str) -> Sequence[Tunnel]:
        """Tunnels whose peer may be at this address, those that name it before those for any."""
        return [*self._by_remote.get(remote, ()), *self._by_remote.get(None, ())]

    def alone_at(self, remote: str) -> str | None:
        """The tunnel whose peer is at this address by its configuration, where there is just one."""
        found = self._by_remote.get(remote, ())
        return found[0].name if len(found) == 1 else None

    def between(self, remote: str, remote_id: Identity, local_id: Identity | None) -> list[Tunnel]:
        """Of these, the ones for a peer that is `remote_id` and, if it said so, expects `local_id`."""
        return [
            tunnel
            for tunnel in self.facing(remote)
            if tunnel.remote_id.key == remote_id.key
            and (local_id is None or tunnel.local_id.key == local_id.key)
        ]


def _prepare(policy: Policy, registry: Registry) -> Tunnel:
    try:
        return Tunnel(
            policy,
            Identity.from_text(policy.local_id),
            Identity.from_text(policy.remote_id),
            tuple(parse_ike(text, registry) for text in policy.ike),
            tuple(parse_esp(text, registry) for text in policy.esp),
        )
    except ValueError as fault:
        raise ValueError(f"tunnel {policy.tunnel}: {fault}") from fault
