"""Locally typical sampling: the tokens whose surprise is closest to the entropy.

    p = softmax(x / T),  d_i = |-ln p_i - H| = |x_i - c| / T,   c = max(x) + T * L / S
    keep d_i <= D, D the least distance at which the kept mass reaches typical_p

Meister et al., arXiv 2202.00666. The kept logits form an interval, which may miss the largest one.
Tokens at the same distance are kept together, as transformers does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .row_stats import Row
from .support import Support, supported_logits


def typical_reference(
    logits: Tensor,
    support: Support,
    temperature: Tensor,
    typical_p: Tensor,
    *,
    min_tokens_to_keep: int = 1,
) -> Support:
    """The definition by sorting the distances, for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        temperature: `[batch]` float64, above 0.
        typical_p: `[batch]` float64 in (0, 1]; at 1 everything is kept.
        min_tokens_to_keep: keep at least so many, the closest first.
    """
    inside = supported_logits(logits, support)
    logprobs = torch.log_softmax(inside / temperature[:, None], dim=-1)
    finite = inside > -torch.inf
    entropy = -torch.where(finite, logprobs.exp() * logprobs, 0.0).sum(-1, keepdim=True)
    distance = (-logprobs - entropy).abs()
    ordered, ids = distance.sort(dim=-1, stable=True)
    mass = logprobs.exp().gather(-1, ids).cumsum(-1)
    last = (mass < typical_p[:, None]).sum(-1).clamp(min=min_tokens_to_keep - 1)
    last = torch.minimum(last, finite.sum(-1) - 1).clamp_(min=0)
    radius = ordered.gather(-1, last[:, None])
    kept = finite & ((distance <= radius) | (typical_p[:, None] >= 1.0))
    value = torch.where(kept, inside, torch.inf).amin(-1)
    upper = torch.where(kept, inside, -torch.inf).amax(-1)
    index = torch.full_like(value, logits.shape[-1] - 1, dtype=torch.int64)
    return Support(value, index, upper)


def typical(
    row: Row, temperature: float, typical_p: float, *, min_tokens_to_keep: int = 1
) -> tuple[float, float]:
    """The least and the largest kept logit of one row."""
    logits = row.tokens().logits
    if typical_p >= 1.0 or min_tokens_to_keep >= len(logits):
        return row.value, row.upper
    stats = row.exact_stats(temperature)
    # not `levels_of`, which cuts levels off: the distances of unlikely tokens would be equal
    with np.errstate(over="ignore"):
        levels = (logits.astype(np.float64) - row.maximum) / temperature
    distance = np.abs(levels - stats.moment / stats.total)
    order = np.argsort(distance, kind="stable")
    mass = np.cumsum(np.exp(levels[order]))
    last = int(np.searchsorted(mass, typical_p * stats.total))
    last = min(max(last, min_tokens_to_keep - 1), len(order) - 1)
    kept = logits[distance <= distance[order[last]]]
    return float(kept.min()), float(kept.max())
