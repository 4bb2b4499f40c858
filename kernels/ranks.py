r"""Random ranks that make the largest of n i.i.d. drafts follow a given law: the left-curtain coupling.

A draft with token x gets a rank u drawn uniformly from the pieces of [0, 1] that belong to x's knot, pieces of total
length d(x), so u is uniform on [0, 1]. The draft of largest rank is selected; the largest of n uniform ranks has
density n u^(n-1), so the selected token's law is exactly

    p(x) = d(x) * mean of n u^(n-1) over x's pieces,       S(a, b) = sum_j b^j a^(n-1-j) = (b^n - a^n) / (b - a)

over a piece [a, b]. Knots of ascending p / d take one after the other a contiguous interval of what is left of [0, 1]
with length d(x) and mean p(x) / d(x) (Beiglboeck and Juillet, Ann. Probab. 2016, arXiv 1208.1509): to the right of
everything taken where that mean is high enough, else on both sides of what was taken last, over whole gaps if need be.

Such ranks exist for every law with p(S) >= d(S)^n. The law that the pieces realise is the law to verify with, so
rounding costs acceptance (about 1e-15), never correctness. Means are compared, never differences of n-th powers,
which cancel for rare tokens; pieces carry their length, for the end of a short one is not seen beside its start.
"""

from __future__ import annotations

import itertools
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Number = TypeVar("Number", float, FloatArray)
Pieces = list[tuple[float, float]]
"""Pieces of [0, 1] as (start, length)."""
RankLaw = list[tuple[float, float, float]]
"""Pieces as (start, length, probability), uniform within each."""

# Newton's method on convex functions, from a good guess or from the steep side; a last step of this relative size
# leaves its square as the error, or, where the root is double, an error that the means do not feel
_LAST_STEP = 1e-10
# 1 to 7 steps are taken (measured, n <= 8); the bound only guards against a stall
_MOST_STEPS = 50


def left_curtain(mass: FloatArray, ratio: FloatArray, n: int) -> list[Pieces]:
    """The pieces of every knot.

    Args:
        mass: `[knots]` > 0, sums to 1.
        ratio: `[knots]` ascending, p / d.
        n: the number of drafts, >= 2.

    Returns:
        For each knot its pieces, of total length `mass` up to rounding.
    """
    pieces: list[Pieces] = []
    taken: list[tuple[float, float]] = []  # blocks [start, end], ascending, gaps between them
    for length, mean, alone in zip(
        mass.tolist(), ratio.tolist(), _right_of_all(mass, ratio, n).tolist(), strict=True
    ):
        edge = taken[-1][1] if taken else 0.0
        if not taken or edge <= alone:
            start = max(alone, edge)
            taken.append((start, start + length))
            pieces.append([(start, length)])
        else:
            pieces.append(_on_both_sides(taken, length, mean, n))
    return pieces


def mean_ratio(pieces: Pieces, n: int) -> float:
    """Mean of n u^(n-1) over the pieces: the realised p / d of their knot."""
    length = sum(length for _, length in pieces)
    return sum(mean_over(start, start + length, n) * length for start, length in pieces) / length


def mixture(lower: Pieces, upper: Pieces, share: float) -> RankLaw:
    """A rank from the `upper` pieces with probability `share`, else from the `lower` ones."""
    law: RankLaw = []
    for pieces, chance in ((lower, 1 - share), (upper, share)):
        if chance > 0:
            total = sum(length for _, length in pieces)
            law += [(start, length, chance * length / total) for start, length in pieces]
    return law


def rank(law: RankLaw, uniform: float) -> float:
    """The rank that a uniform number in (0, 1) stands for."""
    for start, length, chance in law[:-1]:
        if uniform < chance:
            return start + length * (uniform / chance)
        uniform -= chance
    start, length, chance = law[-1]
    return start + length * min(uniform / chance, 1.0)


