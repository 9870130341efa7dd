"""What a steering backend is: the way packets are passed on inside a GIN and a GEN.

A backend is named in the cluster file (`cluster.ingress`), handed out by a plugin, and makes one steering
object per role. The roles keep it at the desired state and give it what their sockets received. An `Egress`
acts on a change when the method returns, an `Ingress` on all changes so far when `settle` is over: one
message of the control channel is one step. A backend that steers in the kernel gets here only what the kernel
passed up, and may know no marks.

The sockets, IKE, tags and barriers are the roles' own, whatever the backend.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from protego_cli.config.model import AUTO, Rate
from protego_cli.counters import Counters
from protego_cli.errors import EnvironmentFault
from protego_cli.net.udp import Address, Batch, Buffer

log = logging.getLogger(__name__)

BEST = ("nftables", "mux")
"""What "auto" takes the first of that can run; `mux` always can."""

HERE = ""
"""The address of a VTEP inside this node, which no datagram can come from."""


@dataclass(frozen=True, slots=True)
class Gpn:
    """A GPN as a GIN or GEN needs it: where its packets and tags go, and the key of the pair."""

    name: str
    address: Address
    tag_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Door:
    """Where peers' ESP arrives at a GIN."""

    owner: str  # CLUSTER.NODE: names what the backend keeps outside of this process
    vips: tuple[str, ...]
    port: int


class Offered(NamedTuple):
    """What has come for one SPI (GIN) or tunnel (GEN), below its ceiling, whatever its GPN can take of it."""

    of: int | str
    packets: int
    bytes: int
    outer: int  # bytes of each packet that are not the inner one's, about


class Sender(Protocol):
    """The part of `UdpSocket` that steering needs."""

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool: ...


class Ingress(Protocol):
    """A GIN's table: inbound SPI -> GPN."""

    in_kernel: bool
    """Whether packets are passed on before they reach a socket. Then no socket may ask the kernel to merge
    them: it would pass on all of a batch by the SPI of the first."""

    def put_gpn(self, gpn: Gpn) -> None: ...

    def drop_gpn(self, name: str) -> None: ...

    def steer(self, spi: int, gpn: str, peer: Address) -> None:
        """Pass the SPI's packets to that GPN; those from elsewhere than `peer` in ORIGIN tags."""
        ...

    def unsteer(self, spi: int) -> None: ...

    def settle(self) -> Awaitable[None] | None:
        """Over once every packet goes by the changes made so far; None when that is so already. Called after
        each message's changes.
        """
        ...

    async def tend(self) -> None:
        """Set up or mend what there is outside of this process. Called when the node has learned what it is
        to do, and every second."""
        ...

    def limit(self, spi: int, ceiling: Rate | None) -> None:
        """Pass on no more of this steered SPI's packets than that; what is above may be a forger's as well as
        the peer's. A backend that cannot count in the kernel leaves it to the GPN.
        """
        ...

    def forward(
        self,
        spi: int,
        data: memoryview | bytes,
        size: int,
        count: int,
        highest: int,
        source: Address,
        tos: int,
    ) -> bool:
        """Pass on `count` packets of one SPI and source; False when the SPI is not steered.

        `data` is segments of `size` bytes, the last perhaps shorter, each with a whole ESP header; it is
        valid until the call returns. `highest` is the highest sequence number among them.
        """
        ...

    def forward_row(self, spi: int, row: Sequence[Batch], count: int, highest: int) -> bool:
        """Pass on `count` packets in several batches, all of one SPI and source; False, having done nothing,
        where they are to be passed on one by one.
        """
        ...

    def marks(self, spis: Iterable[int]) -> dict[int, int]:
        """The highest sequence number passed on for each SPI, 0 for none. Leaves out what it cannot know."""
        ...

    def offered(self) -> Sequence[Offered]:
        """What has come to SPIs of which something has come since this was last asked for. A backend that
        passes packets on in the kernel may know of none.
        """
        ...

    def refresh(self) -> None:
        """Count what was passed on elsewhere. Called before the counters are reported."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class Egress(Protocol):
    """A GEN's table: (VNI, inner destination) -> GPN."""

    def put_gpn(self, gpn: Gpn) -> None: ...

    def drop_gpn(self, name: str) -> None: ...

    def put_tenant(self, vni: int, vteps: Iterable[str], own: Iterable[bytes] = ()) -> None:
        """Take this VNI from these addresses only. `HERE` is this node: then it is the tenant's VTEP itself.

        What is sent to one of the `own` inner addresses (4 or 16 bytes), and ARP where one of them is IPv4,
        stays here: it goes to the role's `Own`. So does all that GPNs send when this node is the VTEP.
        """
        ...

    def drop_tenant(self, vni: int) -> None: ...

    def put_route(self, tunnel: str, vni: int, prefixes: Iterable[str], gpn: str) -> None:
        """Replace, in one step, all that was routed for the tunnel."""
        ...

    def drop_route(self, tunnel: str) -> None: ...

    def limit(self, of: str | int, ceiling: Rate | None) -> None:
        """Pass on no more than that of a tunnel, or by its VNI of all tunnels of a tenant together."""
        ...

    def forward(self, batch: Batch) -> None: ...

    def forward_row(self, row: Sequence[Batch]) -> bool:
        """Pass on several batches together; False, having done nothing, where they are to go one by one."""
        ...

    def offered(self) -> Sequence[Offered]:
        """As of an Ingress, by tunnel or strand."""
        ...


Own = Callable[[int, str | None, memoryview, int, int], None]
"""Takes VXLAN packets that stay in a GEN: their VNI, the address of the VTEP that sent them (None when a GPN
passed them on), segments of a size, the last perhaps shorter, and the TOS that they came with. They are valid
until the call returns."""


class SteeringBackend(Protocol):
    @property
    def name(self) -> str: ...

    def unavailable(self, role: Literal["gin", "gen"]) -> str | None:
        """Why this machine cannot run that role by this backend, as one clear sentence; None when it can."""
        ...

    def ingress(self, fabric: Sender, counters: Counters, door: Door) -> Ingress: ...

    def egress(self, fabric: Sender, counters: Counters, own: Own) -> Egress: ...


def choose(
    backends: Mapping[str, SteeringBackend], name: str, role: Literal["gin", "gen"]
) -> SteeringBackend:
    """The backend that a node of this role runs. Raises EnvironmentFault when the one named cannot."""
    reason = None
    for candidate in BEST if name == AUTO else (name,):
        backend = backends[candidate]
        reason = backend.unavailable(role)
        if reason is None:
            if role == "gin":  # in a GEN both built-in ones are `mux`
                log.info("steering backend=%s", candidate)
            return backend
        if name == AUTO:
            log.warning("steering backend passed over backend=%s reason=%s", candidate, reason)
    raise EnvironmentFault(f"steering backend {name}: {reason}")
