"""Traversal verification: the tree of the drafted paths from its leaves to its root.

Weng et al., NeurIPS 2025, arXiv 2505.12398. Every node n of the tree has a weight w, a target law t and a draft law d;
its children are the distinct tokens drawn there, in the order of their first appearance.

    w(root) = 1,  w(child x of n) = min(1, w(n) t(x) / d(x))
    take the first leaf; accept the path to it with probability w, and draw the next token from its t;
    else, at its parent,  r = (w t - d)+,  R = sum r
        t = r / R,  w = R / (R + 1 - w),  d = norm (d without x),  and x is no child any more
    until a leaf is accepted: at the latest the root, w = 1.

Duplicates taken out, i.i.d. draws are draws without replacement, whatever their number: block verification along a path
and recursive rejection without replacement across paths, at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from warpdraft.abstract_verifiers import DraftBlock, VerifiedBlock, Verifier, without_bad_rows
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.top_tokens import without_tokens
from warpdraft.laws import Law, NodeLaws


class Traversal(Verifier):
    """Accept the first leaf that holds; a row and a node at a time, because each decision moves the next leaf."""

    name = "traversal"

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Walk up until a leaf is accepted; laws are fetched for the nodes that the walk comes to."""
        paths = block.draft_token_ids
        batch, _, length = paths.shape
        output = paths.new_full((batch, length + 1), -1)
        num_accepted, survivor_path = paths.new_zeros(batch), paths.new_zeros(batch)
        for row in range(batch):
            stream = noise.select(paths.new_tensor([row]))
            leaf = next(leaf for leaf in leaves(block, row) if leaf.accepted(stream))
            output[row, : leaf.depth] = paths[row, leaf.path, : leaf.depth]
            output[row, leaf.depth] = leaf.next_token(block, row, stream)
            num_accepted[row], survivor_path[row] = leaf.depth, leaf.path
        return without_bad_rows(output, num_accepted, survivor_path, block.status)

    def survival(self, block: DraftBlock) -> Tensor:
        """Every leaf is accepted with its weight or gone on from: a chain, with nothing to branch over."""
        batch, _, length = block.draft_token_ids.shape
        survival = torch.zeros(batch, length, dtype=torch.float64, device=block.drawn.device)
        for row in range(batch):
            reached = 1.0
            for leaf in leaves(block, row):
                survival[row, : leaf.depth] += reached * leaf.weight
                reached *= 1 - leaf.weight
                if reached == 0:
                    break
        return survival


@dataclass(eq=False, slots=True)
class Node:
    """A prefix of the drafted paths.

    Attributes:
        path: the first path that holds it.
        depth: its number of tokens.
        parent: the node before; None for the root.
        children: those not rejected, by their token, in the order of their first appearance.
        weight: the chance that it is accepted once it is a leaf.
        laws: `[1, width]` target and draft law, moved by every child that is rejected; None until a child is weighed.
    """

    path: int
    depth: int
    parent: Node | None = None
    children: dict[int, Node] = field(default_factory=dict)
    weight: float = 1.0
    laws: NodeLaws | None = None

    def accepted(self, noise: Noise) -> bool:
        """Whether the walk ends here: every node is a leaf once at most, so no number is read twice."""
        index = torch.zeros(1, 1, dtype=torch.int64, device=noise.seed.device)
        uniform = noise.uniform(Role.ACCEPT, index, depth=self.depth, path=self.path)
        return self.parent is None or float(uniform) < self.weight

    def next_token(self, block: DraftBlock, row: int, noise: Noise) -> Tensor:
        """The token behind the accepted path, `[1]`: the bonus, or what is left of the target after rejections."""
        if self.laws is None:
            leaf = block.target(*self.at(block, row))
            return leaf.draw(noise, Role.BONUS, depth=self.depth)
        left = Law(self.laws.target, block.status[[row]], self.laws.token_ids)
        return left.draw(noise, Role.RESIDUAL, depth=self.depth)

    def at(self, block: DraftBlock, row: int) -> tuple[Tensor, Tensor, int]:
        """Where a block keeps its laws."""
        new = block.draft_token_ids.new_tensor
        return new([row]), new([self.path]), self.depth


def leaves(block: DraftBlock, row: int) -> Iterator[Node]:
    """The leaves that the walk comes to; asking for the next one rejects the last. The root is the last of all."""
    node = trie(block.draft_token_ids[row].tolist(), block.drawn[row].tolist())
    while True:
        while node.children:
            token, child = next(iter(node.children.items()))
            if node.laws is None:
                where = node.at(block, row)
                node.laws = NodeLaws.of(block.target(*where), block.draft(*where))
            child.weight = child_weight(node.weight, node.laws, column_of(node.laws, block, token))
            node = child
        yield node
        parent = node.parent
        if parent is None:
            return
        assert parent.laws is not None
        token, _ = next(iter(parent.children.items()))
        column = column_of(parent.laws, block, token)
        parent.weight, parent.laws = after_rejection(parent.weight, parent.laws, column)
        del parent.children[token]
        node = parent


def trie(paths: list[list[int]], drawn: list[list[bool]]) -> Node:
    """The tree of the paths, each up to its end; its root."""
    root = Node(path=0, depth=0)
    for path, (tokens, draws) in enumerate(zip(paths, drawn, strict=True)):
        node = root
        for token, draw in zip(tokens, draws, strict=True):
            # no draw: it repeats a path before it, or stands behind the end
            if not draw and token not in node.children:
                break
            node = node.children.setdefault(token, Node(path, node.depth + 1, parent=node))
    return root


def column_of(laws: NodeLaws, block: DraftBlock, token: int) -> Tensor:
    """The column of a token, `[1]`."""
    return laws.columns(block.draft_token_ids.new_tensor([[token]]))[0]


def child_weight(weight: float, laws: NodeLaws, column: Tensor) -> float:
    """min(1, w t / d) of the child in that column."""
    target, draft = float(laws.target[0, column]), float(laws.draft[0, column])
    # a child of no draft probability is never drawn
    return min(1.0, weight * target / draft) if draft > 0 else 0.0


def after_rejection(weight: float, laws: NodeLaws, column: Tensor) -> tuple[float, NodeLaws]:
    """Weight and laws of a node after the rejection of its child in that column.

    Where nothing is left of the target the weight is 0 and the node's law stays: it can be emitted only where rounding
    alone led there.
    """
    residual = (weight * laws.target - laws.draft).clamp_min(0)
    total = float(residual.sum(dtype=torch.float64))
    target = residual / total if total > 0 else laws.target
    draft = without_tokens(laws.draft, column[:, None])
    left = total / (total + (1 - weight)) if total > 0 else 0.0
    return left, NodeLaws(target, draft, laws.token_ids)
