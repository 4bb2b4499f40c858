"""top-p (nucleus sampling): the shortest prefix that holds a share of the mass.

    p = softmax(x / T)
    keep token j of the order (logit descending, token id ascending) while p_1 + ... + p_(j-1) < top_p

Holtzman et al., arXiv 1904.09751. top_p = 0 keeps the most likely token, top_p = 1 everything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .prefix_search import longest_prefix
from .row_stats import Row
from .support import Support, prefix_support, sorted_tokens

# float32 sums of a row are good to that share; closer to the bound they are redone in float64
RECHECKED = 3e-6


def top_p_reference(
    logits: Tensor, support: Support, temperature: Tensor, top_p: Tensor
) -> Support:
    """The definition by sorting, for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        temperature: `[batch]` float64, above 0.
        top_p: `[batch]` float64 in [0, 1].
    """
    ordered, ids = sorted_tokens(logits, support)
    probs = torch.softmax(ordered / temperature[:, None], dim=-1)
    before = probs.cumsum(-1) - probs
    kept = (before < top_p[:, None]) | (top_p[:, None] >= 1.0)
    return prefix_support(ordered, ids, kept.sum(-1))


def top_p(row: Row, temperature: float, top_p: float) -> tuple[float, int]:
    """The threshold of one row, by search."""
    if top_p >= 1.0:
        return row.value, row.index
    total = row.stats(temperature).total
    crossing = longest_prefix(row, temperature, _mass, top_p * total, with_crossing=True)
    if crossing.gap < RECHECKED * total:
        total = row.exact_stats(temperature).total
        crossing = longest_prefix(row, temperature, _mass, top_p * total, with_crossing=True)
    return crossing.value, crossing.id


def _mass(excess: float, moment: float) -> float:
    return 1.0 + excess
