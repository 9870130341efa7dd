"""`python -m benchmarks`: what a packet costs in each role, beside the floor of the same run."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import gen, gin, gpn, loads
from benchmarks.bench import Effort, Row, machine
from protego_cli.net.heap import keep_heap

QUICK, QUICK_SAS = Effort(rounds=1, stretches=1), 22


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every target was met, or nothing but whether it runs was asked."""
    options = _options().parse_args(arguments)
    effort = QUICK if options.quick else Effort(rounds=options.rounds)
    cases = [
        case
        for case in (*gpn.cases(QUICK_SAS if options.quick else loads.SAS), *gin.cases(), *gen.cases())
        if re.search(options.only, case.name)
    ]
    if not cases:
        print(f"no benchmark's name matches {options.only!r}; see --list", file=sys.stderr)
        return 2
    if options.list:
        print(*(case.name for case in cases), sep="\n")
        return 0
    keep_heap()  # as the roles' processes do
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = [case.run(effort) for case in track(cases, "measuring", disable=not console.is_terminal)]
    console.print(_table(rows))
    if options.json:
        options.json.write_text(json.dumps(_document(rows, effort), indent=1) + "\n")
    return 0 if options.quick or all(row.met for row in rows) else 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="only lines whose name matches")
    parser.add_argument("--list", action="store_true", help="show the names, measure nothing")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs, in seconds")
    parser.add_argument("--rounds", type=int, default=Effort().rounds, help="take medians of so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="CPU per packet")
    for heading in ("role", "direction", "suite", "bytes"):
        table.add_column(heading)
    for heading in ("µs", "floor µs", "ratio", "target", "Gbit/s per core"):
        table.add_column(heading, justify="right")
    for row in rows:
        colour = "default" if row.target is None else "green" if row.met else "red"
        table.add_row(
            *(row.role, row.direction, row.suite, row.load),
            *(f"{seconds * 1e6:.2f}" for seconds in row.cost[:2]),
            f"[{colour}]{row.cost.ratio:.2f}[/]",
            "" if row.target is None else f"≤ {row.target}",
            f"{row.gbits:.1f}",
        )
    return table


def _document(rows: Sequence[Row], effort: Effort) -> dict[str, object]:
    return {
        **machine(),
        **effort._asdict(),
        "rows": [
            {**row._asdict(), "cost": row.cost._asdict(), "gbits": row.gbits, "met": row.met} for row in rows
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
