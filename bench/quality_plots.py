"""Figures of `warpdraft bench quality`: a panel for every pair of axes, a colour a method, its front as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .quality_frontier import Points, bands, front
from .quality_methods import GREEDY, METHODS, TEMPERATURE, TEMPERATURES

if TYPE_CHECKING:
    from collections.abc import Callable

# by temperature; temperature alone has all of them
MARKERS = dict(zip(TEMPERATURES, "osD", strict=True))
COLOURS = {method: f"C{number}" for number, method in enumerate(METHODS)} | {GREEDY: "black"}


def plot_coverage(means: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Coverage over mean entropy, a panel a temperature: up and to the left is better."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(TEMPERATURES), sharey=True)
    for axes, temperature in zip(panels, TEMPERATURES, strict=True):
        for method in dict.fromkeys(line["method"] for line in means):
            lines = [
                line
                for line in means
                if (line["method"], line["temperature"]) == (method, temperature)
            ]
            if not lines:
                continue
            lines.sort(key=lambda line: line["entropy"])
            axes.errorbar(
                [line["entropy"] for line in lines],
                [line["coverage"] for line in lines],
                _bars(lines, "coverage"),
                color=COLOURS[method],
                marker="*" if len(lines) == 1 else "o",
                markersize=9 if len(lines) == 1 else 4,
                linewidth=1,
                elinewidth=0.6,
                label=METHODS[method].label,
            )
        axes.set_title(f"temperature {temperature:g}", fontsize=9)
        axes.set_xlabel("mean entropy of the processed law (nats)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("human tokens kept")
    panels[0].legend(fontsize="x-small", loc="lower right")
    figure.suptitle(fill(title, 160), fontsize=8, x=0.01, ha="left")
    figure.savefig(file, format="png", dpi=110)


def plot_diversity(
    means: Sequence[dict[str, Any]], points: Mapping[str, Points], file: Path, title: str
) -> None:
    """Bits under the judge over two measures of diversity, and the differences at equal diversity.

    Args:
        means: of every setting, from `means_of`.
        points: of the compared methods, over prompts.
        file: where the figure goes.
        title: above it.
    """
    figure = Figure(figsize=(16, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    merits: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("diversity, 1 - self-BLEU", lambda line: 1 - line["self_bleu"]),
        ("diversity, distinct-2", lambda line: line["distinct_2"]),
    ]
    for axes, (label, merit) in zip(panels[:2], merits, strict=True):
        highest = max(
            _settings_and_front(
                axes, [line for line in means if line["method"] == method], method, merit
            )
            for method in dict.fromkeys(line["method"] for line in means)
        )
        # settings far above every front would flatten what is compared
        axes.set_ylim(top=highest + 0.1)
        axes.set_xlabel(label)
        axes.set_ylabel("bits a character under the judge")
        axes.grid(alpha=0.3)
    for temperature, marker in MARKERS.items():
        label = f"at temperature {temperature:g}"
        panels[0].plot([], [], color="0.4", marker=marker, linestyle="", label=label)
    panels[0].legend(fontsize="x-small", loc="upper left")
    _differences(panels[2], points)
    figure.suptitle(fill(title, 190), fontsize=8, x=0.01, ha="left")
    figure.savefig(file, format="png", dpi=110)


def _differences(axes: Axes, points: Mapping[str, Points]) -> None:
    """Every method against temperature alone, or against the last where that is missing, with intervals."""
    reference = TEMPERATURE if TEMPERATURE in points else list(points)[-1]
    found = bands(points, reference)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xlabel("diversity, 1 - self-BLEU")
    axes.set_ylabel(f"bits a character, less {METHODS[reference].label}")
    axes.grid(alpha=0.3)
    if found is None:
        return
    grid, differences = found
    # a few places of the grid, side by side: bands would hide each other
    chosen = grid[1::3]
    step = (grid[1] - grid[0]) / 2
    for number, (method, (middle, low, high)) in enumerate(differences.items()):
        axes.errorbar(
            chosen + step * (number - (len(differences) - 1) / 2),
            middle[1::3],
            np.maximum(0, [(middle - low)[1::3], (high - middle)[1::3]]),
            color=COLOURS[method],
            marker="o",
            linestyle="",
            capsize=3,
            label=METHODS[method].label,
        )
    axes.legend(fontsize="x-small", title="bars: 95 % over prompts", title_fontsize="x-small")


def _settings_and_front(
    axes: Axes,
    lines: Sequence[dict[str, Any]],
    method: str,
    merit: Callable[[dict[str, Any]], float],
) -> float:
    """A method's settings, faint, and the line through those that none of its own beats; its highest end."""
    colour = COLOURS[method]
    found = np.array([merit(line) for line in lines])
    cost = np.array([line["bits_per_character"] for line in lines])
    for line, x, y in zip(lines, found, cost, strict=True):
        axes.plot(
            x,
            y,
            marker="*" if method == GREEDY else MARKERS.get(line["temperature"], "."),
            markersize=12 if method == GREEDY else 4,
            color=colour,
            alpha=1.0 if method == GREEDY else 0.45,
            linestyle="",
        )
    if method == GREEDY:
        axes.plot([], [], color=colour, marker="*", linestyle="", label="greedy")
    else:
        axes.plot(*front(found, cost), color=colour, linewidth=1.6, label=METHODS[method].label)
    return float(front(found, cost)[1][-1])


def _bars(lines: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """Distances from the means to the ends of their intervals."""
    lows = [max(0.0, line[name] - line[f"{name}_interval"][0]) for line in lines]
    highs = [max(0.0, line[f"{name}_interval"][1] - line[name]) for line in lines]
    return [lows, highs]
