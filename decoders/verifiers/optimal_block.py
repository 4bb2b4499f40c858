"""Optimal transport at every node and block verification along the path that it selects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from warpdraft.abstract_verifiers import (
    DraftBlock,
    VerifiedBlock,
    Verifier,
    draw_bonus,
    without_bad_rows,
)
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.optimal import (
    NUM_BINS,
    Selection,
    Selector,
    plan_selection,
    target_where_exhausted,
)
from warpdraft.kernels.ranks import win_probabilities
from warpdraft.kernels.ratio_grid import row_sums
from warpdraft.laws import Law, NodeLaws

from .optimal import check_num_bins, check_selector


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
        selector: "clip" or "lex": which of the optimal selection laws. Below a lex-optimal one the weights are more
            even; the README's paired tables compare the two.

    Raises:
        TypeError: `num_bins` is no int.
        ValueError: `num_bins` below 1, another selector.
    """

    name = "optimal_block"

    def __init__(self, num_bins: int | None = NUM_BINS, selector: Selector = "lex") -> None:
        self.num_bins = check_num_bins(num_bins)
        self.selector = check_selector(selector)

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Down the selected path, then up until a depth is accepted."""
        return _accept(block, noise, self._select_path(block, noise))

    def survival(self, block: DraftBlock) -> Tensor:
        """P(at least i drafted tokens are accepted | the drafts down to depth i), i = 1 .. L: `[batch, L]` float64.

        The mean of w_i over the paths that the ranks can select. Given the later drafts too it would be another number,
        of the same mean.
        """
        batch, num_drafts, length = block.draft_token_ids.shape
        survival = torch.zeros(batch, length, dtype=torch.float64, device=block.drawn.device)
        for row in range(batch):
            paths = block.draft_token_ids[row]
            every = torch.ones(num_drafts, dtype=torch.bool, device=paths.device)
            nodes = [(1.0, 1.0, 0, every)]
            while nodes:
                reached, weight, depth, survivors = nodes.pop()
                if depth == length or not bool((survivors & block.drawn[row, :, depth]).any()):
                    continue
                for token, (chance, below) in self._children(
                    block, row, survivors, weight, depth
                ).items():
                    survival[row, depth] += reached * chance * below
                    if below > 0:
                        on = survivors & (paths[:, depth] == token)
                        nodes.append((reached * chance, below, depth + 1, on))
        return survival

    def _children(
        self, block: DraftBlock, row: int, survivors: Tensor, weight: float, depth: int
    ) -> dict[int, tuple[float, float]]:
        """For every candidate token of a node the chance that it is selected, and w behind it."""
        rows = block.draft_token_ids.new_tensor([row])
        tokens = block.draft_token_ids[row, survivors & block.drawn[row, :, depth], depth]
        node = self._node(
            block,
            rows,
            survivors.to(torch.int8).argmax()[None],
            depth,
            tokens.new_tensor([len(tokens)]),
            survivors.new_tensor([weight], dtype=torch.float64),
        )
        columns = node.laws.columns(tokens[None])
        chances = win_probabilities(node.selection.rank_laws(columns)[0])
        children: dict[int, tuple[float, float]] = {}
        for token, column, chance in zip(tokens.tolist(), columns[0], chances, strict=True):
            before, _ = children.get(token, (0.0, 0.0))
            children[token] = before + chance, float(node.weight_behind(column[None]))
        return children

    def _node(
        self,
        block: DraftBlock,
        rows: Tensor,
        path: Tensor,
        depth: int,
        num_candidates: Tensor,
        weight: Tensor,
    ) -> _Node:
        """The selection at one depth, for the given rows of the batch."""
        laws = NodeLaws.of(block.target(rows, path, depth), block.draft(rows, path, depth))
        selection = plan_selection(
            laws.target,
            laws.draft,
            num_candidates,
            weight=weight,
            num_bins=self.num_bins,
            selector=self.selector,
        )
        return _Node(rows, laws, selection)

    def _select_path(self, block: DraftBlock, noise: Noise) -> _SelectedPath:
        """Every row's selected path, down to its leaf or to a weight of 0."""
        paths = block.draft_token_ids
        batch, num_drafts, length = paths.shape
        rows = torch.arange(batch, device=paths.device)
        path, leaf_depth = torch.zeros_like(rows), torch.zeros_like(rows)
        survivors = torch.ones(batch, num_drafts, dtype=torch.bool, device=paths.device)
        weight = torch.ones(batch, dtype=torch.float64, device=paths.device)
        nodes: list[_Node] = []
        for depth in range(length):
            alive = survivors[rows] & block.drawn[rows, :, depth]
            alive, rows = alive[alive.any(1)], rows[alive.any(1)]
            if len(rows) == 0:
                break
            node = self._node(block, rows, path[rows], depth, alive.sum(1), weight[rows])
            nodes.append(node)
            candidates = node.laws.columns(paths[rows, :, depth])
            path[rows] = node.selection.select(candidates, alive, noise.select(rows), depth)
            leaf_depth[rows] = depth + 1
            survivors[rows] &= paths[rows, :, depth] == paths[rows, path[rows], depth][:, None]
            weight[rows] = node.weight_behind(candidates.gather(1, path[rows, None]).squeeze(1))
            # below a token that the target never emits no weight is left: nothing can be accepted there
            rows = rows[weight[rows] > 0]
            if len(rows) == 0:
                break
        return _SelectedPath(nodes, path, leaf_depth, weight)


