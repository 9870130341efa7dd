"""`python -m benchmarks.pictures FIGURES PICTURES`: draws what the benchmarks wrote as data.

    FIGURES/packets.json    (`make bench`)       throughput.svg, suites.svg
    FIGURES/migration.json  (`make bench`)       migrations.svg
    FIGURES/peers.json      (`make bench-peers`) peers.svg

The same data give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.loads import SIZES

DIRECTIONS: Final = ("peer to tenant", "tenant to peer")
SUITES: Final = ("aes256gcm16", "chacha20poly1305", "aes256-sha1", "aes256-sha256")
COLOURS: Final = ("#1f5fa8", "#d1731b", "#3a8a4d", "#8a4fa3")
GREY, RED = "#9aa0a6", "#c0392b"
GATEWAYS: Final = (
    ("mux", "Protego, GIN steers", COLOURS[0]),
    ("nftables", "Protego, kernel steers to the GPN", COLOURS[1]),
    ("libipsec", "strongSwan, kernel-libipsec", GREY),
)
STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "grid.color": "#e3e5e8",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "protego",
}

Document = dict[str, Any]


def throughput(document: Document) -> Figure:
    """What a core carries by packet size, suite and direction, in full batches."""
    figure = Figure(figsize=(9, 3.6))
    rows = {(row["direction"], row["suite"], row["load"]): row["gbits"] for row in document["rows"]}
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        for suite, colour in zip(SUITES, COLOURS, strict=True):
            heights = [rows[direction, suite, str(size)] for size in SIZES]
            axes.plot(SIZES, heights, color=colour, marker="o", label=suite)
        axes.set(title=f"GPN, {direction}", xlabel="bytes of an inner packet", xticks=SIZES, ylim=(0, None))
    figure.axes[0].set_ylabel("Gbit/s per core")
    figure.axes[0].legend()
    return figure


def suites(document: Document) -> Figure:
    """What a packet of 1,400 bytes costs under each suite: the floor, and what Protego adds."""
    figure = Figure(figsize=(9, 3.6))
    rows = [row for row in document["rows"] if row["role"] == "GPN" and row["load"] == str(max(SIZES))]
    for axes, direction in zip(figure.subplots(1, 2, sharex=True, sharey=True), DIRECTIONS, strict=True):
        mine = [row for row in rows if row["direction"] == direction]
        names = [row["suite"] for row in mine]
        floor, loop = ([row["cost"][part] * 1e6 for row in mine] for part in ("floor", "loop"))
        axes.barh(names, floor, color=GREY, label="floor: receive, cipher, send")
        added = [ours - bare for ours, bare in zip(loop, floor, strict=True)]
        axes.barh(names, added, left=floor, color=COLOURS[0], label="Protego's own")
        axes.set(title=f"GPN, {direction}", xlabel=f"µs of CPU for a packet of {max(SIZES):,} bytes")
        axes.grid(visible=False, axis="y")
    figure.axes[0].invert_yaxis()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def migrations(document: Document) -> Figure:
    """Throughput in bins over time, and when a tunnel migrated."""
    figure = Figure(figsize=(9, 3.6))
    pair = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, through, colour in zip(pair, document["through"], COLOURS, strict=False):
        times = [place * document["bin"] for place in range(len(through["came"]))]
        for began, ended in document["migrations"]:
            axes.axvspan(began, max(ended, began + document["bin"]), color="#f3cfa5", linewidth=0)
        axes.plot(times, [100 * share for share in through["came"]], color=colour, linewidth=0.8)
        axes.axhline(90, color=RED, linewidth=0.8, linestyle="--")
        axes.set_title(f"{through['direction']}, {through['lost']} packets lost")
    pair[0].set(ylim=(0, 125), ylabel="% of the median")
    pair[1].set(xlabel="seconds; bins of 10 ms; the stripes are migrations", ylabel="% of the median")
    return figure


def peers(document: Document) -> Figure:
    """Protego beside strongSwan's ESP in user space, by load and direction."""
    figure = Figure(figsize=(9, 3.6))
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        mine = [row for row in document["rows"] if row["direction"] == direction]
        for place, (name, label, colour) in enumerate(GATEWAYS):
            heights = [row["gateways"][name]["gbits"] for row in mine]
            axes.bar([x + 0.28 * place for x in range(len(mine))], heights, 0.28, color=colour, label=label)
        labels = [row["load"].replace(" singly", "\nsingly").replace(", ", "\n") for row in mine]
        axes.set_xticks([x + 0.28 for x in range(len(mine))], labels, fontsize="x-small")
        axes.set_title(direction)
        axes.grid(visible=False, axis="x")
    figure.axes[0].set_ylabel("Gbit for a second of CPU")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


PICTURES: Final[dict[str, dict[str, Callable[[Document], Figure]]]] = {
    "packets": {"throughput": throughput, "suites": suites},
    "migration": {"migrations": migrations},
    "peers": {"peers": peers},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when there was something to draw."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m benchmarks.pictures", description=summary)
    parser.add_argument(
        "figures", type=Path, help="the directory of the JSON files; what is not there is not drawn"
    )
    parser.add_argument("pictures", type=Path, help="the directory to draw into")
    options = parser.parse_args(arguments)
    options.pictures.mkdir(parents=True, exist_ok=True)
    drawn = 0
    with mpl.rc_context(STYLE):
        for source, kinds in PICTURES.items():
            file = options.figures / f"{source}.json"
            if not file.exists():
                print(f"{file} is not there", file=sys.stderr)
                continue
            document = json.loads(file.read_text())
            for name, draw in kinds.items():
                target = options.pictures / f"{name}.svg"
                draw(document).savefig(target, metadata={"Date": None})
                print(f"{target}: {document['date']}")
                drawn += 1
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
