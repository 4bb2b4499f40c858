"""The launches of a truncation or a draw on a GPU.

    row_stats  support                                    every call
    [row_stats of the supports  support]                  a rule after one that may keep thousands
    [round  round  collect  support]                      a search, or over 127 tokens to keep
    mask, or  slice_masses  staged_draw                   the logits or the tokens

Rows that are done return from launches that others wait for at once (`truncation_plan.py`).

Nothing here has been timed on a GPU yet: slice, group and round sizes rest on instruction counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .configurations import num_warps
from .draw_triton import slice_masses_kernel, staged_draw_kernel
from .mask_triton import mask_kernel
from .noise import Noise
from .prefix_score_triton import N_SIGMA, P_LESS, P_LESS_NORMALIZED, TYPICAL
from .prefix_search_triton import collect_kernel, round_kernel
from .row_stats_triton import GROUP, SLICE, row_stats_kernel
from .support_triton import support_kernel
from .truncation_plan import Operation, packed, parameter_table, plan, within_candidates
from .truncation_workspace import ROUNDS, workspace

MAX_GROUPS_AT_ONCE = 4096
"""Group maxima that a program keeps in registers, 16 a thread: those of 131,072 tokens."""


class TruncationCall:
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
        self.program = packed(operations)
        self.parameters, self.parameter_stride = parameter_table(
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
            self.row_stats(restricted=False, raw=raw)
            self._support(noise, raw, first=True)
            for wait in self.plan:
                if wait == "sums":
                    self.row_stats(restricted=True, raw=False)
                    self._support(noise, raw)
                else:
                    self._search()
                    self._support(noise, raw, bracketed=True)
            if self.waits_for_kept:
                self.row_stats(restricted=True, raw=False)

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
                row_stride(self.logits),
                out,
                row_stride(out),
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
            row_stride(self.logits),
            self.bitmask,
            self.bitmask_stride,
            self.parameters,
            self.parameter_stride,
            self.integers,
            self.floats,
            self.group_maxima,
            winners,
            *streams(noise),
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
                SLICES=power_of_two(self.slices),
                HAS_BITMASK=self.bitmask is not None,
                num_warps=num_warps("staged_draw_kernel", self.logits.dtype),
            )

    @property
    def _codes(self) -> set[int]:
        return {operation.code for operation in self.operations}

    def _sources(self) -> tuple[Any, ...]:
        return (
            self.logits,
            row_stride(self.logits),
            self.more_logits,
            0 if self.more_logits is None else row_stride(self.more_logits),
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

    def row_stats(self, *, restricted: bool, raw: bool) -> None:
        """Launch the sums of every slice of the rows, or of their supports; of the raw logits too if asked for."""
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
            *((None, None, None) if noise is None else streams(noise)),
            *((None, None, None) if noise is None else drawn),
            self.vocab,
            self.num_groups,
            self.slices,
            FIRST=first,
            BRACKETED=bracketed,
            SAMPLE=noise is not None,
            RAW=raw,
            KEPT=self.kept,
            SLICES=power_of_two(self.slices),
            GROUPS=min(power_of_two(self.num_groups), MAX_GROUPS_AT_ONCE),
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
                SLICES=power_of_two(self.slices),
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
            SLICES=power_of_two(self.slices),
            **self._flags(),
            num_warps=num_warps("collect_kernel", self.logits.dtype),
        )


def _side_by_side(logits: Tensor) -> Tensor:
    """The logits with the tokens of a row one after the other: the kernels add token ids to its address."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


def row_stride(logits: Tensor) -> int:
    """From row to row; of a single row it says nothing, and a kernel must not be compiled for it."""
    return logits.stride(0) if logits.shape[0] > 1 else logits.shape[1]


def streams(noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Seed, sequence and step of the rows, as kernels read them."""
    return noise.seed.contiguous(), noise.sequence.contiguous(), noise.step.contiguous()


def power_of_two(number: int) -> int:
    """The least one that is at least a number."""
    return 1 << (number - 1).bit_length()
