"""Exact laws of verifiers that select a whole path: every set of paths, every selected path, every stop.

The verifier's own `verify` runs on all of them at once. Its uniform numbers are set 1e-9 beside the probabilities that
`Walk` computes from the formulas, so that a weight, a survivor count or a residual that is not theirs turns decisions
around; the laws of the recovered and bonus tokens are read off the masses that it draws from.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from enumeration import (
    DraftSets,
    TabledBlock,
    Tables,
    add_continued,
    draft_sets,
    independent,
    prefix_number,
    text_probability,
    tuples,
)
from torch import Tensor

import warpdraft.laws as laws_module
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.optimal import Selection, plan_selection
from warpdraft.kernels.ranks import win_probabilities
from warpdraft.verifiers.optimal_block import OptimalBlock

MARGIN = 1e-9


@dataclass(frozen=True)
class Step:
    """One node of a selected path: its weight w, the laws, and the chance that the path was selected on."""

    weight: float
    target: Tensor
    selected: Tensor
    chance: float

    @property
    def residual(self) -> Tensor:
        return (self.weight * self.target - self.selected).clamp_min(0)

    @property
    def stop(self) -> float:
        total = float(self.residual.sum())
        return total / (1 - self.weight + total) if total > 0 else 0.0


class Walk:
    """The formulas of `OptimalBlock`, for one set of paths and one selected path."""

    def __init__(self, tables: Tables, **options: Any) -> None:
        self.tables = tables
        self.options = options
        self._plans: dict[tuple[object, ...], tuple[Tensor, list[float]]] = {}

    def steps(self, paths: Tensor, drawn: Tensor, winners: list[int]) -> tuple[list[Step], float]:
        """The nodes of the selected path, and the weight of its leaf; none for winners that are no candidates."""
        vocab = self.tables.target[0].shape[1]
        alive, weight, steps = list(range(len(paths))), 1.0, []
        for depth, winner in enumerate(winners):
            drawing = [path for path in alive if drawn[path, depth]]
            if not drawing and depth > 0 and not any(winners[depth:]):
                # an early leaf: one row of winners stands for all that could follow
                break
            if winner not in drawing:
                return [], 0.0
            node = int(prefix_number(paths[winner : winner + 1], depth, vocab))
            candidates = paths[drawing, depth]
            selected, chances = self._plan(depth, node, candidates, weight)
            target = self.tables.target[depth][node]
            steps.append(Step(weight, target, selected, chances[drawing.index(winner)]))
            token = int(paths[winner, depth])
            alive = [path for path in alive if int(paths[path, depth]) == token]
            weight = min(1.0, weight * float(target[token] / selected[token]))
        return steps, weight

    def _plan(
        self, depth: int, node: int, candidates: Tensor, weight: float
    ) -> tuple[Tensor, list[float]]:
        key = depth, node, tuple(candidates.tolist()), weight
        if key not in self._plans:
            draft = self.tables.draft[depth][node][None]
            plan = plan_selection(
                self.tables.target[depth][node][None],
                draft,
                torch.tensor([len(candidates)]),
                weight=torch.tensor([weight], dtype=torch.float64),
                **self.options,
            )
            chances = win_probabilities(plan.rank_laws(candidates[None])[0])
            self._plans[key] = plan.law()[0], chances
        return self._plans[key]


@dataclass(frozen=True)
class PathLaw:
    """Law of the emitted tokens, continued by plain sampling to L + 1 tokens, and how many tokens a block yields."""

    law: Tensor
    target: Tensor
    expected_tokens: float

    @property
    def deviation(self) -> float:
        """The largest error of a probability."""
        return float((self.law - self.target).abs().max())


def path_law(
    verifier: OptimalBlock,
    tables: Tables,
    num_drafts: int,
    drafts: DraftSets | None = None,
) -> PathLaw:
    """Run the verifier over all sets of paths, selected paths and stops.

    The paths are K independent ones, unless other `drafts` are given.
    """
    vocab, length = tables.target[0].shape[1], len(tables.draft)
    if drafts is None:
        drafts = draft_sets(verifier, tables, independent(num_drafts))
    walk = Walk(tables, num_bins=verifier.num_bins, selector=verifier.selector)
    rows = []
    for paths, drawn, drafted in zip(
        drafts.paths, drafts.drawn, drafts.weight.tolist(), strict=True
    ):
        for winners in itertools.product(range(len(paths)), repeat=length):
            steps, leaf = walk.steps(paths, drawn, list(winners))
            weight = drafted
            for step in steps:
                weight *= step.chance
            if steps and weight > 0:
                rows += [
                    (paths, drawn, winners, *stop)
                    for stop in _stops(steps, leaf, weight, length)
                    if stop[1] > 0
                ]
    paths = torch.stack([row[0] for row in rows])
    drawn = torch.stack([row[1] for row in rows])
    winners = torch.tensor([row[2] for row in rows])
    uniform = torch.tensor([row[3] for row in rows], dtype=torch.float64)
    weight = torch.tensor([row[4] for row in rows], dtype=torch.float64)

    recovered = torch.zeros(len(rows), vocab, dtype=torch.float64)

    def select(
        plan: Selection, candidates: Tensor, alive: Tensor, noise: Noise, depth: int
    ) -> Tensor:
        return winners[noise.sequence, depth]

    def numbers(noise: Noise, role: Role, index: Tensor, *, depth: Tensor) -> Tensor:
        assert role is Role.ACCEPT
        assert bool((index == 0).all())
        return uniform[noise.sequence[:, None], depth]

    def draw(
        mass: Tensor,
        noise: Noise,
        role: Role,
        *,
        depth: int,
        path: int,
        token_ids: Tensor | None,
    ) -> Tensor:
        assert role in ((Role.BONUS,) if depth == length else (Role.BONUS, Role.RESIDUAL))
        recovered[noise.sequence] = mass / mass.sum(1, keepdim=True)
        return torch.zeros(len(mass), dtype=torch.int64)

    with (
        patch.object(Selection, "select", select),
        patch.object(Noise, "uniform", numbers),
        patch.object(laws_module, "draw", draw),
    ):
        noise = Noise.create(len(rows), seed=0, device="cpu")
        verified = verifier.verify(TabledBlock(tables, paths, drawn), noise)

    law = torch.zeros(vocab ** (length + 1), dtype=torch.float64)
    accepted = verified.num_accepted
    own_path = paths[torch.arange(len(rows)), verified.survivor_path]
    for stop in range(length + 1):
        here = accepted == stop
        assert torch.equal(verified.output_token_ids[here, :stop], own_path[here, :stop])
        add_continued(law, tables, own_path[here, :stop], recovered[here], weight[here])
    target = text_probability(tables.target, tuples(vocab, length + 1)).prod(1)
    return PathLaw(law, target, float((weight * (accepted + 1)).sum()))


def _stops(
    steps: list[Step], leaf: float, weight: float, length: int
) -> list[tuple[list[float], float]]:
    """For every depth at which the walk up can stop: the uniform numbers of all depths, and the chance."""
    chances = [step.stop for step in steps] + [leaf]
    chances[0] = 1.0
    stops = []
    for depth in reversed(range(len(chances))):
        numbers = [
            chance * (1 - MARGIN) if place == depth else chance + (1 - chance) * MARGIN
            for place, chance in enumerate(chances)
        ]
        # no number below an early leaf is read
        numbers += [0.5] * (length + 1 - len(chances))
        stops.append((numbers, weight * chances[depth]))
        weight *= 1 - chances[depth]
    return stops
