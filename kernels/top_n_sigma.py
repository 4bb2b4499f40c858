"""top-n-sigma: every logit within n standard deviations of the largest.

    keep x_i >= max(x) - n_sigma * std(x)

Tang et al., arXiv 2411.07641, Algorithm 1. The standard deviation (of a sample: divisor n - 1, as
in the authors' code) runs over the finite logits of the support, so a mask put on earlier does not
spoil it. The temperature cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .row_stats import Row
from .support import Support, supported_logits


def top_n_sigma_reference(logits: Tensor, support: Support, n_sigma: Tensor) -> Tensor:
    """The least kept logit for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        n_sigma: `[batch]` float64, at least 0.
    """
    inside = supported_logits(logits, support)
    finite = inside > -torch.inf
    count = finite.sum(-1)
    mean = torch.where(finite, inside, 0.0).sum(-1) / count
    squares = torch.where(finite, inside - mean[:, None], 0.0).square().sum(-1)
    deviation = torch.sqrt(squares / (count - 1).clamp(min=1))
    return inside.amax(-1) - n_sigma * deviation


def top_n_sigma(row: Row, n_sigma: float) -> float:
    """The least kept logit of one row."""
    return row.maximum - n_sigma * row.deviation()
