"""Steering of a GIN by the kernel, `nftables`: it rewrites the destination of ESP packets by their SPI.

1. One table of ours, with a map SPI -> address of a GPN, and one rule where packets come in (prerouting, at
   priority raw, before anything tracks them). What is steered is routed on with its new destination and never
   reaches a socket; its source stays the peer's own.
2. All else passes the rule and comes to the GIN's own sockets: IKE (SPI 0), reserved and unknown SPIs,
   keepalives. So do fragments: the kernel puts them together for the socket (where connection tracking is on,
   it has done so before the rule, which then takes them whole).
3. What comes to the socket goes on as in `mux`, whose table this one also is. So whatever the map lacks, or
   if the table is gone altogether, packets still go where they should; only the speed differs.
4. A packet that the kernel merged behind one of another SPI goes with it. The GPN sends it back once.

Changes wait for `settle`, which hands them to `nft` (`nft.py`) as one transaction. The table belongs to the
process of nft and goes with it. If nft fails, it is ended, and every packet comes to the socket until another
nft has the whole map.

The kernel keeps no marks, and counts a merged packet once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import trio

from protego_cli.counters import Counters
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.nft import Nft, NftFailed, counted, try_out
from protego_cli.net.steering import Door, Gpn, Sender
from protego_cli.net.udp import Address

log = logging.getLogger(__name__)

IP_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
RETRY: Final = 5.0  # seconds from a failure of nft to the next try
COUNTER: Final = "forwarded"
MAP: Final = "spis"

_TABLE = """\
table ip {table} {{
  flags owner;
  map {map} {{ typeof @th,64,32 : ip daddr; }}
  counter {counter} {{ }}
  chain steer {{
    type filter hook prerouting priority raw; policy accept;
    ip daddr {{ {vips} }} udp dport {port} ip frag-off & 0x3fff == 0 \
ip daddr set @th,64,32 map @{map} counter name {counter} notrack
  }}
}}
"""


def table_of(door: Door) -> str:
    return f"protego.{door.owner}"


def skeleton(door: Door) -> str:
    """The script that makes the table, its map empty. It fails while another process owns such a table."""
    return _TABLE.format(
        table=table_of(door), map=MAP, counter=COUNTER, vips=", ".join(door.vips), port=door.port
    )


def fault() -> str | None:
    """Why this machine cannot steer by nftables, with the remedy; None when it can. Leaves nothing behind."""
    refused = try_out(skeleton(Door(f"trial-{os.getpid()}", ("192.0.2.1",), 4500)))
    if refused == "nft is not installed":
        return 'nft is not installed: `apt install nftables`, or set ingress = "mux"'
    if refused is not None and "not permitted" in refused:
        return "changing nftables needs privilege: run as root or with CAP_NET_ADMIN"
    if refused is not None:
        return (
            f"nft or the kernel refuses the rule: {refused} (Linux 5.12 and nft 1.0 are needed); "
            'set ingress = "mux"'
        )
    if IP_FORWARD.read_text().strip() != "1":
        return "the kernel passes no packets on: `sysctl -w net.ipv4.ip_forward=1`"
    return None


class NftIngress(MuxIngress):
    """`steering.Ingress` by the kernel, and by this process for what the kernel passes up."""

    in_kernel = True

    def __init__(self, fabric: Sender, counters: Counters, door: Door) -> None:
        super().__init__(fabric, counters)
        self._door = door
        self._table = table_of(door)
        self._nft: Nft | None = None
        self._changed: set[int] = set()
        self._there: dict[int, str] = {}  # what the kernel's map holds
        self._counted = 0  # of the kernel's counter
        self._turn = trio.Lock()
        self._retry = 0.0  # when nft may be tried again

    def put_gpn(self, gpn: Gpn) -> None:
        known = self._targets.get(gpn.name)
        before = known.dest if known else None
        super().put_gpn(gpn)
        if gpn.address != before:
            self._moved(gpn.name)

    def drop_gpn(self, name: str) -> None:
        self._moved(name)
        super().drop_gpn(name)

    def steer(self, spi: int, gpn: str, peer: Address) -> None:
        super().steer(spi, gpn, peer)
        self._changed.add(spi)

    def unsteer(self, spi: int) -> None:
        super().unsteer(spi)
        self._changed.add(spi)

    def marks(self, spis: Iterable[int]) -> dict[int, int]:
        """What the kernel passed on, nobody knows."""
        return {}

    async def settle(self) -> None:
        """Bring the kernel's map to what was told. Never fails: without nft, all packets come here."""
        with trio.CancelScope(shield=True):  # a transaction takes its time, but an end
            async with self._turn:
                if self._nft is not None and not self._nft.alive:
                    self._give_up("nft has ended")
                if self._nft is None and trio.current_time() < self._retry:
                    return
                if self._nft is not None and not self._changed:
                    return
                try:
                    await self._bring(self._nft)
                except NftFailed as error:
                    self._give_up(str(error))

    def refresh(self) -> None:
        count = counted(self._table, COUNTER) if self._nft is not None else None
        if count is not None:
            self._counters["gin_esp_forwarded"] += count - self._counted
            self._counted = count

    def close(self) -> None:
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    async def _bring(self, nft: Nft | None) -> None:
        """One transaction: the changes, or with a new nft the whole table."""
        script = ""
        if nft is None:
            self._nft = nft = Nft()
            self._there, self._counted = {}, 0
            script, changed = skeleton(self._door), set(self._steered)
        else:
            changed = self._changed
        self._changed = set()
        wanted = {spi: place for spi in changed if (place := self._place(spi)) is not None}
        stale = [spi for spi in changed if spi in self._there and self._there[spi] != wanted.get(spi)]
        fresh = {spi: place for spi, place in wanted.items() if self._there.get(spi) != place}
        script += self._elements("delete", (f"{spi:#x}" for spi in stale))
        script += self._elements("add", (f"{spi:#x} : {place}" for spi, place in fresh.items()))
        if not script:
            return
        await nft.run(script)
        for spi in stale:
            del self._there[spi]
        self._there |= fresh

    def _elements(self, verb: str, elements: Iterable[str]) -> str:
        listed = ", ".join(elements)
        return f"{verb} element ip {self._table} {MAP} {{ {listed} }}\n" if listed else ""

    def _place(self, spi: int) -> str | None:
        """Where the kernel is to send an SPI's packets; None where it cannot: their port stays the VIP's."""
        steered = self._steered.get(spi)
        dest = steered.target.dest if steered else None
        return dest[0] if dest is not None and dest[1] == self._door.port else None

    def _moved(self, name: str) -> None:
        target = self._targets.get(name)
        if target is not None:
            self._changed |= {spi for spi, steered in self._steered.items() if steered.target is target}

    def _give_up(self, reason: str) -> None:
        """End nft, and with it the table: then all comes to the socket."""
        self.close()
        self._retry = trio.current_time() + RETRY
        log.error("the kernel steers no longer, this process does table=%s reason=%s", self._table, reason)
