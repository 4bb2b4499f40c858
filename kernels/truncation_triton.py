"""The launches of a truncation or a draw on a GPU.

    row_stats  support                                    every call
    [row_stats of the supports  support]                  a rule after one that may keep thousands
    [round  round  collect  support]                      a search, or over 127 tokens to keep
    mask, or  slice_masses  staged_draw                   the logits or the tokens

Which launches there are follows from the shapes and the operations, never from data: rows that are
done return from them at once. A vocabulary of at most 4,096 tokens and anything behind a top-k of at
most 127 lie in one program's registers and take no search launches.

Nothing here has been timed on a GPU yet: slice, group and round sizes rest on instruction counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .configurations import num_warps
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
    TYPICAL,
    collect_kernel,
    round_kernel,
)
from .row_stats_triton import GROUP, PLANES, SLICE, STATE, row_stats_kernel
from .shared_tables import shared_table
from .support import Support
from .support_triton import mask_kernel, support_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ROUNDS = 2
"""Rounds of 16 points leave a 225th of a row's interval: at most 2,048 of 262,144 gaussian logits."""

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
        keep: the tokens that the step must keep.
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
    return Support(call.value, call.index, call.upper), call.status


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
        more_logits: Tensor | None = None,
        *,
        kept: bool = False,
    ) -> None:
        device = logits.device
        self.logits = _side_by_side(logits)
        # rows of a second tensor, of the same dtype and width, behind those of the first
        self.more_logits = None if more_logits is None else _side_by_side(more_logits)
        self.vocab = logits.shape[1]
        self.rows = logits.shape[0] if row_indices is None else row_indices.shape[0]
        if more_logits is not None:
            self.rows += more_logits.shape[0]
        self.kept = kept
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

        self.plan = plan(operations, self.vocab)
        (
            self.stats,
            self.group_maxima,
            self.chosen,
            self.integers,
            self.floats,
            self.value,
            self.index,
            self.upper,
            self.status,
            self.brackets,
            self.partials,
            self.collected,
        ) = workspace(self.rows, self.vocab, self.plan, device)
        self.token_ids = torch.empty(0, dtype=torch.int64, device=device)
        self.logprobs = self.kept_mass = torch.empty(0, dtype=torch.float32, device=device)

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
            if self.waits_for_kept:
                self._row_stats(restricted=True, raw=False)

    @property
    def waits_for_kept(self) -> bool:
        """Whether rows may be left that wait for the sums of their supports: `stats` holds these."""
        found = within_candidates(self.operations, self.vocab)
        return self.kept and bool(self.operations) and not found

    def mask(self, out: Tensor) -> None:
        """Write the rows into `out` with -inf outside their supports."""
        if not self.rows:
            return
        with torch.cuda.device_of(self.logits):
            mask_kernel[(self.rows, self.slices)](
                self.logits,
                _row_stride(self.logits),
                out,
                _row_stride(out),
                self.row_indices,
                self.bitmask,
                self.bitmask_stride,
                self.group_maxima,
                self.value,
                self.index,
                self.upper,
                self.vocab,
                self.num_groups,
                INTERVALS=TYPICAL.value in self._codes,
                HAS_ROWS=self.row_indices is not None,
                HAS_BITMASK=self.bitmask is not None,
                num_warps=num_warps("mask_kernel", self.logits.dtype),
            )

    def draw(self, noise: Noise, *, raw: bool) -> None:
        """Draw from the supports that lie in several programs."""
        # the candidates of a small vocabulary are all of it, and at most 1,024 race directly
        if not self.rows or self.vocab <= SLICE.value // 8:
            return
        # the sums of the slices are read no more
        winners = self.stats.flatten()[: self.rows * self.slices * 4]
        shared = (
            self.logits,
            _row_stride(self.logits),
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
                num_warps=num_warps("slice_masses_kernel", self.logits.dtype),
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
                num_warps=num_warps("staged_draw_kernel", self.logits.dtype),
            )

    @property
    def _codes(self) -> set[int]:
        return {operation.code for operation in self.operations}

    def _sources(self) -> tuple[Any, ...]:
        return (
            self.logits,
            _row_stride(self.logits),
            self.more_logits,
            0 if self.more_logits is None else _row_stride(self.more_logits),
            len(self.logits),
            self.row_indices,
            self.bitmask,
            self.bitmask_stride,
            self.parameters,
            self.parameter_stride,
        )

    def _flags(self) -> dict[str, bool]:
        return {
            "HAS_MORE": self.more_logits is not None,
            "HAS_ROWS": self.row_indices is not None,
            "HAS_BITMASK": self.bitmask is not None,
        }

    def _sums(self) -> dict[str, bool]:
        return {
            "SQUARES": bool(self._codes & {P_LESS.value, P_LESS_NORMALIZED.value}),
            "DEVIATION": N_SIGMA.value in self._codes,
            "LEAST": "bracket" in self.plan,
            "INTERVALS": TYPICAL.value in self._codes,
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
            num_warps=num_warps("row_stats_kernel", self.logits.dtype),
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
            self._ends(),
            self.integers,
            self.floats,
            self.value,
            self.index,
            self.upper,
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
            KEPT=self.kept,
            SLICES=_power_of_two(self.slices),
            GROUPS=min(_power_of_two(self.num_groups), MAX_GROUPS_AT_ONCE),
            HAS_VALID=self.valid is not None,
            **self._sums(),
            **self._flags(),
            num_warps=num_warps("support_kernel", self.logits.dtype),
        )

    def _ends(self) -> Tensor | None:
        """The ends of the slices, where the sums of the last round but one are read no more."""
        return None if self.partials is None else self.partials[ROUNDS % 2]

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
                INTERVALS=TYPICAL.value in self._codes,
                SLICES=_power_of_two(self.slices),
                **self._flags(),
                num_warps=num_warps("round_kernel", self.logits.dtype),
            )
        collect_kernel[(self.rows, self.slices)](
            *shared,
            self.partials[(ROUNDS - 1) % 2],
            self.collected,
            self._ends(),
            self.vocab,
            ROUNDS=ROUNDS,
            INTERVALS=TYPICAL.value in self._codes,
            SLICES=_power_of_two(self.slices),
            **self._flags(),
            num_warps=num_warps("collect_kernel", self.logits.dtype),
        )


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


def _side_by_side(logits: Tensor) -> Tensor:
    """The logits with the tokens of a row one after the other: the kernels add token ids to its address."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _row_stride(logits: Tensor) -> int:
    """From row to row; of a single row it says nothing, and a kernel must not be compiled for it."""
    return logits.stride(0) if logits.shape[0] > 1 else logits.shape[1]


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


def _streams(noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    return noise.seed.contiguous(), noise.sequence.contiguous(), noise.step.contiguous()


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
