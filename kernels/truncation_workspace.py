"""What a truncation on a GPU keeps in memory beside logits, parameters and results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .bracket_search_triton import COLLECTED
from .candidate_search_triton import CANDIDATE_GROUPS
from .prefix_search_triton import POINTS, SUMS_OF_POINT
from .row_stats_triton import GROUP, PLANES, SLICE, STATE
from .truncation_plan import Operation, plan

ROUNDS = 2
"""Rounds of 16 points leave a 225th of a row's interval: at most 2,048 of 262,144 gaussian logits."""


class Workspace(NamedTuple):
    """What a call keeps in memory beside logits, parameters and results.

    Attributes:
        stats: float32 `[PLANES, rows, slices]`; later the winners of the slices.
        group_maxima: float32 `[rows, groups]`; later the masses of the groups.
        chosen: int32 `[rows, CANDIDATE_GROUPS]`, groups of the candidates.
        integers: int32 `[rows, STATE]`.
        floats: float32 `[rows, STATE]`.
        value: float32 `[rows]`.
        value_index: int64 `[rows]`.
        upper: float32 `[rows]`.
        status: int8 `[rows]`.
        brackets: float32 `[rows, ROUNDS, 2]`, of a search, as are the following.
        partials: float32 `[2, rows, slices, POINTS * SUMS_OF_POINT]`.
        collected: int32 `[rows, COLLECTED]`.
    """

    stats: Tensor
    group_maxima: Tensor
    chosen: Tensor
    integers: Tensor
    floats: Tensor
    value: Tensor
    value_index: Tensor
    upper: Tensor
    status: Tensor
    brackets: Tensor | None
    partials: Tensor | None
    collected: Tensor | None


def workspace(rows: int, vocab: int, waits: list[str], device: torch.device | str) -> Workspace:
    """The workspace of a call whose plan is `waits`.

    At most 8 % of the logits and 16 KiB a row, for float32 logits and, up to 458,752 tokens, for
    those of 16 bits, whose group maxima alone are 6 %.
    """
    slices, groups = -(-vocab // SLICE.value), -(-vocab // GROUP.value)

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    searched = "bracket" in waits
    return Workspace(
        empty(torch.float32, PLANES.value, rows, slices),
        empty(torch.float32, rows, groups),
        empty(torch.int32, rows, CANDIDATE_GROUPS.value),
        empty(torch.int32, rows, STATE.value),
        empty(torch.float32, rows, STATE.value),
        empty(torch.float32, rows),
        empty(torch.int64, rows),
        empty(torch.float32, rows),
        empty(torch.int8, rows),
        empty(torch.float32, rows, ROUNDS, 2) if searched else None,
        # a round reads the sums of the one before while it writes its own
        empty(torch.float32, 2, rows, slices, POINTS.value * SUMS_OF_POINT.value)
        if searched
        else None,
        empty(torch.int32, rows, COLLECTED.value) if searched else None,
    )


def workspace_bytes(rows: int, vocab: int, operations: tuple[Operation, ...]) -> int:
    """Bytes that a call of this shape allocates beside its results."""
    tensors = workspace(rows, vocab, plan(operations, vocab), "meta")
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
