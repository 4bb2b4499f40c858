"""alpha*: the most often that any rule can emit one of the drafted tokens."""

from __future__ import annotations

import torch
from torch import Tensor

# a law's float32 probabilities may miss 1 by the rounding of their sum
_SUM_TOLERANCE = 1e-3


def optimal_acceptance(target_probs: Tensor, draft_probs: Tensor, num_drafts: int) -> Tensor:
    """Optimal-transport bound on the acceptance of one node with i.i.d. drafts.

    No lossless rule can emit one of `num_drafts` tokens drawn independently from the draft's law more often than

        alpha* = 1 + min over sets S of tokens of [target(S) - draft(S)^n]

    (the linear programme of Sun et al., NeurIPS 2023, arXiv 2310.15141, by duality); the minimum is at a
    prefix of the tokens in ascending order of target / draft, so one sort answers it (Hu et al., ICLR 2025,
    arXiv 2502.18779). Exact, in O(vocab log vocab).

    Args:
        target_probs: `[rows, vocab]` float, each row a law.
        draft_probs: `[rows, vocab]` float, each row a law.
        num_drafts: n >= 1.

    Returns:
        `[rows]` float64 in [0, 1].

    Raises:
        ValueError: shapes that differ, a negative or NaN probability, a row that does not sum to 1, `num_drafts` < 1.
        TypeError: a tensor that is not floating point.
    """
    if target_probs.shape != draft_probs.shape or target_probs.ndim != 2:
        raise ValueError(
            "target_probs and draft_probs must have one shape [rows, vocab], "
            f"got {list(target_probs.shape)} and {list(draft_probs.shape)}"
        )
    if num_drafts < 1:
        raise ValueError(f"num_drafts must be at least 1, got {num_drafts}")
    target = _normalised("target_probs", target_probs)
    draft = _normalised("draft_probs", draft_probs)
    # 0 / 0 belongs to no draft and to no target: it may stand anywhere
    order = (target / draft).nan_to_num(0.0, posinf=torch.inf).argsort(dim=1)
    target_below = target.gather(1, order).cumsum(1)
    draft_below = draft.gather(1, order).cumsum(1).clamp_max(1)
    slack = target_below - draft_below**num_drafts
    # the empty set gives 0
    return 1 + slack.amin(1).clamp(-1, 0)


def _normalised(name: str, probs: Tensor) -> Tensor:
    """The rows in float64, each divided by its sum; errors for rows that are no laws."""
    if not probs.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {probs.dtype}")
    probs = probs.double()
    if not bool((probs >= 0).all()):
        raise ValueError(f"{name} must hold probabilities >= 0, got a negative one or NaN")
    total = probs.sum(1, keepdim=True)
    wrong = ((total - 1).abs() > _SUM_TOLERANCE).squeeze(1).nonzero()
    if len(wrong) > 0:
        row = int(wrong[0])
        raise ValueError(f"{name} must sum to 1 in each row, got {float(total[row])} in row {row}")
    return probs / total
