"""How many tokens the three published top-H rules keep of the same rows, as a Markdown table.

    python bench/top_h_variants.py

The rows are seeded synthetic ones of 262,144 tokens (rows.py) and the built-in target's on its held-out prompts. Each
cell is the median, and in brackets the largest, number of kept tokens at alpha = 0.4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import logging

from warpdraft import TopH, truncate
from warpdraft.bench.rows import gaussian, llm_like
from warpdraft.builtin_pair import held_out_prompts, load_builtin_pair

ALPHA = 0.4
VOCAB = 262_144
ROWS = 32
TEMPERATURES = (1.0, 1.5, 2.0)


def kept_by_released_code(logits: Tensor, temperature: float) -> Tensor:
    """Tokens kept by the authors' code: -p log p of the 100 likeliest, summed up to alpha of its total."""
    probs = torch.softmax(logits.double() / temperature, dim=-1).topk(100).values
    surprise = -torch.special.xlogy(probs, probs)
    kept: Tensor = surprise.cumsum(-1) <= ALPHA * surprise.sum(-1, keepdim=True)
    return kept.sum(-1).clamp_min(1)


def kept_by(rule: TopH, logits: Tensor, temperature: float) -> Tensor:
    """Tokens that a rule keeps of each row."""
    return truncate(logits, rule, temperature=temperature).isfinite().sum(-1)


@torch.no_grad()
def rows_of_a_model() -> Tensor:
    """The built-in target's logits after each held-out prompt, `[50, vocab]`."""
    pair = load_builtin_pair()
    rows = [
        pair.target(**pair.tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        for prompt in held_out_prompts()
    ]
    return torch.stack(rows)


def spike(batch: int, vocab: int) -> Tensor:
    """One confident token, a logit of 20, over a flat tail of standard normal logits."""
    logits = gaussian(batch, vocab, deviation=1.0)
    logits[:, vocab // 2] = 20.0
    return logits


def main() -> None:
    """Print the table."""
    logging.disable_progress_bar()
    sources = {
        "Gaussian(2.5), 262,144 tokens": gaussian(ROWS, VOCAB),
        "LLM-like, 262,144 tokens": llm_like(ROWS, VOCAB),
        "a spike over a flat tail, 262,144 tokens": spike(ROWS, VOCAB),
        "the built-in target, 2,048 tokens": rows_of_a_model(),
    }
    print("| rows | temperature | the paper | transformers | the authors' code |")
    print("|---|---|---|---|---|")
    for name, logits in sources.items():
        for temperature in TEMPERATURES:
            counts = (
                kept_by(TopH(ALPHA, variant="paper"), logits, temperature),
                kept_by(TopH(ALPHA, variant="transformers"), logits, temperature),
                kept_by_released_code(logits, temperature),
            )
            cells = (f"{int(kept.median()):,} ({int(kept.max()):,})" for kept in counts)
            print(f"| {name} | {temperature:g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
