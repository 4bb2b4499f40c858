"""What the grid of ratios costs `optimal`: alpha* less the acceptance of the binned form, on a model's own laws.

    python bench/grid_loss.py FOLDER --skip 12

The target is the model of FOLDER, the draft the same without some layers; the rows are those after every few tokens of
English prompts, at the whole vocabulary and at its first 32,000 tokens, renormalised.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

BINS = (32, 64, 128)
TEMPERATURES = (0.7, 1.0)
DRAFTS = (2, 4, 8)
SMALL_VOCABULARY = 32_000
STRIDE = 3
ROWS = 24


def main(
    folder: Path,
    skip: Annotated[list[int] | None, typer.Option(help="A layer to leave out.")] = None,
) -> None:
    """Print the largest and mean loss, absolute, for each number of bins."""
    import torch

    from warpdraft import optimal_acceptance
    from warpdraft.bench.model_pair import load_pair
    from warpdraft.bench.prompts import prompts_for
    from warpdraft.laws import law_of
    from warpdraft.verifiers.optimal import Optimal

    pair = load_pair(str(folder), skip=skip or (12,))
    models: tuple[Any, ...] = (pair.target, pair.draft)
    rows: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for prompt in prompts_for(pair.name, None, None):
            token_ids = pair.encode([prompt], raw=True)["input_ids"]
            for found, model in zip(rows, models, strict=True):
                found.append(model(token_ids).logits[0, ::STRIDE])
    logits = [torch.cat(found)[:ROWS] for found in rows]
    vocab = logits[0].shape[1]
    losses: dict[int, list[float]] = {bins: [] for bins in BINS}
    for width, temperature in itertools.product((SMALL_VOCABULARY, vocab), TEMPERATURES):
        target, draft = (law_of(each[:, :width], (), temperature).probs for each in logits)
        for num_drafts in DRAFTS:
            bound = optimal_acceptance(target, draft, num_drafts)
            for bins in BINS:
                found_acceptance = Optimal(bins).expected_acceptance(target, draft, num_drafts)
                losses[bins] += (bound - found_acceptance).tolist()
    cells = f"{len(logits[0])} rows, vocabularies {SMALL_VOCABULARY:,} and {vocab:,}"
    typer.echo(f"{cells}, temperatures {TEMPERATURES}, {DRAFTS} drafts")
    for bins, found_losses in losses.items():
        mean = sum(found_losses) / len(found_losses)
        typer.echo(f"{bins} bins: loses {mean:.1e} on average, {max(found_losses):.1e} at most")


if __name__ == "__main__":
    typer.run(main)
