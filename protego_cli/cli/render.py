"""What commands print: tables for people, and the JSON that docs/cli.md promises."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from protego_cli.cli.counting import counted
from protego_cli.config.diff import Landed
from protego_cli.control.channel.operator_messages import Migrated, Reloaded, Status, TunnelStatus
from protego_cli.control.channel.pool_messages import JobStatus, Plan
from protego_cli.plugins.manager import PluginInfo

GOOD = frozenset({"up"})
BUSY = frozenset({"connecting", "draining"})
NONE = "-"
UNBOUNDED = 10_000  # columns
SPARE = (
    "SPI out",
    "SPI in",
    "suite",
    "bytes out>",
    "bytes in>",
    "peer",
    "packets out>",
    "packets in>",
    "rate>",
)  # hidden in this order where narrow
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
RATES = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")


def print_json(document: object) -> None:
    """One document, on one line, at once."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def print_message(message: msgspec.Struct) -> None:
    """A message of the control channel as JSON, without the tag that it has there."""
    document = msgspec.to_builtins(message)
    document.pop("type", None)
    print_json(document)


def print_status(status: Status, *, as_json: bool) -> None:
    if as_json:
        print_message(status)
    else:
        show(status_view(status, wide_console()))


def status_view(status: Status, console: Console) -> RenderableType:
    """Nodes and tunnels as tables, and why tunnels that failed did."""
    nodes = _table("node", "role", "state", "tunnels>", "CPU>", "load>", title=f"epoch {status.epoch}")
    for node in status.nodes:
        shown = _state("draining" if node.draining and node.state == "up" else node.state)
        load = "" if node.load is None else f"{node.load:.2f} of {node.capacity:g}"
        nodes.add_row(node.name, node.role, shown, str(node.tunnels), f"{node.cpu:.0%}", load)
    refusals = [
        Text(f"{node.name}: refuses {node.refused} of its records: {node.reason}", style="red")
        for node in status.nodes
        if node.refused
    ]
    return Group(nodes, *refusals, tunnel_table(status.tunnels, console), *tunnel_errors(status.tunnels))


def tunnel_errors(tunnels: Sequence[TunnelStatus]) -> list[Text]:
    """Why the last negotiation failed, or a tunnel went down, and who knows more."""
    errors = [Text(f"{tunnel.id}: {tunnel.error}", style="red") for tunnel in tunnels if tunnel.error]
    hint = Text("protego explain TENANT/TUNNEL compares both sides", style="dim")
    return [*errors, hint] if errors else []


def tunnel_state(tunnel: TunnelStatus) -> Text:
    return Text("down (by operator)", style="yellow") if tunnel.held else _state(tunnel.state)


def tunnel_table(tunnels: Sequence[TunnelStatus], console: Console) -> Table:
    """The tunnels, with as many columns as there is room for: rather without one than with cells cut off."""
    unbounded = console.options.update(max_width=UNBOUNDED)
    hidden: tuple[str, ...] = ()
    table = _tunnel_table(tunnels, hidden)
    for name in SPARE:
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        hidden = (*hidden, name)
        table = _tunnel_table(tunnels, hidden)
    return table


def _tunnel_table(tunnels: Sequence[TunnelStatus], hidden: tuple[str, ...]) -> Table:
    columns: dict[str, Callable[[TunnelStatus], str | Text]] = {
        "tunnel": lambda tunnel: tunnel.id,
        "state": lambda tunnel: tunnel_state(tunnel),
        "GPN": lambda tunnel: tunnel.gpn or NONE,
        "peer": lambda tunnel: tunnel.peer or NONE,
        "SPI in": lambda tunnel: tunnel.spi_in or NONE,
        "SPI out": lambda tunnel: tunnel.spi_out or NONE,
        "rate>": lambda tunnel: rate(tunnel.bps_in + tunnel.bps_out),
        "CPU>": lambda tunnel: f"{tunnel.cpu:.1%}",
        "suite": lambda tunnel: tunnel.suite or NONE,
        "packets in>": lambda tunnel: f"{tunnel.packets_in:,}",
        "packets out>": lambda tunnel: f"{tunnel.packets_out:,}",
        "bytes in>": lambda tunnel: size(tunnel.bytes_in),
        "bytes out>": lambda tunnel: size(tunnel.bytes_out),
    }
    shown = [name for name in columns if name not in hidden]
    table = _table(*shown)
    for tunnel in tunnels:
        table.add_row(*(columns[name](tunnel) for name in shown))
    return table


def print_migrated(moved: Migrated, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "tunnel": moved.tunnel,
                "from": moved.source,
                "to": moved.to,
                "method": moved.method,
                "rekey_ms": round(moved.rekey_ms, 3),
                "distribute_ms": round(moved.distribute_ms, 3),
                "total_ms": round(moved.total_ms, 3),
            }
        )
    else:
        Console(highlight=False).print(
            f"{moved.tunnel} moved from {moved.source} to {moved.to} by {moved.method} "
            f"in {moved.total_ms:.1f} ms "
            f"(rekey {moved.rekey_ms:.1f} ms, distribution {moved.distribute_ms:.1f} ms)",
            markup=False,
            soft_wrap=True,
        )


