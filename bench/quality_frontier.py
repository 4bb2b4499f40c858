"""Methods compared at the same diversity, each at its own best settings, with paired bootstrap intervals.

A setting is a point: its merit x (diversity, more is better) and its cost y (bits a character, less is better), both
means over units (prompts, or pieces of text) that all methods share. For a method

    front(method)  the settings that no other one of it beats: none has at least the merit at a lower cost
    f(x)           the cost at merit x: linear between neighbours on the front

and two methods differ by f_1(x) - f_2(x) on a grid of merits that every front reaches. Units are drawn with
replacement, the same for both methods; the means, the fronts and the difference are computed anew each time, so that
the choice of settings is part of what varies. The grid stays. Seeds are not drawn: a text that counts twice would
itself lower the diversity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .paired_summary import holm

Array = NDArray[np.float64]

RESAMPLES = 2000
GRID_POINTS = 12
REGIONS = ("all", "low", "middle", "high")
TAILS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Points:
    """The settings of one method.

    Attributes:
        merit: `[settings, units]`, more is better.
        cost: `[settings, units]`, less is better.
    """

    merit: Array
    cost: Array


@dataclass(frozen=True, slots=True)
class Difference:
    """The cost of one method less that of another at the same merit.

    Attributes:
        first: a method.
        second: the one it is compared with.
        region: a third of the grid, or all of it.
        start: the least merit of the region.
        end: the largest.
        difference: mean over the region; below 0 the first method is better.
        low: end of the 95 % interval.
        high: end of the 95 % interval.
        p_value: of no difference, two-sided, Holm-corrected over the pairs of a region.
    """

    first: str
    second: str
    region: str
    start: float
    end: float
    difference: float
    low: float
    high: float
    p_value: float


def front(merit: Array, cost: Array) -> tuple[Array, Array]:
    """The points that no other one beats, by rising merit (and so by rising cost).

    Args:
        merit: `[settings]`.
        cost: `[settings]`.
    """
    # of equal merits the cheapest comes first
    order = np.lexsort((cost, -merit))
    least = np.minimum.accumulate(cost[order])
    is_best = np.append(True, cost[order][1:] < least[:-1])
    best = order[is_best][::-1]
    return merit[best], cost[best]


def cost_at(merit: Array, cost: Array, grid: Array) -> Array:
    """The cost of a method at the merits of a grid; beyond its front, that of the nearest end."""
    return np.interp(grid, *front(merit, cost))


def common_grid(methods: Mapping[str, Points]) -> Array | None:
    """Merits that the front of every method reaches; None where there are none."""
    fronts = [front(points.merit.mean(1), points.cost.mean(1))[0] for points in methods.values()]
    low = max(merit[0] for merit in fronts)
    high = min(merit[-1] for merit in fronts)
    return np.linspace(low, high, GRID_POINTS) if low < high else None


def compare(
    methods: Mapping[str, Points],
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Difference]:
    """Every pair, over the whole grid and over its thirds; nothing where the fronts share no merit.

    Args:
        methods: by name, all on the same units.
        pairs: whom to compare with whom.
        seed: of the bootstrap.
        resamples: how often the units are drawn.

    Raises:
        ValueError: fewer than two units, or methods on different ones.
    """
    grid = common_grid(methods)
    if grid is None:
        return []
    weights = drawn_weights(methods, seed, resamples)
    curves = {name: _curves(points, weights, grid) for name, points in methods.items()}
    differences = []
    for region, part in zip(REGIONS, (slice(None), *_thirds()), strict=True):
        of_region = []
        for first, second in pairs:
            whole, *drawn = (curves[first] - curves[second])[:, part].mean(1)
            low, high = np.quantile(drawn, TAILS)
            numbers = float(whole), float(low), float(high)
            of_region.append((first, second, numbers, two_sided(np.array(drawn))))
        adjusted = holm([line[-1] for line in of_region])
        start, end = float(grid[part][0]), float(grid[part][-1])
        differences += [
            Difference(first, second, region, start, end, *numbers, p_value)
            for (first, second, numbers, _), p_value in zip(of_region, adjusted, strict=True)
        ]
    return differences


def bands(
    methods: Mapping[str, Points],
    reference: str,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Array, dict[str, Array]] | None:
    """The grid, and on it every method's cost less that of the reference with its interval, `[3, grid]`.

    Args:
        methods: by name, all on the same units.
        reference: one of them.
        seed: of the bootstrap.
        resamples: how often the units are drawn.

    Returns:
        None where the fronts share no merit.

    Raises:
        ValueError: fewer than two units, or methods on different ones.
    """
    grid = common_grid(methods)
    if grid is None:
        return None
    weights = drawn_weights(methods, seed, resamples)
    base = _curves(methods[reference], weights, grid)
    found = {}
    for name, points in methods.items():
        if name != reference:
            curves = _curves(points, weights, grid) - base
            found[name] = np.stack([curves[0], *np.quantile(curves[1:], TAILS, axis=0)])
    return grid, found


def drawn_weights(methods: Mapping[str, Points], seed: int, resamples: int) -> Array:
    """The weight of every unit, `[1 + resamples, units]`: all alike first, then drawn with replacement.

    Raises:
        ValueError: fewer than two units, or methods on different ones.
    """
    units = {points.merit.shape[1] for points in methods.values()}
    if len(units) != 1 or min(units) < 2:
        raise ValueError(f"the methods need the same units, at least two, got {sorted(units)}")
    count = units.pop()
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
    weights: Array = np.concatenate([np.ones((1, count)), drawn]) / count
    return weights


def two_sided(drawn: Array) -> float:
    """The bootstrap p-value of no difference: twice the smaller share on one side of 0."""
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))


def mean_interval(values: Array, *, seed: int = 0) -> tuple[float, float, float]:
    """The mean over units and its bootstrap interval.

    Args:
        values: `[units]`.
        seed: of the bootstrap.
    """
    count = len(values)
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=RESAMPLES)
    low, high = np.quantile(drawn @ values / count, TAILS)
    return float(values.mean()), float(low), float(high)


def _curves(points: Points, weights: Array, grid: Array) -> Array:
    """The cost on the grid in every resample, `[resamples, grid]`."""
    merits, costs = weights @ points.merit.T, weights @ points.cost.T
    return np.stack([cost_at(merit, cost, grid) for merit, cost in zip(merits, costs, strict=True)])


def _thirds() -> tuple[slice, slice, slice]:
    third = GRID_POINTS // 3
    return slice(0, third), slice(third, 2 * third), slice(2 * third, None)
