"""What `protego explain` prints."""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from protego_cli.cli.logs import printable
from protego_cli.cli.render import print_message, show, tunnel_state
from protego_cli.cli.times import moment
from protego_cli.control.channel.operator_messages import Explanation, Explanations

_STYLES = {"differs": "bold red", "agreed": "green"}
_SIDES = ("here:", "there:")  # the two ends that an advice may be for


def print_explanations(found: Explanations, tunnel: str | None, *, as_json: bool) -> None:
    if as_json:
        print_message(found)
        return
    if found.status is not None:
        show(Text(f"{found.status.id} is ").append_text(tunnel_state(found.status)))
    if not found.found:
        show(_nothing(found, tunnel))
    for explanation in found.found:
        show(explanation_view(explanation))


def _nothing(found: Explanations, tunnel: str | None) -> str:
    if found.status is None:
        return "nobody has dialled who is no tunnel's peer, since the control node has started"
    peer = found.status.peer
    dial = f"; `protego tunnel up {tunnel}` dials {peer} now" if peer and not found.status.held else ""
    return f"nothing has been negotiated since the control node has started{dial}"


def explanation_view(explanation: Explanation) -> RenderableType:
    parts: list[RenderableType] = [_headline(explanation)]
    if not explanation.ok and all(row.result != "differs" for row in explanation.rows):
        parts.append(Text(f"  {printable(explanation.result)}", style="red"))
    if explanation.rows:
        parts.append(Padding(_table(explanation), (0, 0, 0, 2), expand=False))
    if explanation.advice:
        parts.append(Padding(_advice(explanation), (0, 0, 0, 2), expand=False))
    return Group(Text(), *parts)


def _headline(explanation: Explanation) -> Text:
    if explanation.initiator == "gateway":
        who = f"we asked {explanation.peer}, from {explanation.local}"
    else:
        who = f"{explanation.peer} asked, at {explanation.local}"
    nat = ", behind NAT" if explanation.nat else ""
    text = Text(f"{moment(explanation.time, time.time())}  {explanation.exchange} ", style="bold")
    if explanation.ok:
        text.append("agreed", style="green")
    else:
        text.append("failed", style="red")
        if explanation.notify:
            text.append(f" with {explanation.notify}")
    text.append(f": {who}{nat}", style="not bold")
    if explanation.initiator == "peer" and not explanation.authentic:
        text.append("; unproven, so anybody may have sent it", style="not bold dim")
    return text


def _table(explanation: Explanation) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("", "ours", "theirs", ""):
        table.add_column(heading, overflow="fold")
    for row in explanation.rows:
        result = Text(printable(row.result), style=_STYLES.get(row.result, "green"))
        table.add_row(row.topic, printable(row.ours), printable(row.theirs), result)
    return table


def _advice(explanation: Explanation) -> Table:
    """Whose line it is, and the line."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("", "")
    for advice in explanation.advice:
        side, _, rest = advice.partition(" ")
        grid.add_row(*((side, printable(rest)) if side in _SIDES else ("", printable(advice))))
    return grid
