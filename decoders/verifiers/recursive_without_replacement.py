"""Recursive rejection of candidates drawn without replacement: recursive speculative decoding, Sequoia."""

from __future__ import annotations

from torch import Tensor

from warpdraft.kernels.recursive import distinct_acceptance, residual_law
from warpdraft.kernels.top_tokens import without_tokens
from warpdraft.laws import NodeLaws

from .recursive import Recursive


class RecursiveWithoutReplacement(Recursive):
    """Jeon et al., 2024, arXiv 2402.14160; Chen et al., 2024, arXiv 2402.12374.

    The candidates of a node are distinct, and tried in the order in which they were drawn.
    """

    name = "recursive_without_replacement"
    drafts = "without_replacement"

    def after(self, node: NodeLaws, rejected: Tensor) -> NodeLaws:
        """The residual, and the law that the next candidate was drawn from."""
        return NodeLaws(
            residual_law(node.target, node.draft),
            without_tokens(node.draft, rejected[:, None]),
            node.token_ids,
        )

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """Exact for the first n tokens drawn without replacement; ValueError where that is too much work."""
        return distinct_acceptance(target_probs, draft_probs, num_candidates)
