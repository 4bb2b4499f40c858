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
import torch
from numpy.typing import NDArray
from torch import Tensor

from .optimal_transport import capped_ratio
from .ranks import mean_over, sums_before

FloatArray = NDArray[np.float64]

# chords between all atoms: 130 KiB a row at this many
_MOST_CHORDS = 128
# their temporaries then stay in the cache: 4 times faster at 1,000 rows of 65 atoms on a CPU
_ROWS_AT_ONCE = 8
# beside the largest; slopes of smaller ones might overflow
_LEAST_RATIO = 1e-150


def lex_selection_ratio(draft_mass: Tensor, target_mass: Tensor, n: Tensor) -> Tensor:
    """The lex-optimal selection law as its ratio to the draft law, p / d.

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
    rise = draft_mass * mean_over(sums_before(draft_mass)[:, :-1], draft_mass, n)
    slopes = slopes_by_chords if rise.shape[1] <= _MOST_CHORDS else slopes_by_merging
    # p does not depend on the scale of g
    ratio = (ratio / ratio[:, -1:]).nan_to_num(0.0)
    width = ratio * draft_mass
    # what the target never wants comes first, and shares its rise as it is drafted
    flat = ratio <= _LEAST_RATIO
    unwanted = (rise * flat).sum(1, keepdim=True) / (draft_mass * flat).sum(1, keepdim=True)
    return torch.where(flat, unwanted, ratio * slopes(rise, width)).nan_to_num(0.0).cummax(1).values


def slopes_by_chords(rise: Tensor, width: Tensor) -> Tensor:
    """Slope of the majorant over every atom: the steepest chord from the start to an end behind it, at the best start.

    Args:
        rise: `[rows, atoms]`, of F over each atom.
        width: `[rows, atoms]`, of G; nothing hangs on the slope where it is 0.
    """
    atoms = rise.shape[1]
    behind = torch.ones(atoms, atoms, dtype=torch.bool, device=rise.device).triu()
    slopes = []
    for some in zip(rise.split(_ROWS_AT_ONCE), width.split(_ROWS_AT_ONCE), strict=True):
        # sums from every start of their own, for the tail's may be too small to be seen in a difference
        rises, widths = ((each[:, None] * behind).cumsum(2) for each in some)
        chord = torch.where(behind, rises / widths, -torch.inf)
        steepest = chord.flip(2).cummax(2).values.flip(2)
        slopes.append(torch.where(behind, steepest, torch.inf).amin(1))
    return torch.cat(slopes)


def slopes_by_merging(rise: Tensor, width: Tensor) -> Tensor:
    """The same for many atoms, row by row on the host: a steeper segment is merged with the one before it."""
    rows = zip(rise.cpu().numpy(), width.cpu().numpy(), strict=True)
    return torch.from_numpy(np.stack([_merged(*row) for row in rows])).to(rise.device)


def _merged(rise: FloatArray, width: FloatArray) -> FloatArray:
    """The slopes of one row."""
    # segments of the majorant so far: first atom, its rise, its width
    firsts: list[int] = []
    segments: list[tuple[float, float]] = []
    for atom, (up, along) in enumerate(zip(rise.tolist(), width.tolist(), strict=True)):
        first = atom
        while segments and up * segments[-1][1] >= segments[-1][0] * along:
            before, first = segments.pop(), firsts.pop()
            up, along = up + before[0], along + before[1]
        firsts.append(first)
        segments.append((up, along))
    ups, alongs = (np.array(column) for column in zip(*segments, strict=True))
    slopes = np.divide(ups, alongs, out=np.zeros_like(ups), where=alongs > 0)
    return np.repeat(slopes, np.diff(firsts, append=len(rise)))
