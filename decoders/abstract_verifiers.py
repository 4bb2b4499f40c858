"""What a verifier is: it says which drafted tokens of a block are emitted, and what follows them.

The words: a *block* holds K draft paths of L tokens that continue the same text. A *node* is a prefix of a path; at
every node the target and the draft have a law. The *candidates* at a node are the next tokens of the *survivors*, the
paths that agree with everything accepted so far. A verifier emits the accepted tokens and one more: the *recovered*
token where the candidates were rejected, or the *bonus* token where a whole path was accepted.

A verifier is lossless: the emitted text, continued by plain sampling, has exactly the law of plain sampling from the
target, whatever the draft's law is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise, Role

from .laws import Law, NodeLaws

Drafts = Literal["iid", "without_replacement", "beam"]
"""How the candidates of a node are drawn: i.i.d. from the draft's law; from it without replacement, tried in the order
in which they were drawn, for their number depends on them; or as its most likely tokens."""


@dataclass(frozen=True, slots=True)
class VerifiedBlock:
    """What one draft block yields.

    Attributes:
        output_token_ids: `[batch, L + 1]` int64, the accepted tokens, then the recovered or bonus token, then -1.
        num_accepted: `[batch]` int64 in [0, L].
        survivor_path: `[batch]` int64, a path that agrees with all accepted tokens.
        status: `[batch]` int8, 0 for a sound row (the codes are those of `warpdraft.sample`).
    """

    output_token_ids: Tensor
    num_accepted: Tensor
    survivor_path: Tensor
    status: Tensor


class DraftBlock(Protocol):
    """The laws of one draft block, fetched row by row as a verifier reaches their nodes.

    Attributes:
        draft_token_ids: `[batch, K, L]` int64; -1 behind the end of a path that is shorter.
        drawn: `[batch, K, L]` bool, whether the path's token at a depth is a draw of its own: one of the candidates
            there. A path that branches off another one repeats its tokens up to there, and those are no draws.
        status: `[batch]` int8, set by `target` and `draft` where a row has no law; such a law is all zeros.
    """

    draft_token_ids: Tensor
    drawn: Tensor
    status: Tensor

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Target law of `[len(rows)]` nodes: after the first `depth` tokens of each row's path."""

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Draft law at the same nodes: the law that the next tokens were drawn from."""


class Verifier(ABC):
    """A lossless verification rule with a closed law."""

    name: ClassVar[str]
    drafts: ClassVar[Drafts] = "iid"
    most_drafts: ClassVar[int | None] = None

    def num_top(self, num_drafts: int) -> int:
        """How many of the root's K candidates are the draft's most likely tokens, paths 0 .. m - 1.

        The others are drawn i.i.d. from the draft's law without those tokens; below the root all are i.i.d.
        """
        return 0

    def check_paths(self, num_drafts: int, *, rollover: bool) -> None:
        """ValueError if the verifier cannot take so many paths, or a rollover tree."""
        if self.most_drafts is not None and (num_drafts > self.most_drafts or rollover):
            tree = ' with structure="rollover"' if rollover else ""
            raise ValueError(
                f'verifier "{self.name}" takes num_drafts={self.most_drafts}, got {num_drafts}{tree}: '
                'use "optimal_block"'
            )

    @abstractmethod
    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Walk the block; `noise` holds one stream per row of the batch, at the block's step."""

    @abstractmethod
    def survival(self, block: DraftBlock) -> Tensor:
        """P(at least i drafted tokens are accepted | the drafts), i = 1 .. L: `[batch, L]` float64.

        Exact, over all the verifier's own random numbers: a block yields 1 + their sum tokens on average.
        """


