"""docs/ikev2.md: every test it names exists, and every section of RFC 7296 about the protocol has its row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs/ikev2.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:real/)?test_\w+\.py)::(test_\w+)`", TEXT)))
SECTIONS = [
    *(f"1.{n}" for n in (2, 4, 5)),
    *("1.1.1", "1.1.2", "1.1.3", "1.3.1", "1.3.2", "1.3.3", "1.4.1"),
    *(f"2.{n}" for n in (*range(1, 8), *range(9, 21), 22, 23)),
    *("2.6.1", "2.8.1", "2.8.2", "2.8.3", "2.9.2", "2.23.1", "2.25.1", "2.25.2"),
    *(f"2.21.{n}" for n in range(1, 5)),
    *(f"3.{n}" for n in range(1, 17)),
]


def test_it_names_many() -> None:
    assert len(NAMED) > 80


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_what_it_names_exists(file: str) -> None:
    tree = ast.parse((TESTS / file).read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for named, name in NAMED if named == file} <= defined


def test_every_section_has_its_row() -> None:
    rows = {
        part.strip()
        for row in re.findall(r"^\| ([0-9., ]+) \|", TEXT, re.MULTILINE)
        for part in row.split(",")
    }
    assert set(SECTIONS) <= rows


def test_a_row_without_a_test_says_no() -> None:
    """Or that something is ignored or not sent."""
    for row in re.findall(r"^\| [0-9., ]+ \|.*$", TEXT, re.MULTILINE):
        _, _, _, protego, shown, _ = (cell.strip() for cell in row.split("|"))
        assert shown or re.match(r"no\b|not sent|ignored", protego), row
