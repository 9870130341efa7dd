"""What an operator may ask of the GMN: its status and events, things to do with tunnels, a reload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence

import trio

from protego_cli.config.model import Node
from protego_cli.control.channel.fabric import NodeState
from protego_cli.control.channel.message import Reply
from protego_cli.control.channel.operator_messages import (
    Acted,
    DownTunnel,
    Explain,
    Explanations,
    GetEvents,
    GetStatus,
    ListNames,
    Migrate,
    Names,
    NodeStatus,
    OperatorRequest,
    RekeyTunnel,
    Reload,
    ShowTunnel,
    Status,
    TunnelStatus,
    UpTunnel,
)
from protego_cli.control.operating.commands import Commands
from protego_cli.control.operating.detail import tunnel_detail
from protego_cli.control.operating.explain import explain
from protego_cli.control.operating.reload import Reloads
from protego_cli.control.pools.gpn_operations import GpnOperations
from protego_cli.control.procedures.migration import Migrations
from protego_cli.control.sas.naming import find_tunnel
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Tunnel
from protego_cli.counters import Counters


class Operations:
    """Answers operators; `answer` is the fabric's `operator_handler`."""

    def __init__(
        self,
        node: Node,
        epoch: int,
        sad: Sad,
        migrations: Migrations,
        commands: Commands,
        gpns: GpnOperations,
        counters: Counters,
        cpu: Callable[[], float],
        reloads: Reloads,
    ) -> None:
        """`node` is this GMN; `cpu`, the CPU seconds per second of this process."""
        self._node = node
        self._epoch = epoch
        self._sad = sad
        self._migrations = migrations
        self._commands = commands
        self._gpns = gpns
        self._counters = counters
        self._cpu = cpu
        self._reloads = reloads

    async def answer(self, request: OperatorRequest) -> Reply:
        match request:
            case GetStatus():
                return self._status()
            case ListNames():
                nodes = (self._node.name, *(node.name for node in self._sad.fabric.nodes()))
                return Names(tunnels=tuple(self._sad.tunnels), nodes=nodes)
            case ShowTunnel():
                tunnel = find_tunnel(self._sad.tunnels, request.tunnel)
                return tunnel_detail(tunnel, self._tunnel(tunnel), self._commands.ike_sas(tunnel))
            case Explain():
                return self._explain(request.tunnel)
            case UpTunnel() | DownTunnel() | RekeyTunnel():
                return await self._act(request)
            case GetEvents():
                return await self._sad.events.answer(request)
            case Migrate():
                return await self._migrations.migrate(request.tunnel, request.to)
            case Reload():
                return await self._reloads.reload(dry_run=request.dry_run)
            case _:
                return await self._gpns.answer(request)

    def _explain(self, name: str | None) -> Explanations:
        if name is None:
            return Explanations(None, tuple(explain(r, None, at) for at, r in self._sad.strangers))
        tunnel = find_tunnel(self._sad.tunnels, name)
        newest = sorted(tunnel.negotiations.values(), key=lambda entry: entry[0], reverse=True)
        found = tuple(explain(record, tunnel.config, at) for at, record in newest)
        return Explanations(self._tunnel(tunnel), found)

    async def _act(self, request: UpTunnel | DownTunnel | RekeyTunnel) -> Acted:
        name, note, begun = request.tunnel, None, trio.current_time()
        match request:
            case UpTunnel():
                note = await self._commands.up(name)
            case DownTunnel():
                note = await self._commands.down(name)
            case RekeyTunnel():
                await self._commands.rekey(name, ike=request.ike)
        seconds = round(trio.current_time() - begun, 4)
        return Acted(self._tunnel(find_tunnel(self._sad.tunnels, name)), seconds, note)

    def _tunnel(self, tunnel: Tunnel) -> TunnelStatus:
        gpn = self._sad.fabric.node(tunnel.sealing.gpn) if tunnel.sealing else None
        return self._tunnel_status(tunnel, _gpns([gpn] if gpn else []), trio.current_time())

    def _status(self) -> Status:
        nodes = self._sad.fabric.nodes()
        tunnels = list(self._sad.tunnels.values())
        on = Counter(tunnel.sealing.gpn for tunnel in tunnels if tunnel.sealing is not None)
        gpns = _gpns(nodes)
        loads = {gpn.name: gpn.load for gpn in self._sad.seats.gpns()}
        now = trio.current_time()
        ours = NodeStatus(
            name=self._node.name,
            role="gmn",
            state="up",
            tunnels=sum(1 for tunnel in tunnels if tunnel.ikes),
            cpu=self._cpu(),
            counters=self._counters.nonzero(),
        )
        return Status(
            epoch=self._epoch,
            nodes=(ours, *(self._node_status(node, on[node.name], loads) for node in nodes)),
            tunnels=tuple(self._tunnel_status(tunnel, gpns, now) for tunnel in tunnels),
        )

    def _node_status(self, node: NodeState, tunnels: int, loads: Mapping[str, float]) -> NodeStatus:
        report = node.report
        gpn = node.role == "gpn"
        return NodeStatus(
            name=node.name,
            role=node.role,
            state="up" if node.connected else "down",
            tunnels=tunnels,
            cpu=report.cpu if report and node.connected else 0.0,
            counters=report.counters if report else {},
            load=round(loads.get(node.name, 0.0), 4) if gpn else None,
            capacity=node.capacity if gpn else None,
            draining=node.name in self._sad.seats.draining,
            refused=len(node.refused),
            reason=next(iter(node.refused.values()), None),
        )

    def _tunnel_status(self, tunnel: Tunnel, gpns: Mapping[str, NodeState], now: float) -> TunnelStatus:
        sealing, totals, loads = tunnel.sealing, tunnel.totals, self._sad.seats.loads
        reason = _refused(tunnel, gpns)
        rates = loads.rates(tunnel.id, now)
        return TunnelStatus(
            id=tunnel.id,
            state="down" if reason else state(tunnel, gpns),
            gpn=sealing.gpn if sealing else None,
            spi_in=f"{sealing.spi:08x}" if sealing else None,
            spi_out=f"{sealing.child.spi_out:08x}" if sealing else None,
            suite=sealing.child.suite if sealing else None,
            packets_in=totals.packets_in,
            packets_out=totals.packets_out,
            bytes_in=totals.bytes_in,
            bytes_out=totals.bytes_out,
            peer=sealing.peer[0] if sealing else tunnel.config.peer,
            error=reason or tunnel.error,
            held=tunnel.held,
            limited_in=totals.limited_packets_in,
            limited_out=totals.limited_packets_out,
            pps_in=round(rates.packets_in, 1),
            pps_out=round(rates.packets_out, 1),
            bps_in=round(8 * rates.bytes_in),
            bps_out=round(8 * rates.bytes_out),
            cpu=round(loads.share(tunnel.id, tunnel.seat, now), 6),
        )


def _gpns(nodes: Sequence[NodeState]) -> dict[str, NodeState]:
    """Those that are there."""
    return {node.name: node for node in nodes if node.role == "gpn" and node.connected}


def _refused(tunnel: Tunnel, gpns: Mapping[str, NodeState]) -> str | None:
    """Why its GPN does not act on the SA that seals, if that is so."""
    sealing = tunnel.sealing
    gpn = gpns.get(sealing.gpn) if sealing else None
    if sealing is None or gpn is None or not gpn.refused:
        return None
    reason = next((gpn.refused[key] for key in sealing.keys if key in gpn.refused), None)
    return f"{gpn.name} refuses its SA: {reason}" if reason else None


def state(tunnel: Tunnel, up: Container[str]) -> str:
    """`up` when it carries traffic, `connecting` while a handshake is being worked on, else `down`."""
    sealing = tunnel.sealing
    if sealing is not None and tunnel.standing:
        return "up" if sealing.gpn in up else "down"
    return "connecting" if tunnel.offers or tunnel.dialling else "down"
