"""min-p: every token at least `min_p` times as likely as the most likely one.

    p = softmax(x / T)
    keep p_i >= min_p * max(p)   <=>   x_i >= max(x) + T * ln(min_p)

Nguyen et al., arXiv 2407.01082, section 3. The logarithm makes a softmax needless: one maximum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .row_stats import Row
from .support import Support, supported_logits


def min_p_reference(logits: Tensor, support: Support, temperature: Tensor, min_p: Tensor) -> Tensor:
    """The least kept logit for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        temperature: `[batch]` float64, above 0.
        min_p: `[batch]` float64 in [0, 1].
    """
    maximum = supported_logits(logits, support).amax(-1)
    return maximum + temperature * torch.log(min_p)


def min_p(row: Row, temperature: float, min_p: float) -> float:
    """The least kept logit of one row."""
    return row.maximum + temperature * math.log(min_p) if min_p > 0 else -math.inf
