"""K draft paths of L tokens behind their text, in calls of fixed shape.

Every path is a chain of its own, also where paths agree: node (depth d, path k) has number d K + k among the draft's
nodes, and the target's tree has the pending token before them. Which node sees which is therefore known before anything
is drawn, and no shape and no index has to be read back from the device.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise

from .compiled_steps import level_step
from .draft_tree import DraftTree, Level, SeparatePaths
from .layouts import Branches
from .slot_model import SlotModel

if TYPE_CHECKING:
    from .texts import Stops


class SlotTree(Branches):
    """A tree of separate paths in a row's slots.

    Args:
        model: with a row for each text.
        num_drafts: K.
        draft_lengths: values of L; a shorter block, at the context's end, runs as well, but is not compiled.
    """

    model: SlotModel  # type: ignore[assignment]

    def __init__(self, model: SlotModel, num_drafts: int, draft_lengths: Collection[int]) -> None:
        self.model = model
        self._paths, self._lengths = num_drafts, frozenset(draft_lengths)
        draft_length = max(draft_lengths)
        device = model.lengths.device
        node = torch.arange(num_drafts * draft_length, device=device)
        self._number = node.view(-1, num_drafts)
        self._depth = node // num_drafts
        path = node % num_drafts
        above = self._depth <= self._depth[:, None]
        self._seen = above & (path == path[:, None])
        with_root = torch.ones(len(node) + 1, len(node) + 1, dtype=torch.bool, device=device)
        with_root[0, 1:] = False
        with_root[1:, 1:] = self._seen
        self._seen_from_root = with_root
        self._all = torch.arange(len(node) + 1, device=device)
        self._depth_from_root = torch.cat([node.new_zeros(1), self._depth + 1])
        self._of_pair = torch.ones(2, 2, dtype=torch.bool, device=device).tril()
        number = torch.zeros(num_drafts, draft_length + 1, dtype=torch.int64, device=device)
        number[:, 1:] = self._number.T + 1
        self._node = number
        self._pending = False

    def is_usual(self, length: int) -> bool:
        """Whether blocks of that length come again: a shorter one, at the context's end, is not compiled for."""
        return length in self._lengths

    def new_tree(self) -> DraftTree:
        """See `Branches`."""
        return SeparatePaths(len(self.model.lengths), self.model.lengths.device)

    def root(self, token_ids: Tensor) -> Tensor:
        """See `Branches`; always two tokens, of which a draft that had a token rejected has read one before."""
        pair = self._all[:2]
        logits = self.model.read(token_ids, pair, pair, self._of_pair, fast=True)
        self.model.lengths = self.model.lengths + 2
        self._pending = False
        return logits[:, -1:]

    def extend(self, tree: DraftTree, level: Level) -> Tensor:
        """See `Branches`."""
        number = self._number[tree.depth - 1]
        return self.model.read(level.token_ids, number, self._depth, self._seen[number], fast=True)

    def draw(
        self,
        token_ids: Tensor,
        depth: int,
        vocabulary: int,
        temperature: Tensor,
        noise: Noise,
        follows: Tensor,
        stops: Stops,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read a level and draw the next one from its plain laws, in one call.

        Args:
            token_ids: at the root the texts' last two tokens `[batch, 2]`, below it the level's `[batch, K]`.
            depth: of the level.
            vocabulary: the target's width.
            temperature: float64 scalar; 0 is greedy.
            noise: a stream for each text, at the block's step.
            follows: `[batch, 1]` bool at the root, else `[batch, K]`, whether anything follows a node.
            stops: what ends the texts.

        Returns:
            See `level_step`.
        """
        if depth == 0:
            columns, number, place = 1, self._all[:2], (self._all[:2], self._of_pair)
        else:
            columns, number = self._paths, self._number[depth - 1]
            place = self._depth, self._seen[number]
        names = noise.seed, noise.sequence, noise.step
        path = self._all[: self._paths].expand(len(token_ids), -1)
        draws = columns, vocabulary, temperature, names, self._all[depth], path, follows, stops
        drawn: tuple[Tensor, Tensor, Tensor, Tensor]
        drawn = self.model.run(level_step, token_ids, number, *place, *draws, fast=True)
        if depth == 0:
            self.model.lengths = self.model.lengths + 2
            self._pending = False
        return drawn

    def score(self, pending: Tensor, tree: DraftTree) -> tuple[Tensor, Tensor]:
        """Node 0 is the pending token."""
        drafted = tree.token_ids.transpose(1, 2).flatten(1).clamp_min(0)
        nodes = drafted.shape[1] + 1
        logits = self.model.read(
            torch.cat([pending, drafted], dim=1),
            self._all[:nodes],
            self._depth_from_root[:nodes],
            self._seen_from_root[:nodes, :nodes],
            fast=self.is_usual(tree.depth),
        )
        self._pending = True
        node = self._node[:, : tree.depth + 1]
        return logits, node.expand(len(pending), -1, -1)

    def commit(self, tree: DraftTree, path: Tensor, count: Tensor) -> None:
        """See `Branches`."""
        # the draft has not read the last level
        levels = tree.depth if self._pending else tree.depth - 1
        if self._paths > 1 and levels > 0:
            kept = self._node[path, 1 : levels + 1] - (0 if self._pending else 1)
            target = self._all[1 : levels + 1] if self._pending else self._all[:levels]
            self.model.keep(kept, target)
        self.model.lengths = self.model.lengths + count
