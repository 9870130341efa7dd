"""What the live view and the receipt say, rendered as text."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console, RenderableType

from protego_cli.control.channel.operator_messages import NodeStatus, Status, TunnelStatus
from protego_cli.lab.protocol import SiteCount, Snapshot
from protego_cli.lab.receipt import Move, make_receipt
from protego_cli.lab.view import Scene, picture, receipt_table


def text(renderable: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=100).print(renderable)
    return out.getvalue()


def tunnel(name: str, gpn: str, error: str | None = None) -> TunnelStatus:
    return TunnelStatus(name, "down" if error else "up", gpn, None, None, None, 0, 0, 0, 0, error=error)


def test_the_picture_before_anything_is_known() -> None:
    seen = text(picture(Scene(("t1/hq",), 3)))
    assert "starting" in seen
    assert "0 of 3 migrations" in seen
    assert "t1/hq" in seen


def test_the_picture_under_load() -> None:
    scene = Scene(("t1/hq", "t2/hq"), 3, phase="under load", done=1, elapsed=2.0, ends=4.0, moving="t1/hq")
    scene.status = Status(
        1,
        (NodeStatus("gpn-1", "gpn", "up", 2, 0.25), NodeStatus("gpn-2", "gpn", "down", 0, 0.0)),
        (tunnel("t1/hq", "gpn-1"), tunnel("t2/hq", "gpn-2", error="NO_PROPOSAL_CHOSEN")),
    )
    scene.peers = Snapshot((SiteCount(sent=1500, received=1200), SiteCount()))
    scene.tenants = Snapshot((SiteCount(sent=1210, received=1495), SiteCount()))
    scene.events.append((3.2, "t1/hq moved"))
    seen = text(picture(scene))
    for expected in (
        "25%",
        "moving",
        "1,495",
        "1,200",
        "15",
        "NO_PROPOSAL_CHOSEN",
        "3.20 s  t1/hq moved",
        "2,695",
    ):
        assert expected in seen


def test_many_tunnels_do_not_fill_the_screen() -> None:
    seen = text(picture(Scene(tuple(f"t{i}/hq" for i in range(1, 101)), 0)))
    assert "t16/hq" in seen
    assert "t17/hq" not in seen
    assert "and 84 more" in seen


@pytest.mark.parametrize("height", [24, 30, 50])
def test_the_picture_fits_the_terminal(height: int) -> None:
    nodes = tuple(NodeStatus(f"gpn-{i}", "gpn", "up", 1, 0.1) for i in range(6))
    scene = Scene(tuple(f"t{i}/hq" for i in range(1, 9)), 100, ends=20.0, status=Status(1, nodes, ()))
    scene.events.extend((float(i), f"event {i}") for i in range(20))
    lines = text(picture(scene, height)).splitlines()
    assert len(lines) <= height
    assert "event 19" in lines[-1]


def test_the_receipt_shows_every_figure() -> None:
    peers = Snapshot((SiteCount(sent=2000, received=1000),), seconds=10.0)
    tenants = Snapshot((SiteCount(sent=1000, received=1997, via={"gpn-2": 5}),), seconds=5.0, misdelivered=4)
    receipt = make_receipt(peers, tenants, ["t1/hq"], [Move("t1/hq", "gpn-1", "gpn-2", 8.25, {"gpn-1": 3})])
    for plain in (True, False):
        seen = text(receipt_table(receipt, plain=plain))
        for expected in ("3,000", "2,997", "200.0", "8.2 ms", "1 of 1"):
            assert expected in seen
        rows = {
            row[:-1]: row[-1] for line in seen.splitlines() if (row := tuple(line.replace("│", " ").split()))
        }
        assert rows["lost",] == "3"
        assert rows["misdelivered",] == "4"
