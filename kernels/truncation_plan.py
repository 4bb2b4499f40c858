"""What a truncation on a GPU launches: the program of a call, as data, and what its rows may wait for.

Which launches there are follows from the shapes and the operations, never from data. A vocabulary of at
most 4,096 tokens and anything behind a top-k of at most 127 lie in one program's registers and take no
search launches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .candidate_search_triton import CANDIDATE_GROUPS
from .prefix_score_triton import MIN_P, OPERATION_BITS, TOP_K, TYPICAL
from .row_stats_triton import GROUP
from .shared_tables import shared_table

MAX_FIRST = 127
"""Tokens that candidates always hold beside the one that crosses: 128 groups have a token each."""

MAX_OPERATIONS = 12
"""Operations of five bits in an int64."""


class Operation(NamedTuple):
    """One step of a program.

    Attributes:
        code: of kernels/prefix_score_triton.py.
        parameter: a number or `[rows]`.
        keep: the tokens that the step must keep.
        ties_all: keep every token that equals the last kept one.
    """

    code: int
    parameter: float | Tensor
    keep: int
    ties_all: bool


def plan(operations: tuple[Operation, ...], vocab: int) -> list[str]:
    """What rows may have to wait for, in order: "sums" of a support, the "bracket" of a search."""
    waits = []
    before = None
    small = vocab <= CANDIDATE_GROUPS.value * GROUP.value
    for position, (code, parameter, keep, ties_all) in enumerate(operations):
        searched = code >= TOP_K.value or keep > MAX_FIRST
        # behind an interval even the largest logit is another one
        known = code in (MIN_P.value, TOP_K.value) and before != TYPICAL.value
        if position and not small and not known:
            waits.append("sums")
        before = code
        first = (
            code == TOP_K.value
            and not isinstance(parameter, Tensor)
            and max(parameter, keep) <= MAX_FIRST
        )
        if searched and not small and not first:
            waits.append("bracket")
        if first:
            small = True
        if ties_all and code != TYPICAL.value:
            small = vocab <= CANDIDATE_GROUPS.value * GROUP.value
    return waits


def within_candidates(operations: tuple[Operation, ...], vocab: int) -> bool:
    """Whether every support lies in the registers of one program."""
    if vocab <= CANDIDATE_GROUPS.value * GROUP.value:
        return True
    small = False
    for code, parameter, keep, ties_all in operations:
        first = (
            code == TOP_K.value
            and not isinstance(parameter, Tensor)
            and max(parameter, keep) <= MAX_FIRST
        )
        small = (small or first) and (not ties_all or code == TYPICAL.value)
    return small


def packed(operations: tuple[Operation, ...]) -> int:
    """The program as one word: five bits an operation."""
    # one bit beyond the last operation: the word is an int64 and never 1, whatever is in it
    word: int = 1 << (OPERATION_BITS.value * MAX_OPERATIONS)
    for position, operation in enumerate(operations):
        code = operation.code | (16 if operation.ties_all else 0)
        word |= code << (OPERATION_BITS.value * position)
    return word


def parameter_table(
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    rows: int,
    device: torch.device,
) -> tuple[Tensor, int]:
    """Temperature, then parameter and tokens to keep of every operation: `[1 + 2 n]` or `[1 + 2 n, rows]`.

    Returns:
        The table, float64, and its stride from row to row: 0 where all rows share it.
    """
    limits = torch.finfo(torch.float32)
    if not isinstance(temperature, Tensor):
        # temperatures that float32 takes for 0 or inf are not 0 or inf
        temperature = temperature and min(max(temperature, limits.tiny), limits.max)
    values: list[float | Tensor] = [temperature]
    for operation in operations:
        values += [operation.parameter, float(operation.keep)]
    numbers = tuple(0.0 if isinstance(value, Tensor) else float(value) for value in values)
    table = shared_table(numbers, torch.float64, device)
    if not any(isinstance(value, Tensor) for value in values):
        return table, 0
    table = table[:, None].repeat(1, rows)
    for number, value in enumerate(values):
        if isinstance(value, Tensor):
            table[number].copy_(value.detach())
    if isinstance(temperature, Tensor):
        table[0] = torch.where(table[0] == 0, 0.0, table[0].clamp(limits.tiny, limits.max))
    return table, 1
