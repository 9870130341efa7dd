"""What GPNs send to peers through a GIN: from the VIP, to the peer that the control plane has named.

    GPN address:esp ─▶ address:fabric ─▶ VIP:natt ─▶ peer
                                     or ─▶ VIP, raw ESP ─▶ peer

1. Only datagrams from a GPN of the desired state count, and only for SPIs that are steered: who can send into
   the fabric can still send to nobody but the peers.
2. Runs of one SPI lose their header (`wire/returning.py`) and leave in one segmented send, TOS copied.
3. Where the peer has no port, they leave as raw ESP, one by one.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from protego_cli.counters import Counters
from protego_cli.net.gso import grouped, segments
from protego_cli.net.relay import VipSocket
from protego_cli.net.steering import Gpn, Sender
from protego_cli.net.udp import Address, Batch
from protego_cli.net.vip import MIN_ESP
from protego_cli.wire.columns import column
from protego_cli.wire.returning import HEADER_LENGTH


class Returns:
    def __init__(self, natt: Iterable[VipSocket], raw: Iterable[VipSocket], counters: Counters) -> None:
        """The VIPs' sockets that packets leave from: in UDP, and `raw` where there are such."""
        self._vips: dict[bytes, Sender] = {socket.inet_aton(sock.address[0]): sock for sock in natt}
        self._raw: dict[bytes, Sender] = {socket.inet_aton(sock.address[0]): sock for sock in raw}
        self._counters = counters
        self._gpns: dict[str, Address] = {}
        self._sources: frozenset[Address] = frozenset()
        self._peers: dict[int, Address] = {}

    def put_gpn(self, gpn: Gpn) -> None:
        self._gpns[gpn.name] = gpn.address
        self._sources = frozenset(self._gpns.values())

    def drop_gpn(self, name: str) -> None:
        self._gpns.pop(name, None)
        self._sources = frozenset(self._gpns.values())

    def steer(self, spi: int, peer: Address) -> None:
        self._peers[spi] = peer

    def unsteer(self, spi: int) -> None:
        self._peers.pop(spi, None)

    def receive(self, batch: Batch) -> bool:
        """False for what comes from no GPN."""
        view, size, source, tos = batch
        if source not in self._sources:
            return False
        count, tail = divmod(len(view), size) if size else (0, 1)
        least = HEADER_LENGTH + MIN_ESP
        if size < least:
            self._counters["gin_drop_to_peer"] += count + bool(tail)
            return True
        if 0 < tail < least:
            self._counters["gin_drop_to_peer"] += 1
            view = view[:-tail]
        elif tail:
            count += 1
        heads = column(size, count, 8).unpack_from(view)
        if heads.count(heads[0]) == count:
            self._send(heads[0], view, size, count, tos)
        else:
            for head, part, packets in grouped(view, size, heads):
                self._send(head, memoryview(part), size, packets, tos)
        return True

    def _send(self, head: int, view: memoryview, size: int, count: int, tos: int) -> None:
        """Packets with one header."""
        address = (head & 0xFFFFFFFF).to_bytes(4)
        peer, vip = self._peers.get(head >> 32), self._vips.get(address)
        if peer is None or vip is None:
            self._counters["gin_drop_to_peer"] += count
            return
        if not peer[1]:
            vip = self._raw.get(address)
            if vip is None:
                self._counters["gin_drop_no_raw"] += count
                return
        data = b"".join([packet[HEADER_LENGTH:] for packet in segments(view, size)])
        sent = vip.send(data, size - HEADER_LENGTH, peer, tos=tos)
        self._counters["gin_esp_to_peer" if sent else "gin_drop_send"] += count
