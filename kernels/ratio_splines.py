r"""Verification from one number a knot: functions of the target-to-draft ratio that are linear between fixed knots.

For one node with target law t, draft law d and r = t / d, on knots 0 = rho_0 < rho_1 < .. < rho_J that are the same for
every node, number of candidates n and weight w:

    C_j       = sum_x min(rho_j d(x), t(x))                                                          ratio_sums
    m_j       = sum_x d(x) hat_j(r(x)) = slope of C before rho_j - slope of C behind it              knot_masses
    sum_x d(x) psi(r(x)) = sum_j m_j psi(rho_j)       exactly, for every spline psi, constant above the last knot

Between two knots a token behaves like the upper one with probability (r - rho_j) / (rho_(j+1) - rho_j), else like the
lower one. A verifier accepts a part d psi(r) of w t, psi(r) <= w r, and recovers from the rest, whose sum is R:

    w t - d psi(r) = d spline(w rho_j - psi_j)(r) + w d (r - rho_J)+,    w t where d = 0;    R = w - sum_j m_j psi_j

Here psi is a spline as well, so that the laws are read once, before n and w are known, to sum C; what else is needed of
them are the ratios of the candidates, and those of all tokens at the one node where a token is recovered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .optimal import SELECTORS, Selector
from .ranks import Exchange, exchange
from .ratio_grid import chunks

NUM_KNOTS = 32
"""A warp's worth: one number a lane."""

# knots below 1 and, in numbers of candidates, the last knot. k-SEQ's functions have no bend below 1. No rule accepts
# more than n of a token's draft probability, so w r matters up to n, and r up to n / w
_PLACEMENT: dict[str, tuple[int, int]] = {
    "k_seq": (1, 1),
    "optimal": (8, 1),
    "optimal_block": (8, 4),
}
# as in k_seq.py: p_acc and rho beta round by this much, and a smaller excess is no excess
_ROUNDING = 1e-15
# halvings of the chord: far finer than what its own bend costs
_HALVINGS = 32


@dataclass(frozen=True, slots=True)
class KSeqSpline:
    """k-SEQ with the mean of its acceptance functions at two neighbouring knots, a row each.

    Attributes:
        ratio: `[rows, knots]` float64: the chance that a candidate on the knot is accepted when its turn comes.
        beta: `[rows]` float64, the chance that one candidate is accepted.
        acceptance: `[rows]` float64, p_acc: the chance that one of the n candidates is accepted.
        accepted: `[rows, knots]` float64, psi: the accepted part over the draft.
    """

    ratio: Tensor
    beta: Tensor
    acceptance: Tensor
    accepted: Tensor


@dataclass(frozen=True, slots=True)
class SelectionSpline:
    """The optimal selection of one candidate and the part of it that is accepted, a row each.

    Attributes:
        ranks: of the knots; its `phi` is the selection law over the draft's, a spline as well.
        accepted: `[rows, knots]` float64, psi = min(phi, w rho).
        rest: `[rows]` float64, the mass that is left to recover from: w - the chance to accept.
    """

    ranks: Exchange
    accepted: Tensor
    rest: Tensor


def knots(num_drafts: int, num_knots: int = NUM_KNOTS, verifier: str = "optimal_block") -> Tensor:
    """The knots of "k_seq", "optimal" or "optimal_block" for up to that many candidates, `[num_knots]` float64.

    They ascend from 0, evenly up to 1, and from there on at equal steps of the logarithm.
    """
    below, reach = _PLACEMENT[verifier]
    low = torch.arange(below, dtype=torch.float64) / below
    high = torch.linspace(0, 1, num_knots - below, dtype=torch.float64)
    return torch.cat([low, max(reach * num_drafts, 2) ** high])


def ratio_sums(target_probs: Tensor, draft_probs: Tensor, knots: Tensor) -> Tensor:
    """C at every knot, `[rows, knots]` float64.

    Args:
        target_probs: `[rows, vocab]`.
        draft_probs: `[rows, vocab]`.
        knots: `[knots]` float64.
    """
    sums = torch.zeros(len(target_probs), len(knots), dtype=torch.float64, device=knots.device)
    for columns in chunks(target_probs):
        target, draft = target_probs[:, columns].double(), draft_probs[:, columns].double()
        for knot, ratio in enumerate(knots):
            sums[:, knot] += torch.minimum(draft * ratio, target).sum(1)
    return sums


def knot_masses(sums: Tensor, knots: Tensor) -> Tensor:
    """Draft mass of every knot, `[rows, knots]` float64, >= 0: differences of the slopes of C, which is concave."""
    slope = sums.diff(dim=1) / knots.diff()
    before = torch.cat([torch.ones_like(slope[:, :1]), slope], 1)
    behind = torch.cat([slope, torch.zeros_like(slope[:, :1])], 1)
    return (before - behind).clamp_min(0)


