r"""Optimal selection among n i.i.d. drafts, one node of the draft paths a row: who is selected, and with what law.

    knots    tokens placed by their ratio w target / draft                     ratio_grid.py
    phi      the optimal selection law over the draft's, at the knots          optimal_transport.py, concave_majorant.py
    pieces   of [0, 1] for every knot: where its tokens draw their ranks       ranks.py
    select   the candidate of largest rank; its law is p(x) = draft(x) phi(x)

A selected token x is then verified like a single draft drawn from p: accepted with probability min(1, w target / p),
else recovered from (w target - p)+. At w = 1 this attains alpha*, the most that any rule accepts. Two laws do, for one
node as good as the other: the *clip*, and the *lex*-optimal one, which evens out the weights that are left below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .concave_majorant import lex_selection_ratio
from .noise import Noise, Role
from .optimal_transport import FloatArray, selection_ratio
from .ranks import Pieces, RankLaw, left_curtain, mean_ratio, mixture, rank
from .ratio_grid import (
    GridPlaces,
    Places,
    SortedPlaces,
    chunks,
    interpolate,
    knot_masses,
    split_place,
)

Selector = Literal["clip", "lex"]

SELECTORS: dict[str, Callable[[FloatArray, FloatArray, int], FloatArray]] = {
    "clip": selection_ratio,
    "lex": lex_selection_ratio,
}
"""p / draft of the atoms, by name."""

NUM_BINS = 64
"""Within 0.002 % (absolute) of alpha* on random rows of 32,000 tokens; the solver's time grows with it."""

_WHOLE: Pieces = [(0.0, 1.0)]


@dataclass(frozen=True, slots=True)
class Selection:
    """How one of the candidates is selected, a row each.

    Attributes:
        target_probs: `[rows, vocab]`.
        draft_probs: `[rows, vocab]`, the law of the candidates.
        weight: `[rows]` float64, w.
        places: where every token stands among the knots; None where no row has a choice, and p is the draft's law.
        phi: `[rows, knots]` float64: p / draft at the knots, as the pieces realise it.
        pieces: for every row and knot its pieces of [0, 1].
    """

    target_probs: Tensor
    draft_probs: Tensor
    weight: Tensor
    places: Places | None
    phi: Tensor
    pieces: list[list[Pieces]]

    def law(self) -> Tensor:
        """Law p of the selected token, `[rows, vocab]` in the draft's dtype."""
        law, phi = torch.empty_like(self.draft_probs), self.phi.to(self.draft_probs.dtype)
        for columns in chunks(law):
            law[:, columns] = self._law_of(columns, phi)
        return law

    def residual(self) -> Tensor:
        """(w target - p)+, `[rows, vocab]`: the recovered token's mass."""
        residual, phi = torch.empty_like(self.draft_probs), self.phi.to(self.draft_probs.dtype)
        weight = self.weight[:, None].to(residual.dtype)
        for columns in chunks(residual):
            part = torch.mul(self.target_probs[:, columns], weight, out=residual[:, columns])
            part.sub_(self._law_of(columns, phi)).clamp_min_(0)
        return residual

    def probs_of(self, token_ids: Tensor) -> Tensor:
        """The law p at one token a row, `[rows]` float64."""
        token_ids = token_ids[:, None]
        draft = self.draft_probs.gather(1, token_ids).double()
        if self.places is not None:
            draft = draft * interpolate(self.phi, self.places.at(token_ids))
        return draft.squeeze(1)

    def rank_laws(self, token_ids: Tensor) -> list[list[RankLaw]]:
        """How the tokens `[rows, n]` draw their ranks."""
        if self.places is None:
            return [[mixture(_WHOLE, _WHOLE, 0.0)] * token_ids.shape[1] for _ in self.pieces]
        lower, share = split_place(self.places.at(token_ids), self.phi.shape[1])
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
        if self.places is None:
            return alive.to(torch.int8).argmax(1)
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
        return Selection(
            self.target_probs[kept],
            self.draft_probs[kept],
            self.weight[kept],
            None if self.places is None else self.places.only(kept),
            self.phi[kept],
            [self.pieces[row] for row in numbers],
        )

    def _law_of(self, columns: slice, phi: Tensor) -> Tensor:
        """The law at some columns."""
        draft = self.draft_probs[:, columns]
        if self.places is None:
            return draft
        return interpolate(phi, self.places.of(columns)).mul_(draft)


