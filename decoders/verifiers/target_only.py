"""Target-only verification: draw from the target, accept what happens to be drafted."""

from __future__ import annotations

from torch import Tensor

from warpdraft.abstract_verifiers import NodeVerifier
from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.top_tokens import mass_of, top_tokens


class TargetOnly(NodeVerifier):
    """What engines do with the deterministic trees of Medusa and EAGLE-2: the draft's law is never read.

    Lossless for any candidates; the best that can be done where they are a function of the text alone.
    """

    name = "target_only"
    drafts = "beam"

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
        """Draw from the target's law."""
        return draw(target_probs, noise, Role.RESIDUAL, depth=depth, token_ids=token_ids)

    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        """The target's."""
        return target_probs

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """The target's mass on the draft's n most likely tokens."""
        top = top_tokens(draft_probs, min(num_candidates, draft_probs.shape[1]))
        return mass_of(target_probs, top, draft_probs)