def win_probabilities(laws: list[RankLaw]) -> list[float]:
    """For each candidate the chance that its rank is the largest: an exact integral.

    Between two ends of pieces the densities are constant and the distribution functions linear, so their product is a
    polynomial of degree n - 1, for which Gauss's rule is exact.
    """
    ends = sorted(
        {end for law in laws for start, length, _ in law for end in (start, start + length)}
    )
    nodes, weights = np.polynomial.legendre.leggauss(len(laws) // 2 + 1)
    chances = [0.0] * len(laws)
    for low, high in itertools.pairwise(ends):
        half, middle = (high - low) / 2, (low + high) / 2
        below = [_chance_below(law, middle + half * nodes) for law in laws]
        for path, law in enumerate(laws):
            inside = [c / length for start, length, c in law if start <= middle < start + length]
            others = np.prod([*below[:path], *below[path + 1 :], np.ones_like(nodes)], axis=0)
            chances[path] += half * float(weights @ others) * sum(inside)
    return chances


def _chance_below(law: RankLaw, points: FloatArray) -> FloatArray:
    """Distribution function of a rank."""
    below = np.zeros_like(points)
    for start, length, chance in law:
        below += chance * np.clip((points - start) / length, 0, 1)
    return below


def _right_of_all(mass: FloatArray, ratio: FloatArray, n: int) -> FloatArray:
    """For each knot alone the a with S(a, a + mass) = ratio, within [0, 1 - mass]."""
    ratio = np.maximum(ratio, mass ** (n - 1))
    start = np.maximum((ratio / n) ** (1 / (n - 1)) - mass / 2, 0.0)
    for _ in range(_MOST_STEPS):
        end = start + mass
        slope = np.maximum(n * mean_over(start, end, n - 1), np.finfo(np.float64).tiny)
        step = (mean_over(start, end, n) - ratio) / slope
        start = np.maximum(start - step, 0.0)
        if np.all(np.abs(step) <= _LAST_STEP * end):
            break
    return np.minimum(start, np.maximum(1.0 - mass, 0.0))


def _on_both_sides(taken: list[tuple[float, float]], length: float, mean: float, n: int) -> Pieces:
    """Take `length` with that mean around the last block, swallowing the gaps that are not enough; extends `taken`."""
    pieces: Pieces = []
    wanted = mean * length
    edge = taken[-1][1]
    while True:
        start, _ = taken.pop()
        gap_start = taken[-1][1] if taken else 0.0
        gap = start - gap_start
        most = min(gap, length)
        if not taken or (
            edge + length - most <= 1.0 and _both(most, start, edge, length, n) <= wanted
        ):
            left = _left_length(start, edge, length, most, wanted, n)
            pieces += [(start - left, left), (edge, length - left)]
            taken.append((start - left, edge + length - left))
            return [piece for piece in pieces if piece[1] > 0]
        pieces.append((gap_start, gap))
        length -= gap
        wanted -= gap * mean_over(gap_start, start, n)


def _left_length(
    start: float, edge: float, length: float, most: float, wanted: float, n: int
) -> float:
    """How much of `length` lies left of the block [start, edge], so that both sides together weigh `wanted`."""
    left = max(0.0, edge + length - 1.0)
    if left >= most:
        return most
    for _ in range(_MOST_STEPS):
        excess = _both(left, start, edge, length, n) - wanted
        slope = n * ((edge + length - left) ** (n - 1) - (start - left) ** (n - 1))
        # the weight falls convexly as the left part grows: the steps never pass the root
        if excess <= 0 or slope <= 0:
            break
        step = excess / slope
        left += step
        if left >= most:
            return most
        if step <= _LAST_STEP * length:
            break
    return left


def _both(left: float, start: float, edge: float, length: float, n: int) -> float:
    """Integral of n u^(n-1) over [start - left, start] and [edge, edge + length - left]."""
    right = length - left
    return left * mean_over(start - left, start, n) + right * mean_over(edge, edge + right, n)


def mean_over(start: Number, end: Number, n: int) -> Number:
    """S(start, end), the mean of n u^(n-1) over [start, end], by Horner's rule."""
    total = power = start * 0 + 1
    for _ in range(n - 1):
        power = power * start
        total = total * end + power
    return total
