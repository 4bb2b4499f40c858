"""Two ways to run a model on a tree of drafted tokens: paths in the batch dimension, or the whole tree in one row.

    paths   a row of the cache for each path: works with every kind of attention; each path reads the text again
    tree    one row a text, the nodes behind it, a 4-D mask that shows a node its ancestors: the text is read once and a
            prefix that paths share is scored once; for sdpa and eager attention

Both give the same logits up to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .cached_model import CachedModel
from .draft_tree import DraftTree, Level


class Branches(ABC):
    """A cached model between a block's first token and its commit.

    Attributes:
        model: with a row for each text between blocks.
    """

    def __init__(self, model: CachedModel) -> None:
        self.model = model

    def new_tree(self) -> DraftTree:
        """A tree for the next block's drafts."""
        return DraftTree(len(self.model.lengths), self.model.lengths.device)

    @abstractmethod
    def root(self, token_ids: Tensor) -> Tensor:
        """Read the texts' last tokens `[batch, n]`; logits `[batch, 1, vocab]` behind them."""

    @abstractmethod
    def extend(self, tree: DraftTree, level: Level) -> Tensor:
        """Read the tree's newest level; logits `[batch, columns, vocab]` after its nodes."""

    @abstractmethod
    def score(self, pending: Tensor, tree: DraftTree) -> tuple[Tensor, Tensor]:
        """Read the texts' last token `[batch, 1]` and the whole tree in one call.

        Returns:
            logits `[batch, nodes, vocab]`, and where each path's nodes stand among them, `[batch, K, L + 1]` int64.
        """

    @abstractmethod
    def commit(self, tree: DraftTree, path: Tensor, count: Tensor) -> None:
        """Make the first tokens of one path part of every text; forget the rest.

        Args:
            tree: of the block.
            path: `[batch]` int64, whose tokens they are.
            count: `[batch]` int64, how many of the block's tokens the cache keeps: drafted ones after `root`, the
                pending one and drafted ones after `score`. Negative ones take the text's last tokens back.
        """


class PathRows(Branches):
    """A row for each path."""

    def __init__(self, model: CachedModel) -> None:
        super().__init__(model)
        self._read = 0
        self._scored = False

    def root(self, token_ids: Tensor) -> Tensor:
        """See `Branches`."""
        self._read, self._scored = 0, False
        return self.model.forward(token_ids)[:, -1:]

    def extend(self, tree: DraftTree, level: Level) -> Tensor:
        """Rows of new paths are copied from those that they branch off; rows of ended paths read anything."""
        batch, paths = tree.token_ids.shape[:2]
        rows = torch.arange(batch, device=level.path.device)[:, None]
        before = len(self.model.lengths) // batch
        self.model.select((rows * before + tree.source).flatten())
        logits = self.model.forward(tree.token_ids[:, :, -1].clamp_min(0).view(-1, 1))[:, 0]
        self._read += 1
        return logits.view(batch, paths, -1)[rows, level.path]

    def score(self, pending: Tensor, tree: DraftTree) -> tuple[Tensor, Tensor]:
        """Node i of path k is number k (L + 1) + i."""
        batch, paths, length = tree.token_ids.shape
        self.model.branch(paths)
        first = pending.repeat_interleave(paths, dim=0)
        drafted = tree.token_ids.view(batch * paths, length).clamp_min(0)
        logits = self.model.forward(torch.cat([first, drafted], dim=1))
        self._read, self._scored = length + 1, True
        node = torch.arange(paths * (length + 1), device=pending.device)
        return logits.view(batch, paths * (length + 1), -1), node.view(1, paths, -1).expand(
            batch, -1, -1
        )

    def commit(self, tree: DraftTree, path: Tensor, count: Tensor) -> None:
        """See `Branches`."""
        text = torch.arange(len(path), device=path.device)
        rows = len(self.model.lengths) // len(path)
        if not self._scored:
            # a draft has not read the last level, where a path may have begun: the one that it goes on from has a row
            path = tree.source[text, path]
        self.model.commit(text * rows + path, self._read - count)


class TreeRow(Branches):
    """The tree behind its text."""

    def __init__(self, model: CachedModel) -> None:
        super().__init__(model)
        self._size = 0
        self._pending = False

    def root(self, token_ids: Tensor) -> Tensor:
        """See `Branches`."""
        self._size, self._pending = 0, False
        return self.model.forward(token_ids)[:, -1:]

    def extend(self, tree: DraftTree, level: Level) -> Tensor:
        """See `Branches`."""
        _, depth, seen = tree.flat()
        width = level.token_ids.shape[1]
        self._size += width
        return self.model.forward_tree(level.token_ids, depth, seen[:, -width:])

    def score(self, pending: Tensor, tree: DraftTree) -> tuple[Tensor, Tensor]:
        """Node 0 is the pending token."""
        batch = len(pending)
        tokens, depth, seen = tree.flat()
        tokens = torch.cat([pending, tokens], dim=1)
        depth = torch.cat([torch.zeros_like(pending), depth + 1], dim=1)
        root = torch.ones(batch, tokens.shape[1], 1, dtype=torch.bool, device=pending.device)
        unseen = torch.zeros(batch, 1, seen.shape[2], dtype=torch.bool, device=pending.device)
        seen = torch.cat([root, torch.cat([unseen, seen], dim=1)], dim=2)
        self._size, self._pending = tokens.shape[1], True
        return self.model.forward_tree(tokens, depth, seen), tree.node()

    def commit(self, tree: DraftTree, path: Tensor, count: Tensor) -> None:
        """See `Branches`."""
        rows = torch.arange(len(path), device=path.device)
        node = tree.node()[rows, path]
        self.model.keep(node if self._pending else node[:, 1:] - 1, count, self._size)
