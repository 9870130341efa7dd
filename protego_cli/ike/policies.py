"""The tunnels as the engine looks them up: by name, by the peer's address, by identities.

What a stranger's first messages need of them is found without a look at each: for one address, or for any,
there may be tens of thousands.
Proposals and identities are parsed once, here; text that does not parse is a ValueError that names the
tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

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

    @property
    def forced(self) -> bool:
        """Whether its ESP goes in UDP, NAT or not."""
        return self.policy.encapsulation == "force"


@dataclass
class _Peers:
    """The tunnels whose peer is at one address, or at any."""

    tunnels: list[Tunnel] = field(default_factory=list)
    suites: dict[IkeProposal, None] = field(default_factory=dict)  # of them all, in their order
    forced: bool = False  # for any of them
    by_peer: dict[tuple[int, bytes], list[Tunnel]] = field(default_factory=dict)  # its identity

    def add(self, tunnel: Tunnel) -> None:
        self.tunnels.append(tunnel)
        self.suites.update(dict.fromkeys(tunnel.ike))
        self.forced |= tunnel.forced
        self.by_peer.setdefault(tunnel.remote_id.key, []).append(tunnel)


class Policies:
    def __init__(
        self, policies: Iterable[Policy], registry: Registry, before: Policies | None = None
    ) -> None:
        """What is as it was `before` is taken over from there, ready as it is."""
        self._by_name: dict[str, Tunnel] = {}
        self._by_address: dict[str | None, _Peers] = {}
        for policy in policies:
            known = before.get(policy.tunnel) if before else None
            tunnel = known if known and known.policy == policy else _prepare(policy, registry)
            self._by_name[tunnel.name] = tunnel
            self._by_address.setdefault(policy.remote, _Peers()).add(tunnel)

    def get(self, name: str) -> Tunnel | None:
        return self._by_name.get(name)

    def facing(self, remote: str, most: int) -> Sequence[Tunnel]:
        """Some tunnels whose peer may be at this address, those that name it before those for any."""
        return list(islice(chain.from_iterable(peers.tunnels for peers in self._at(remote)), most))

    def suites(self, remote: str) -> Sequence[IkeProposal]:
        """What any of them would agree to."""
        return list(dict.fromkeys(chain.from_iterable(peers.suites for peers in self._at(remote))))

    def forced(self, remote: str) -> bool:
        """Whether any of them encapsulates, NAT or not."""
        return any(peers.forced for peers in self._at(remote))

    def named(self, remote: str) -> bool:
        """Whether a tunnel's peer is at this address by its configuration."""
        return remote in self._by_address

    def alone_at(self, remote: str) -> str | None:
        """That tunnel, where there is just one."""
        peers = self._by_address.get(remote)
        return peers.tunnels[0].name if peers is not None and len(peers.tunnels) == 1 else None

    def between(self, remote: str, remote_id: Identity, local_id: Identity | None) -> list[Tunnel]:
        """Those for a peer at this address that is `remote_id` and, if it said so, expects `local_id`."""
        return [
            tunnel
            for peers in self._at(remote)
            for tunnel in peers.by_peer.get(remote_id.key, ())
            if local_id is None or tunnel.local_id.key == local_id.key
        ]

    def _at(self, remote: str) -> list[_Peers]:
        """For who comes from this address."""
        return [peers for peers in map(self._by_address.get, (remote, None)) if peers is not None]


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
