r"""The lex-optimal selection law of n i.i.d. drafts: the weights of all selected tokens as equal as they can be.

As in optimal_transport.py, atoms sorted by g / d ascending, D_j and G_j the sums of the first j masses, F_j = D_j^n:

    majorant  = the least concave function with    majorant(G_j) >= F_j    for every j
    p         = g * slope of the majorant          (where g = 0: d * rise of F / rise of D)

p belongs to a selection rule, for p(S) >= d(S)^n, and p / d is ascending. Among all such laws it maximises
sum_x p(x) J(g(x) / p(x)) for every concave J at once (the lexicographically optimal base of the polytope: Fujishige,
Math. Oper. Res. 1980). J = min(1, .) shows that it accepts as often as the clip, alpha*; the tokens that block
verification then yields grow concavely with the weight min(1, g / p), so spreading it evenly is the better use of what
the clip leaves open.
"""

from __future__ import annotations

import numpy as np

from .optimal_transport import FloatArray, sums_before
from .ranks import mean_over


def lex_selection_ratio(draft_mass: FloatArray, target_mass: FloatArray, n: int) -> FloatArray:
    """The lex-optimal selection law as its ratio to the draft law, p / d.

    Args:
        draft_mass: `[atoms]`, every mass > 0, sums to 1.
        target_mass: `[atoms]`, >= 0, sums to at most 1; `target_mass / draft_mass` ascending.
        n: the number of drafts, >= 1.

    Returns:
        `[atoms]` ascending, `sum(draft_mass * ratio) = 1` up to rounding.
    """
    # p <= n d whatever the rule: beyond it ratios make no difference, and infinite ones would
    ratio = np.maximum.accumulate(np.minimum(target_mass, n * draft_mass) / draft_mass)
    below = np.minimum(sums_before(draft_mass), 1.0)
    rises = draft_mass * mean_over(below[:-1], below[1:], n)
    # segments of the majorant so far: first atom, its rise, its width
    firsts: list[int] = []
    segments: list[tuple[float, float]] = []
    for atom, (rise, width) in enumerate(
        zip(rises.tolist(), (ratio * draft_mass).tolist(), strict=True)
    ):
        first = atom
        # slopes fall from segment to segment: a steeper one is merged with the one before it
        while segments and rise * segments[-1][1] >= segments[-1][0] * width:
            before, first = segments.pop(), firsts.pop()
            rise, width = rise + before[0], width + before[1]
        firsts.append(first)
        segments.append((rise, width))
    sizes = np.diff(firsts, append=len(ratio))
    rise, width = (np.repeat(column, sizes) for column in zip(*segments, strict=True))
    drafted = np.repeat(np.add.reduceat(draft_mass, firsts), sizes)
    flat = width == 0
    slope = rise / np.where(flat, drafted, width)
    return np.maximum.accumulate(np.where(flat, 1.0, ratio) * slope)
