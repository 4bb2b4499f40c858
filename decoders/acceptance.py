"""alpha*: the most often that any rule can emit one of the drafted tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from warpdraft.kernels.top_tokens import mass_of, top_tokens, without_tokens

from .checks import check_integer, check_tensor

# a law's float32 probabilities may miss 1 by the rounding of their sum
_SUM_TOLERANCE = 1e-3


def optimal_acceptance(
    target_probs: Tensor,
    draft_probs: Tensor,
    num_drafts: int,
    drafts: Literal["iid", "greedy", "hybrid"] = "iid",
    num_top: int = 1,
) -> Tensor:
    """Optimal-transport bound on the acceptance of one node.

    No lossless rule can emit one of the drafted tokens more often than

        alpha* = 1 + min over sets S of tokens of [target(S) - P(all drafted tokens lie in S)]

    (the linear programme of Sun et al., NeurIPS 2023, arXiv 2310.15141, by duality). For n i.i.d. drafts the chance is
    draft(S)^n, and the minimum is at a prefix of the tokens in ascending order of target / draft, so one sort answers
    it (Hu et al., ICLR 2025, arXiv 2502.18779). Exact, in O(vocab log vocab). Hybrid drafts, the m most likely tokens
    A and n - m draws from p', the draft's law without A, give

        alpha* = target(A) + 1 + min over sets S outside A of [target(S) - p'(S)^(n - m)]

    Args:
        target_probs: `[rows, vocab]` float, each row a law.
        draft_probs: `[rows, vocab]` float, each row a law.
        num_drafts: n >= 1, candidates of the node.
        drafts: "iid"; "hybrid", whose m is `num_top`, but n - 1 at most; "greedy", hybrid with m = n - 1.
        num_top: m >= 0 of hybrid drafts.

    Returns:
        `[rows]` float64 in [0, 1].

    Raises:
        ValueError: shapes that differ, a negative or NaN probability, a row that does not sum to 1, `num_drafts` < 1,
            `num_top` < 0, other `drafts`.
        TypeError: something else than a tensor, one that is not floating point, a number that is no int.
    """
    check_tensor("target_probs", target_probs)
    check_tensor("draft_probs", draft_probs)
    if (
        target_probs.shape != draft_probs.shape
        or target_probs.ndim != 2
        or target_probs.shape[1] == 0
    ):
        raise ValueError(
            "target_probs and draft_probs must have one shape [rows, vocab] with vocab >= 1, "
            f"got {list(target_probs.shape)} and {list(draft_probs.shape)}"
        )
    if target_probs.device != draft_probs.device:
        raise ValueError(
            f"target_probs are on {target_probs.device}, draft_probs on {draft_probs.device}"
        )
    check_integer("num_drafts", num_drafts)
    check_integer("num_top", num_top, low=0)
    most_top = {"iid": 0, "greedy": num_drafts - 1, "hybrid": num_top}
    if not isinstance(drafts, str) or drafts not in most_top:
        raise ValueError(f"drafts must be one of {sorted(most_top)}, got {drafts!r}")
    target = _normalised("target_probs", target_probs)
    draft = _normalised("draft_probs", draft_probs)
    top = top_tokens(draft, min(most_top[drafts], num_drafts - 1))
    certain = mass_of(target, top, draft)
    target = target.scatter(1, top, 0)
    if top.shape[1] > 0:
        draft = without_tokens(draft, top)
    # 0 / 0 belongs to no draft and to no target: it may stand anywhere
    order = (target / draft).nan_to_num(0.0, posinf=torch.inf).argsort(dim=1)
    target_below = target.gather(1, order).cumsum(1)
    draft_below = draft.gather(1, order).cumsum(1).clamp_max(1)
    slack = target_below - draft_below ** float(num_drafts - top.shape[1])
    # the empty set gives 0
    drawn = (1 + slack.amin(1)).clamp(0, 1)
    # where the most likely tokens are all that the draft has, nothing else is drafted
    drawn = torch.where(draft.sum(1) > 0, drawn, 0.0)
    return (certain + drawn).clamp_max(1)


def _normalised(name: str, probs: Tensor) -> Tensor:
    """The rows in float64, each divided by its sum; errors for rows that are no laws."""
    if not probs.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {probs.dtype}")
    probs = probs.double()
    below = (~(probs >= 0)).nonzero()
    if len(below) > 0:
        row, token = below[0].tolist()
        raise ValueError(
            f"{name} must hold probabilities >= 0, got {float(probs[row, token])} "
            f"for token {token} of row {row}"
        )
    total = probs.sum(1, keepdim=True)
    wrong = ((total - 1).abs() > _SUM_TOLERANCE).squeeze(1).nonzero()
    if len(wrong) > 0:
        row = int(wrong[0])
        raise ValueError(f"{name} must sum to 1 in each row, got {float(total[row])} in row {row}")
    return probs / total
