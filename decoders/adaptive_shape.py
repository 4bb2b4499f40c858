"""Adaptive block shapes: K and L of the next block from the outcomes of those before.

With the chance a_i that position i is accepted once those before it were, and with costs in target calls of one token,

    tokens(L)  = 1 + sum_{i=1..L} a_1 .. a_i
    cost(K, L) = 1 + draft_cost L + node_cost K L
    next shape = the (K, L) with the most tokens(L) / cost(K, L), a_i being those of K

A shape depends on nothing but earlier blocks: given those, the next block's tokens have the target's law whatever its
shape is, so the text stays lossless. The shape is one for all rows of a batch: each row's law is still its own, but its
tokens depend on the rows around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .checks import check_integer
from .parameters import NOT_NEGATIVE, Range, check_number

_MEMORIES = Range(0.0, 1.0, low_included=False)


class Shape(NamedTuple):
    """K draft paths of L tokens."""

    num_drafts: int
    draft_length: int


@dataclass(frozen=True, slots=True)
class AdaptiveShape:
    """Chooses the shape of every block among some.

    Attributes:
        draft_lengths: values of L to choose from.
        num_drafts: values of K to choose from; None for the one that the run is given.
        draft_cost: time of one draft step, in target calls of one token, at least 0; None times the first blocks, which
            makes the tokens of a seed depend on the clock (their law does not).
        node_cost: what every drafted token of every path adds to a block, likewise.
        memory: in (0, 1], the weight of the last block but one beside the last: old outcomes fade.
        explore_every: so often a block of the largest L goes to the K that has waited longest, at least 1.

    Raises:
        ValueError: no L in [1, 255] or no K in [1, 4096] to choose from, one of the two costs without the other, or a
            number outside its range.
        TypeError: something else than a number.
    """

    draft_lengths: Sequence[int] = (1, 2, 3, 4, 6, 8)
    num_drafts: Sequence[int] | None = None
    draft_cost: float | None = None
    node_cost: float | None = None
    memory: float = 0.97
    explore_every: int = 32

    def __post_init__(self) -> None:
        for name, largest in (("draft_lengths", 255), ("num_drafts", 4096)):
            values = getattr(self, name)
            if values is None and name == "num_drafts":
                continue
            listed = list(values) if isinstance(values, Sequence) else []
            if not listed or not all(
                isinstance(each, int) and not isinstance(each, bool) and 1 <= each <= largest
                for each in listed
            ):
                raise ValueError(f"{name} must hold ints in [1, {largest}], got {values!r}")
        if (self.draft_cost is None) != (self.node_cost is None):
            raise ValueError(
                "give draft_cost and node_cost both, or neither to have them timed, "
                f"got {self.draft_cost} and {self.node_cost}"
            )
        for name in ("draft_cost", "node_cost"):
            cost = getattr(self, name)
            if cost is not None:
                check_number(name, cost, NOT_NEGATIVE)
        check_number("memory", self.memory, _MEMORIES)
        check_integer("explore_every", self.explore_every)


class ShapeChooser:
    """The choices of one run.

    Args:
        options: what to choose from, and by.
        num_drafts: K where the options leave it open.
    """

    def __init__(self, options: AdaptiveShape, num_drafts: int) -> None:
        self._options = options
        self._lengths = sorted(set(options.draft_lengths))
        self._paths = sorted(set(options.num_drafts or (num_drafts,)))
        self._outcomes = {paths: Outcomes(self._lengths[-1]) for paths in self._paths}
        self._costs = Costs(options.draft_cost, options.node_cost)
        self._waiting = list(self._paths)
        self._opening = self._opening_shapes()
        self._blocks = 0

    def next_shape(self) -> Shape:
        """The shape of the next block."""
        longest = self._lengths[-1]
        if self._blocks < len(self._opening):
            return self._opening[self._blocks]
        if self._blocks % self._options.explore_every == 0:
            return Shape(self._waiting[0], longest)
        shapes = [Shape(paths, length) for paths in self._paths for length in self._lengths]
        # the first of equals: the smallest
        return max(shapes, key=self._speed)

    def record(self, shape: Shape, accepted: Iterable[int], seconds: float) -> None:
        """Take a block's outcome.

        Args:
            shape: of the block.
            accepted: how many drafted tokens were accepted, for every row that was writing.
            seconds: that the block took.
        """
        self._blocks += 1
        self._waiting.remove(shape.num_drafts)
        self._waiting.append(shape.num_drafts)
        self._outcomes[shape.num_drafts].record(shape.draft_length, accepted, self._options.memory)
        # the first call of a shape pays for more than itself
        if self._costs.open and self._opening[: self._blocks].count(shape) > 1:
            self._costs.record(shape, seconds)
            if self._blocks >= len(self._opening):
                self._costs.settle()

    def _opening_shapes(self) -> list[Shape]:
        """Every K once at the largest L; to be timed, the corners three times each."""
        longest = self._lengths[-1]
        if not self._costs.open:
            return [Shape(paths, longest) for paths in self._paths]
        corners = [
            Shape(paths, length)
            for paths in dict.fromkeys((self._paths[0], self._paths[-1]))
            for length in dict.fromkeys((longest, self._lengths[0]))
        ]
        others = [Shape(paths, longest) for paths in self._paths[1:-1]]
        return others + corners * 3

    def _speed(self, shape: Shape) -> float:
        """Expected tokens over the cost of a block."""
        tokens = self._outcomes[shape.num_drafts].tokens(shape.draft_length)
        return tokens / self._costs.of(shape)


class Outcomes:
    """How often each position was accepted once those before it were, the last blocks counting most."""

    def __init__(self, longest: int) -> None:
        self._reached = np.zeros(longest)
        self._accepted = np.zeros(longest)

    def record(self, length: int, accepted: Iterable[int], memory: float) -> None:
        """Add a block of so many positions."""
        self._reached *= memory
        self._accepted *= memory
        for count in accepted:
            self._reached[: min(count + 1, length)] += 1
            self._accepted[:count] += 1

    def tokens(self, length: int) -> float:
        """Expected tokens of a block of so many positions.

        A position is estimated as if two more outcomes of it had been seen, of the rate of all positions: those that
        were hardly ever reached are taken to be like the others.
        """
        rate = (self._accepted.sum() + 1) / (self._reached.sum() + 2)
        chances = (self._accepted + 2 * rate) / (self._reached + 2)
        return float(1 + chances[:length].cumprod().sum())


class Costs:
    """What a block of a shape costs, in target calls of one token: 1 + draft_cost L + node_cost K L."""

    def __init__(self, draft_cost: float | None, node_cost: float | None) -> None:
        self.open = draft_cost is None
        self._draft, self._node = draft_cost or 0.0, node_cost or 0.0
        self._times: dict[Shape, float] = {}

    def record(self, shape: Shape, seconds: float) -> None:
        """Take a block's time; the shortest of a shape counts."""
        self._times[shape] = min(seconds, self._times.get(shape, seconds))

    def settle(self) -> None:
        """Fit the costs to the times, by least squares with no cost below 0."""
        shapes = list(self._times)
        columns = [
            [1.0, float(shape.draft_length), float(shape.num_drafts * shape.draft_length)]
            for shape in shapes
        ]
        # with one K the last two columns are one cost: the smallest solution shares it out between them
        fitted = np.linalg.lstsq(
            np.array(columns), np.array(list(self._times.values())), rcond=None
        )
        call, draft, node = fitted[0].clip(0)
        self.open = False
        self._draft, self._node = (cost / max(call, 1e-9) for cost in (draft, node))

    def of(self, shape: Shape) -> float:
        """The cost of one block."""
        return 1 + shape.draft_length * (self._draft + self._node * shape.num_drafts)
