"""Drafting: K i.i.d. continuations of every text, and the laws that they were drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role

from .cached_model import CachedModel
from .laws import Law, LawPipeline
from .texts import Texts


@dataclass(frozen=True, slots=True)
class DraftPaths:
    """The draft paths of one block.

    Attributes:
        token_ids: `[batch, K, L]` int64.
        laws: for each depth the probabilities `[batch, K, vocab]` that the tokens there were drawn from
            (`[batch, 1, vocab]` at the root, which all paths share).
    """

    token_ids: Tensor
    laws: list[Tensor]

    def law(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """The draft law `[len(rows), vocab]` after `depth` tokens of each row's path."""
        laws = self.laws[depth]
        return laws[rows, torch.minimum(path, path.new_tensor(laws.shape[1] - 1))]


def draft_paths(
    draft: CachedModel,
    texts: Texts,
    unread: int,
    *,
    num_drafts: int,
    length: int,
    vocabulary: int,
    pipeline: LawPipeline,
    noise: Noise,
) -> DraftPaths:
    """Draw K paths of L tokens after every text.

    Args:
        draft: the draft model, whose cache holds all but the last `unread` tokens of every text. Afterwards it holds a
            row for each path, with the text and the path's first L - 1 tokens.
        texts: what has been written.
        unread: 1 or 2.
        num_drafts: K.
        length: L >= 1.
        vocabulary: the target's width, which the draft's logits are brought to.
        pipeline: the processors and rules of both models.
        noise: one stream a text, at the block's step.
    """
    batch = len(texts.lengths)
    device = texts.lengths.device
    owner = torch.arange(batch, device=device).repeat_interleave(num_drafts)
    path = torch.arange(num_drafts, device=device).repeat(batch)
    streams = noise.select(owner)
    drafted = owner.new_zeros(batch * num_drafts, 0)
    laws: list[Tensor] = []

    logits = draft.forward(texts.last_tokens(unread))[:, -1]
    texts_only = torch.arange(batch, device=device)
    law = pipeline.after(texts, texts_only, drafted[:batch], fit_width(logits, vocabulary))
    _check(law)
    laws.append(law.probs[:, None])
    draft.branch(num_drafts)
    probs = law.expand(num_drafts).probs
    for depth in range(length):
        tokens = draw(probs, streams, Role.DRAFT, depth=depth, path=path)
        drafted = torch.cat([drafted, tokens[:, None]], dim=1)
        if depth + 1 == length:
            break
        logits = draft.forward(tokens[:, None])[:, -1]
        law = pipeline.after(texts, owner, drafted, fit_width(logits, vocabulary))
        _check(law)
        probs = law.probs
        laws.append(probs.view(batch, num_drafts, -1))
    return DraftPaths(drafted.view(batch, num_drafts, length), laws)


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


def _check(law: Law) -> None:
    bad = law.status.nonzero().squeeze(1)
    if len(bad) > 0:
        raise ValueError(
            f"the draft model's logits hold NaN, +inf or nothing finite after the processors "
            f"(draft row {int(bad[0])})"
        )
