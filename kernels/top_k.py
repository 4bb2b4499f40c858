"""top-k: the first k tokens.

    keep the first top_k tokens of the order (logit descending, token id ascending)

Fan et al., arXiv 1805.04833. `ties="all"` keeps every token that equals the k-th, as transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .row_stats import Row
from .support import Support, prefix_support, sorted_tokens


def top_k_reference(logits: Tensor, support: Support, top_k: Tensor) -> Support:
    """The definition by sorting, for a batch on any device.

    Args:
        logits: `[batch, vocab]`.
        support: the support so far.
        top_k: `[batch]`, at least 1.
    """
    ordered, ids = sorted_tokens(logits, support)
    places = torch.arange(logits.shape[-1], device=logits.device)
    return prefix_support(ordered, ids, (places < top_k[:, None]).sum(-1))


def top_k(row: Row, top_k: int) -> tuple[float, int]:
    """The threshold of one row: a selection, not a sort."""
    if top_k >= row.vocab:
        return row.value, row.index
    top = row.top(top_k)
    return row.threshold(top, len(top)) if len(top) == top_k else (row.value, row.index)
