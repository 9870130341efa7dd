"""`python -m benchmarks`: what a packet costs in each role, beside the floor of the same run."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import gin, gpn
from benchmarks.bench import Row


def main() -> int:
    """0 when every target was met."""
    rows = [
        *gpn.rows(),
        Row("GIN, peer to GPN", gin.SIZE, 2.0, gin.measure()),
    ]
    table = Table(title="CPU per packet, batches of 44 packets of 1,400 bytes")
    table.add_column("role and direction")
    for heading in ("µs", "floor µs", "ratio", "target", "Gbit/s per core"):
        table.add_column(heading, justify="right")
    for row in rows:
        loop, base = (f"{seconds * 1e6:.2f}" for seconds in row.cost[:2])
        colour = "green" if row.ratio <= row.target else "red"
        ratio = f"[{colour}]{row.ratio:.2f}[/]"
        table.add_row(row.name, loop, base, ratio, f"≤ {row.target}", f"{row.gbits:.1f}")
    Console().print(table)
    return 0 if all(row.ratio <= row.target for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
