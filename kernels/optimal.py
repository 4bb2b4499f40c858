r"""Optimal selection among n i.i.d. drafts, one node of the draft paths a row: who is selected, and with what law.

    knots    tokens placed by their ratio w target / draft                     ratio_grid.py
    phi      the optimal selection law over the draft's, at the knots          optimal_transport.py
    pieces   of [0, 1] for every knot: where its tokens draw their ranks       ranks.py
    select   the candidate of largest rank; its law is p(x) = draft(x) phi(x)

A selected token x is then verified like a single draft drawn from p: accepted with probability min(1, w target / p),
else recovered from (w target - p)+. At w = 1 this attains alpha*, the most that any rule accepts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .noise import Noise, Role
from .optimal_transport import FloatArray, selection_ratio
from .ranks import Pieces, RankLaw, left_curtain, mean_ratio, mixture, rank
from .ratio_grid import grid_places, interpolate, knot_masses, sorted_places, split_place

NUM_BINS = 64
"""Within 0.002 % (absolute) of alpha* on random rows of 32,000 tokens; the solver's time grows with it."""

_WHOLE: Pieces = [(0.0, 1.0)]


@dataclass(frozen=True, slots=True)
class Selection:
    """How one of the candidates is selected, a row each.

    Attributes:
        place: `[rows, vocab]`, where every token stands among the knots.
        phi: `[rows, knots]` float64: p / draft at the knots, as the pieces realise it.
        pieces: for every row and knot its pieces of [0, 1].
    """

    place: Tensor
    phi: Tensor
    pieces: list[list[Pieces]]

    def law(self, draft_probs: Tensor) -> Tensor:
        """Law p of the selected token, `[rows, vocab]` in the draft's dtype."""
        return interpolate(self.phi.to(draft_probs.dtype), self.place).mul_(draft_probs)

    def residual(
        self, target_probs: Tensor, draft_probs: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """(w target - p)+, `[rows, vocab]`, for `weight` `[rows]` or 1: the recovered token's mass."""
        taken = self.law(draft_probs).neg_()
        if weight is None:
            return taken.add_(target_probs).clamp_min_(0)
        return taken.addcmul_(target_probs, weight[:, None].to(taken.dtype)).clamp_min_(0)

    def probs_of(self, token_ids: Tensor, draft_probs: Tensor) -> Tensor:
        """The law p at one token a row, `[rows]` float64."""
        token_ids = token_ids[:, None]
        phi = interpolate(self.phi, self.place.gather(1, token_ids))
        return (phi * draft_probs.gather(1, token_ids)).squeeze(1)

    def rank_laws(self, token_ids: Tensor) -> list[list[RankLaw]]:
        """How the tokens `[rows, n]` draw their ranks."""
        lower, share = split_place(self.place.gather(1, token_ids), self.phi.shape[1])
        return [
            [
                mixture(pieces[knot], pieces[knot + 1], upper)
                for knot, upper in zip(*row, strict=True)
            ]
            for pieces, *row in zip(self.pieces, lower.tolist(), share.tolist(), strict=True)
        ]

    def select(self, candidates: Tensor, alive: Tensor, noise: Noise, depth: int) -> Tensor:
        """The path whose candidate has the largest rank.

        Args:
            candidates: `[rows, K]` int64, the next token of every path.
            alive: `[rows, K]` bool, the paths to select from.
            noise: one stream a row.
            depth: of the node.

        Returns:
            `[rows]` int64 paths; among equal ranks, which take equal 32-bit words, the lowest.
        """
        path = torch.arange(candidates.shape[1], device=candidates.device).expand_as(candidates)
        uniform = noise.uniform(Role.RANK, torch.zeros_like(path), depth=depth, path=path)
        ranks = [
            [rank(law, number) for law, number in zip(*row, strict=True)]
            for row in zip(self.rank_laws(candidates), uniform.tolist(), strict=True)
        ]
        return torch.tensor(ranks, device=alive.device).masked_fill_(~alive, -1).argmax(1)

    def only(self, kept: Tensor) -> Selection:
        """The selection of some rows, given by bool `[rows]` or by int64 row numbers."""
        numbers = torch.arange(len(self.pieces), device=kept.device)[kept].tolist()
        return Selection(self.place[kept], self.phi[kept], [self.pieces[row] for row in numbers])


def plan_selection(
    target_probs: Tensor,
    draft_probs: Tensor,
    num_candidates: Tensor,
    *,
    weight: Tensor | None = None,
    num_bins: int | None = NUM_BINS,
) -> Selection:
    """The optimal selection of every row.

    Args:
        target_probs: `[rows, vocab]` float32 or float64, each row sums to 1.
        draft_probs: `[rows, vocab]`, the law that the candidates were drawn from, i.i.d.
        num_candidates: `[rows]` int64, n >= 1; n = 1 leaves nothing to select, and p is the draft's law.
        weight: `[rows]` float64 in [0, 1], w; None for 1.
        num_bins: of the grid; None for the exact form, which sorts every row and has a knot for each token.
    """
    rows, vocab = target_probs.shape
    if weight is None:
        weight = torch.ones(rows, dtype=torch.float64, device=target_probs.device)
    contested = (num_candidates > 1).nonzero().squeeze(1)
    if len(contested) == rows:
        return _plan_contested(target_probs, draft_probs, num_candidates, weight, num_bins)

    # nothing to select from one candidate: two knots of the whole interval, and phi = 1
    place = target_probs.new_zeros(1, 1).expand(rows, vocab)
    phi = torch.ones(rows, 2, dtype=torch.float64, device=target_probs.device)
    pieces = [[_WHOLE, _WHOLE]] * rows
    if len(contested) == 0:
        return Selection(place, phi, pieces)
    some = _plan_contested(
        target_probs[contested],
        draft_probs[contested],
        num_candidates[contested],
        weight[contested],
        num_bins,
    )
    place = place.clone().index_copy_(0, contested, some.place)
    phi = phi.new_ones(rows, some.phi.shape[1]).index_copy_(0, contested, some.phi)
    for row, solved in zip(contested.tolist(), some.pieces, strict=True):
        pieces[row] = solved
    return Selection(place, phi, pieces)


def target_where_exhausted(residual: Tensor, target_probs: Tensor) -> Tensor:
    """The residual, and the target's law in rows where nothing is left: rounding alone leads there."""
    return torch.where(residual.sum(1, keepdim=True) > 0, residual, target_probs)


def _plan_contested(
    target_probs: Tensor,
    draft_probs: Tensor,
    num_candidates: Tensor,
    weight: Tensor,
    num_bins: int | None,
) -> Selection:
    """The plan of rows with n > 1."""
    vocab = target_probs.shape[1]
    if num_bins is None:
        place, num_knots = sorted_places(target_probs, draft_probs), max(vocab, 2)
        mass = knot_masses(draft_probs, place, num_knots)
        target_mass = knot_masses(target_probs, place, num_knots) * weight[:, None]
    else:
        place = grid_places(target_probs, draft_probs, weight, num_candidates, num_bins)
        num_knots = num_bins + 1
        mass = knot_masses(draft_probs, place, num_knots)
        knots = torch.arange(num_knots, device=mass.device) * num_candidates[:, None] / num_bins
        target_mass = mass * knots
    solved = [
        _solve(*row)
        for row in zip(
            mass.cpu().numpy(), target_mass.cpu().numpy(), num_candidates.tolist(), strict=True
        )
    ]
    phi = torch.from_numpy(np.stack([phi for phi, _ in solved])).to(place.device)
    return Selection(place, phi, [pieces for _, pieces in solved])


def _solve(mass: FloatArray, target_mass: FloatArray, n: int) -> tuple[FloatArray, list[Pieces]]:
    """phi and the pieces of one row's knots."""
    phi, pieces = np.ones(len(mass)), [_WHOLE] * len(mass)
    drafted = np.flatnonzero(mass > 0)
    if len(drafted) == 0:
        # a row without a law: nothing is drafted from it
        return phi, pieces
    mass = mass[drafted] / mass[drafted].sum()
    wanted = selection_ratio(mass, target_mass[drafted], n)
    # knots of one ratio, such as all that are clipped, share their pieces
    first = np.flatnonzero(np.diff(wanted, prepend=-1.0))
    sizes = np.diff(first, append=len(wanted))
    shared = left_curtain(np.add.reduceat(mass, first), wanted[first], n)
    phi[drafted] = np.repeat([mean_ratio(each, n) for each in shared], sizes)
    for knot, group in zip(drafted, np.repeat(np.arange(len(first)), sizes), strict=True):
        pieces[knot] = shared[group]
    return phi, pieces
