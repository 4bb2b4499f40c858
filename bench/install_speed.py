"""Time of the warpers that `install` puts in place, as a ratio to transformers' own, as a Markdown table.

    python bench/install_speed.py

Gaussian(2.5) rows, float32, one thread; the fastest of alternating runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers.generation.utils as generation_utils
from torch import Tensor

from warpdraft.integrations.transformers import install

WARPERS: dict[str, tuple[str, dict[str, float], str]] = {
    "`top_h=0.4`, the paper's, beside transformers' rule": (
        "TopHLogitsWarper",
        {"top_h": 0.4},
        "paper",
    ),
    "`top_h=0.4`, transformers'": ("TopHLogitsWarper", {"top_h": 0.4}, "transformers"),
    "`top_k=50`": ("TopKLogitsWarper", {"top_k": 50}, "transformers"),
    "`top_p=0.9`": ("TopPLogitsWarper", {"top_p": 0.9}, "transformers"),
    "`min_p=0.1`": ("MinPLogitsWarper", {"min_p": 0.1}, "transformers"),
    "`epsilon_cutoff=3e-4`": ("EpsilonLogitsWarper", {"epsilon": 3e-4}, "transformers"),
}
SHAPES = ((1, 32000), (8, 32000), (1, 262144), (8, 262144))
RUNS = 9


def ratio(name: str, arguments: dict[str, float], variant: Any, scores: Tensor) -> float:
    """Our time over transformers', the fastest of each."""
    theirs = getattr(generation_utils, name)(**arguments)
    with install(variant):
        ours = getattr(generation_utils, name)(**arguments)
    times = [(_seconds(ours, scores), _seconds(theirs, scores)) for _ in range(RUNS)]
    return min(one for one, _ in times) / min(other for _, other in times)


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [torch.randn(shape) * 2.5 for shape in SHAPES]
    print("| | " + " | ".join(f"V = {vocab:,}, B = {batch}" for batch, vocab in SHAPES) + " |")
    print("|---|" + "---|" * len(SHAPES))
    for label, warper in WARPERS.items():
        print(f"| {label} | " + " | ".join(f"{ratio(*warper, row):.2f}" for row in rows) + " |")


def _seconds(warper: Callable[[Any, Tensor], Tensor], scores: Tensor) -> float:
    start = time.perf_counter()
    warper(None, scores)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
