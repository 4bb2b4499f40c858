"""Figures of the benchmarks. matplotlib is imported here only, and draws without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .bench_speculation import Measurement

LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = "os^vD"
# beside each other where they would hide each other
DODGE = 1.015


def plot_block_efficiency(measurements: Sequence[Measurement], file: Path, title: str) -> None:
    """Block efficiency over K: a colour a verifier, a line style a draft length, bars of one standard error."""
    drafted = [line for line in measurements if line.num_drafts > 0]
    labels = list(dict.fromkeys(line.label for line in drafted))
    lengths = sorted({line.draft_length for line in drafted})
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for colour, label in enumerate(labels):
        for style, length in enumerate(lengths):
            lines = sorted(
                (line for line in drafted if line.label == label and line.draft_length == length),
                key=lambda line: line.num_drafts,
            )
            if lines:
                axes.errorbar(
                    [line.num_drafts * DODGE ** (colour - len(labels) / 2) for line in lines],
                    [line.block_efficiency for line in lines],
                    [line.block_efficiency_error for line in lines],
                    color=f"C{colour % 10}",
                    linestyle=LINE_STYLES[style % len(LINE_STYLES)],
                    marker=MARKERS[colour // 10 % len(MARKERS)],
                    markersize=3,
                    capsize=3,
                    label=f"{label}, L = {length}",
                )
    axes.set_xscale("log", base=2)
    ticks = sorted({line.num_drafts for line in drafted})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("draft paths K")
    axes.set_ylabel("block efficiency (tokens a target call)")
    axes.set_title(title, fontsize=8, loc="left")
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=150)
