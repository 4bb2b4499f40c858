r"""k-SEQ, SpecTr's selection of one of n i.i.d. draft tokens (Sun et al., NeurIPS 2023, arXiv 2310.15141, Algorithm 2).

For one node with target law t, draft law d and candidates x_1 .. x_n drawn i.i.d. from d:

    beta(rho)  = sum_x min(d(x), t(x) / rho)                     the chance that one candidate is accepted
    p_acc(rho) = 1 - (1 - beta(rho))^n                           the chance that some candidate is
    rho*       = the root of p_acc(rho) = rho beta(rho) in [1, n]
    accept x_i with probability min(1, t(x_i) / (rho d(x_i))), i = 1 .. n; the first accepted token is emitted;
    if all are rejected, draw from   residual(x) ~ t(x) - min(d(x), t(x) / rho) p_acc / beta.

Every rho in [rho*, n] gives a valid plan, below rho* the residual turns negative: the solver returns the upper end
of its bracket, with beta and p_acc of that very rho, so losslessness never rests on the precision of the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# p_acc falls and rho beta grows with rho, so an excess f(rho) in [-tolerance, 0] proves that the acceptance is within
# the tolerance of the exact root's; a float32 row cannot resolve less than the roundings of rho and of the product
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2.5e-7}
# the step beyond the local root, relative, that lands it on the valid side
_NUDGE = {torch.float64: 1e-14, torch.float32: 1e-8}
# p_acc and rho beta, both at most 1, round by this much: a smaller excess is no excess, and turns no residual below it.
# Without it laws that agree almost everywhere, where f is flat at the root, would never pass for solved
_ROUNDING = 1e-15
# elements of an intermediate, which then stays in the cache: larger ones are fresh pages each time
_AT_ONCE = 1 << 16
# the root is found in 3 to 22 reads of the rows (measured, n <= 1000, laws that hardly differ or hardly overlap
# included); the bound only guards against a stall
_MOST_READS = 64


@dataclass(frozen=True, slots=True)
class KSeqPlan:
    """One k-SEQ plan a row: all that accepting, the residual and the closed law need.

    Attributes:
        rho: `[rows]` float64, the upper bracket end, in [1, n].
        beta: `[rows]` float64, the chance that one candidate is accepted at this rho.
        acceptance: `[rows]` float64, p_acc: the chance that one of the n candidates is accepted.
    """

    rho: Tensor
    beta: Tensor
    acceptance: Tensor


def k_seq_plan(target_probs: Tensor, draft_probs: Tensor, num_candidates: Tensor) -> KSeqPlan:
    """Solve for rho, row by row.

    Args:
        target_probs: `[rows, vocab]` float32 or float64, each row sums to 1.
        draft_probs: `[rows, vocab]`, the law that the candidates were drawn from.
        num_candidates: `[rows]` int64, n >= 1.
    """
    count = num_candidates.to(torch.float64)
    tolerance, nudge = _TOLERANCE[target_probs.dtype], _NUDGE[target_probs.dtype]
    low, high = torch.ones_like(count), count
    split = _split(low, target_probs, draft_probs)
    plan = _plan(low, split, count)
    # one candidate, or laws so close that rho = 1 is already valid
    solved = (num_candidates == 1) | (_excess(plan) <= _ROUNDING)
    if bool(solved.all()):
        return plan
    plan = _where(solved, plan, _plan(high, _split(high, target_probs, draft_probs), count))
    for _ in range(_MOST_READS):
        rho = torch.minimum(_local_root(low, high, split, count) * (1 + nudge), high)
        split = _split(rho, target_probs, draft_probs)
        trial = _plan(rho, split, count)
        above = _excess(trial) <= _ROUNDING
        plan = _where(~solved & above, trial, plan)
        high, low = torch.where(above, rho, high), torch.where(above, low, rho)
        solved = solved | (_excess(plan) >= -tolerance)
        if bool(solved.all()):
            break
    return plan


def k_seq_plan_reference(
    target_probs: Tensor, draft_probs: Tensor, num_candidates: Tensor
) -> KSeqPlan:
    """The same plan by plain bisection, as the paper states it: 60 halvings of [1, n]."""
    count = num_candidates.to(torch.float64)
    low, high = torch.ones_like(count), count
    for _ in range(60):
        middle = (low + high) / 2
        above = _excess(_plan(middle, _split(middle, target_probs, draft_probs), count)) <= 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return _plan(high, _split(high, target_probs, draft_probs), count)


def acceptance_ratio(
    plan: KSeqPlan, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor
) -> Tensor:
    """Probability that each candidate is accepted when its turn comes: min(1, t / (rho d)).

    Args:
        plan: the rows' plan.
        target_probs: `[rows, vocab]`.
        draft_probs: `[rows, vocab]`.
        candidates: `[rows, n]` int64 token ids.

    Returns:
        `[rows, n]` float64 in [0, 1].
    """
    target = target_probs.gather(1, candidates).to(torch.float64)
    draft = draft_probs.gather(1, candidates).to(torch.float64) * plan.rho[:, None]
    # the product form: no division, and a candidate of no draft probability (never drawn) is accepted iff t > 0
    return torch.where(target >= draft, (target > 0).to(torch.float64), target / draft)


def residual_mass(plan: KSeqPlan, target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """Unnormalised law of the recovered token, `[rows, vocab]` in the laws' dtype.

    Where nothing is left (all candidates are accepted with probability 1 up to rounding) the row is the target
    law: it is reached with probability 0, and any law will do there.
    """
    share = (plan.acceptance / plan.beta.clamp_min(torch.finfo(torch.float64).tiny))[:, None]
    rho = plan.rho[:, None].to(target_probs.dtype)
    taken = torch.minimum(draft_probs, target_probs / rho) * share.to(target_probs.dtype)
    residual = (target_probs - taken).clamp_min_(0)
    exhausted = residual.sum(-1, keepdim=True) <= 0
    return torch.where(exhausted, target_probs, residual)


def _split(rho: Tensor, target_probs: Tensor, draft_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Draft mass A of {t > rho d} and target mass B of the rest: one read of both rows, beta = A + B / rho."""
    draft_mass, both = torch.zeros_like(rho), torch.zeros_like(rho)
    scale = rho[:, None].to(draft_probs.dtype)
    width = max(_AT_ONCE // max(len(rho), 1), 1)
    for target, draft in zip(
        target_probs.split(width, dim=1), draft_probs.split(width, dim=1), strict=True
    ):
        scaled = draft * scale
        # products and minima, because a `where` takes five times as long as either on a CPU
        draft_mass += (draft * (target > scaled)).sum(-1, dtype=torch.float64)
        both += torch.minimum(scaled, target).sum(-1, dtype=torch.float64)
    return draft_mass, (both - rho * draft_mass).clamp_min(0)


def _plan(rho: Tensor, split: tuple[Tensor, Tensor], count: Tensor) -> KSeqPlan:
    """beta and p_acc at rho for the given split."""
    draft_mass, target_mass = split
    beta = (draft_mass + target_mass / rho).clamp(0, 1)
    # log1p keeps 1 - (1 - beta)^n exact where beta is tiny
    return KSeqPlan(rho, beta, -torch.expm1(count * torch.log1p(-beta)))


def _excess(plan: KSeqPlan) -> Tensor:
    """f(rho) = p_acc - rho beta: positive below rho*, negative above."""
    return plan.acceptance - plan.rho * plan.beta


def _local_root(low: Tensor, high: Tensor, split: tuple[Tensor, Tensor], count: Tensor) -> Tensor:
    """Root of f with the split of the tokens frozen, for each row.

    beta(rho) = A + B / rho holds as long as no token changes sides, so the scalar root is the answer once the right
    sides are found: a Newton step that lands. A root outside the bracket tells that they were wrong: halve instead.
    """
    rows = zip(*(column.tolist() for column in (low, high, *split, count)), strict=True)
    return torch.tensor([_scalar_root(*row) for row in rows], dtype=low.dtype, device=low.device)


def _scalar_root(
    low: float, high: float, draft_mass: float, target_mass: float, count: float
) -> float:
    """Newton's method on f(s) = 1 - (1 - A - B / s)^n - s A - B, kept inside [low, high]."""
    left, right, root = low, high, (low + high) / 2
    # a handful of steps suffice; python floats, because a row costs 5 us here and 1 ms in one-element tensor operations
    for _ in range(60):
        beta = min(draft_mass + target_mass / root, 1.0)
        # log1p as in _plan: a cancelled digit here would stall the reads just below the root where beta is tiny
        acceptance = -math.expm1(count * math.log1p(-beta)) if beta < 1 else 1.0
        excess = acceptance - root * draft_mass - target_mass
        left, right = (root, right) if excess > 0 else (left, root)
        slope = count * (1 - beta) ** (count - 1) * target_mass / root**2 + draft_mass
        step = root + excess / slope if slope > 0 else right
        step = step if left < step < right else (left + right) / 2
        if abs(step - root) <= 1e-15 * root:
            break
        root = step
    return root if low < root < high else (low + high) / 2


def _where(condition: Tensor, one: KSeqPlan, other: KSeqPlan) -> KSeqPlan:
    return KSeqPlan(
        torch.where(condition, one.rho, other.rho),
        torch.where(condition, one.beta, other.beta),
        torch.where(condition, one.acceptance, other.acceptance),
    )
