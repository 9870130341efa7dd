"""The benchmark against strongSwan runs, every line of it; what it measures here means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import peers, pictures

pytestmark = [pytest.mark.root]


def test_every_line_carries_its_packets_through_both_gateways(tmp_path: Path) -> None:
    figures = tmp_path / "peers.json"
    assert peers.main(["--quick", "--json", str(figures)]) == 0
    rows = json.loads(figures.read_text())["rows"]
    assert len(rows) == len(list(peers.cases()))
    for row in rows:
        assert set(row["gateways"]) == {"mux", "nftables", "bare", "libipsec"}
        assert all(gateway["gbits"] > 0 for gateway in row["gateways"].values())
    assert pictures.main([str(tmp_path), str(tmp_path)]) == 0
    assert (tmp_path / "peers.svg").exists()


def test_a_name_that_none_has() -> None:
    assert peers.main(["--only", "no such line"]) == 2
