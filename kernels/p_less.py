"""p-less: every token at least as likely as two independent draws are to agree.

    p = softmax(x / T),  c = sum_i p_i^2,  n tokens in the support
    keep p_i >= c                                     normalized=False
    keep p_i >= (n * c - 1) / (n - 1)                 normalized=True
    in logits: x_i >= max(x) + T * (ln c + ln S)

Tan et al., arXiv 2509.23234. c <= max(p), so the most likely token is always kept; no parameter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .row_stats import Row
from .support import Support, supported_logits


def p_less_reference(
    logits: Tensor, support: Support, temperature: Tensor, *, normalized: bool
) -> Tensor:
    """The least kept logit for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        temperature: `[batch]` float64, above 0.
        normalized: take the share of agreement beyond that of a uniform law.
    """
    inside = supported_logits(logits, support)
    levels = inside / temperature[:, None]
    log_total = torch.logsumexp(levels, dim=-1)
    log_agreement = torch.logsumexp(2 * levels, dim=-1) - 2 * log_total
    if normalized:
        count = (inside > -torch.inf).sum(-1).double()
        excess = (count * log_agreement.exp() - 1).clamp(min=0) / (count - 1).clamp(min=1)
        log_agreement = torch.log(excess)
    # c is at most max(p), but for rounding
    least = temperature * (log_total + log_agreement)
    return torch.minimum(least, inside.amax(-1))


def p_less(row: Row, temperature: float, *, normalized: bool) -> float:
    """The least kept logit of one row."""
    total = row.stats(temperature).total
    # the squares of exp(z) are the weights of half the temperature
    agreement = row.stats(temperature / 2).total / total**2
    if normalized:
        count = row.count()
        agreement = max(count * agreement - 1, 0.0) / max(count - 1, 1)
    if agreement == 0:
        return -math.inf
    # c is at most max(p), but for rounding
    return row.maximum + temperature * min(math.log(agreement) + math.log(total), 0.0)
