"""Drafting: the draft model grows the tree of a block level by level, and keeps the laws that it was drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise

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
    """

    tree: DraftTree
    laws: list[LevelLaws]

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
    """
    tree = branches.new_tree()
    logits = ranks.tensor(branches.root(texts.last_tokens(unread)))
    laws: list[LevelLaws] = []
    for depth in range(length):
        laws.append(_level_laws(tree.tips(), logits, texts, vocabulary, pipeline))
        level = tree.grow(drafter.draws(tree, laws[-1], noise))
        if depth + 1 < length:
            logits = ranks.tensor(branches.extend(tree, level))
    return DraftPaths(tree, laws)


def fit_width(logits: Tensor, vocabulary: int) -> Tensor:
    """Bring logits `[rows, width]` to the target's vocabulary: two padded widths of one tokenizer.

    Tokens that the draft does not have get no draft probability, tokens that the target does not have are left out;
    the law that is sampled is the law that is verified, so nothing is lost.
    """
    width = logits.shape[1]
    if width == vocabulary:
        return logits
    if width > vocabulary:
        return logits[:, :vocabulary]
    missing = logits.new_full((len(logits), vocabulary - width), float("-inf"))
    return torch.cat([logits, missing], dim=1)


def _level_laws(
    tips: Tips, logits: Tensor, texts: Texts, vocabulary: int, pipeline: LawPipeline
) -> LevelLaws:
    """The laws of the nodes that draw next, `logits` `[batch, columns, width]`."""
    rows = logits.flatten(0, 1)
    if len(tips.text) < len(rows):
        rows = rows[(tips.row >= 0).flatten()]
    law = pipeline.after(texts, tips.text, tips.drafted, fit_width(rows, vocabulary))
    _check(law, tips.text)
    return LevelLaws(law, tips.row)


def _check(law: Law, text: Tensor) -> None:
    bad = law.status.nonzero().squeeze(1)
    if len(bad) > 0:
        raise ValueError(
            f"the draft model's logits hold NaN, +inf or nothing finite after the processors "
            f"(row {int(text[bad[0]])})"
        )
