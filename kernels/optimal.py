r"""Optimal selection among n i.i.d. drafts, one node of the draft paths a row: who is selected, and with what law.

    knots    tokens placed by their ratio w target / draft                     ratio_grid.py
    phi      the optimal selection law over the draft's, at the knots          optimal_transport.py, concave_majorant.py
    ranks    whose means are phi: a knot's own interval of [0, 1] and others'   ranks.py
    select   the candidate of largest rank; its law is p(x) = draft(x) phi(x)

A selected token x is then verified like a single draft drawn from p: accepted with probability min(1, w target / p),
else recovered from (w target - p)+. At w = 1 this attains alpha*, the most that any rule accepts. Two laws do, for one
node as good as the other: the *clip*, and the *lex*-optimal one, which evens out the weights that are left below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .concave_majorant import lex_selection_ratio
from .noise import Noise, Role
from .optimal_transport import selection_ratio
from .ranks import Exchange, exchange
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

SELECTORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "clip": selection_ratio,
    "lex": lex_selection_ratio,
}
"""p / draft of the atoms, by name."""

NUM_BINS = 64
"""Within 0.002 % (absolute) of alpha* on random rows of 32,000 tokens; the solver's time grows with it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """How one of the candidates is selected, a row each.

    Attributes:
        target_probs: `[rows, vocab]`.
        draft_probs: `[rows, vocab]`, the law of the candidates.
        weight: `[rows]` float64, w.
        phi: `[rows, knots]` float64: p / draft at the knots, as the ranks realise it.
        ranks: of the knots.
        places: where every token stands among the knots; None where no row has a choice, and p is the draft's law.
    """

    target_probs: Tensor
    draft_probs: Tensor
    weight: Tensor
    phi: Tensor
    ranks: Exchange
    places: Places | None

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

    def rank_laws(self, token_ids: Tensor) -> Tensor:
        """The chances of tokens `[rows, n]` to have their rank in each knot's interval, `[rows, n, knots]` float64."""
        lower, share = self._knots_of(token_ids)
        return torch.lerp(self.ranks.laws(lower), self.ranks.laws(lower + 1), share[..., None])

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
        # one number chooses the knot and then, by what is left of it, the rank
        lower, share = self._knots_of(candidates)
        is_upper = uniform >= 1 - share
        uniform = torch.where(is_upper, (uniform - (1 - share)) / share, uniform / (1 - share))
        ranks = self.ranks.rank(lower + is_upper.long(), uniform)
        return ranks.masked_fill_(~alive, -1).argmax(1)

    def only(self, kept: Tensor) -> Selection:
        """The selection of some rows, given by bool `[rows]` or by int64 row numbers."""
        return Selection(
            self.target_probs[kept],
            self.draft_probs[kept],
            self.weight[kept],
            self.phi[kept],
            self.ranks.only(kept),
            None if self.places is None else self.places.only(kept),
        )

    def _knots_of(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The knot below each token, int64, and the share of the knot above it, float64."""
        if self.places is None:
            return torch.zeros_like(token_ids), torch.zeros_like(token_ids, dtype=torch.float64)
        lower, share = split_place(self.places.at(token_ids), self.phi.shape[1])
        return lower.long(), share.double()

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
    if weight is None:
        weight = torch.ones(len(target_probs), dtype=torch.float64, device=target_probs.device)
    num_candidates = num_candidates.clamp_min(1)
    # on a GPU the host would have to wait for the answer
    if num_candidates.device.type == "cpu" and not bool((num_candidates > 1).any()):
        ranks = _ranks_without_choice(len(target_probs))
        return Selection(target_probs, draft_probs, weight, ranks.phi, ranks, None)
    places: Places
    if num_bins is None:
        places = SortedPlaces.create(target_probs, draft_probs)
        mass = knot_masses(draft_probs, places)
        target_mass = knot_masses(target_probs, places) * weight[:, None]
    else:
        places = GridPlaces.create(target_probs, draft_probs, weight, num_candidates, num_bins)
        mass = knot_masses(draft_probs, places)
        knots = torch.arange(num_bins + 1, device=mass.device) * num_candidates[:, None] / num_bins
        target_mass = mass * knots
    # a row without a draft has no candidates to select
    mass = mass / mass.sum(1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
    phi = SELECTORS[selector](mass, target_mass, num_candidates)
    phi = torch.where(num_candidates[:, None] > 1, phi, 1.0)
    ranks = exchange(mass, phi, num_candidates)
    return Selection(target_probs, draft_probs, weight, ranks.phi, ranks, places)


@lru_cache(maxsize=64)
def _ranks_without_choice(rows: int) -> Exchange:
    """One candidate a row: one knot that all tokens stand on, and another one. The same at every node of one path."""
    mass = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(rows, 2)
    return exchange(mass, torch.ones_like(mass), torch.ones(rows, dtype=torch.int64))


def target_where_exhausted(residual: Tensor, total: Tensor, target_probs: Tensor) -> Tensor:
    """The residual, and the target's law in rows whose `total` is 0: rounding alone leads there."""
    exhausted = total <= 0
    return torch.where(exhausted[:, None], target_probs, residual) if exhausted.any() else residual