def plan_selection(
    target_probs: Tensor,
    draft_probs: Tensor,
    num_candidates: Tensor,
    *,
    weight: Tensor | None = None,
    num_bins: int | None = NUM_BINS,
    selector: Selector = "clip",
) -> Selection:
    """The optimal selection of every row.

    Args:
        target_probs: `[rows, vocab]` float32 or float64, each row sums to 1, or to less where some tokens are left out
            of both laws.
        draft_probs: `[rows, vocab]`, the law that the candidates were drawn from, i.i.d.; a row of zeros, which has no
            candidates, selects nothing: p = 0.
        num_candidates: `[rows]` int64, n; n = 1 leaves nothing to select, and p is the draft's law.
        weight: `[rows]` float64 in [0, 1], w; None for 1.
        num_bins: of the grid; None for the exact form, which sorts every row and has a knot for each token.
        selector: which of the optimal laws, see `SELECTORS`.
    """
    rows = len(target_probs)
    if weight is None:
        weight = torch.ones(rows, dtype=torch.float64, device=target_probs.device)
    contested = num_candidates > 1
    if not bool(contested.any()):
        phi = torch.ones(rows, 2, dtype=torch.float64, device=target_probs.device)
        return Selection(target_probs, draft_probs, weight, None, phi, [[_WHOLE, _WHOLE]] * rows)
    places: Places
    if num_bins is None:
        places = SortedPlaces.create(target_probs, draft_probs)
        mass = knot_masses(draft_probs, places)
        target_mass = knot_masses(target_probs, places) * weight[:, None]
    else:
        places = GridPlaces.create(
            target_probs, draft_probs, weight, num_candidates.clamp_min(1), num_bins
        )
        mass = knot_masses(draft_probs, places)
        knots = torch.arange(num_bins + 1, device=mass.device) * num_candidates[:, None] / num_bins
        target_mass = mass * knots
    solved = [
        _solve(*row, selector)
        for row in zip(
            mass.cpu().numpy(), target_mass.cpu().numpy(), num_candidates.tolist(), strict=True
        )
    ]
    phi = torch.from_numpy(np.stack([phi for phi, _ in solved])).to(mass.device)
    return Selection(
        target_probs, draft_probs, weight, places, phi, [pieces for _, pieces in solved]
    )


def target_where_exhausted(residual: Tensor, total: Tensor, target_probs: Tensor) -> Tensor:
    """The residual, and the target's law in rows whose `total` is 0: rounding alone leads there."""
    exhausted = total <= 0
    return torch.where(exhausted[:, None], target_probs, residual) if exhausted.any() else residual


def _solve(
    mass: FloatArray, target_mass: FloatArray, n: int, selector: Selector
) -> tuple[FloatArray, list[Pieces]]:
    """phi and the pieces of one row's knots."""
    phi, pieces = np.ones(len(mass)), [_WHOLE] * len(mass)
    drafted = np.flatnonzero(mass > 0)
    if len(drafted) == 0 or n <= 1:
        # nothing to select: no row here has a law, or one candidate is the selected one
        return phi, pieces
    mass = mass[drafted] / mass[drafted].sum()
    wanted = SELECTORS[selector](mass, target_mass[drafted], n)
    # knots of one ratio, such as all that are clipped, share their pieces
    first = np.flatnonzero(np.diff(wanted, prepend=-1.0))
    sizes = np.diff(first, append=len(wanted))
    shared = left_curtain(np.add.reduceat(mass, first), wanted[first], n)
    phi[drafted] = np.repeat([mean_ratio(each, n) for each in shared], sizes)
    for knot, group in zip(drafted, np.repeat(np.arange(len(first)), sizes), strict=True):
        pieces[knot] = shared[group]
    return phi, pieces
