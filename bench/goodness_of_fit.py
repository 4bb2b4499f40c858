"""The chi-square tests of the certificate, their p-values and their power.

Pearson's statistic X of N draws from a law of cells p_1 .. p_m has exactly

    mean      m - 1
    variance  2 (m - 1) + (sum 1 / p_i - m^2 - 2 m + 2) / N

whatever the expected counts are. The p-value is that of the gamma law with these two moments, which for few large cells
is the chi-square law, and which keeps the false-alarm rate where cells are many and small. Statistics of independent
samples add up, and so do their moments.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEAST_EXPECTED = 5.0
"""Cells in which fewer are expected are pooled."""

DETECTED = 0.95
"""How likely the stated smallest deviation is found."""


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """A statistic, or the sum of several independent ones.

    Attributes:
        statistic: X.
        mean: of X if the law is the expected one.
        variance: of X then.
        samples: N, over all of them.
        impossible: draws of probability 0.
    """

    statistic: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    samples: int = 0
    impossible: int = 0

    def __add__(self, other: ChiSquare) -> ChiSquare:
        return ChiSquare(
            self.statistic + other.statistic,
            self.mean + other.mean,
            self.variance + other.variance,
            self.samples + other.samples,
            self.impossible + other.impossible,
        )

    @property
    def degrees(self) -> int:
        """Of freedom."""
        return round(self.mean)

    @property
    def p_value(self) -> float:
        """Chance of a statistic at least as large; 0 where something impossible was drawn."""
        if self.impossible > 0:
            return 0.0
        if self.mean == 0:
            return 1.0
        scale = self.variance / self.mean
        return float(stats.gamma.sf(self.statistic, self.mean / scale, scale=scale))


def one_sample(counts: Sequence[float], probs: Sequence[float]) -> ChiSquare:
    """Counts against a law over the same cells; small cells are pooled, the smallest first."""
    observed, expected = np.asarray(counts, float), np.asarray(probs, float)
    impossible = int(observed[expected == 0].sum())
    samples = int(observed.sum())
    observed, law = observed[expected > 0], expected[expected > 0] / expected.sum()
    large = law * samples >= LEAST_EXPECTED
    if not large.all():
        rest_law, rest = law[~large].sum(), observed[~large].sum()
        observed, law = observed[large], law[large]
        if rest_law * samples < LEAST_EXPECTED and len(law) > 0:
            smallest = int(law.argmin())
            law[smallest] += rest_law
            observed[smallest] += rest
        else:
            law, observed = np.append(law, rest_law), np.append(observed, rest)
    cells = len(law)
    if cells < 2 or samples == 0:
        return ChiSquare(samples=samples, impossible=impossible)
    statistic = float(((observed - samples * law) ** 2 / (samples * law)).sum())
    surplus = float((1 / law).sum()) - cells**2 - 2 * cells + 2
    variance = 2 * (cells - 1) + surplus / samples
    return ChiSquare(statistic, cells - 1, variance, samples, impossible)


def two_samples(ours: dict[tuple[int, ...], int], theirs: dict[tuple[int, ...], int]) -> ChiSquare:
    """Counts of texts against counts of texts: do both follow one law?

    Texts that are rare in both together share the cell of their longest common prefix. `samples` is the size of two
    equal samples of the same power.
    """
    cell = pooled({text: ours.get(text, 0) + theirs.get(text, 0) for text in ours | theirs})
    cells = list(dict.fromkeys(cell.values()))
    number = {name: place for place, name in enumerate(cells)}
    counts = np.zeros((2, len(cells)))
    for row, sample in zip(counts, (ours, theirs), strict=True):
        for text, count in sample.items():
            row[number[cell[text]]] += count
    sizes = counts.sum(1)
    if len(cells) < 2 or not sizes.all():
        return ChiSquare(samples=int(sizes.min()))
    balance = math.sqrt(sizes[1] / sizes[0])
    difference = counts[0] * balance - counts[1] / balance
    statistic = float((difference**2 / counts.sum(0)).sum())
    harmonic = 2 / float((1 / sizes).sum())
    degrees = len(cells) - 1
    return ChiSquare(statistic, degrees, 2 * degrees, int(harmonic))


def pooled(totals: dict[tuple[int, ...], int]) -> dict[tuple[int, ...], Hashable]:
    """The cell of every text, so that each holds twice `LEAST_EXPECTED` texts, if there are so many."""
    cell: dict[tuple[int, ...], tuple[int, ...]] = {text: text for text in totals}
    for depth in reversed(range(max(map(len, totals), default=0))):
        held: dict[tuple[int, ...], int] = {}
        for text, name in cell.items():
            held[name] = held.get(name, 0) + totals[text]
        for text, name in cell.items():
            # a cut prefix is no text of that length: it stands for all the rare ones below it
            if held[name] < 2 * LEAST_EXPECTED and _depth(name) > depth:
                cell[text] = (*text[:depth], -1)
    held = {}
    for text, name in cell.items():
        held[name] = held.get(name, 0) + totals[text]
    rest = (-1,)
    if 0 < held.get(rest, 0) < 2 * LEAST_EXPECTED and len(held) > 1:
        smallest = min((name for name in held if name != rest), key=held.__getitem__)
        cell = {text: smallest if name == rest else name for text, name in cell.items()}
    return dict(cell)


def _depth(name: tuple[int, ...]) -> int:
    """How many tokens a cell fixes."""
    return len(name) - (name[-1:] == (-1,))


def smallest_deviation(test: ChiSquare, false_alarm: float, *, samples: int = 1) -> float:
    """The total variation distance, spread evenly, that the test finds with probability `DETECTED`.

    A deviation of +-2 eps p_i adds 4 N eps^2 to X's expectation: a noncentral chi-square law.

    Args:
        test: with its N.
        false_alarm: of this test.
        samples: 1 against a law, 2 against another sample, which halves N.
    """
    if test.degrees == 0 or test.samples == 0:
        return 1.0
    threshold = stats.chi2.isf(false_alarm, test.degrees)

    def missed(noncentrality: float) -> float:
        return float(stats.ncx2.cdf(threshold, test.degrees, noncentrality)) - (1 - DETECTED)

    largest = 4.0 * threshold + 100
    found = float(optimize.brentq(missed, 1e-9, largest))
    return min(1.0, math.sqrt(samples * found / (4 * test.samples)))
