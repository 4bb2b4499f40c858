"""Greedy drafts: the draft's most likely tokens and one drawn from the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise
from warpdraft.kernels.top_tokens import mass_of, top_tokens, without_tokens

from .recursive import Recursive


class GreedyDrafts(Recursive):
    """Hu et al., ICLR 2025, arXiv 2502.18779: optimal for its own drafts.

    The root's candidates are the K - 1 most likely tokens of the draft's law d and one drawn from d', the law without
    them. That one is verified like a single draft from d', and whatever the residual (t - d')+ puts on the others is
    accepted too. Below the root every path is a chain of single draws.
    """

    name = "greedy_drafts"

    def num_top(self, num_drafts: int) -> int:
        """All but one."""
        return num_drafts - 1

    def select(
        self,
        target_probs: Tensor,
        draft_probs: Tensor,
        candidates: Tensor,
        alive: Tensor,
        noise: Noise,
        depth: int,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """At the root verify the drawn candidate alone."""
        if depth == 0:
            num_top = self.num_top(candidates.shape[1])
            # a row that lacks one of them has no further token: nothing was drawn there
            draft_probs = without_tokens(draft_probs, candidates[:, :num_top])
            alive = alive.clone()
            alive[:, :num_top] = False
        return super().select(target_probs, draft_probs, candidates, alive, noise, depth, token_ids)

    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        """The law of verifying the last candidate alone, which at the root was drawn without the others."""
        if depth == 0:
            top, candidates = candidates[:-1], candidates[-1:]
            draft_probs = without_tokens(draft_probs[None], top[None])[0]
        return super().law(target_probs, draft_probs, candidates, depth)

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """t(A) + sum off A of min(t, d'), A the drafted top tokens: the optimum for these drafts."""
        target, draft = target_probs.double(), draft_probs.double()
        top = top_tokens(draft, min(self.num_top(num_candidates), draft.shape[1]))
        return mass_of(target, top, draft) + torch.minimum(target, without_tokens(draft, top)).sum(
            1
        )
