"""The tree that one block's draft paths form: who draws where, which tokens, and which prefixes are one node.

A *path* is a row of tokens with a number. At every depth each path that goes on draws one token at the node where it
stands; a path may also branch off another one there, and then repeats that one's tokens up to the node (`drawn` is
False for those). Paths that agree so far stand at the same node. Nodes are counted in *columns*, a level of the tree at
a time; all levels but the root's may be padded, because the texts of a batch draft different tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draws:
    """What the paths drew at one depth; paths that have not been there yet come last.

    Attributes:
        source: `[batch, K]` int64, the path that each one goes on from: itself, or the one that it branches off.
        token_ids: `[batch, K]` int64, -1 for a path that draws nothing and thus ends.
    """

    source: Tensor
    token_ids: Tensor


@dataclass(frozen=True, slots=True)
class Level:
    """The nodes of one depth.

    Attributes:
        token_ids: `[batch, n]` int64, the last token of each node's prefix; 0 in padding.
        parent: `[batch, n]` int64, its column one level up; 0 in padding.
        path: `[batch, n]` int64, a path that stands there; 0 in padding.
        filled: `[batch, n]` bool, False in padding.
    """

    token_ids: Tensor
    parent: Tensor
    path: Tensor
    filled: Tensor


@dataclass(frozen=True, slots=True)
class Tips:
    """The nodes that draw next, n of them.

    Attributes:
        text: `[n]` int64, whose they are.
        drafted: `[n, depth]` int64, the tokens of their prefixes.
        row: `[batch, columns]` int64, the number of each column's node; -1 in padding.
    """

    text: Tensor
    drafted: Tensor
    row: Tensor


class DraftTree:
    """Grows level by level.

    Attributes:
        token_ids: `[batch, K, depth]` int64, -1 behind a path's end.
        drawn: `[batch, K, depth]` bool, whether the path drew the token itself.
        column: `[batch, K, depth + 1]` int64, the column of the path's node at each level, -1 behind its end.
        source: `[batch, K]` int64, the path that each one went on from at the last level.
        levels: the levels below the root.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        """One path at the root."""
        self.token_ids = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)
        self.column = torch.zeros(batch, 1, 1, dtype=torch.int64, device=device)
        self.source = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.levels: list[Level] = []

    @property
    def num_paths(self) -> int:
        """K, paths so far."""
        return self.token_ids.shape[1]

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return len(self.levels)

    def grow(self, draws: Draws) -> Level:
        """Add a level."""
        source, token_ids = draws.source, draws.token_ids
        goes_on = token_ids >= 0
        own = source == torch.arange(source.shape[1], device=source.device)
        back = source[:, :, None]
        prefix = self.token_ids.gather(1, back.expand(-1, -1, self.depth))
        drawn = self.drawn.gather(1, back.expand(-1, -1, self.depth)) & own[:, :, None]
        column = self.column.gather(1, back.expand(-1, -1, self.depth + 1))
        # a path that ended long ago, or never began, stands nowhere
        stands = column[:, :, -1]
        goes_on = goes_on & (stands >= 0)
        level, place = self._level(stands, token_ids, goes_on)
        self.token_ids = torch.cat([prefix, torch.where(goes_on, token_ids, -1)[:, :, None]], 2)
        self.drawn = torch.cat([drawn, goes_on[:, :, None]], 2)
        self.column = torch.cat([column, place[:, :, None]], 2)
        self.source = source
        self.levels.append(level)
        return level

    def _level(self, stands: Tensor, token_ids: Tensor, goes_on: Tensor) -> tuple[Level, Tensor]:
        """The nodes that the draws lead to, and each path's column among them."""
        path = torch.arange(stands.shape[1], device=stands.device).expand_as(stands)
        same = (stands[:, :, None] == stands[:, None]) & (
            token_ids[:, :, None] == token_ids[:, None]
        )
        same &= goes_on[:, :, None] & goes_on[:, None]
        first = same.to(torch.int8).argmax(2)
        leads = goes_on & (first == path)
        place = (leads.cumsum(1) - 1).gather(1, first)
        width = max(int(leads.sum(1).max()), 1)
        # draws that do not lead a node land in a column that is cut off
        target = torch.where(leads, place, width)
        columns = []
        for values in (token_ids, stands, path, leads.to(torch.int64)):
            row = values.new_zeros(len(values), width + 1)
            columns.append(row.scatter_(1, target, values)[:, :width])
        tokens, parent, leader, filled = columns
        return Level(tokens, parent, leader, filled != 0), torch.where(goes_on, place, -1)

    def tips(self) -> Tips:
        """The nodes of the last level, those of all texts one after the other."""
        batch, device = len(self.token_ids), self.token_ids.device
        if not self.levels:
            text = torch.arange(batch, device=device)
            return Tips(text, self.token_ids[:, 0], text[:, None])
        level = self.levels[-1]
        text, column = level.filled.nonzero(as_tuple=True)
        row = torch.full_like(level.path, -1)
        row[text, column] = torch.arange(len(text), device=device)
        return Tips(text, self.token_ids[text, level.path[text, column]], row)

    def node(self) -> Tensor:
        """Numbers of the paths' nodes in one row that holds the levels one after the other, root first.

        Returns:
            `[batch, K, depth + 1]` int64; behind a path's end the number of its last node.
        """
        widths = [1] + [level.token_ids.shape[1] for level in self.levels]
        offset = torch.tensor([0, *widths[:-1]], device=self.column.device).cumsum(0)
        number = torch.where(self.column >= 0, self.column + offset, 0)
        # numbers ascend along a path
        return number.cummax(2).values

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """All nodes below the root in one row.

        Returns:
            token ids `[batch, n]`, depths `[batch, n]` (0 for the first level), and which nodes each one sees
            `[batch, n, n]` bool: its ancestors and itself.
        """
        batch, device = len(self.token_ids), self.token_ids.device
        widths = [level.token_ids.shape[1] for level in self.levels]
        none = self.token_ids.new_zeros(batch, 0)
        tokens = torch.cat([none, *(level.token_ids for level in self.levels)], dim=1)
        depth = torch.arange(len(widths), device=device).repeat_interleave(
            torch.tensor(widths, dtype=torch.int64, device=device)
        )
        seen = torch.zeros(batch, len(depth), len(depth), dtype=torch.bool, device=device)
        start = 0
        for number, (level, width) in enumerate(zip(self.levels, widths, strict=True)):
            stop = start + width
            if number > 0:
                above = seen[:, start - widths[number - 1] : start]
                parent = level.parent[:, :, None].expand(-1, -1, len(depth))
                seen[:, start:stop] = above.gather(1, parent) & level.filled[:, :, None]
            seen[:, start:stop, start:stop] |= torch.eye(width, dtype=torch.bool, device=device)
            start = stop
        return tokens, depth.expand(batch, -1), seen


