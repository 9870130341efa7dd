"""What `protego local` shows: the live picture, and the receipt at the end. Only looks, never counts.

`Scene` is filled by the orchestrator; `picture()` and `receipt_table()` turn it into rich renderables.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from protego_cli.control.channel.operator_messages import NodeStatus, Status, TunnelStatus
from protego_cli.lab.protocol import SiteCount, Snapshot
from protego_cli.lab.receipt import Receipt

_EVENTS = 8  # kept; as many are shown as fit
_FEWEST_EVENTS = 3
_TUNNELS = 16  # rows at most; the others are summed up in one line
_CHROME = 7  # lines that are always there: headline, progress, headers, gaps
_GOOD, _BAD, _BUSY = "green", "bold red", "yellow"


@dataclass
class Scene:
    """What is known so far."""

    tunnels: tuple[str, ...]
    planned: int  # migrations
    phase: str = "starting"
    status: Status | None = None
    peers: Snapshot | None = None
    tenants: Snapshot | None = None
    done: int = 0  # migrations
    elapsed: float = 0.0  # seconds of traffic
    ends: float = 0.0
    events: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=_EVENTS))
    moving: str | None = None  # the tunnel that is migrating now


def picture(scene: Scene, height: int = 50) -> RenderableType:
    """The live view, in that many lines where it can be."""
    room = height - _CHROME - _FEWEST_EVENTS - (len(scene.status.nodes) if scene.status else 0)
    tunnels = min(len(scene.tunnels), max(room - 1, 1), _TUNNELS)
    events = max(room - tunnels - 1 + _FEWEST_EVENTS, _FEWEST_EVENTS)
    gap = Text("")
    return Group(
        _headline(scene), gap, _nodes(scene), gap, _tunnel_table(scene, tunnels), gap, _events(scene, events)
    )


def receipt_table(receipt: Receipt, *, plain: bool = False) -> RenderableType:
    """The receipt for people; `plain` leaves the frame out."""
    frame = None if plain else box.ROUNDED
    table = Table(title="Receipt", title_justify="left", show_header=False, box=frame)
    table.add_column(style="bold")
    table.add_column(justify="right")

    def row(label: str, value: str, *, bad: bool = False) -> None:
        table.add_row(label, Text(value, style=_BAD if bad else ""))

    row("tunnels", str(receipt.tunnels))
    row("migrations", str(receipt.migrations))
    row("packets per second, tunnel and direction", f"{receipt.pps:,.1f}")
    row("sent", f"{receipt.sent:,}")
    row("received", f"{receipt.received:,}")
    table.add_section()
    for label, count in (
        ("lost", receipt.lost),
        ("misdelivered", receipt.misdelivered),
        ("corrupted", receipt.corrupted),
        ("duplicated", receipt.duplicated),
    ):
        row(label, f"{count:,}", bad=count > 0)
    row("reordered", f"{receipt.reordered:,}")
    if receipt.migrations:
        table.add_section()
        row("migration, median", f"{receipt.migration_ms.p50:,.1f} ms")
        row("migration, 99th percentile", f"{receipt.migration_ms.p99:,.1f} ms")
        row("migration, longest", f"{receipt.migration_ms.max:,.1f} ms")
    if receipt.per_migration:
        proven = sum(1 for move in receipt.per_migration if move.via_old and move.via_new)
        row("carried by both GPNs", f"{proven} of {receipt.migrations}", bad=proven < receipt.migrations)
    return table


def _headline(scene: Scene) -> RenderableType:
    arrived = scene.peers and scene.tenants and sum(s.received for s in _all(scene))
    line = Text.assemble(
        ("protego local", "bold"),
        f"  {scene.phase}",
        f"  {arrived:,} packets" if arrived else "",
        f"  {scene.done} of {scene.planned} migrations" if scene.planned else "",
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_row(line)
    if scene.ends:
        grid.add_row(ProgressBar(total=scene.ends, completed=min(scene.elapsed, scene.ends), width=72))
    return grid


def _nodes(scene: Scene) -> RenderableType:
    table = _table()
    for header in ("node", "role", "state"):
        table.add_column(header)
    table.add_column("tunnels", justify="right")
    table.add_column("CPU", justify="right")
    table.add_column("", min_width=16)
    for node in scene.status.nodes if scene.status else ():
        table.add_row(*_node(node))
    return table


def _node(node: NodeStatus) -> tuple[RenderableType, ...]:
    style = _GOOD if node.state == "up" else _BUSY
    tunnels = str(node.tunnels) if node.role == "gpn" else ""
    bar = ProgressBar(total=1.0, completed=min(node.cpu, 1.0), width=16)
    return node.name, node.role, Text(node.state, style=style), tunnels, f"{node.cpu:.0%}", bar


def _tunnel_table(scene: Scene, rows: int) -> RenderableType:
    table = _table()
    for header in ("tunnel", "state", "GPN"):
        table.add_column(header)
    for header in ("peer → tenant", "tenant → peer", "on the way"):
        table.add_column(header, justify="right")
    known = {tunnel.id: tunnel for tunnel in scene.status.tunnels} if scene.status else {}
    for index, name in enumerate(scene.tunnels[:rows]):
        peer = scene.peers.sites[index] if scene.peers else SiteCount()
        tenant = scene.tenants.sites[index] if scene.tenants else SiteCount()
        table.add_row(*_tunnel(name, known.get(name), peer, tenant, moving=name == scene.moving))
    if (more := len(scene.tunnels) - rows) > 0:
        table.add_row(f"and {more} more", "", "", "", "", "")
    return table


def _tunnel(
    name: str, tunnel: TunnelStatus | None, peer: SiteCount, tenant: SiteCount, *, moving: bool
) -> tuple[RenderableType, ...]:
    state = "moving" if moving else tunnel.state if tunnel else "down"
    gone = peer.error or (tunnel and tunnel.error)
    shown = Text(gone, style=_BAD) if gone else Text(state, style=_GOOD if state == "up" else _BUSY)
    on_the_way = peer.sent + tenant.sent - peer.received - tenant.received  # looked at one after the other
    return (
        name,
        shown,
        (tunnel and tunnel.gpn) or "",
        f"{tenant.received:,}",
        f"{peer.received:,}",
        f"{max(on_the_way, 0):,}",
    )


def _events(scene: Scene, count: int) -> RenderableType:
    lines = (Text(f"{at:6.2f} s  {event}", no_wrap=True) for at, event in list(scene.events)[-count:])
    return Text("\n").join(lines)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")


def _all(scene: Scene) -> tuple[SiteCount, ...]:
    return (*(scene.peers.sites if scene.peers else ()), *(scene.tenants.sites if scene.tenants else ()))
