r"""Recursive rejection: candidates tried one after the other against what is left of the target.

Miao et al., 2023, arXiv 2305.09781 (SpecInfer), for candidates x_1 .. x_n drawn i.i.d. from the draft law d:

    t_1 = t,  d_1 = d
    accept x_i with probability min(1, t_i(x_i) / d_i(x_i)), i = 1 .. n; the first accepted token is emitted;
    t_{i+1} = norm (t_i - d_i)+,  d_{i+1} = d_i;     if all are rejected, draw from t_{n+1}

and for candidates drawn without replacement (Jeon et al., 2024, arXiv 2402.14160; Chen et al., 2024, arXiv 2402.12374):

    d_{i+1} = norm (d_i without x_i)

A rejected token has t_i < d_i, so t_{i+1} and all later residuals are 0 there: none is ever recovered, and

    acceptance = 1 - E prod_i sum_x (t_i(x) - d_i(x))+
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .top_tokens import without_tokens

# numbers read by the enumeration of rejected candidates: about 10 s on one core
MOST_WORK = 1 << 27
# numbers of a chunk of it: 32 MB each for a handful of intermediates
_AT_ONCE = 1 << 22


def acceptance_ratio(target_probs: Tensor, draft_probs: Tensor, tokens: Tensor) -> Tensor:
    """Probability that one candidate a row is accepted, min(1, t / d).

    Args:
        target_probs: `[rows, width]`, what is left of the target.
        draft_probs: `[rows, width]`, the law that the candidate was drawn from.
        tokens: `[rows]` int64 columns.

    Returns:
        `[rows]` float64 in [0, 1].
    """
    target = target_probs.gather(1, tokens[:, None]).squeeze(1).to(torch.float64)
    draft = draft_probs.gather(1, tokens[:, None]).squeeze(1).to(torch.float64)
    # a candidate of no draft probability is never drawn
    return torch.where(target >= draft, (target > 0).to(torch.float64), target / draft)


def residual_law(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """The target's law after a rejection, norm (t - d)+, `[rows, width]`.

    Where nothing is left (the candidate is accepted with probability 1 up to rounding) the row is the target's law: it
    is reached with probability 0, and any law will do there.
    """
    residual = (target_probs - draft_probs).clamp_min_(0)
    total = residual.sum(1, keepdim=True, dtype=torch.float64)
    share = (1 / total.clamp_min(torch.finfo(residual.dtype).tiny)).to(residual.dtype)
    return torch.where(total > 0, residual * share, target_probs)


def iid_acceptance(target_probs: Tensor, draft_probs: Tensor, num_candidates: int) -> Tensor:
    """Chance that one of n i.i.d. candidates is accepted, `[rows]` float64, for laws `[rows, width]`.

    The published form, 1 - prod_i (1 - sum_x min(t_i, d)), with 1 - sum min written as the residual's mass.
    """
    target, draft = target_probs.double(), draft_probs.double()
    all_rejected = target.new_ones(len(target))
    for _ in range(num_candidates):
        all_rejected = all_rejected * (target - draft).clamp_min(0).sum(1)
        target = residual_law(target, draft)
    return 1 - all_rejected


def distinct_acceptance(target_probs: Tensor, draft_probs: Tensor, num_candidates: int) -> Tensor:
    """Chance that one of n candidates drawn without replacement is accepted.

    Exact: every order in which candidates can be rejected, all but the last, which a sort answers for all at once. With
    fewer than n tokens in the draft's support all of them are candidates.

    Args:
        target_probs: `[rows, width]`, each row a law.
        draft_probs: `[rows, width]`, each row a law.
        num_candidates: n >= 1.

    Returns:
        `[rows]` float64 in [0, 1].

    Raises:
        ValueError: too many orders, s (s - 1) .. (s - n + 3) for a support of s tokens, each of s numbers: n = 3 beyond
            s = 11,584, n = 4 beyond s = 512; n = 2 never.
    """
    rows = zip(target_probs.double(), draft_probs.double(), strict=True)
    chances = [_row_acceptance(target, draft, num_candidates) for target, draft in rows]
    return torch.stack(chances) if chances else target_probs.new_zeros(0).double()


def _row_acceptance(target: Tensor, draft: Tensor, num_candidates: int) -> Tensor:
    """The same for one row `[width]`."""
    support = draft > 0
    likely, size = target[support] / target.sum(), int(support.sum())
    if num_candidates >= size:
        return likely.sum()
    orders = math.perm(size, num_candidates - 2) if num_candidates > 2 else 1
    if orders * size > MOST_WORK:
        raise ValueError(
            f"the acceptance of {num_candidates} candidates drawn without replacement takes {orders} orders of "
            f"{size} tokens, more than {MOST_WORK} numbers: take fewer candidates or a smaller support"
        )
    # a token that is never drafted only waits to be recovered: all of them are one
    target = torch.cat([likely, (1 - likely.sum(0, keepdim=True)).clamp_min(0)])
    draft = torch.cat([draft[support] / draft.sum(), draft.new_zeros(1)])
    return _distinct_acceptance(target[None], draft[None], num_candidates)[0]


def _distinct_acceptance(target: Tensor, draft: Tensor, num_candidates: int) -> Tensor:
    """The same for rows `[rows, width]` of less work, by the first candidate."""
    accepted = torch.minimum(target, draft).sum(1)
    if num_candidates == 1:
        return accepted
    rejected, left = (draft - target).clamp_min(0), residual_law(target, draft)
    if num_candidates == 2:
        return accepted + (rejected * _second_acceptance(left, draft)).sum(1)
    chances = torch.zeros_like(draft)
    rows, tokens = (rejected > 0).nonzero(as_tuple=True)
    width = max(_AT_ONCE // draft.shape[1], 1)
    for some_rows, some_tokens in zip(rows.split(width), tokens.split(width), strict=True):
        remaining = without_tokens(draft[some_rows], some_tokens[:, None])
        chances[some_rows, some_tokens] = _distinct_acceptance(
            left[some_rows], remaining, num_candidates - 1
        )
    return accepted + (rejected * chances).sum(1)


def _second_acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """Chance that the second candidate is accepted, for every first one that can be rejected, `[rows, width]`.

    With s = 1 / (1 - d(x)) it is sum_y min(s d(y), t(y)), where t is 0 at a rejected x: piecewise linear in s, so the
    tokens in ascending order of t / d, summed up from both ends, answer every s.
    """
    order = (target / draft).nan_to_num(torch.inf, posinf=torch.inf).argsort(dim=1)
    target, sorted_draft = target.gather(1, order), draft.gather(1, order)
    zero = target.new_zeros(len(target), 1)
    target_below = torch.cat([zero, target.cumsum(1)], 1)
    draft_above = torch.cat([sorted_draft.flip(1).cumsum(1).flip(1), zero], 1)
    rest = _mass_of_the_others(draft)
    scale = torch.where(rest > 0, 1 / rest, 0.0)
    ratio = torch.where(sorted_draft > 0, target / sorted_draft, torch.inf)
    place = torch.searchsorted(ratio, scale)
    return target_below.gather(1, place) + scale * draft_above.gather(1, place)


def _mass_of_the_others(draft: Tensor) -> Tensor:
    """1 - d(x) for every x, without cancelling where d(x) is nearly 1."""
    largest = draft.argmax(1, keepdim=True)
    others = draft.scatter(1, largest, 0.0).sum(1, keepdim=True)
    return (1 - draft).scatter(1, largest, others)
