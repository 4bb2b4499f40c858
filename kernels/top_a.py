"""top-a: every token at least as likely as a share of the squared largest probability.

    p = softmax(x / T)
    keep p_i >= top_a * max(p)^2   <=>   x_i >= max(x) + T * (ln top_a - ln S)

BlinkDL's rule as KoboldAI has it. S = sum exp((x - max) / T), so that max(p) = 1 / S.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .row_stats import Row
from .support import Support, supported_logits


def top_a_reference(logits: Tensor, support: Support, temperature: Tensor, top_a: Tensor) -> Tensor:
    """The least kept logit for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        temperature: `[batch]` float64, above 0.
        top_a: `[batch]` float64 in [0, 1].
    """
    levels = supported_logits(logits, support) / temperature[:, None]
    highest = torch.log_softmax(levels, dim=-1).amax(-1)
    return temperature * (levels.amax(-1) + highest + torch.log(top_a))


def top_a(row: Row, temperature: float, top_a: float) -> float:
    """The least kept logit of one row."""
    if top_a == 0:
        return -math.inf
    return row.maximum + temperature * (math.log(top_a) - row.stats(temperature).log_total)
