"""Optimal transport at every node: the most candidates that any rule for i.i.d. drafts accepts."""

from __future__ import annotations

import torch
from torch import Tensor

from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.optimal import NUM_BINS, plan_selection, target_where_exhausted
from warpdraft.kernels.ranks import win_probabilities
from warpdraft.verification import NodeVerifier


class Optimal(NodeVerifier):
    """Select the survivor of largest rank, then verify it like a single draft from the selection law.

    Attributes:
        num_bins: of the grid of ratios; None sorts every row and attains alpha* up to rounding.
    """

    name = "optimal"

    def __init__(self, num_bins: int | None = NUM_BINS) -> None:
        self.num_bins = check_num_bins(num_bins)

    def select(
        self,
        target_probs: Tensor,
        draft_probs: Tensor,
        candidates: Tensor,
        alive: Tensor,
        noise: Noise,
        depth: int,
    ) -> Tensor:
        """Accept the selected candidate with probability min(1, target / p), else recover from (target - p)+."""
        plan = plan_selection(target_probs, draft_probs, alive.sum(1), num_bins=self.num_bins)
        path = plan.select(candidates, alive, noise, depth)
        tokens = candidates.gather(1, path[:, None]).squeeze(1)
        target = target_probs.gather(1, tokens[:, None]).squeeze(1)
        uniform = noise.uniform(Role.ACCEPT, torch.zeros_like(tokens)[:, None], depth=depth)
        accepted = uniform.squeeze(1) * plan.probs_of(tokens, draft_probs) < target
        rejected = (~accepted).nonzero().squeeze(1)
        if len(rejected) > 0:
            target_probs, draft_probs = target_probs[rejected], draft_probs[rejected]
            residual = plan.only(rejected).residual(target_probs, draft_probs)
            mass = target_where_exhausted(residual, target_probs)
            tokens[rejected] = draw(mass, noise.select(rejected), Role.RESIDUAL, depth=depth)
        return tokens

    def law(self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor) -> Tensor:
        """The chance of each candidate to be selected, its acceptance, then the residual."""
        target, draft = target_probs[None], draft_probs[None]
        count = candidates.new_tensor([len(candidates)])
        plan = plan_selection(target, draft, count, num_bins=self.num_bins)
        selected = plan.law(draft)[0]
        law = torch.zeros_like(target_probs)
        for token, chance in zip(
            candidates, win_probabilities(plan.rank_laws(candidates[None])[0]), strict=True
        ):
            law[token] += chance * (target_probs[token] / selected[token]).clamp_max(1)
        residual = target_where_exhausted(plan.residual(target, draft), target)[0]
        return law + (1 - law.sum()) * residual / residual.sum()

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """Sum of min(p, target), the chance that the selected candidate is accepted: alpha* in the exact form.

        There a recovered token is never a candidate; with bins it can be one, at most as often as alpha* is missed.
        """
        count = torch.full((len(target_probs),), num_candidates, device=target_probs.device)
        plan = plan_selection(target_probs, draft_probs, count, num_bins=self.num_bins)
        return torch.minimum(plan.law(draft_probs), target_probs).sum(1, dtype=torch.float64)


def check_num_bins(num_bins: int | None) -> int | None:
    """The number of bins, or ValueError."""
    if num_bins is not None and num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, or None for the exact form, got {num_bins}")
    return num_bins
