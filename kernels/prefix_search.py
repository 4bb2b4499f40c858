"""Search for the longest prefix of a row's order whose score stays at or below a bound.

    order     logit descending, then token id ascending
    score_j   f(S_j - 1, L_j),  S_j, L_j the sums of exp(z) and exp(z) * z over the first j tokens
    answer    the last j with score_j <= bound

The score must not decrease along the order (the entropy of the renormalised prefix grows strictly,
the mass does too). So the row is never sorted: most rows end in their first 128 tokens; for the
others a sample of the row suggests a bracket of ranks, the tokens above it are summed, those inside
it sorted and scanned, and a bracket that misses the answer moves to where the exact sums point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from .row_stats import Array, Row, levels_of

Score: TypeAlias = Callable[[float, float], float]

# tokens read at first: a confident row ends here
HEAD = 128
# how many tokens suggest the bracket, and how many standard deviations it is wide on either side
SAMPLE = 2048
DEVIATIONS = 4.0
# by how much a bracket grows when it misses
GROWTH = 4


class Crossing(NamedTuple):
    """Where the score meets its bound.

    Attributes:
        value: the logit of the last kept token.
        id: its token id, or `vocab - 1` when all tokens of that logit are kept.
        gap: the distance from the bound to the nearest score beside it.
    """

    value: float
    id: int
    gap: float


class Sums(NamedTuple):
    """S - 1 and L after each of some tokens, in order; the first is what came before them."""

    excess: Array
    moment: Array


def longest_prefix(
    row: Row, temperature: float, score: Score, bound: float, *, with_crossing: bool = False
) -> Crossing:
    """The longest prefix of the row's support with `score <= bound`; at least one token.

    Args:
        row: the row and its support so far.
        temperature: above 0.
        score: a function of S - 1 and L, not decreasing along the order.
        bound: what the score may reach.
        with_crossing: keep all tokens before which `score < bound`, so the one that reaches it too.
    """
    search = _Search(row.maximum, temperature, score, bound, with_crossing)
    everything = Crossing(row.value, row.index, np.inf)

    held, low, high = 1, 1, row.vocab if row.restricted else min(HEAD, row.vocab)
    failed = row.vocab + 1
    while True:
        top = row.top(high)
        sums = search.sums(top, low)
        if low > held and not search.holds(sums, 0):
            failed, high, low = low, low, max(low // GROWTH, held)
            continue
        steps = search.last_holding(sums)
        if steps < len(top) - low:
            break
        if len(top) < high or high == row.vocab:
            return everything
        if high == failed:
            # the two ways to sum the same tokens fell on either side of the bound
            steps -= 1
            break
        low, high = search.bracket(row.logits, top, sums) if held == 1 else (high, high * GROWTH)
        held = len(top)
        low, high = max(low, held), min(max(high, held + 1), row.vocab)
    kept = low + max(steps + with_crossing, 0)
    return Crossing(*row.threshold(top, kept), search.gap(sums, steps))


class _Search(NamedTuple):
    """The question that one search asks."""

    maximum: float
    temperature: float
    score: Score
    bound: float
    with_crossing: bool

    def sums(self, top: Array, low: int) -> Sums:
        """The sums over the first `low` tokens of `top`, and after each of the others."""
        levels = levels_of(top, self.maximum, self.temperature)
        weights = np.exp(levels)
        moments = weights * levels
        # one token at the maximum is left out: S - 1
        weights[0] = 0.0
        return Sums(
            np.cumsum(np.append(weights[:low].sum(), weights[low:])),
            np.cumsum(np.append(moments[:low].sum(), moments[low:])),
        )

    def holds(self, sums: Sums, steps: int) -> bool:
        """Whether the prefix that ends `steps` tokens into the sums is below the bound."""
        score = self.score(float(sums.excess[steps]), float(sums.moment[steps]))
        return score < self.bound if self.with_crossing else score <= self.bound

    def last_holding(self, sums: Sums) -> int:
        """The last step that holds; -1 if none does."""
        low, high = -1, len(sums.excess)
        while high - low > 1:
            middle = (low + high) // 2
            if self.holds(sums, middle):
                low = middle
            else:
                high = middle
        return low

    def gap(self, sums: Sums, steps: int) -> float:
        """The distance from the bound to the scores on either side of it."""
        beside = [step for step in (steps, steps + 1) if 0 <= step < len(sums.excess)]
        return min(
            abs(self.score(float(sums.excess[step]), float(sums.moment[step])) - self.bound)
            for step in beside
        )

    def bracket(self, logits: Array, head: Array, sums: Sums) -> tuple[int, int]:
        """Two ranks that a sample of the row below its head places on either side of the crossing."""
        stride = -(-len(logits) // SAMPLE)
        sample = logits[::stride]
        sample = np.sort(sample[(sample < head[-1]) & (sample > -np.inf)])[::-1]
        levels = levels_of(sample, self.maximum, self.temperature)
        weights = np.exp(levels)
        below = Sums(
            sums.excess[-1] + np.cumsum(weights) * stride,
            sums.moment[-1] + np.cumsum(weights * levels) * stride,
        )
        crossing = self.last_holding(below) + 1
        aside = DEVIATIONS * (crossing + 1) ** 0.5 + 1
        ranks = len(head) + stride * (crossing - aside), len(head) + stride * (crossing + aside)
        return int(ranks[0]), int(ranks[1])
