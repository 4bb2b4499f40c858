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

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def selection_ratio(draft_mass: FloatArray, target_mass: FloatArray, n: int) -> FloatArray:
    """The optimal selection law as its ratio to the draft law, p / d.

    Args:
        draft_mass: `[atoms]`, every mass > 0, sums to 1.
        target_mass: `[atoms]`, >= 0, sums to at most 1; `target_mass / draft_mass` ascending.
        n: the number of drafts, >= 1.

    Returns:
        `[atoms]` ascending, `sum(draft_mass * ratio) = 1` up to rounding.
    """
    # c_hi <= n: beyond it ratios make no difference, and infinite ones would
    ratio = np.maximum.accumulate(np.minimum(target_mass, 2 * n * draft_mass) / draft_mass)
    below = sums_before(draft_mass)
    target_below = sums_before(target_mass)
    level = np.minimum(below, 1.0) ** n
    cut = int(np.argmin(target_below - level))
    low = _raise_to(
        level[cut], ratio[:cut], below[: cut + 1], target_below[cut] - target_below[: cut + 1]
    )
    # sums from the far end, for the tail may be too small to be seen in 1 - below
    above = sums_before(draft_mass[::-1])[::-1]
    high = _cap_to(
        1.0 - level[cut], ratio[cut:], above[cut:], target_below[cut:] - target_below[cut]
    )
    clipped = np.concatenate((np.maximum(ratio[:cut], low), np.minimum(ratio[cut:], high)))
    # an atom too light to be seen in the sums may fall on the wrong side of the cut
    return np.maximum.accumulate(clipped)


def _raise_to(total: float, ratio: FloatArray, below: FloatArray, rest: FloatArray) -> float:
    """The c with `sum max(g, c d) = total`: the atoms before i are raised, `rest[i]` keeps its own."""
    if len(ratio) == 0:
        return 0.0
    # the sum where c equals each atom's ratio is ascending: no search, no iteration
    reached = ratio * below[:-1] + rest[:-1]
    raised = max(int(np.searchsorted(reached, total, side="right")), 1)
    smallest = float(ratio[raised - 1])
    largest = float(ratio[raised]) if raised < len(ratio) else np.inf
    return min(max(float((total - rest[raised]) / below[raised]), smallest), largest)


def _cap_to(total: float, ratio: FloatArray, above: FloatArray, kept: FloatArray) -> float:
    """The c with `sum min(g, c d) = total`: the atoms from i on are capped, `kept[i]` keeps its own."""
    reached = kept[:-1] + ratio * above[:-1]
    first = int(np.searchsorted(reached, total))
    if first == len(ratio):
        return np.inf
    smallest = float(ratio[first - 1]) if first > 0 else 0.0
    return min(max(float((total - kept[first]) / above[first]), smallest), float(ratio[first]))


def sums_before(mass: FloatArray) -> FloatArray:
    """`[atoms + 1]`: the mass of the first 0, 1, .. atoms."""
    return np.concatenate((np.zeros(1), np.cumsum(mass)))
