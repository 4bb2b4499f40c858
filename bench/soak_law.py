"""Drawn tokens against the sum of their laws, where every token has a law of its own.

Token t of a sequence is drawn from p_t, which depends on what was drawn before it. Then z = sum_t (e(x_t) - p_t) is a
martingale, sum_t (diag(p_t) - p_t p_t') its predictable variation S, and z' S^+ z is chi-square with rank(S) degrees
of freedom for many tokens (Hall and Heyde, Martingale Limit Theory, 1980, Theorem 3.2): also where rows stop at
tokens that were drawn, because stopping looks at the past alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

LEAST_EXPECTED = 5.0
"""A token that is expected more rarely is counted together with the others that are, as in Cochran's rule."""


class Tally:
    """Counts of tokens, and what their laws say of the counts."""

    def __init__(self) -> None:
        self._excess: Tensor | None = None
        self._expected: Tensor | None = None
        self._variation: Tensor | None = None

    def add(self, tokens: Tensor, laws: Tensor) -> None:
        """Count tokens `[n]` int64 that were drawn from laws `[n, vocab]` float64."""
        vocab = laws.shape[1]
        expected = laws.sum(0)
        excess = torch.bincount(tokens, minlength=vocab).double() - expected
        variation = torch.diag(expected) - laws.T @ laws
        if self._excess is None or self._expected is None or self._variation is None:
            self._excess, self._expected, self._variation = excess, expected, variation
            return
        self._excess += excess
        self._expected += expected
        self._variation += variation

    def p_value(self) -> float | None:
        """Chance of counts as far from their laws; None where fewer than two cells have tokens enough."""
        if self._excess is None or self._expected is None or self._variation is None:
            return None
        cells = _cells(self._expected.numpy())
        if len(cells) < 2:
            return None
        excess = cells @ self._excess.numpy()
        variation = cells @ self._variation.numpy() @ cells.T
        rank = int(np.linalg.matrix_rank(variation, hermitian=True, rtol=1e-9))
        statistic = excess @ np.linalg.pinv(variation, hermitian=True, rcond=1e-9) @ excess
        return float(stats.chi2.sf(statistic, rank)) if rank else None


def _cells(expected: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0 and 1 `[cells, vocab]`: the tokens that are expected often, and the others as one where they are."""
    often = expected >= LEAST_EXPECTED
    cells = np.eye(len(expected))[often]
    if expected[~often].sum() >= LEAST_EXPECTED:
        cells = np.vstack([cells, (~often).astype(float)])
    return cells