def k_seq_spline(sums: Tensor, knots: Tensor, num_candidates: Tensor) -> KSeqSpline:
    """k-SEQ at the smallest valid mean of two neighbouring knots.

    The acceptance ratio is a(r) = (1 - s) min(1, r / rho_j) + s min(1, r / rho_(j+1)), the chord of min(1, r / rho) for
    1 / rho = (1 - s) / rho_j + s / rho_(j+1). a(r) <= r / rho, so the plan is valid where p_acc <= rho beta; that is a
    mean of C_j and C_(j+1), and grows with s while beta falls.

    Args:
        sums: `[rows, knots]` float64, C.
        knots: `[knots]` float64, the last one >= n.
        num_candidates: `[rows]` int64, n >= 1.
    """
    count = num_candidates.to(torch.float64)[:, None]
    inverse = 1 / knots.clamp_min(torch.finfo(torch.float64).tiny)
    # knots below 1 are never needed; the first valid one from there on, and the one before it
    valid = (_excess(sums * inverse, inverse, count) <= _ROUNDING) & (knots >= 1)
    upper = valid.to(torch.int8).argmax(1, keepdim=True)
    lower = torch.where(knots[upper] > 1, upper - 1, upper)
    beta_lower, beta_upper = ((sums * inverse).gather(1, knot) for knot in (lower, upper))
    inverse_lower, inverse_upper = inverse[lower], inverse[upper]
    low, high = torch.zeros_like(count), torch.ones_like(count)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beta = torch.lerp(beta_lower, beta_upper, middle)
        excess = _excess(beta, torch.lerp(inverse_lower, inverse_upper, middle), count)
        high, low = (
            torch.where(excess <= _ROUNDING, middle, high),
            torch.where(excess <= _ROUNDING, low, middle),
        )
    beta = torch.lerp(beta_lower, beta_upper, high)
    acceptance = _accepts(beta, count)
    ratio = torch.lerp(
        (knots * inverse_lower).clamp_max(1), (knots * inverse_upper).clamp_max(1), high
    )
    share = acceptance / beta.clamp_min(torch.finfo(torch.float64).tiny)
    accepted = torch.minimum(ratio * share, knots)
    return KSeqSpline(ratio, beta.squeeze(1), acceptance.squeeze(1), accepted)


def selection_spline(
    mass: Tensor, knots: Tensor, weight: Tensor, num_candidates: Tensor, selector: Selector
) -> SelectionSpline:
    """The optimal selection for the target measure w t.

    psi is a chord of min(phi(r), w r), which is concave between two knots, so it stays below.

    Args:
        mass: `[rows, knots]` float64, m.
        knots: `[knots]` float64.
        weight: `[rows]` float64 in [0, 1], w.
        num_candidates: `[rows]` int64, n >= 1.
        selector: which of the optimal laws.
    """
    wanted = weight[:, None] * knots
    phi = SELECTORS[selector](mass, wanted * mass, num_candidates)
    ranks = exchange(mass, phi, num_candidates)
    accepted = torch.minimum(ranks.phi, wanted)
    return SelectionSpline(ranks, accepted, weight - (mass * accepted).sum(1))


def place(ratio: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """The knot below ratios `[rows, n]`, int64 in [0, knots - 2], and the share of the knot above it, in [0, 1]."""
    lower = torch.searchsorted(knots[1:-1], ratio, right=True)
    return lower, ((ratio - knots[lower]) / (knots[lower + 1] - knots[lower])).clamp_max_(1)


def evaluate(spline: Tensor, knots: Tensor, ratio: Tensor) -> Tensor:
    """A spline of values `[rows, knots]` at ratios `[rows, n]`; constant above the last knot."""
    lower, share = place(ratio, knots)
    return torch.lerp(spline.gather(1, lower), spline.gather(1, lower + 1), share)


def residual_mass(
    target_probs: Tensor, draft_probs: Tensor, weight: Tensor, accepted: Tensor, knots: Tensor
) -> Tensor:
    """w t - d psi(r), `[rows, vocab]` float64: sums of terms that are not negative, 0 where all is accepted.

    Args:
        target_probs: `[rows, vocab]`.
        draft_probs: `[rows, vocab]`.
        weight: `[rows]` float64, w; 1 for k-SEQ.
        accepted: `[rows, knots]` float64, psi <= w rho.
        knots: `[knots]` float64.
    """
    target, draft, weight = target_probs.double(), draft_probs.double(), weight[:, None]
    ratio = torch.where(draft > 0, target / draft, 0.0)
    left = evaluate((weight * knots - accepted).clamp_min(0), knots, ratio)
    beyond = (target - draft * knots[-1]).clamp_min(0)
    return torch.where(draft > 0, draft * left + weight * beyond, weight * target)


def _accepts(beta: Tensor, count: Tensor) -> Tensor:
    """p_acc = 1 - (1 - beta)^n; log1p keeps it exact where beta is tiny."""
    return -torch.expm1(count * torch.log1p(-beta.clamp_max(1)))


def _excess(beta: Tensor, inverse: Tensor, count: Tensor) -> Tensor:
    """p_acc - rho beta."""
    return _accepts(beta, count) - beta / inverse
