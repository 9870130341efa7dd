"""The benchmarks run, every line of them; what they measure here means nothing."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import gen, gin, gpn
from benchmarks.__main__ import main


def test_all_of_them_run(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert main(["--quick", "--json", str(figures)]) == 0
    rows = json.loads(figures.read_text())["rows"]
    assert len(rows) == sum(1 for role in (gpn, gin, gen) for _ in role.cases())
    assert all(row["cost"]["loop"] > 0 and row["cost"]["floor"] > 0 for row in rows)


def test_a_name_that_none_has() -> None:
    assert main(["--only", "no such line"]) == 2
