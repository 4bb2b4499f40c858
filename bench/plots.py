"""Figures of the benchmarks. matplotlib is imported here only, and draws without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .bench_speculation import Measurement
    from .throughput.results import Result

LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = "os^vD"
PROVIDER_MARKERS = "osD^vPX*"
COLOURS = colormaps["tab20"]
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


def plot_roofline(results: Sequence[Result], copy_gb_s: float, file: Path) -> None:
    """Bandwidth over the bytes that a call must move, under the roof of a large copy.

    A colour a kernel, a marker a provider, filled for a cold cache and empty for a hot one. A dashed
    line stands for a fixed time: a call that moves few bytes is bound by its latency, not by the roof.
    """
    measured = [line for line in results if line.gb_s is not None and line.median_us is not None]
    kernels = list(dict.fromkeys(line.kernel for line in measured))
    providers = list(dict.fromkeys(line.provider for line in measured))
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sizes = []
    for line in measured:
        assert line.gb_s is not None and line.median_us is not None
        size = line.gb_s * line.median_us * 1e3
        sizes.append(size)
        colour = COLOURS(kernels.index(line.kernel) % COLOURS.N)
        axes.plot(
            size,
            line.gb_s,
            marker=PROVIDER_MARKERS[providers.index(line.provider) % len(PROVIDER_MARKERS)],
            color=colour,
            markerfacecolor=colour if line.cache == "cold" else "none",
            linestyle="",
            markersize=6,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    if sizes:
        ends = min(sizes) / 2, max(sizes) * 2
        axes.set_xlim(*ends)
        axes.axhline(copy_gb_s, color="black", linewidth=1)
        axes.text(ends[0], copy_gb_s * 1.05, f" large copy, {copy_gb_s:,.3g} GB/s", fontsize=8)
        bottom, top = axes.get_ylim()
        top = max(top, copy_gb_s * 2)
        for microseconds in (10**power for power in range(8)):
            reached = [size / microseconds / 1e3 for size in ends]
            if reached[1] > bottom and reached[0] < top:
                axes.plot(ends, reached, color="0.8", linestyle="--", linewidth=0.8, zorder=0)
                place = min(ends[1], top * microseconds * 1e3) * 0.8
                label = f"{microseconds:,} us" if place > 2 * ends[0] else ""
                height = place / microseconds / 1e3
                axes.text(place, height, label, fontsize=7, color="0.5", ha="right", va="top")
        axes.set_ylim(bottom, top)
    for number, kernel in enumerate(kernels):
        axes.plot([], [], color=COLOURS(number % COLOURS.N), marker="s", linestyle="", label=kernel)
    for number, provider in enumerate(providers):
        marker = PROVIDER_MARKERS[number % len(PROVIDER_MARKERS)]
        axes.plot([], [], color="0.4", marker=marker, linestyle="", label=provider)
    axes.plot([], [], color="0.4", marker="o", linestyle="", markerfacecolor="none", label="hot")
    axes.set_xlabel("bytes that a call must move")
    axes.set_ylabel("those bytes over its time (GB/s)")
    machine = measured[0].machine if measured else "nothing measured"
    axes.set_title(fill(machine, 130), fontsize=7, loc="left")
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.2)
    figure.savefig(file, format="png", dpi=150)
