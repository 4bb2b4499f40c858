"""epsilon sampling: every token at least as likely as a constant.

    p = softmax(x / T)
    keep p_i >= epsilon   <=>   x_i >= max(x) + T * (ln S + ln epsilon),   S = sum exp((x - max) / T)

Hewitt et al., arXiv 2210.15191, section 4.1. The most likely token is always kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .row_stats import Row
from .support import Support, supported_logits


def epsilon_reference(
    logits: Tensor, support: Support, temperature: Tensor, epsilon_cutoff: Tensor
) -> Tensor:
    """The least kept logit for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        temperature: `[batch]` float64, above 0.
        epsilon_cutoff: `[batch]` float64 in [0, 1).
    """
    log_total = torch.logsumexp(supported_logits(logits, support) / temperature[:, None], dim=-1)
    return temperature * (log_total + torch.log(epsilon_cutoff))


def epsilon(row: Row, temperature: float, epsilon_cutoff: float) -> float:
    """The least kept logit of one row."""
    if epsilon_cutoff == 0:
        return -math.inf
    log_total = row.stats(temperature).log_total
    return row.maximum + temperature * (log_total + math.log(epsilon_cutoff))
