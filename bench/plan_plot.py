"""The figure of a plan. matplotlib draws without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .plan import MOST_TEXTS, Plan


def plot_plan(plan: Plan, contexts: Sequence[int], file: Path, title: str) -> None:
    """Tokens a second and their ratio over the batch size: a colour a context, plain sampling dashed.

    A line ends where the memory does.
    """
    batches = sorted({round(2 ** (step / 4)) for step in range(4 * MOST_TEXTS.bit_length() - 3)})
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    speeds, ratios = figure.subplots(1, 2)
    for colour, context in enumerate(contexts):
        best = [plan.best(context, batch) for batch in batches]
        drafted = [line for line in best if line.tokens_per_second is not None]
        plain = [line for line in best if line.plain_tokens_per_second is not None]
        paired = [line for line in best if line.ratio is not None]
        style = {"color": f"C{colour % 10}", "linewidth": 1.4}
        speeds.plot(
            [line.batch for line in drafted],
            [line.tokens_per_second for line in drafted],
            label=f"{context:,} tokens",
            **style,
        )
        speeds.plot(
            [line.batch for line in plain],
            [line.plain_tokens_per_second for line in plain],
            linestyle="--",
            **style,
        )
        ratios.plot([line.batch for line in paired], [line.ratio for line in paired], **style)
    speeds.plot([], [], color="0.4", linestyle="--", label="plain sampling")
    speeds.set_yscale("log")
    speeds.set_ylabel("tokens a second, all texts")
    speeds.legend(fontsize="x-small")
    ratios.axhline(1, color="black", linewidth=0.8)
    ratios.set_ylabel("ratio to plain sampling, best K and L")
    for axes in (speeds, ratios):
        axes.set_xscale("log", base=2)
        axes.set_xticks([2**power for power in range(10)], [str(2**power) for power in range(10)])
        axes.set_xlabel("texts a batch")
        axes.grid(alpha=0.3)
    figure.suptitle(f"{title} (predicted, not measured)", fontsize=8, x=0.01, ha="left")
    figure.savefig(file, format="png", dpi=150)