class SeparatePaths(DraftTree):
    """K paths that share no node, whatever they draw: every level has K columns, column k being path k's.

    No width depends on the tokens, so nothing waits for them to be drawn. An ended path goes on, with token 0, in a
    column that is not filled.
    """

    @classmethod
    def of(cls, token_ids: Tensor) -> SeparatePaths:
        """The whole tree of the paths' tokens `[batch, K, L]` int64, none of which ends early."""
        batch, paths, length = token_ids.shape
        tree = cls(batch, token_ids.device)
        path = torch.arange(paths, device=token_ids.device)
        tree.token_ids = token_ids
        tree.drawn = torch.ones_like(token_ids, dtype=torch.bool)
        below = path[:, None].expand(-1, length)
        tree.column = torch.cat([torch.zeros_like(path)[:, None], below], 1).expand(batch, -1, -1)
        tree.source = path.expand(batch, -1)
        tree._text = torch.arange(batch, device=token_ids.device).repeat_interleave(paths)
        tree.levels = [
            Level(token_ids[:, :, depth], tree.source, tree.source, tree.drawn[:, :, depth])
            for depth in range(length)
        ]
        return tree

    def grow(self, draws: Draws) -> Level:
        """See `DraftTree`; the paths begin at the first level, and none branches off later."""
        batch, paths = draws.token_ids.shape
        path = torch.arange(paths, device=draws.token_ids.device).expand(batch, -1)
        goes_on = draws.token_ids >= 0
        if self.depth == 0:
            self.column = self.column.expand(-1, paths, -1)
            self.token_ids = self.token_ids.expand(-1, paths, -1)
            self.drawn = self.drawn.expand(-1, paths, -1)
            self._text = torch.arange(batch, device=path.device).repeat_interleave(paths)
        else:
            goes_on = goes_on & self.levels[-1].filled
        token_ids = torch.where(goes_on, draws.token_ids, -1)
        self.token_ids = torch.cat([self.token_ids, token_ids[:, :, None]], 2)
        self.drawn = torch.cat([self.drawn, goes_on[:, :, None]], 2)
        column = torch.where(goes_on, path, -1)
        self.column = torch.cat([self.column, column[:, :, None]], 2)
        self.source = draws.source
        level = Level(token_ids.clamp_min(0), draws.source, path, goes_on)
        self.levels.append(level)
        return level

    def tips(self) -> Tips:
        """See `DraftTree`."""
        if not self.levels:
            return super().tips()
        batch, paths = self.levels[-1].path.shape
        row = torch.arange(batch * paths, device=self._text.device).view(batch, paths)
        return Tips(self._text, self.token_ids.flatten(0, 1).clamp_min(0), row)
