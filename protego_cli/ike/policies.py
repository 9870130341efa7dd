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
class _Door:
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
        self._doors: dict[str | None, _Door] = {}
        for policy in policies:
            known = before.get(policy.tunnel) if before else None
            tunnel = known if known and known.policy == policy else _prepare(policy, registry)
            self._by_name[tunnel.name] = tunnel
            self._doors.setdefault(policy.remote, _Door()).add(tunnel)

    def get(self, name: str) -> Tunnel | None:
        return self._by_name.get(name)

    def facing(self, remote: str, most: int) -> Sequence[Tunnel]:
        """Some tunnels whose peer may be at this address, those that name it before those for any."""
        return list(islice(chain.from_iterable(door.tunnels for door in self._open(remote)), most))

    def suites(self, remote: str) -> Sequence[IkeProposal]:
        """What any of them would agree to."""
        return list(dict.fromkeys(chain.from_iterable(door.suites for door in self._open(remote))))

    def forced(self, remote: str) -> bool:
        """Whether any of them encapsulates, NAT or not."""
        return any(door.forced for door in self._open(remote))

    def named(self, remote: str) -> bool:
        """Whether a tunnel's peer is at this address by its configuration."""
        return remote in self._doors

    def alone_at(self, remote: str) -> str | None:
        """That tunnel, where there is just one."""
        door = self._doors.get(remote)
        return door.tunnels[0].name if door is not None and len(door.tunnels) == 1 else None

    def between(self, remote: str, remote_id: Identity, local_id: Identity | None) -> list[Tunnel]:
        """Those for a peer at this address that is `remote_id` and, if it said so, expects `local_id`."""
        return [
            tunnel
            for door in self._open(remote)
            for tunnel in door.by_peer.get(remote_id.key, ())
            if local_id is None or tunnel.local_id.key == local_id.key
        ]

    def _open(self, remote: str) -> list[_Door]:
        """For who comes from this address."""
        return [door for door in map(self._doors.get, (remote, None)) if door is not None]


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
