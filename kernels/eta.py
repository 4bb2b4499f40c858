"""eta sampling: every token at least as likely as a bound that falls with the entropy.

    p = softmax(x / T),  H its entropy
    eta = min(epsilon, sqrt(epsilon) * exp(-H))
    keep p_i >= eta   <=>   x_i >= max(x) + T * (ln S + min(ln epsilon, ln(epsilon) / 2 - H))

Hewitt et al., arXiv 2210.15191, section 4.2. The most likely token is always kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .row_stats import Row
from .support import Support, supported_logits


def eta_reference(
    logits: Tensor, support: Support, temperature: Tensor, eta_cutoff: Tensor
) -> Tensor:
    """The least kept logit for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        temperature: `[batch]` float64, above 0.
        eta_cutoff: `[batch]` float64 in [0, 1), the epsilon of the formula.
    """
    levels = supported_logits(logits, support) / temperature[:, None]
    logprobs = torch.log_softmax(levels, dim=-1)
    entropy = -torch.where(logprobs > -torch.inf, logprobs.exp() * logprobs, 0.0).sum(-1)
    log_epsilon = torch.log(eta_cutoff)
    log_eta = torch.minimum(log_epsilon, log_epsilon / 2 - entropy)
    return temperature * (torch.logsumexp(levels, dim=-1) + log_eta)


def eta(row: Row, temperature: float, eta_cutoff: float) -> float:
    """The least kept logit of one row."""
    if eta_cutoff == 0:
        return -math.inf
    stats = row.stats(temperature)
    log_epsilon = math.log(eta_cutoff)
    log_eta = min(log_epsilon, log_epsilon / 2 - stats.entropy)
    return row.maximum + temperature * (stats.log_total + log_eta)
