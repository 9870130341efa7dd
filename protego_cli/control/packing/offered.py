"""What is offered to tunnels, by the counts of GINs and GENs: before the GPN, and so before what it cannot
take.

GINs count by inbound SPI, GENs by tunnel or strand, cumulatively since their start. The difference to the
report before is what came meanwhile. The first report of a count says nothing; nor does one that is below the
one before, for it comes from a new process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from protego_cli.control.channel.node_messages import OfferedLoad

LONGEST: Final = 10.0  # seconds that a difference may stand for; beyond that it is a first count
ROOM: Final = 4096  # counts that may be kept of what is not there any more


class Coming(NamedTuple):
    """Bytes of inner packets that came for a tunnel in the last `seconds`."""

    tunnel: str
    bytes: int
    seconds: float


class Offers:
    def __init__(self, tunnel_of: Callable[[int | str], str | None]) -> None:
        """`tunnel_of`: the tunnel of an inbound SPI or of a strand's name; None when it is not known."""
        self._tunnel_of = tunnel_of
        self._counts: dict[tuple[str, int | str], tuple[int, float]] = {}  # bytes, and when

    def report(self, node: str, offered: Iterable[OfferedLoad], now: float) -> Iterator[Coming]:
        live = 0
        for each in offered:
            tunnel = self._tunnel_of(each.of)
            if tunnel is None:
                continue
            live += 1
            before, at = self._counts.get((node, each.of), (each.bytes, now))
            self._counts[node, each.of] = each.bytes, now
            if each.bytes > before and 0.0 < now - at <= LONGEST:
                yield Coming(tunnel, each.bytes - before, now - at)
        if len(self._counts) > 2 * live + ROOM:
            self._counts = {
                key: count for key, count in self._counts.items() if self._tunnel_of(key[1]) is not None
            }
