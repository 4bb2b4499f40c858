"""The tensors of a cell: seeded rows, or a draft block with the logits of both models."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

import warpdraft
from warpdraft.bench.rows import GENERATORS, gaussian, rows_hash

from .kernels import DRAFT_LENGTH, DTYPES, NUM_DRAFTS, Cell

DISTINCT_ROWS = 64
"""Rows that are generated; a larger batch repeats them, moved along the vocabulary."""

SHIFT = 1009
"""Tokens by which repeated rows move: no multiple of a group or a slice."""

DRAFT_NOISE = 0.7
"""Standard deviation of the draft's logits around the target's: half of the first tokens are accepted."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a truncation.

    Attributes:
        logits: `[batch, vocab]`.
        digest: sha256 of the first rows.
    """

    logits: Tensor
    digest: str

    @property
    def size(self) -> int:
        """Bytes of the logits."""
        return self.logits.numel() * self.logits.element_size()

    def copy(self) -> Rows:
        """The same rows elsewhere in memory."""
        return Rows(self.logits.clone(), self.digest)


@dataclass(frozen=True, slots=True)
class Block:
    """What `warpdraft.verify_block` takes.

    Attributes:
        target_logits: `[batch, nodes, vocab]`.
        draft_logits: `[batch, nodes, vocab]`.
        draft_token_ids: `[batch, K, L]`, drawn from the draft's laws.
        node_index: `[batch, K, L + 1]`: equal prefixes are one node.
        digest: sha256 of the first target rows.
    """

    target_logits: Tensor
    draft_logits: Tensor
    draft_token_ids: Tensor
    node_index: Tensor
    digest: str

    @property
    def size(self) -> int:
        """Bytes of the rows that verification must look at: of the target every node, of the draft every inner one."""
        row = self.target_logits.shape[2] * self.target_logits.element_size()
        inner = self.node_index[:, :, :-1].flatten(1)
        rows = sum(len(nodes.unique()) for nodes in self.node_index.flatten(1))
        return row * (rows + sum(len(nodes.unique()) for nodes in inner))

    def copy(self) -> Block:
        """The same block with its logits elsewhere in memory."""
        return Block(
            self.target_logits.clone(),
            self.draft_logits.clone(),
            self.draft_token_ids,
            self.node_index,
            self.digest,
        )


Inputs = Rows | Block


def make_inputs(cell: Cell, device: torch.device) -> Inputs:
    """The rows or the block of a cell."""
    if cell.kernel.output == "block":
        return make_block(cell, device)
    base = _distinct_rows(cell.rows, cell.vocab, cell.seed)
    logits = _repeated(base, cell.batch).to(device, DTYPES[cell.dtype])
    return Rows(logits, rows_hash(base))


def make_block(cell: Cell, device: torch.device) -> Block:
    """A block of K paths of L tokens each, with a draft near the target."""
    batch, vocab, nodes = cell.batch, cell.vocab, 1 + NUM_DRAFTS * DRAFT_LENGTH
    base = _distinct_rows(cell.rows, vocab, cell.seed)
    target = _repeated(base.to(device), batch * nodes).view(batch, nodes, vocab)
    # other noise at every node: its rows repeat with another period than the target's
    noise = gaussian(DISTINCT_ROWS - 3, vocab, seed=cell.seed + 1, deviation=DRAFT_NOISE)
    draft = target + _repeated(noise.to(device), batch * nodes).view(batch, nodes, vocab)
    target, draft = target.to(DTYPES[cell.dtype]), draft.to(DTYPES[cell.dtype])

    node_index = torch.zeros(batch, NUM_DRAFTS, DRAFT_LENGTH + 1, dtype=torch.int64, device=device)
    token_ids = torch.zeros_like(node_index[:, :, 1:])
    rows = torch.arange(batch, device=device)[:, None]
    streams = torch.arange(batch * NUM_DRAFTS, device=device)
    for depth in range(DRAFT_LENGTH):
        laws = draft[rows, node_index[:, :, depth]].flatten(0, 1)
        drawn = warpdraft.sample(
            laws, seed=cell.seed, sequence=streams, step=depth, backend="torch"
        )
        token_ids[:, :, depth] = drawn.token_ids.view(batch, NUM_DRAFTS)
        for path in range(NUM_DRAFTS):
            child = torch.full_like(rows[:, 0], 1 + path * DRAFT_LENGTH + depth)
            for earlier in reversed(range(path)):
                same = node_index[:, earlier, depth] == node_index[:, path, depth]
                same = same & (token_ids[:, earlier, depth] == token_ids[:, path, depth])
                child = torch.where(same, node_index[:, earlier, depth + 1], child)
            node_index[:, path, depth + 1] = child
    return Block(target, draft, token_ids, node_index, rows_hash(base))


@functools.lru_cache(maxsize=4)
def _distinct_rows(kind: str, vocab: int, seed: int) -> Tensor:
    """The rows of one kind: always the same number, so that they do not depend on the batch."""
    return GENERATORS[kind](DISTINCT_ROWS, vocab, seed=seed)


def _repeated(rows: Tensor, batch: int) -> Tensor:
    """So many rows; those after the first `len(rows)` are moved along the vocabulary."""
    repeats = -(-batch // len(rows))
    moved = [rows.roll(number * SHIFT, dims=-1) for number in range(repeats)]
    return torch.cat(moved)[:batch]
