"""Exact laws of the walk on fixed knots: every set of paths, every selected candidate, every decision.

`SplineWalk.run` itself makes the decisions. Its uniform numbers are set 1e-9 beside the probabilities that `Courses`
computes from the closed forms (which rank is the largest is an integral), so that another probability turns decisions
around; the laws of the recovered and bonus tokens are read off the masses that it draws from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import spline_walk
import torch
from enumeration import (
    Paths,
    Tables,
    add_continued,
    draft_sets,
    prefix_number,
    text_probability,
    tuples,
)
from spline_walk import Laws, SplineWalk
from torch import Tensor

from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.ranks import Exchange, win_probabilities
from warpdraft.kernels.ratio_splines import (
    evaluate,
    k_seq_spline,
    knot_masses,
    knots,
    place,
    ratio_sums,
    selection_spline,
)
from warpdraft.verifiers.optimal_block import OptimalBlock

MARGIN = 1e-9


class Course(NamedTuple):
    """One course of a walk: the selected path at every depth, the numbers of the decisions, and its chance."""

    winners: list[int]
    numbers: list[list[float]]
    chance: float

    def on(self, winner: int, numbers: list[float], chance: float) -> Course:
        """The course one depth further."""
        return Course([*self.winners, winner], [*self.numbers, numbers], self.chance * chance)


class Candidate(NamedTuple):
    """A candidate's token, its chance to be selected, and the weight behind it."""

    token: int
    chance: float
    below: float


class Courses:
    """All courses of a verifier's walks, by its formulas."""

    def __init__(self, tables: Tables, verifier: str, selector: str, table: Tensor) -> None:
        self.tables, self.verifier, self.selector, self.knots = tables, verifier, selector, table
        self._found: dict[Any, Any] = {}

    def of(self, paths: Tensor, drawn: Tensor, chance: float) -> Iterator[Course]:
        """Those of one set of paths."""
        yield from self._down(
            paths, drawn, list(range(len(paths))), 1.0, [], Course([], [], chance)
        )

    def _down(
        self,
        paths: Tensor,
        drawn: Tensor,
        alive: list[int],
        weight: float,
        stops: list[float],
        course: Course,
    ) -> Iterator[Course]:
        depth, count = len(course.winners), len(paths)
        drawing = [path for path in alive if depth < paths.shape[1] and drawn[path, depth]]
        if not drawing or weight == 0:
            yield from self._up(course, [*stops, weight], count)
            return
        node = int(prefix_number(paths[drawing[:1]], depth, self.tables.target[0].shape[1]))
        tokens = paths[drawing, depth].tolist()
        candidates, rest = self._node(depth, node, tuple(tokens), weight)
        missed = 1.0
        for path, (token, chance, below) in zip(drawing, candidates, strict=True):
            on = [other for other in alive if int(paths[other, depth]) == token]
            if self.verifier == "optimal_block":
                stop = rest / (1 - weight + rest) if rest > 0 else 0.0
                further = course.on(path, [0.0] * count, chance)
                yield from self._down(paths, drawn, on, below, [*stops, stop], further)
                continue
            numbers = [0.0] * count
            numbers[path if self.verifier == "k_seq" else 0] = hit(below)
            if self.verifier == "k_seq":
                for other, (_, _, taken) in zip(drawing, candidates, strict=True):
                    numbers[other] = hit(below) if other == path else miss(taken)
            further = course.on(path, numbers, chance * missed * below)
            if further.chance > 0:
                yield from self._down(paths, drawn, on, 1.0, [], further)
            if self.verifier == "optimal":
                yield course.on(path, [miss(below)] * count, chance * (1 - below))
            else:
                missed *= 1 - below
        if self.verifier == "k_seq":
            numbers = [0.0] * count
            for path, (_, _, taken) in zip(drawing, candidates, strict=True):
                numbers[path] = miss(taken)
            yield course.on(0, numbers, missed)

    def _up(self, course: Course, stops: list[float], count: int) -> Iterator[Course]:
        """Block verification stops at the deepest depth that says so, the others at the leaf."""
        if self.verifier != "optimal_block":
            yield course
            return
        stops[0] = 1.0
        chance = course.chance
        for depth in reversed(range(len(stops))):
            numbers = [
                [hit(stop) if place == depth else miss(stop)] * count
                for place, stop in enumerate(stops)
            ]
            yield Course(course.winners, numbers, chance * stops[depth])
            chance *= 1 - stops[depth]

    def _node(
        self, depth: int, node: int, tokens: tuple[int, ...], weight: float
    ) -> tuple[list[Candidate], float]:
        key = depth, node, tokens, weight
        if key not in self._found:
            self._found[key] = self._plan(*key)
        found: tuple[list[Candidate], float] = self._found[key]
        return found

    def _plan(
        self, depth: int, node: int, tokens: tuple[int, ...], weight: float
    ) -> tuple[list[Candidate], float]:
        target, draft = self.tables.target[depth][node][None], self.tables.draft[depth][node][None]
        sums, number = ratio_sums(target, draft, self.knots), torch.tensor([len(tokens)])
        ratio = torch.where(draft > 0, target / draft, 0.0)[:, list(tokens)]
        if self.verifier == "k_seq":
            taken = evaluate(k_seq_spline(sums, self.knots, number).ratio, self.knots, ratio)
            return [
                Candidate(token, 1.0, float(below))
                for token, below in zip(tokens, taken[0], strict=True)
            ], 0.0
        mass, weights = knot_masses(sums, self.knots), torch.tensor([weight], dtype=torch.float64)
        mass = mass / mass.sum(1, keepdim=True)
        plan = selection_spline(mass, self.knots, weights, number, self.selector)
        lower, share = place(ratio, self.knots)
        laws = torch.lerp(plan.ranks.laws(lower), plan.ranks.laws(lower + 1), share[..., None])
        phi = evaluate(plan.ranks.phi, self.knots, ratio)[0]
        behind = torch.where(phi > 0, evaluate(plan.accepted, self.knots, ratio)[0] / phi, 0.0)
        below = behind.clamp_max(1).tolist()
        chances = win_probabilities(laws[0])
        candidates = [Candidate(*each) for each in zip(tokens, chances, below, strict=True)]
        return candidates, max(float(plan.rest), 0.0)


