"""What `protego tunnel` prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from protego_cli.cli.counting import counted
from protego_cli.cli.render import (
    print_json,
    print_message,
    show,
    size,
    tunnel_errors,
    tunnel_state,
    tunnel_table,
    wide_console,
)
from protego_cli.cli.times import moment, spoken
from protego_cli.control.channel.operator_messages import (
    Acted,
    ChildSaDetail,
    IkeSaDetail,
    TunnelDetail,
    TunnelStatus,
)


def print_tunnels(tunnels: Sequence[TunnelStatus], of: int, *, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(tunnels))
        return
    if tunnels:
        show(tunnel_table(tunnels, wide_console()), *tunnel_errors(tunnels))
    else:
        show(f"none of {counted(of, 'tunnel')}" if of else "there are no tunnels")


def print_acted(acted: Acted, *, as_json: bool, verb: str = "") -> None:
    tunnel = acted.tunnel
    if as_json:
        built = msgspec.to_builtins(acted)
        print_json({key: built[key] for key in ("tunnel", "seconds", "note")})
        return
    where = f" on {tunnel.gpn}" if tunnel.gpn else ""
    text = Text(f"{tunnel.id} is ").append_text(tunnel_state(tunnel)).append(where)
    if verb:
        text.append(f", {verb}")
    text.append(f", after {acted.seconds:.2f} s")
    if acted.note:
        text.append(f": {acted.note}")
    Console(highlight=False).print(text, soft_wrap=True)


def print_detail(detail: TunnelDetail, *, as_json: bool, clock: Callable[[], float] = time.time) -> None:
    if as_json:
        print_message(detail)
    else:
        show(detail_view(detail, clock()))


def detail_view(detail: TunnelDetail, now: float) -> RenderableType:
    status = detail.status
    head = _grid()
    head.add_row(status.id, tunnel_state(status))
    head.add_row("traffic", _traffic(status))
    if status.error:
        head.add_row("error", Text(status.error, style="red"))
    config = _grid()
    for key, value in detail.config.items():
        config.add_row(key, ", ".join(value) if isinstance(value, list) else value or "-")
    parts: list[RenderableType] = [head, _title("configuration"), config]
    for ike in detail.ike_sas:
        parts += [_title("IKE_SA"), _ike_sa(ike, now)]
    for child in detail.child_sas:
        parts += [_title(f"CHILD_SA, {child.state}"), _child_sa(child, now)]
    return Group(*parts)


def _ike_sa(sa: IkeSaDetail, now: float) -> Table:
    grid = _grid()
    grid.add_row("SPIs", f"{sa.spi_i}_i {sa.spi_r}_r")
    grid.add_row("suite", sa.suite)
    grid.add_row("between", f"{sa.local} and {sa.peer}{', the peer behind NAT' if sa.nat else ''}")
    grid.add_row("ESP", "in UDP" if sa.encapsulated else "raw, IP protocol 50")
    grid.add_row("initiator", sa.initiator)
    if sa.since is not None:
        grid.add_row("up", f"since {moment(sa.since, now)}, {spoken(now - sa.since)}")
    grid.add_row("heard", f"{spoken(now - sa.heard)} ago")
    if sa.rekey is not None:
        grid.add_row("rekey", f"in {spoken(sa.rekey - now)}")
    if sa.expires is not None:
        grid.add_row("expires", f"in {spoken(sa.expires - now)}")
    if sa.exchanges:
        grid.add_row("exchanges", f"{sa.exchanges} of ours not answered yet")
    return grid


def _child_sa(sa: ChildSaDetail, now: float) -> Table:
    grid = _grid()
    grid.add_row("SPIs", f"in {sa.spi_in}, out {sa.spi_out}")
    grid.add_row("suite", sa.suite)
    grid.add_row("GPN", sa.gpn)
    grid.add_row("local", ", ".join(sa.local_ts))
    grid.add_row("remote", ", ".join(sa.remote_ts))
    grid.add_row("peer", sa.peer)
    grid.add_row("up", f"since {moment(sa.since, now)}, {spoken(now - sa.since)}")
    if sa.rekey is not None and sa.expires is not None:
        soft, hard = spoken(sa.rekey - now), spoken(sa.expires - now)
        grid.add_row("rekey", f"in {soft} at the latest; expires in {hard}")
    grid.add_row("traffic", _traffic(sa))
    if sa.seal_hi > sa.seal_lo:
        share = sa.sealed / (sa.seal_hi - sa.seal_lo)
        grid.add_row("numbers", f"{sa.sealed:,} used from {sa.seal_lo:,} up to {sa.seal_hi:,} ({share:.1%})")
    else:
        grid.add_row("numbers", Text("none left: it only opens, until it is rekeyed", style="yellow"))
    if not sa.opens:
        grid.add_row("opens", Text("nothing, until it is rekeyed: its GPN was lost", style="yellow"))
    return grid


def _traffic(counts: TunnelStatus | ChildSaDetail) -> str:
    return (
        f"in {counts.packets_in:,} packets, {size(counts.bytes_in)}; "
        f"out {counts.packets_out:,} packets, {size(counts.bytes_out)}"
    )


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")
