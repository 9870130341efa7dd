"""TUN attachments: each a VTEP inside the GEN, for a tenant whose network is a namespace of this machine.

    tenant ─▶ TUN device ─▶ VXLAN frames ─▶ steering ─▶ GPN
    GPN ─▶ VXLAN frames ─▶ (steering: stays here) ─▶ TUN device ─▶ tenant

1. `put` makes the device; with `drop`, or when the process ends, it goes, and its addresses and routes too.
2. What the tenant sends is read many packets at a time. Packets between the same two addresses keep their
   order and become one batch as long as they are equally long and have one TOS; each gets the headers that a
   VTEP would send, and the batch goes out with that TOS. What a GPN sends leaves VXLAN by RFC 6040.
3. While a tunnel has a Route, the peer's prefixes are routed to the device. iproute2 does it beside the data
   path; what it refuses is logged, and tried again with the next change.
4. A device that somebody deletes is made anew, as soon as that can be done.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import trio

from protego_cli.counters import Counters
from protego_cli.errors import EnvironmentFault
from protego_cli.net.gso import MAX_SEGMENTS, segments_per_send
from protego_cli.net.pump import drain, pump
from protego_cli.net.steering import HERE
from protego_cli.net.tun import IP_TIMEOUT, DeviceGone, TunDevice, ip_command
from protego_cli.net.udp import Address, Batch, Buffer
from protego_cli.wire import ecn
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAME_LENGTH, build_frame_header

log = logging.getLogger(__name__)

READ_PACKETS = 4 * MAX_SEGMENTS  # at a time
RETRY = 1.0  # seconds between tries to make a device that is gone
_SOURCE: Address = (HERE, 0)
_FAILED = re.compile(r"Command failed -:(\d+)")


@dataclass(frozen=True, slots=True)
class Spec:
    """What the cluster file says."""

    tenant: str
    vni: int
    mac: bytes  # of the VTEP that this is
    gateway_mac: bytes
    device: str
    netns: str | None
    addresses: tuple[str, ...]
    mtu: int

    @property
    def where(self) -> str:
        return f"tenants.{self.tenant}.attach"


class _Run:
    """Packets of one length and TOS, then perhaps a shorter one, each behind its header."""

    __slots__ = ("parts", "size", "tos")

    def __init__(self, size: int, tos: int) -> None:
        self.size = size
        self.tos = tos
        self.parts: list[bytes] = []


def frames(packets: Iterable[bytes], header4: bytes, header6: bytes) -> list[tuple[bytes, int, int]]:
    """VXLAN batches, each with its segment size and TOS, of IP packets; others are left out."""
    done: list[_Run] = []
    runs: dict[bytes, _Run] = {}  # by addresses, the one that may go on
    for packet in packets:
        version = packet[0] >> 4 if len(packet) > 1 else 0
        if version == 4:
            header, flow = header4, packet[12:20]
        elif version == 6:
            header, flow = header6, packet[8:40]
        else:
            continue
        size, tos = FRAME_LENGTH + len(packet), ecn.tos(packet)
        run = runs.get(flow)
        if (
            run is None
            or size > run.size
            or tos != run.tos
            or len(run.parts) >= 2 * segments_per_send(run.size)
        ):
            run = runs[flow] = _Run(size, tos)
            done.append(run)
        run.parts += (header, packet)
        if size < run.size:
            del runs[flow]
    return [(b"".join(run.parts), run.size, run.tos) for run in done]


class Attachment:
    """One tenant's device; a `pump.Source`."""

    def __init__(self, spec: Spec, counters: Counters) -> None:
        """Makes the device. Raises EnvironmentFault."""
        self.spec = spec
        self._counters = counters
        self._headers = (
            build_frame_header(spec.vni, spec.gateway_mac, spec.mac, ETHERTYPE_IPV4),
            build_frame_header(spec.vni, spec.gateway_mac, spec.mac, ETHERTYPE_IPV6),
        )
        self._device: TunDevice | None = self._open()
        self._batches: deque[Batch] = deque()
        self._wanted: frozenset[str] = frozenset()
        self._installed: frozenset[str] = frozenset()
        self._changed = trio.Event()
        self._scope = trio.CancelScope()

    def _open(self) -> TunDevice:
        spec = self.spec
        return TunDevice.open(
            spec.device, spec.netns, mtu=spec.mtu, addresses=spec.addresses, where=spec.where
        )

    async def serve(self, forward: Callable[[Batch], None]) -> None:
        """Until closed."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_routes)
                nursery.start_soon(pump, self, partial(drain, self, forward))

    def close(self) -> None:
        self._scope.cancel()
        if self._device is not None:
            self._device.close()
            self._device = None

    # ---- from the tenant

    def receive(self) -> Batch | None:
        if not self._batches and self._device is not None:
            try:
                packets = self._device.read(READ_PACKETS)
            except DeviceGone as error:
                log.error("device gone tenant=%s device=%s reason=%s", *self._names(), error)  # noqa: TRY400 - no trace
                self._device.close()
                self._device = None
                return None
            for data, size, tos in frames(packets, *self._headers):
                self._batches.append(Batch(memoryview(data), size, _SOURCE, tos))
        return self._batches.popleft() if self._batches else None

    async def wait_readable(self) -> None:
        while self._device is None:
            await trio.sleep(RETRY)
            self._make_anew()
        await self._device.wait_readable()

    def _make_anew(self) -> None:
        try:
            self._device = self._open()
        except EnvironmentFault as error:
            log.debug("device not made tenant=%s device=%s reason=%s", *self._names(), error)
            return
        log.info("device made anew tenant=%s device=%s", *self._names())
        self._installed = frozenset()
        self._changed.set()

    # ---- to the tenant

    def deliver(self, view: memoryview, size: int, tos: int) -> None:
        """VXLAN packets from a GPN, that came with this TOS."""
        packets: list[Buffer] = [view[at + FRAME_LENGTH : at + size] for at in range(0, len(view), size)]
        if ecn.telling(tos):
            left = [ecn.leave(bytes(packet), tos) for packet in packets]
            packets = [packet for packet in left if packet is not None]
            self._counters["gen_drop_ecn"] += len(left) - len(packets)
        taken = self._device.write(packets) if self._device is not None else 0
        self._counters["gen_delivered"] += taken
        self._counters["gen_drop_tun"] += len(packets) - taken

    # ---- routes

    def route(self, prefixes: frozenset[str]) -> None:
        """What is behind the tenant's tunnels now."""
        if prefixes != self._wanted:
            self._wanted = prefixes
            self._changed.set()

    async def _keep_routes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            if self._device is not None:
                await self._install(self._device, self._wanted)

    async def _install(self, made: TunDevice, wanted: frozenset[str]) -> None:
        gone, new = sorted(self._installed - wanted), sorted(wanted - self._installed)
        device = self.spec.device
        commands = [f"route del {prefix} dev {device}" for prefix in gone]
        commands += [f"route add {prefix} dev {device}" for prefix in new]
        if not commands:
            return
        missing = set(range(len(commands) + 1))
        reason = f"`ip` did not answer within {IP_TIMEOUT:g} s"
        with trio.move_on_after(IP_TIMEOUT):
            try:
                done = await trio.run_process(
                    ip_command(self.spec.netns),
                    stdin="\n".join([*commands, ""]).encode(),
                    capture_stderr=True,
                    stdout=subprocess.DEVNULL,
                    check=False,
                )
            except OSError as error:
                reason = f"`ip` cannot be run: {error.strerror}"
            else:
                reason = done.stderr.decode(errors="replace")
                missing = {int(line) for line in _FAILED.findall(reason)}
        if self._device is not made:  # another one by now, or none: it begins without routes
            return
        failed = {prefix for place, prefix in enumerate(new, len(gone) + 1) if place in missing}
        self._installed = wanted - failed
        if failed:
            log.error(
                "routes not installed tenant=%s device=%s prefixes=%s reason=%s",
                *(*self._names(), ",".join(sorted(failed)), " ".join(reason.split())),
            )

    def _names(self) -> tuple[str, str]:
        return self.spec.tenant, self.spec.device