def print_reloaded(reloaded: Reloaded, *, as_json: bool) -> None:
    """The changes; problems of the file go to stderr, as those of any other file."""
    if as_json:
        print_message(reloaded)
        return
    if reloaded.problems:
        count = counted(len(reloaded.problems), "problem")
        sys.stderr.write("\n".join([*reloaded.problems, f"protego: {count}: nothing has changed"]) + "\n")
        return
    if not reloaded.changes:
        _say(f"{reloaded.file}: nothing has changed")
        return
    table = _table("what", "change", "lands", "outcome")
    for change in reloaded.changes:
        colour = {"refused": "red", "done": "green"}.get(change.outcome, "yellow")
        outcome = Text(change.outcome, style=colour)
        table.add_row(f"{change.what} {change.name}", change.kind, change.lands, outcome)
    show(table)
    for change in reloaded.changes:
        _say(_explained(change))


def _explained(change: Landed) -> Text:
    """A change in a sentence or two."""
    values = "; ".join(f"{field.name}: {field.old or NONE} -> {field.new or NONE}" for field in change.fields)
    text = Text(f"{change.what} {change.name}: ")
    text.append(f"{values}. " if values else "")
    text.append(change.note)
    if change.reason:
        text.append(f" Refused: {change.reason}.", style="red")
    elif change.restart:
        text.append(f" Restart: {', '.join(change.restart)}.", style="yellow")
    return text


def print_drained(node: str, status: JobStatus, *, as_json: bool) -> None:
    if as_json:
        print_json({"node": node, "moved": status.done, "failed": _failed(status), "seconds": status.seconds})
        return
    text = f"{node}: {counted(status.done, 'tunnel')} moved in {status.seconds:.1f} s"
    if status.state == "failed":
        text += f"; {status.note}"
    elif status.state == "stopped":
        text += f"; stopped, `protego drain {node}` goes on and `protego undrain {node}` takes it back"
    elif status.failed:
        text += f"; {counted(len(status.failed), 'tunnel')} left, which go when their peers rekey"
    else:
        text += f"; it is empty, and takes no tunnels until `protego undrain {node}`"
    _say(text)
    _say_faults(status)


def print_plan(plan: Plan, *, dry_run: bool) -> None:
    if not plan.moves:
        _say(f"{plan.policy} moves nothing")
        return
    table = _table("tunnel", "from", "to", "load>")
    for move in plan.moves:
        table.add_row(move.tunnel, move.source, move.to, f"{move.load:.3f}")
    show(table)
    if dry_run:
        _say(f"{plan.policy} would move {counted(len(plan.moves), 'tunnel')}")


def print_rebalanced(plan: Plan, status: JobStatus | None, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "policy": plan.policy,
                "dry_run": dry_run,
                "moves": [
                    {"tunnel": move.tunnel, "from": move.source, "to": move.to, "load": move.load}
                    for move in plan.moves
                ],
                "moved": status.done if status else 0,
                "failed": _failed(status) if status else [],
                "seconds": status.seconds if status else 0.0,
            }
        )
    elif status is not None:
        stopped = "; stopped" if status.state == "stopped" else ""
        why = f"; {status.note}" if status.state == "failed" else ""
        moved = f"{counted(status.done, 'tunnel')} of {len(plan.moves)} moved"
        _say(f"{moved} in {status.seconds:.1f} s{stopped}{why}")
        _say_faults(status)


def _say(text: str | Text) -> None:
    Console(highlight=False).print(text, markup=False, soft_wrap=True)


def _failed(status: JobStatus) -> list[dict[str, str]]:
    return [{"tunnel": fault.subject, "reason": fault.reason} for fault in status.failed]


def _say_faults(status: JobStatus) -> None:
    for fault in status.failed:
        _say(f"  {fault.subject}: {fault.reason}")


def print_plugins(listing: list[PluginInfo], *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "name": info.name,
                    "version": info.version,
                    "source": str(info.source),
                    "hooks": list(info.hooks),
                }
                for info in listing
            ]
        )
        return
    table = _table("plugin", "version", "source", "hooks")
    for info in listing:
        table.add_row(info.name, info.version or NONE, str(info.source), ", ".join(info.hooks))
    show(table)


def size(count: int) -> str:
    """Bytes in the largest unit that leaves at least one of it."""
    return _scaled(count, 1024, UNITS)


def rate(bits: float) -> str:
    """Bits per second, both ways, in the largest unit that leaves at least one of it."""
    return _scaled(bits, 1000, RATES)


def _scaled(value: float, factor: int, units: Sequence[str]) -> str:
    index = 0
    while value >= factor and index < len(units) - 1:
        value, index = value / factor, index + 1
    return f"{value:.0f} {units[0]}" if index == 0 else f"{value:.1f} {units[index]}"


def show(*parts: RenderableType) -> None:
    """Print to stdout; in a file or a pipe, no line ends in blanks."""
    console = wide_console()
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


def wide_console() -> Console:
    """For stdout: nothing is cut off in a file or a pipe."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = UNBOUNDED
    return console


def _state(state: str) -> Text:
    return Text(state, style="green" if state in GOOD else "yellow" if state in BUSY else "red")


def _table(*columns: str, title: str | None = None) -> Table:
    """A table; a column whose heading ends in ">" holds numbers."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column.rstrip(">"), justify="right" if column.endswith(">") else "left", no_wrap=True
        )
    return table
