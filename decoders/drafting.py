"""Drafting: the draft model grows the tree of a block level by level, and keeps the laws that it was drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise

from .cached_model import fit_width
from .draft_tree import DraftTree, Tips
from .laws import Law, LawPipeline
from .layouts import Branches
from .same_text import SameText
from .structures import Drafter, LevelLaws
from .texts import Texts


@dataclass(frozen=True, slots=True)
class DraftPaths:
    """The draft paths of one block.

    Attributes:
        tree: the drafted tokens.
        laws: of the levels that drew.
        status: `[batch]` int8, not 0 where a law that a token could follow does not exist; None where all do.
    """

    tree: DraftTree
    laws: list[LevelLaws]
    status: Tensor | None = None

    def law(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """The draft law `[len(rows), vocab]` after `depth` tokens of each row's path."""
        return self.laws[depth].at(rows, self.tree.column[rows, path, depth])


def draft_paths(
    branches: Branches,
    texts: Texts,
    unread: int,
    drafter: Drafter,
    *,
    length: int,
    vocabulary: int,
    pipeline: LawPipeline,
    noise: Noise,
    ranks: SameText,
) -> DraftPaths:
    """Draw the tokens of one block.

    Args:
        branches: the draft model, whose cache holds all but the last `unread` tokens of every text. Afterwards it holds
            the text and all levels of the tree but the last.
        texts: what has been written.
        unread: 1 or 2.
        drafter: who draws how many tokens at which node.
        length: L >= 1, the depth of the tree.
        vocabulary: the target's width, which the draft's logits are brought to.
        pipeline: the processors and rules of both models.
        noise: one stream a text, at the block's step.
        ranks: draw from the same logits.

    Returns:
        the tree of the drawn tokens, and the laws that they were drawn from.
    """
    tree = branches.new_tree()
    logits = ranks.tensor(branches.root(texts.last_tokens(unread)))
    laws: list[LevelLaws] = []
    status = torch.zeros_like(texts.lengths, dtype=torch.int8)
    for depth in range(length):
        tips = tree.tips()
        laws.append(_level_laws(tips, logits, texts, vocabulary, pipeline))
        status.scatter_reduce_(0, tips.text, laws[-1].law.status, "amax")
        level = tree.grow(drafter.draws(tree, laws[-1], noise))
        if depth + 1 < length:
            logits = ranks.tensor(branches.extend(tree, level))
    return DraftPaths(tree, laws, status)


def _level_laws(
    tips: Tips, logits: Tensor, texts: Texts, vocabulary: int, pipeline: LawPipeline
) -> LevelLaws:
    """The laws of the nodes that draw next, `logits` `[batch, columns, width]`."""
    rows = logits.flatten(0, 1)
    if len(tips.text) < len(rows):
        rows = rows[(tips.row >= 0).flatten()]
    law = pipeline.after(texts, tips.text, tips.drafted, fit_width(rows, vocabulary))
    return LevelLaws(law, tips.row)