@dataclass(frozen=True, slots=True)
class _Node:
    """One depth of the selected paths, for the rows that reached it.

    Attributes:
        rows: `[rows]` int64, of the batch.
        laws: of both models.
        selection: with the weight w and the law p.
    """

    rows: Tensor
    laws: NodeLaws
    selection: Selection

    def weight_behind(self, columns: Tensor) -> Tensor:
        """min(1, w target / p) of selected tokens, `[rows]` float64."""
        target = self.laws.target.gather(1, columns[:, None]).squeeze(1)
        wanted, selected = self.selection.weight * target, self.selection.probs_of(columns)
        return torch.where(wanted >= selected, (wanted > 0).to(torch.float64), wanted / selected)

    def only(self, kept: Tensor) -> _Node:
        """The node for some of its rows, `kept` `[rows]` bool."""
        if bool(kept.all()):
            return self
        return _Node(self.rows[kept], self.laws.only(kept), self.selection.only(kept))


@dataclass(frozen=True, slots=True)
class _SelectedPath:
    """The selected path of every row.

    Attributes:
        nodes: by depth.
        path: `[batch]` int64, a path that holds its tokens.
        leaf_depth: `[batch]` int64, how many tokens it has.
        leaf_weight: `[batch]` float64, w behind the last of them.
    """

    nodes: list[_Node]
    path: Tensor
    leaf_depth: Tensor
    leaf_weight: Tensor


def _accept(block: DraftBlock, noise: Noise, selected: _SelectedPath) -> VerifiedBlock:
    """Accept the selected path down to the deepest depth that holds, and recover there."""
    paths, path = block.draft_token_ids, selected.path
    batch, _, length = paths.shape
    rows = torch.arange(batch, device=paths.device)
    depths = torch.arange(length + 1, device=paths.device).expand(batch, length + 1)
    uniform = noise.uniform(Role.ACCEPT, torch.zeros_like(depths), depth=depths)
    output = torch.cat([paths[rows, path], path.new_full((batch, 1), -1)], dim=1)
    num_accepted = torch.full_like(path, -1)

    at_leaf = uniform.gather(1, selected.leaf_depth[:, None]).squeeze(1) < selected.leaf_weight
    num_accepted[at_leaf] = selected.leaf_depth[at_leaf]
    for depth in selected.leaf_depth[at_leaf].unique().tolist():
        draw_bonus(block, noise, rows[num_accepted == depth], path, depth, output)
    for depth in reversed(range(len(selected.nodes))):
        if bool((num_accepted >= 0).all()):
            break
        node = selected.nodes[depth]
        node = node.only(num_accepted[node.rows] < 0)
        residual = node.selection.residual()
        total = row_sums(residual)
        # the root always stops; elsewhere `uniform < total / (1 - w + total)`, also where both are 0
        stops = uniform[node.rows, depth] * (1 - node.selection.weight + total) < total
        stops |= depth == 0
        here = node.rows[stops]
        if len(here) == 0:
            continue
        num_accepted[here] = depth
        mass = target_where_exhausted(residual, total, node.laws.target)
        recovered = Law(mass, block.status[node.rows], node.laws.token_ids)
        recovered = recovered.only(stops.nonzero().squeeze(1))
        output[here, depth] = recovered.draw(noise.select(here), Role.RESIDUAL, depth=depth)

    output = output.masked_fill(depths > num_accepted[:, None], -1)
    return without_bad_rows(output, num_accepted, path, block.status)
