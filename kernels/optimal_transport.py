r"""The optimal selection law of n i.i.d. drafts: optimal transport between their tuples and the target, in closed form.

For a node with draft law d, target measure g = w t (t the target law, w in [0, 1]) and tokens, or any *atoms* that
tokens are gathered in, sorted by g / d ascending, with D_j and G_j the sums of the first j masses:

    every rule that selects one of the n drafts has a law p with   p(S) >= d(S)^n   for every set S,
    and every such law belongs to some rule; the best of them accepts
        alpha* = max_p sum_x min(p(x), g(x)) = 1 + min_S [g(S) - d(S)^n] = 1 + min_j [G_j - D_j^n]
    cut     s = argmin_j G_j - D_j^n                 the minimum cut is a prefix: g/d below it, above it
    low     sum over j <  s of max(g_j, c_lo d_j) = D_s^n            too rarely wanted: raised
    high    sum over j >= s of min(g_j, c_hi d_j) = 1 - D_s^n        wanted too often: capped
    p     = clip(g, c_lo d, c_hi d)                  reaches alpha*, and p / d is ascending as well

alpha* is the optimum of the linear programme of Sun et al. (NeurIPS 2023, arXiv 2310.15141) for i.i.d. drafts; the
prefix form is the subset selection of Hu et al. (ICLR 2025, arXiv 2502.18779).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .ranks import mean_over, sums_before

# products and quotients of larger masses are normal numbers; what is lighter costs as much acceptance
_LEAST_MASS = 1e-100


def selection_ratio(draft_mass: Tensor, target_mass: Tensor, n: Tensor) -> Tensor:
    """The optimal selection law as its ratio to the draft law, p / d.

    Args:
        draft_mass: `[rows, atoms]` float64, >= 0, a row sums to 1.
        target_mass: `[rows, atoms]`, >= 0, a row sums to at most 1; `target_mass / draft_mass` ascending over the atoms
            that have a draft mass.
        n: `[rows]` int64, the number of drafts, >= 1.

    Returns:
        `[rows, atoms]` ascending, `sum(draft_mass * ratio) = 1` up to rounding.
    """
    n = n[:, None]
    ratio = capped_ratio(draft_mass, target_mass, n)
    target_mass = ratio * draft_mass
    # sums from either end, for a tail may be too small to be seen in what is left of the other's
    below, above = sums_before(draft_mass), _sums_after(draft_mass)
    level = below.clamp_max(1) ** n
    cut = (sums_before(target_mass) - level).argmin(1, keepdim=True)
    is_low = torch.arange(draft_mass.shape[1], device=cut.device) < cut
    low = _raise_to(level.gather(1, cut), ratio, below, _sums_after(target_mass * is_low), is_low)
    above_cut = above.gather(1, cut)
    high = _cap_to(
        above_cut * mean_over(below.gather(1, cut), above_cut, n),
        ratio,
        above,
        sums_before(target_mass * ~is_low),
        ~is_low,
    )
    # an atom too light to be seen in the sums may stand on the wrong side of the cut: both bounds for all
    return torch.maximum(torch.minimum(ratio, high), low)


def capped_ratio(draft_mass: Tensor, target_mass: Tensor, n: Tensor) -> Tensor:
    """Ratios g / d, ascending, at most n: no rule selects a token more often than n d.

    An atom (almost) without draft mass has the ratio of the one before it.
    """
    ratio = torch.minimum(target_mass, n * draft_mass) / draft_mass
    return torch.where(draft_mass > _LEAST_MASS, ratio, 0.0).cummax(1).values


def _raise_to(total: Tensor, ratio: Tensor, below: Tensor, rest: Tensor, is_low: Tensor) -> Tensor:
    """The c with `sum max(g, c d) = total`: the first i atoms are raised, `rest` behind them keeps its own."""
    # the sum where c equals each atom's ratio is ascending: no search, no iteration
    reached = ratio * below[:, :-1] + rest[:, :-1]
    raised = (is_low & (reached <= total)).sum(1, keepdim=True).clamp_min(1)
    smallest = ratio.gather(1, raised - 1)
    next_ratio = torch.where(is_low, ratio, torch.inf)
    largest = pad(next_ratio, (0, 1), value=torch.inf).gather(1, raised)
    level = ((total - rest.gather(1, raised)) / below.gather(1, raised)).nan_to_num(0.0)
    return torch.minimum(torch.maximum(level, smallest), largest)


def _cap_to(total: Tensor, ratio: Tensor, above: Tensor, kept: Tensor, is_high: Tensor) -> Tensor:
    """The c with `sum min(g, c d) = total`: the atoms from the i-th on are capped, `kept` before them keeps its own."""
    reached = kept[:, :-1] + ratio * above[:, :-1]
    # no atom is capped where all of them together do not reach the total
    first = (~is_high | (reached <= total)).sum(1, keepdim=True)
    smallest = pad(torch.where(is_high, ratio, 0.0), (1, 0)).gather(1, first)
    largest = pad(ratio, (0, 1), value=torch.inf).gather(1, first)
    level = ((total - kept.gather(1, first)) / above.gather(1, first)).nan_to_num(0.0)
    level = torch.minimum(torch.maximum(level, smallest), largest)
    return level.masked_fill(first == ratio.shape[1], torch.inf)


def _sums_after(mass: Tensor) -> Tensor:
    """`[rows, atoms + 1]`: the mass of all atoms, of all but the first, .. of none."""
    return sums_before(mass.flip(1)).flip(1)