class Attachments:
    """All of a GEN."""

    def __init__(self, counters: Counters, stack: ExitStack) -> None:
        """`stack` closes what is open at the end."""
        self._counters = counters
        self._open: dict[int, Attachment] = {}
        self._routes: dict[int, dict[str, tuple[str, ...]]] = {}  # by VNI, then tunnel
        self._vnis: dict[str, int] = {}  # of each tunnel
        self._start: Callable[[Attachment], None] | None = None
        stack.callback(self._close)

    def put(self, spec: Spec) -> None:
        """Make the device, or another one in its place. Another VNI that has it has it no more: word of that
        may come later, when a tenant has changed its VNI, or two their devices. Raises EnvironmentFault.
        """
        known = self._open.get(spec.vni)
        if known is not None and known.spec == spec:
            return
        self.drop(spec.vni)
        for vni, other in list(self._open.items()):
            if (other.spec.netns, other.spec.device) == (spec.netns, spec.device):
                self.drop(vni)
        made = self._open[spec.vni] = Attachment(spec, self._counters)
        self._reroute(spec.vni)
        if self._start is not None:
            self._start(made)

    def drop(self, vni: int) -> None:
        known = self._open.pop(vni, None)
        if known is not None:
            known.close()

    def put_route(self, tunnel: str, vni: int, prefixes: tuple[str, ...]) -> None:
        """The tunnel is up, and has these prefixes."""
        self.drop_route(tunnel)
        self._vnis[tunnel] = vni
        self._routes.setdefault(vni, {})[tunnel] = prefixes
        self._reroute(vni)

    def drop_route(self, tunnel: str) -> None:
        vni = self._vnis.pop(tunnel, None)
        if vni is not None:
            del self._routes[vni][tunnel]
            if not self._routes[vni]:
                del self._routes[vni]
            self._reroute(vni)

    def deliver(self, vni: int, view: memoryview, size: int, tos: int = 0) -> None:
        """VXLAN packets that a GPN sent for the tenant, and the TOS they came with."""
        attachment = self._open.get(vni)
        if attachment is not None:
            attachment.deliver(view, size, tos)
        else:
            self._counters["gen_drop_tun"] += -(-len(view) // size)

    async def serve(self, forward: Callable[[Batch], None]) -> None:
        """The data path from the tenants, for ever."""
        async with trio.open_nursery() as nursery:
            self._start = lambda attachment: nursery.start_soon(attachment.serve, forward)
            for attachment in self._open.values():
                self._start(attachment)
            await trio.sleep_forever()

    def _reroute(self, vni: int) -> None:
        attachment = self._open.get(vni)
        if attachment is not None:
            routes = self._routes.get(vni, {})
            attachment.route(frozenset(prefix for prefixes in routes.values() for prefix in prefixes))

    def _close(self) -> None:
        for vni in list(self._open):
            self.drop(vni)
