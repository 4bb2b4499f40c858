"""top-H: the longest prefix whose entropy stays below a share of the row's entropy.

    p      = softmax(x / T)
    keep the longest prefix of the order (logit descending, token id ascending) with
        H(p restricted to the prefix, renormalised)  <=  alpha * H(p)             variant="paper"
        sum over the prefix of -p ln p  <=  alpha * H(p),  p over the first 100   "transformers"

"paper": Top-H Decoding, arXiv 2509.02510, Algorithm 1. The entropy of the renormalised prefix grows
strictly with the prefix: adding a token of share r <= 1 / (k + 1) to k tokens of entropy H gives
H + h(r) - r H, and h(r) / r > ln(k + 1) > H, h the binary entropy. So the first crossing of the
algorithm is the only one, and it is found by search, without a sort.
"transformers": what `TopHLogitsWarper` does, a partial sum that is not renormalised, over the
softmax of the first 100 tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .prefix_search import longest_prefix
from .row_stats import Row, levels_of
from .support import Support, prefix_support, sorted_tokens

# TopHLogitsWarper.top_n
TRANSFORMERS_HEAD = 100
# nats: float32 sums of a row are good to that, at worst over a flat tail; closer to the bound they
# are redone in float64
RECHECKED = 3e-6


def top_h_reference(
    logits: Tensor, support: Support, temperature: Tensor, alpha: Tensor
) -> Support:
    """Algorithm 1 by sorting, for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        temperature: `[batch]` float64, above 0.
        alpha: `[batch]` float64; at 1 or above everything is kept.
    """
    ordered, ids = sorted_tokens(logits, support)
    levels = (ordered - ordered[:, :1]) / temperature[:, None]
    weights = torch.exp(levels)
    present = weights > 0
    moments = torch.where(present, weights * levels, 0.0)
    weights[:, 0] = 0.0
    excess, moment = weights.cumsum(-1), moments.cumsum(-1)
    entropy = torch.log1p(excess) - moment / (1.0 + excess)
    kept = (entropy <= alpha[:, None] * entropy[:, -1:]) & present
    kept |= alpha[:, None] >= 1.0
    return prefix_support(ordered, ids, kept.sum(-1))


def top_h_transformers_reference(
    logits: Tensor, support: Support, temperature: Tensor, alpha: Tensor
) -> Support:
    """The rule of `TopHLogitsWarper` for a batch on any device; arguments as above."""
    ordered, ids = sorted_tokens(logits, support)
    probs = torch.softmax(ordered[:, :TRANSFORMERS_HEAD] / temperature[:, None], dim=-1)
    surprise = -torch.special.xlogy(probs, probs)
    kept = (surprise.cumsum(-1) <= alpha[:, None] * surprise.sum(-1, keepdim=True)) & (probs > 0)
    kept |= (alpha[:, None] >= 1.0) & (probs > 0)
    return prefix_support(ordered, ids, kept.sum(-1))


def top_h(row: Row, temperature: float, alpha: float) -> tuple[float, int]:
    """Algorithm 1 by search: the threshold of one row."""
    if alpha >= 1.0:
        return row.value, row.index
    bound = alpha * row.stats(temperature).entropy
    crossing = longest_prefix(row, temperature, _entropy, bound)
    if crossing.gap < RECHECKED or bound == 0.0:
        bound = alpha * row.exact_stats(temperature).entropy
        if bound == 0.0:
            # all other masses vanish beside the first, and count as none
            return row.maximum, row.argmax()
        crossing = longest_prefix(row, temperature, _entropy, bound)
    return crossing.value, crossing.id


def top_h_transformers(row: Row, temperature: float, alpha: float) -> tuple[float, int]:
    """The rule of `TopHLogitsWarper`: the threshold of one row."""
    # one token more tells whether the cut splits a tie
    top = row.top(TRANSFORMERS_HEAD + 1)
    weights = np.exp(levels_of(top[:TRANSFORMERS_HEAD], row.maximum, temperature))
    probs = weights / weights.sum()
    surprise = -probs * np.log(np.where(probs > 0, probs, 1.0))
    kept = (np.cumsum(surprise) <= alpha * surprise.sum()) | (alpha >= 1.0)
    return row.threshold(top, max(int(np.count_nonzero(kept & (probs > 0))), 1))


def _entropy(excess: float, moment: float) -> float:
    return math.log1p(excess) - moment / (1.0 + excess)