def hit(chance: float) -> float:
    """A number just below a probability."""
    return chance * (1 - MARGIN)


def miss(chance: float) -> float:
    """One just above it."""
    return chance + (1 - chance) * MARGIN


class ScriptedWalk(SplineWalk):
    """The walk with the numbers and winners of courses, and the masses that it draws its last tokens from."""

    def follow(self, winners: Tensor, numbers: Tensor) -> None:
        """Take these `[batch, L]` winners and `[batch, L + 1, K]` numbers."""
        self.winners, self.numbers = winners, numbers
        self.last = torch.zeros(len(winners), self.laws.target.shape[2], dtype=torch.float64)

    def _uniform(self, role, rows, depth, paths=None) -> Tensor:
        if role is Role.RANK:
            # of this selection, whose ranks come next
            self.ranks = torch.arange(paths.shape[1]) == self.winners[rows, depth, None]
            return torch.full(paths.shape, 0.5, dtype=torch.float64)
        numbers = self.numbers[rows, depth]
        return numbers[:, 0] if paths is None else numbers

    def rank(self, atoms: Tensor, uniform: Tensor) -> Tensor:
        """The largest one is the winner's."""
        return self.ranks.double()

    def draw(self, mass: Tensor, noise: Noise, role: Role, *, depth: Tensor) -> Tensor:
        """Keep the law instead."""
        self.last[noise.sequence] = mass / mass.sum(1, keepdim=True)
        return torch.zeros(len(mass), dtype=torch.int64)


def deviation(
    tables: Tables, verifier: str, selector: str, sources: Callable[[Paths], list[int]]
) -> float:
    """The largest error of a probability of L + 1 emitted tokens, a block continued by plain sampling.

    The paths are drawn from `sources`, see `draft_sets`.
    """
    vocab, length = tables.target[0].shape[1], len(tables.draft)
    drafts = draft_sets(OptimalBlock(), tables, sources)
    num_drafts = drafts.paths.shape[1]
    table = knots(num_drafts, verifier=verifier)
    courses = Courses(tables, verifier, selector, table)
    rows = [
        (paths, drawn, course)
        for paths, drawn, chance in zip(
            drafts.paths, drafts.drawn, drafts.weight.tolist(), strict=True
        )
        if chance > 0
        for course in courses.of(paths, drawn, chance)
        if course.chance > 0
    ]
    paths, drawn = (torch.stack([row[place] for row in rows]) for place in range(2))
    chance = torch.tensor([row[2].chance for row in rows], dtype=torch.float64)
    assert abs(float(chance.sum()) - 1) < 1e-12
    winners = torch.zeros(len(rows), length, dtype=torch.int64)
    numbers = torch.full((len(rows), length + 1, num_drafts), 0.5, dtype=torch.float64)
    for row, (_, _, course) in enumerate(rows):
        winners[row, : len(course.winners)] = torch.tensor(course.winners, dtype=torch.int64)
        numbers[row, : len(course.numbers)] = torch.tensor(course.numbers, dtype=torch.float64)

    # all prefixes level by level; leaves have no draft
    starts = torch.tensor([0, *(len(laws) for laws in tables.target)]).cumsum(0)
    target = torch.cat(tables.target)
    draft = torch.cat([*tables.draft, torch.zeros_like(tables.target[length])])
    sound = torch.zeros(len(rows), len(target), dtype=torch.int8)
    nodes = torch.stack(
        [
            starts[depth] + prefix_number(paths.flatten(0, 1), depth, vocab).view(len(rows), -1)
            for depth in range(length + 1)
        ],
        2,
    )
    walk = ScriptedWalk(
        Laws(target.expand(len(rows), -1, -1), sound, draft.expand(len(rows), -1, -1), sound),
        paths,
        nodes,
        drawn,
        Noise.create(len(rows), seed=0, device="cpu"),
        table,
        verifier,
        selector,
    )
    walk.follow(winners, numbers)
    with patch.object(Exchange, "rank", walk.rank), patch.object(spline_walk, "draw", walk.draw):
        verified = walk.run()

    law = torch.zeros(vocab ** (length + 1), dtype=torch.float64)
    accepted = verified.num_accepted
    own = paths[torch.arange(len(rows)), verified.survivor_path]
    for stop in range(length + 1):
        here = accepted == stop
        assert torch.equal(verified.output_token_ids[here, :stop], own[here, :stop])
        add_continued(law, tables, own[here, :stop], walk.last[here], chance[here])
    expected = text_probability(tables.target, tuples(vocab, length + 1)).prod(1)
    return float((law - expected).abs().max())