class NodeVerifier(Verifier):
    """Token-level verification: every node is settled before the next one is looked at."""

    @abstractmethod
    def select(
        self,
        target_probs: Tensor,
        draft_probs: Tensor,
        candidates: Tensor,
        alive: Tensor,
        noise: Noise,
        depth: int,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """Emit one token a row from the target's law, as often as possible one of the candidates.

        Args:
            target_probs: `[rows, width]`.
            draft_probs: `[rows, width]`, the law that the candidates were drawn from.
            candidates: `[rows, K]` int64, columns of the laws: the next token of every path.
            alive: `[rows, K]` bool, which of them are candidates; at least one a row.
            noise: one stream a row.
            depth: of the node, 0 at the root.
            token_ids: `[rows, width]` int64, the tokens that the columns stand for; None where they are the
                vocabulary.

        Returns:
            `[rows]` int64 columns.
        """

    @abstractmethod
    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        """Closed law of `select` given the candidates.

        Args:
            target_probs: `[vocab]`.
            draft_probs: `[vocab]`.
            candidates: `[n]` int64, in the order in which they are tried.
            depth: of the node.

        Returns:
            `[vocab]` probabilities of the emitted token.
        """

    @abstractmethod
    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """Chance that the emitted token is one of the root's candidates, `[rows]`, for laws `[rows, vocab]`."""

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Walk down the survivors' common prefix until a token is recovered, or a leaf gives the bonus."""
        paths = block.draft_token_ids
        batch, num_drafts, length = paths.shape
        output = paths.new_full((batch, length + 1), -1)
        num_accepted = paths.new_zeros(batch)
        survivor_path = paths.new_zeros(batch)
        survivors = torch.ones(batch, num_drafts, dtype=torch.bool, device=paths.device)
        rows = torch.arange(batch, device=paths.device)
        for depth in range(length):
            alive = survivors[rows] & block.drawn[rows, :, depth]
            leaves = rows[~alive.any(1)]
            draw_bonus(block, noise, leaves, survivor_path, depth, output)
            alive, rows = alive[alive.any(1)], rows[alive.any(1)]
            if len(rows) == 0:
                break
            path = survivor_path[rows]
            node = NodeLaws.of(block.target(rows, path, depth), block.draft(rows, path, depth))
            column = self.select(
                node.target,
                node.draft,
                node.columns(paths[rows, :, depth]),
                alive,
                noise.select(rows),
                depth,
                node.token_ids,
            )
            tokens = node.tokens(column)
            output[rows, depth] = tokens
            # a recovered token that happens to be drafted counts as accepted: the survivors' later tokens are
            # still draws from their laws given the text so far, for all decisions looked only at earlier tokens
            survivors[rows] &= paths[rows, :, depth] == tokens[:, None]
            accepted = (alive & survivors[rows]).any(1)
            rows = rows[accepted]
            num_accepted[rows] += 1
            survivor_path[rows] = survivors[rows].to(torch.int8).argmax(1)
            if len(rows) == 0:
                break
        draw_bonus(block, noise, rows, survivor_path, length, output)
        return without_bad_rows(output, num_accepted, survivor_path, block.status)

    def survival(self, block: DraftBlock) -> Tensor:
        """Walk the tree of the drafted tokens, each node's closed law in hand."""
        batch, _, length = block.draft_token_ids.shape
        survival = torch.zeros(batch, length, dtype=torch.float64, device=block.drawn.device)
        for row in range(batch):
            paths, drawn = block.draft_token_ids[row], block.drawn[row]
            every = torch.ones_like(drawn[:, 0])
            nodes = [(1.0, 0, every)]
            while nodes:
                reached, depth, survivors = nodes.pop()
                alive = survivors & drawn[:, depth] if depth < length else survivors & False
                if reached == 0 or not bool(alive.any()):
                    continue
                law = self._law_at(block, row, survivors, alive, depth)
                for token in paths[alive, depth].unique().tolist():
                    chance = reached * law(token)
                    survival[row, depth] += chance
                    nodes.append((chance, depth + 1, survivors & (paths[:, depth] == token)))
        return survival

    def _law_at(
        self, block: DraftBlock, row: int, survivors: Tensor, alive: Tensor, depth: int
    ) -> Callable[[int], float]:
        """The chance of a token to be emitted at one node, given its candidates."""
        rows = block.draft_token_ids.new_tensor([row])
        path = survivors.to(torch.int8).argmax()[None]
        node = NodeLaws.of(block.target(rows, path, depth), block.draft(rows, path, depth))
        candidates = node.columns(block.draft_token_ids[rows, :, depth])[0]
        law = self.law(node.target[0], node.draft[0], candidates[alive], depth)
        column_of = dict(
            zip(
                block.draft_token_ids[row, alive, depth].tolist(),
                candidates[alive].tolist(),
                strict=True,
            )
        )
        return lambda token: float(law[column_of[token]])


def draw_bonus(
    block: DraftBlock,
    noise: Noise,
    rows: Tensor,
    path: Tensor,
    depth: int,
    output_token_ids: Tensor,
) -> None:
    """Write the token that follows a leaf, drawn from the target's law, behind the accepted ones of these rows."""
    if len(rows) > 0:
        leaf = block.target(rows, path[rows], depth)
        output_token_ids[rows, depth] = leaf.draw(noise.select(rows), Role.BONUS, depth=depth)


def without_bad_rows(
    output: Tensor, num_accepted: Tensor, survivor_path: Tensor, status: Tensor
) -> VerifiedBlock:
    """Rows without a law emit nothing."""
    bad = status != 0
    return VerifiedBlock(
        output.masked_fill(bad[:, None], -1),
        num_accepted.masked_fill(bad, 0),
        survivor_path.masked_fill(bad, 0),
        status,
    )
