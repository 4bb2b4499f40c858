"""Optimal transport at every node and block verification along the path that it selects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.optimal import NUM_BINS, Selection, plan_selection, target_where_exhausted
from warpdraft.verification import DraftBlock, VerifiedBlock, Verifier, without_bad_rows

from .optimal import check_num_bins


class OptimalBlock(Verifier):
    r"""Select a whole path first, then decide how much of it is accepted.

    Down, from w_0 = 1, at each depth i with n survivors:

        p_i      = the optimal selection law for the target measure w_i target_i and n i.i.d. drafts
        x        = the token of the survivor with the largest rank; the survivors that drafted it stay
        w_{i+1}  = min(1, w_i target_i(x) / p_i(x))

    Up, from the leaf L, until it stops: the leaf is accepted with probability w_L and a bonus token follows, else

        R_i      = sum_y (w_i target_i(y) - p_i(y))+
        stop at i with probability h_i = R_i / (1 - w_i + R_i), h_0 = 1, and recover from (w_i target_i - p_i)+

    Given the selected prefix and the survivors, P(at least i tokens are accepted) = w_i, and the next token's law is
    min(p_i, w_i target_i) + (w_i target_i - p_i)+ = w_i target_i: lossless. With one path this is block verification
    (Sun et al., ICLR 2025, arXiv 2403.10444), with one token the optimal transport of `Optimal`.

    Attributes:
        num_bins: ratio bins of a node; None sorts every row.
    """

    name = "optimal_block"

    def __init__(self, num_bins: int | None = NUM_BINS) -> None:
        self.num_bins = check_num_bins(num_bins)

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Down the selected path, then up until a depth is accepted."""
        nodes, path, leaf_weight = self._select_path(block, noise)
        return _accept(block, noise, nodes, path, leaf_weight)

    def _select_path(self, block: DraftBlock, noise: Noise) -> tuple[list[_Node], Tensor, Tensor]:
        """The nodes of every row's selected path, the path, and the weight of its leaf."""
        paths = block.draft_token_ids
        batch, num_drafts, length = paths.shape
        rows = torch.arange(batch, device=paths.device)
        path = torch.zeros_like(rows)
        alive = torch.ones(batch, num_drafts, dtype=torch.bool, device=paths.device)
        weight = torch.ones(batch, dtype=torch.float64, device=paths.device)
        nodes: list[_Node] = []
        for depth in range(length):
            target = block.target(rows, path[rows], depth)
            draft = block.draft(rows, path[rows], depth)
            selection = plan_selection(
                target, draft, alive[rows].sum(1), weight=weight[rows], num_bins=self.num_bins
            )
            nodes.append(_Node(rows, weight[rows], target, draft, selection))
            candidates = paths[rows, :, depth]
            path[rows] = selection.select(candidates, alive[rows], noise.select(rows), depth)
            tokens = candidates.gather(1, path[rows, None])
            alive[rows] &= candidates == tokens
            wanted = weight[rows] * target.gather(1, tokens).squeeze(1)
            selected = selection.probs_of(tokens.squeeze(1), draft)
            weight[rows] = torch.where(
                wanted >= selected, (wanted > 0).to(torch.float64), wanted / selected
            )
            # below a token that the target never emits no weight is left: nothing can be accepted there
            rows = rows[weight[rows] > 0]
            if len(rows) == 0:
                break
        return nodes, path, weight


@dataclass(frozen=True, slots=True)
class _Node:
    """One depth of the selected paths, for the rows that reached it.

    Attributes:
        rows: `[rows]` int64, of the batch.
        weight: `[rows]` float64, w.
        target: `[rows, vocab]`.
        draft: `[rows, vocab]`.
        selection: with the law p.
    """

    rows: Tensor
    weight: Tensor
    target: Tensor
    draft: Tensor
    selection: Selection

    def only(self, kept: Tensor) -> _Node:
        """The node for some of its rows, `kept` `[rows]` bool."""
        if bool(kept.all()):
            return self
        return _Node(
            self.rows[kept],
            self.weight[kept],
            self.target[kept],
            self.draft[kept],
            self.selection.only(kept),
        )


def _accept(
    block: DraftBlock, noise: Noise, nodes: list[_Node], path: Tensor, leaf_weight: Tensor
) -> VerifiedBlock:
    """Accept the selected path down to the deepest depth that holds, and recover there."""
    paths = block.draft_token_ids
    batch, _, length = paths.shape
    rows = torch.arange(batch, device=paths.device)
    depths = torch.arange(length + 1, device=paths.device).expand(batch, length + 1)
    uniform = noise.uniform(Role.ACCEPT, torch.zeros_like(depths), depth=depths)
    num_accepted = torch.full_like(path, -1)
    next_token = torch.full_like(path, -1)

    whole = rows[uniform[:, length] < leaf_weight]
    if len(whole) > 0:
        num_accepted[whole] = length
        leaf = block.target(whole, path[whole], length)
        next_token[whole] = draw(leaf, noise.select(whole), Role.BONUS, depth=length)
    for depth in reversed(range(len(nodes))):
        node = nodes[depth].only(num_accepted[nodes[depth].rows] < 0)
        residual = node.selection.residual(node.target, node.draft, node.weight)
        total = residual.sum(1, dtype=torch.float64)
        # the root always stops; elsewhere `uniform < total / (1 - w + total)`, also where both are 0
        stops = uniform[node.rows, depth] * (1 - node.weight + total) < total
        stops |= depth == 0
        here = node.rows[stops]
        if len(here) == 0:
            continue
        num_accepted[here] = depth
        mass = target_where_exhausted(residual, node.target)[stops]
        next_token[here] = draw(mass, noise.select(here), Role.RESIDUAL, depth=depth)

    output = torch.cat([paths[rows, path], path.new_full((batch, 1), -1)], dim=1)
    output = torch.where(depths < num_accepted[:, None], output, -1)
    output.scatter_(1, num_accepted[:, None], next_token[:, None])
    return without_bad_rows(output, num_accepted, path, block.status)
