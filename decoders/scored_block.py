"""A block that the target has scored: what a verifier of the loop reads."""

from __future__ import annotations

import torch
from torch import Tensor

from .drafting import DraftPaths
from .laws import Law, LawPipeline
from .texts import Texts


class ScoredBlock:
    """Draft paths with the target's logits: laws are made for the nodes that the verifier reaches.

    Args:
        paths: the drafted tree and the laws that its tokens were drawn from.
        target_logits: `[batch, nodes, vocab]` of the target at the tree's nodes.
        node: `[batch, K, L + 1]` int64, the node after the first i tokens of path k.
        texts: what has been written.
        pipeline: processors and rules.
    """

    def __init__(
        self,
        paths: DraftPaths,
        target_logits: Tensor,
        node: Tensor,
        texts: Texts,
        pipeline: LawPipeline,
    ) -> None:
        self.draft_token_ids = paths.tree.token_ids
        self.drawn = paths.tree.drawn
        self.status = torch.zeros(len(texts.lengths), dtype=torch.int8, device=texts.lengths.device)
        self._paths = paths
        self._target_logits = target_logits
        self._node = node
        self._texts = texts
        self._pipeline = pipeline

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Target law of `[len(rows)]` nodes, processed on the text and the path's first `depth` tokens."""
        law = self._law(rows, path, depth, with_scores=False)
        self.status[rows] = torch.where(law.status != 0, law.status, self.status[rows])
        return law

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Draft law of `[len(rows)]` nodes, as it was sampled."""
        return self._paths.law(rows, path, depth)

    def logits(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """The target's logits there, `[len(rows), vocab]`."""
        node = self._node[rows, path, depth]
        if len(rows) == 1:
            # a view: a copy of one row would cost as much as a pass over it
            return self._target_logits[int(rows), int(node)][None]
        return self._target_logits[rows, node]

    def scores(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """The processed scores there, `[len(rows), vocab]`."""
        scores = self._law(rows, path, depth, with_scores=True).scores
        assert scores is not None
        return scores

    def _law(self, rows: Tensor, path: Tensor, depth: int, *, with_scores: bool) -> Law:
        drafted = self.draft_token_ids[rows, path, :depth]
        logits = self.logits(rows, path, depth)
        return self._pipeline.after(self._texts, rows, drafted, logits, with_scores=with_scores)
