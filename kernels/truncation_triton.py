"""The launches of a truncation or a draw on a GPU.

    row_stats  support                                    every call
    [row_stats of the supports  support]                  a rule after one that may keep thousands
    [round  round  collect  support]                      a search rule that may keep thousands
    mask, or  slice_masses  staged_draw                   the logits or the tokens

Which launches there are follows from the shapes and the operations, never from data: rows that are
done return from them at once. A vocabulary of at most 4,096 tokens and anything behind a top-k of at
most 127 lie in one program's registers and take no search launches.

Nothing here has been timed on a GPU yet: slice, group and round sizes rest on instruction counts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .draw_triton import slice_masses_kernel, staged_draw_kernel
from .noise import Noise
from .prefix_search_triton import (
    CANDIDATE_GROUPS,
    COLLECTED,
    MIN_P,
    N_SIGMA,
    OPERATION_BITS,
    P_LESS,
    P_LESS_NORMALIZED,
    POINTS,
    SUMS_OF_POINT,
    TOP_K,
    collect_kernel,
    round_kernel,
)
from .row_stats_triton import GROUP, PLANES, SLICE, STATE, row_stats_kernel
from .support import OK, Support
from .support_triton import mask_kernel, support_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ROUNDS = 2
"""Rounds of 16 points leave a 225th of a row's interval: at most 2,048 of 262,144 gaussian logits."""

WARPS = 8
"""A slice of 8,192 tokens is 32 a thread."""

SUPPORT_WARPS = 8
"""4,096 candidates are 16 a thread, about 200 registers: with 16 warps and their 128 they spill on sm_100."""

DRAW_WARPS = 4
"""At most 2,048 slices, 256 groups or 32 tokens."""

MAX_FIRST = 127
"""Tokens that candidates always hold beside the one that crosses: 128 groups have a token each."""

MAX_GROUPS_AT_ONCE = 4096
"""Group maxima that a program keeps in registers, 16 a thread: those of 131,072 tokens."""

MAX_OPERATIONS = 12
"""Operations of five bits in an int64."""

MAX_VOCAB = 1 << 24
"""Token ids are names of the noise, and counts are exact in float32."""


class Operation(NamedTuple):
    """One step of a program.

    Attributes:
        code: of kernels/prefix_search_triton.py.
        parameter: a number or `[rows]`.
        keep: the tokens that the step must keep, at most MAX_FIRST of them unless it searches.
        ties_all: keep every token that equals the last kept one.
    """

    code: int
    parameter: float | Tensor
    keep: int
    ties_all: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """What `sample_triton` writes, see `warpdraft.sampling.Sampled`."""

    token_ids: Tensor
    logprobs: Tensor
    kept_mass: Tensor
    status: Tensor


def support_triton(
    logits: Tensor,
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    *,
    valid: Tensor | None = None,
    token_bitmask: Tensor | None = None,
) -> tuple[Support, Tensor]:
    """The supports of all rows and their status, int8.

    Args:
        logits: `[batch, vocab]` of one of DTYPES, any row stride.
        operations: the program of all rows.
        temperature: at least 0, a number or `[batch]`.
        valid: bool `[batch]`, rows whose parameters lie in their ranges; None for all.
        token_bitmask: int32 `[batch, ceil(vocab / 32)]`; tokens whose bit is 0 count as -inf.
    """
    call = _Call(logits, operations, temperature, valid, token_bitmask, None)
    call.resolve()
    # prefix rules bound a support from below only; rows without a law keep nothing
    upper = torch.where(call.status == OK, torch.inf, -torch.inf)
    return Support(call.value, call.index, upper), call.status


