"""The benchmarks run, every line of them; what they measure here means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gen, gin, gpn, migration, pictures
from benchmarks.__main__ import main


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make bench` leaves, of runs as short as they get."""
    directory = tmp_path_factory.mktemp("figures")
    assert main(["--quick", "--json", str(directory / "packets.json")]) == 0
    assert migration.main(["--quick", "--json", str(directory / "migration.json")]) == 0
    return directory


def test_every_line_runs(figures: Path) -> None:
    rows = json.loads((figures / "packets.json").read_text())["rows"]
    assert len(rows) == sum(1 for role in (gpn, gin, gen) for _ in role.cases())
    assert all(row["cost"]["loop"] > 0 and row["cost"]["floor"] > 0 for row in rows)


def test_a_name_that_none_has() -> None:
    assert main(["--only", "no such line"]) == 2


def test_migrations_are_seen_from_both_ends(figures: Path) -> None:
    document = json.loads((figures / "migration.json").read_text())
    assert len(document["migrations"]) == migration.QUICK.migrations
    assert document["one"] > 0
    assert document["two"] > 0
    for through in document["through"]:
        assert any(through["touched"])
        assert len(through["sent"]) == len(through["came"]) == len(through["touched"])


def test_pictures_are_drawn_of_what_is_there(
    figures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pictures.main([str(figures), str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"throughput.svg", "suites.svg", "migrations.svg"}
    assert "peers.json is not there" in capsys.readouterr().err
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pictures.main([str(figures), str(tmp_path)])
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}, (
        "the same data, the same bytes"
    )
