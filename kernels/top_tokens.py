"""The most likely tokens of a law, and the law without them: what hybrid drafts are made of.

A   = the m most likely tokens, probability descending, then token id ascending
p'  = the law on the other tokens, renormalised; all zeros where A holds everything
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_tokens(probs: Tensor, count: int) -> Tensor:
    """The `count` most likely tokens of `[rows, vocab]`, or all, in order: int64 `[rows, min(count, vocab)]`.

    Rows with less than `count` tokens of any probability go on with tokens of none.
    """
    rest = probs.clone()
    found = []
    for _ in range(min(count, probs.shape[1])):
        # the first of equal ones, which `topk` does not promise
        token = rest.argmax(1, keepdim=True)
        rest.scatter_(1, token, -1)
        found.append(token)
    return torch.cat(found, dim=1) if found else probs.new_empty(len(probs), 0, dtype=torch.int64)


def without_tokens(probs: Tensor, token_ids: Tensor) -> Tensor:
    """The law `[rows, vocab]` without some tokens `[rows, count]`, renormalised; zeros where nothing is left."""
    rest = probs.scatter(1, token_ids, 0)
    total = rest.sum(1, keepdim=True, dtype=torch.float64)
    return rest.div_(torch.where(total > 0, total, 1.0).to(rest.dtype))


def mass_of(probs: Tensor, token_ids: Tensor, draft_probs: Tensor) -> Tensor:
    """The mass of those of the tokens `[rows, count]` that the draft has: `[rows]` float64."""
    drafted = draft_probs.gather(1, token_ids) > 0
    return probs.gather(1, token_ids).masked_fill(~drafted, 0).sum(1, dtype=torch.float64)