def truncate_triton(
    logits: Tensor,
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    *,
    valid: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    row_indices: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The logits with -inf outside their supports, and the status of the rows, int8.

    Args:
        logits: `[batch, vocab]` of one of DTYPES, any row stride.
        operations: the program of all rows.
        temperature: at least 0, a number or `[rows]`.
        valid: bool `[rows]`, as above.
        token_bitmask: int32 `[rows, ceil(vocab / 32)]`, as above.
        row_indices: int64 `[rows]`: only these rows of `logits` are read, and of `out` written.
        out: like `logits`, any row stride, or `logits` itself; a new tensor by default.
    """
    if out is None:
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
        if row_indices is not None:
            out.copy_(logits)
    call = _Call(logits, operations, temperature, valid, token_bitmask, row_indices)
    call.resolve()
    call.mask(out)
    return out, call.status


def sample_triton(
    logits: Tensor,
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    noise: Noise,
    *,
    raw: bool = False,
    valid: Tensor | None = None,
    token_bitmask: Tensor | None = None,
) -> Drawn:
    """Draw one token a row from its support: no masked logits and no probabilities in memory.

    Args:
        logits: `[batch, vocab]` of one of DTYPES, any row stride.
        operations: the program of all rows.
        temperature: at least 0, a number or `[batch]`.
        noise: the streams of the rows.
        raw: log-probabilities of the logits at temperature 1, before any rule.
        valid: bool `[batch]`, as above.
        token_bitmask: int32 `[batch, ceil(vocab / 32)]`, as above.
    """
    call = _Call(logits, operations, temperature, valid, token_bitmask, None)
    call.resolve(noise, raw=raw)
    call.draw(noise, raw=raw)
    return Drawn(call.token_ids, call.logprobs, call.kept_mass, call.status)


class _Call:
    """The tensors of one call and its launches."""

    def __init__(
        self,
        logits: Tensor,
        operations: tuple[Operation, ...],
        temperature: float | Tensor,
        valid: Tensor | None,
        token_bitmask: Tensor | None,
        row_indices: Tensor | None,
    ) -> None:
        device = logits.device
        # the kernels add token ids to a row's address
        self.logits = logits if logits.stride(1) == 1 else logits.contiguous()
        self.vocab = logits.shape[1]
        self.rows = logits.shape[0] if row_indices is None else row_indices.shape[0]
        self.slices = -(-self.vocab // SLICE.value)
        self.num_groups = -(-self.vocab // GROUP.value)
        self.operations = operations
        self.program = _packed(operations)
        self.parameters, self.parameter_stride = _parameters(
            operations, temperature, self.rows, device
        )
        self.valid = valid
        self.bitmask = token_bitmask
        self.bitmask_stride = 0 if token_bitmask is None else token_bitmask.stride(0)
        self.row_indices = row_indices

        def floats(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        def integers(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        self.stats = floats(PLANES.value, self.rows, self.slices)
        self.group_maxima = floats(self.rows, self.num_groups)
        self.chosen = integers(self.rows, CANDIDATE_GROUPS.value)
        self.integers = integers(self.rows, STATE.value)
        self.floats = floats(self.rows, STATE.value)
        self.value = floats(self.rows)
        self.index = torch.empty(self.rows, dtype=torch.int64, device=device)
        self.status = torch.empty(self.rows, dtype=torch.int8, device=device)
        self.plan = plan(operations, self.vocab)
        self.brackets = self.partials = self.collected = self.ends = None
        if any(wait == "bracket" for wait in self.plan):
            self.brackets = floats(self.rows, ROUNDS, 2)
            sums = self.rows, self.slices, POINTS.value * SUMS_OF_POINT.value
            # a round reads the sums of the one before while it writes its own
            self.partials = floats(sums[0], sums[1], sums[2]), floats(sums[0], sums[1], sums[2])
            self.collected = integers(self.rows, COLLECTED.value)
            self.ends = floats(self.rows, self.slices, 2)
        self.token_ids = torch.empty(0, dtype=torch.int64, device=device)
        self.logprobs = self.kept_mass = floats(0)

    def resolve(self, noise: Noise | None = None, *, raw: bool = False) -> None:
        """Find the supports, and draw from those that lie in one program."""
        if noise is not None:
            device = self.logits.device
            self.token_ids = torch.empty(self.rows, dtype=torch.int64, device=device)
            self.logprobs = torch.empty(self.rows, dtype=torch.float32, device=device)
            self.kept_mass = torch.empty_like(self.logprobs)
        if not self.rows:
            return
        # Triton launches on the current device, which need not be that of the logits
        with torch.cuda.device_of(self.logits):
            self._row_stats(restricted=False, raw=raw)
            self._support(noise, raw, first=True)
            for wait in self.plan:
                if wait == "sums":
                    self._row_stats(restricted=True, raw=False)
                    self._support(noise, raw)
                else:
                    self._search()
                    self._support(noise, raw, bracketed=True)

    def mask(self, out: Tensor) -> None:
        """Write the rows into `out` with -inf outside their supports."""
        if not self.rows:
            return
        with torch.cuda.device_of(self.logits):
            mask_kernel[(self.rows, self.slices)](
                self.logits,
                self.logits.stride(0),
                out,
                out.stride(0),
                self.row_indices,
                self.bitmask,
                self.bitmask_stride,
                self.group_maxima,
                self.value,
                self.index,
                self.vocab,
                self.num_groups,
                **self._flags(),
                num_warps=WARPS,
            )

    def draw(self, noise: Noise, *, raw: bool) -> None:
        """Draw from the supports that lie in several programs."""
        # the candidates of a small vocabulary are all of it, and at most 1,024 race directly
        if not self.rows or self.vocab <= SLICE.value // 8:
            return
        winners = torch.empty(
            (self.rows, self.slices, 4), dtype=torch.float32, device=self.logits.device
        )
        shared = (
            self.logits,
            self.logits.stride(0),
            self.bitmask,
            self.bitmask_stride,
            self.parameters,
            self.parameter_stride,
            self.integers,
            self.floats,
            self.group_maxima,
            winners,
            *_streams(noise),
        )
        with torch.cuda.device_of(self.logits):
            slice_masses_kernel[(self.rows, self.slices)](
                *shared,
                self.vocab,
                self.num_groups,
                HAS_BITMASK=self.bitmask is not None,
                num_warps=WARPS,
            )
            staged_draw_kernel[(self.rows,)](
                *shared,
                self.token_ids,
                self.logprobs,
                self.kept_mass,
                self.vocab,
                self.num_groups,
                self.slices,
                WHOLE=not self.operations,
                RAW=raw,
                SLICES=_power_of_two(self.slices),
                HAS_BITMASK=self.bitmask is not None,
                num_warps=DRAW_WARPS,
            )

    @property
    def _codes(self) -> set[int]:
        return {operation.code for operation in self.operations}

    def _sources(self) -> tuple[Any, ...]:
        return (
            self.logits,
            self.logits.stride(0),
            self.row_indices,
            self.bitmask,
            self.bitmask_stride,
            self.parameters,
            self.parameter_stride,
        )

    def _flags(self) -> dict[str, bool]:
        return {
            "HAS_ROWS": self.row_indices is not None,
            "HAS_BITMASK": self.bitmask is not None,
        }

    def _sums(self) -> dict[str, bool]:
        return {
            "SQUARES": bool(self._codes & {P_LESS.value, P_LESS_NORMALIZED.value}),
            "DEVIATION": N_SIGMA.value in self._codes,
            "LEAST": "bracket" in self.plan and TOP_K.value in self._codes,
        }

    def _row_stats(self, *, restricted: bool, raw: bool) -> None:
        row_stats_kernel[(self.rows, self.slices)](
            *self._sources(),
            self.stats,
            self.group_maxima,
            self.integers,
            self.floats,
            self.vocab,
            self.num_groups,
            RESTRICTED=restricted,
            RAW=raw,
            **self._sums(),
            **self._flags(),
            num_warps=WARPS,
        )

    def _support(
        self, noise: Noise | None, raw: bool, *, first: bool = False, bracketed: bool = False
    ) -> None:
        drawn = (self.token_ids, self.logprobs, self.kept_mass)
        support_kernel[(self.rows,)](
            *self._sources(),
            self.parameters.stride(0),
            self.valid,
            self.program,
            len(self.operations),
            self.stats,
            self.group_maxima,
            self.chosen,
            self.collected,
            self.ends,
            self.integers,
            self.floats,
            self.value,
            self.index,
            self.status,
            *((None, None, None) if noise is None else _streams(noise)),
            *((None, None, None) if noise is None else drawn),
            self.vocab,
            self.num_groups,
            self.slices,
            FIRST=first,
            BRACKETED=bracketed,
            SAMPLE=noise is not None,
            RAW=raw,
            SLICES=_power_of_two(self.slices),
            GROUPS=min(_power_of_two(self.num_groups), MAX_GROUPS_AT_ONCE),
            HAS_VALID=self.valid is not None,
            **self._sums(),
            **self._flags(),
            num_warps=SUPPORT_WARPS,
        )

    def _search(self) -> None:
        assert self.partials is not None
        shared = (
            *self._sources(),
            self.parameters.stride(0),
            self.program,
            self.integers,
            self.floats,
            self.brackets,
        )
        for number in range(ROUNDS):
            round_kernel[(self.rows, self.slices)](
                *shared,
                self.partials[(number - 1) % 2],
                self.partials[number % 2],
                self.vocab,
                ROUND=number,
                ROUNDS=ROUNDS,
                SLICES=_power_of_two(self.slices),
                **self._flags(),
                num_warps=WARPS,
            )
        collect_kernel[(self.rows, self.slices)](
            *shared,
            self.partials[(ROUNDS - 1) % 2],
            self.collected,
            self.ends,
            self.vocab,
            ROUNDS=ROUNDS,
            SLICES=_power_of_two(self.slices),
            **self._flags(),
            num_warps=WARPS,
        )


def plan(operations: tuple[Operation, ...], vocab: int) -> list[str]:
    """What rows may have to wait for, in order: "sums" of a support, the "bracket" of a search."""
    waits = []
    small = vocab <= CANDIDATE_GROUPS.value * GROUP.value
    for position, (code, parameter, keep, ties_all) in enumerate(operations):
        searched = code >= TOP_K.value
        if position and not small and code not in (MIN_P.value, TOP_K.value):
            waits.append("sums")
        first = (
            code == TOP_K.value
            and not isinstance(parameter, Tensor)
            and max(parameter, keep) <= MAX_FIRST
        )
        if searched and not small and not first:
            waits.append("bracket")
        if first:
            small = True
        if ties_all:
            small = vocab <= CANDIDATE_GROUPS.value * GROUP.value
    return waits


def _packed(operations: tuple[Operation, ...]) -> int:
    # one bit beyond the last operation: the word is an int64 and never 1, whatever is in it
    word: int = 1 << (OPERATION_BITS.value * MAX_OPERATIONS)
    for position, operation in enumerate(operations):
        code = operation.code | (16 if operation.ties_all else 0)
        word |= code << (OPERATION_BITS.value * position)
    return word


def _parameters(
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    rows: int,
    device: torch.device,
) -> tuple[Tensor, int]:
    """Temperature, then parameter and tokens to keep of every operation: `[1 + 2 n, rows or 1]`.

    Returns:
        The table, float64, and its stride from row to row: 0 where all rows share it.
    """
    values: list[float | Tensor] = [temperature]
    for operation in operations:
        values += [operation.parameter, float(operation.keep)]
    if not any(isinstance(value, Tensor) and value.ndim for value in values) and not any(
        isinstance(value, Tensor) for value in values
    ):
        return _shared_parameters(tuple(float(value) for value in values), device), 0
    columns = [
        torch.as_tensor(value, dtype=torch.float64, device=device).expand(rows) for value in values
    ]
    # temperatures that float32 takes for 0 or inf are not 0 or inf
    heat = columns[0]
    numbers = torch.finfo(torch.float32)
    columns[0] = torch.where(heat == 0, heat, heat.clamp(numbers.tiny, numbers.max))
    return torch.stack(columns), 1


@functools.lru_cache(maxsize=256)
def _shared_parameters(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A table that is copied to the device once, not at every call."""
    numbers = torch.finfo(torch.float32)
    heat = values[0] and min(max(values[0], numbers.tiny), numbers.max)
    return torch.tensor([heat, *values[1:]], dtype=torch.float64, device=device)[:, None]


def _streams(noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    return noise.seed.contiguous(), noise.sequence.contiguous(), noise.step.contiguous()


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
