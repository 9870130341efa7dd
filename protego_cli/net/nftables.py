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

`tend` starts nft (`nft.py`), fills the map piece by piece, and hooks the rule in with what has changed
meanwhile: before that, nothing goes by the map. From then on changes wait for `settle`, which hands them to
nft as one transaction. The table belongs to the process of nft and goes with it. If nft fails, it is ended,
every packet comes to the socket again, and `tend` begins anew.

The kernel keeps no marks, and counts a merged packet once. Ceilings hold for what comes to the socket only: a
GPN enforces the limits themselves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable
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
RETRY: Final = (5.0, 60.0)  # seconds from a failure of nft to the next try: at first, at last
COUNTER: Final = "forwarded"
MAP: Final = "spis"
PIECE: Final = 10_000  # SPIs in one transaction while the map is filled
PATIENCE: Final = 0.7  # seconds for a change: the GMN waits one for the whole message
PATIENCE_EACH: Final = 1e-4  # and for each SPI that changes
FILL_PATIENCE: Final = 10.0  # for a step that nobody waits for

_TABLE = """\
table ip {table} {{
  flags owner;
  map {map} {{ typeof @th,64,32 : ip daddr; }}
  counter {counter} {{ }}
}}
"""
_HOOK = """\
table ip {table} {{
  flags owner;
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
    return _TABLE.format(table=table_of(door), map=MAP, counter=COUNTER)


def hook(door: Door) -> str:
    """The script that lets packets go by the map."""
    return _HOOK.format(
        table=table_of(door), map=MAP, counter=COUNTER, vips=", ".join(door.vips), port=door.port
    )


def fault() -> str | None:
    """Why this machine cannot steer by nftables, with the remedy; None when it can. Leaves nothing behind."""
    trial = Door(f"trial-{os.getpid()}", ("192.0.2.1",), 4500)
    refused = try_out(skeleton(trial) + hook(trial))
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
        self._hooked = False  # whether packets go by the map
        self._changed: set[int] = set()
        self._there: dict[int, str] = {}  # what the kernel's map holds
        self._counted = 0  # of the kernel's counter
        self._turn = trio.Lock()
        self._retry = 0.0  # when nft may be tried again
        self._pause = RETRY[0]

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
        """Bring the map to what was told, where packets go by it. Never fails."""
        if not self._hooked:
            return
        with trio.CancelScope(shield=True):  # a transaction that was begun must be seen to its end
            async with self._turn:
                if self._hooked:
                    await self._try(self._change)

    async def tend(self) -> None:
        """Have the kernel steer, where it does not."""
        if self._nft is not None and not self._nft.alive:
            self._give_up("nft has ended")
        if self._nft is None and trio.current_time() >= self._retry:
            await self._try(self._begin)

    def refresh(self) -> None:
        count = counted(self._table, COUNTER) if self._nft is not None else None
        if count is not None:
            self._counters["gin_esp_forwarded"] += count - self._counted
            self._counted = count

    def close(self) -> None:
        self._hooked = False
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    async def _try(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except NftFailed as error:
            self._give_up(str(error))

    async def _begin(self) -> None:
        """Start nft, fill the map, and let packets go by it."""
        self._there, self._counted, self._changed = {}, 0, set()
        self._nft = nft = Nft()
        everything = list(self._steered)
        await nft.run(skeleton(self._door), FILL_PATIENCE)
        for start in range(0, len(everything), PIECE):
            await self._bring(nft, everything[start : start + PIECE], FILL_PATIENCE)
        async with self._turn:
            self._hooked = True  # who settles from here on waits for its turn
            await self._change(hook(self._door))
        self._pause = RETRY[0]
        log.info("the kernel steers table=%s spis=%d", self._table, len(self._there))

    async def _change(self, more: str = "") -> None:
        """What was changed since the last time, in one transaction."""
        changed, self._changed = self._changed, set()
        if self._nft is not None and (changed or more):
            await self._bring(self._nft, changed, PATIENCE + PATIENCE_EACH * len(changed), more)

    async def _bring(self, nft: Nft, spis: Collection[int], patience: float, more: str = "") -> None:
        """Make the map what was told of these SPIs."""
        wanted = {spi: place for spi in spis if (place := self._place(spi)) is not None}
        stale = [spi for spi in spis if spi in self._there and self._there[spi] != wanted.get(spi)]
        fresh = {spi: place for spi, place in wanted.items() if self._there.get(spi) != place}
        script = self._elements("delete", (f"{spi:#x}" for spi in stale))
        script += self._elements("add", (f"{spi:#x} : {place}" for spi, place in fresh.items()))
        if script or more:
            await nft.run(script + more, patience)
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
        self._retry = trio.current_time() + self._pause
        self._pause = min(2 * self._pause, RETRY[1])
        log.error("the kernel does not steer, this process does table=%s reason=%s", self._table, reason)
