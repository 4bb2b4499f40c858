"""The launches of a draft block's verification on a GPU, from logits to tokens.

    row_stats  support                    both laws of all nodes, whose rows follow each other
    [row_stats of the supports]           rules whose supports may exceed the candidates
    ratio_sums                            the sums of every node at the knots
    walk                                  accepted tokens, and where each row of the batch stops
    residual_masses  residual_draw        the recovered or bonus token there

Six launches, seven where the rules may keep thousands of tokens, and those of kernels/truncation_call.py
for its search rules; two of each for models of different dtypes. The number follows from shapes and rules,
never from data; nothing waits for the device, and probabilities stay in registers.

Nothing here has been timed on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .configurations import num_warps
from .noise import Noise
from .ratio_splines import knots as knots_of
from .ratio_sums_triton import KNOTS, LAW, ratio_sums_kernel
from .residual_triton import STOP, residual_draw_kernel, residual_masses_kernel
from .shared_tables import shared_table
from .truncation_call import TruncationCall, power_of_two, row_stride, streams
from .truncation_plan import Operation
from .walk_triton import K_SEQ, OPTIMAL, OPTIMAL_BLOCK, walk_kernel

VERIFIERS = {"k_seq": K_SEQ, "optimal": OPTIMAL, "optimal_block": OPTIMAL_BLOCK}

MAX_PATHS = 64
"""Paths of a block: a node's ranks are paths x 32 numbers in one program's registers."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify_block_triton` writes, see `warpdraft.verification.VerifiedBlock`."""

    output_token_ids: Tensor
    num_accepted: Tensor
    survivor_path: Tensor
    status: Tensor


def verify_block_triton(
    target_logits: Tensor,
    draft_logits: Tensor,
    draft_token_ids: Tensor,
    node_index: Tensor,
    drawn: Tensor,
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    noise: Noise,
    verifier: str,
    *,
    lex: bool = False,
    valid: Tensor | None = None,
) -> Verified:
    """Verify a block of draft paths.

    Args:
        target_logits: `[batch, target_nodes, vocab]` float32, bfloat16 or float16.
        draft_logits: `[batch, draft_nodes, vocab]`; a leaf may lack its row, or have one of NaN.
        draft_token_ids: `[batch, K, L]` int64, K at most MAX_PATHS.
        node_index: `[batch, K, L + 1]` int64.
        drawn: `[batch, K, L]` bool.
        operations: the program of all rows of both models; its parameters numbers or `[batch]`.
        temperature: a number or `[batch]`.
        noise: the streams of the batch.
        verifier: a name in VERIFIERS.
        lex: the lex-optimal selection law, else the clip.
        valid: bool `[batch]`, rows whose parameters lie in their ranges; None for all.
    """
    num_paths = draft_token_ids.shape[1]
    nodes = sum_nodes(
        target_logits, draft_logits, num_paths, operations, temperature, verifier, valid
    )
    return walk(nodes, draft_token_ids, node_index, drawn, noise, lex=lex)


@dataclass(frozen=True, slots=True)
class _Side:
    """One model's logits, a row a node, and the supports that were found for them."""

    logits: Tensor
    nodes: int
    call: TruncationCall
    first: int

    def source(self) -> tuple[Any, ...]:
        return self.logits, row_stride(self.logits)

    def state(self) -> tuple[Any, ...]:
        call, rows = self.call, slice(self.first, self.first + len(self.logits))
        shared = call.parameter_stride == 0
        return (
            call.parameters if shared else call.parameters[:, rows],
            call.parameter_stride,
            call.integers[rows],
            call.floats[rows],
            call.stats[:, rows],
            call.rows,
            call.status[rows],
            call.group_maxima[rows],
        )


@dataclass(frozen=True, slots=True)
class Nodes:
    """The laws of all nodes and their sums: what does not depend on the drafted tokens.

    Attributes:
        verifier: a name in VERIFIERS, whose knots these are.
        target: the target's rows.
        draft: the draft's rows.
        knots: `[KNOTS]` float32.
        laws: `[batch * target_nodes, 2, LAW]` float32.
        sums: `[batch * target_nodes, slices, KNOTS]` float32, undefined where a node has no draft row.
    """

    verifier: str
    target: _Side
    draft: _Side
    knots: Tensor
    laws: Tensor
    sums: Tensor

    def sources(self) -> tuple[Any, ...]:
        """Where the logits of a node are."""
        return *self.target.source(), *self.draft.source(), self.target.nodes, self.draft.nodes

    def masses(self, batch: int) -> tuple[Tensor, Tensor]:
        """Room for the masses of groups and slices of one node a row, in what only the sums have needed."""
        target, draft = self.target.call, self.draft.call
        groups = draft.group_maxima[self.draft.first :][:batch]
        if len(groups) < batch:
            # leaves alone: the draft has no row
            groups = target.group_maxima.new_empty(batch, target.num_groups)
        return groups, target.stats.flatten()[: batch * target.slices * 4]


def sum_nodes(
    target_logits: Tensor,
    draft_logits: Tensor,
    num_paths: int,
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    verifier: str,
    valid: Tensor | None = None,
) -> Nodes:
    """Both laws of every node and its sums at the knots; arguments as `verify_block_triton`."""
    target, draft = _sides(target_logits, draft_logits, operations, temperature, valid)
    rows, slices, device = len(target.logits), target.call.slices, target_logits.device
    table = tuple(knots_of(num_paths, KNOTS.value, verifier).tolist())
    nodes = Nodes(
        verifier,
        target,
        draft,
        shared_table(table, torch.float32, device),
        torch.empty((rows, 2, LAW.value), dtype=torch.float32, device=device),
        torch.empty((rows, slices, KNOTS.value), dtype=torch.float32, device=device),
    )
    if rows:
        # Triton launches on the current device, which need not be that of the logits
        with torch.cuda.device_of(target_logits):
            ratio_sums_kernel[(rows, slices)](
                *nodes.sources(),
                *target.state(),
                *draft.state(),
                nodes.knots,
                nodes.laws,
                nodes.sums,
                target.call.vocab,
                target.call.num_groups,
                WAITS=target.call.waits_for_kept,
                SLICES=power_of_two(slices),
                num_warps=num_warps("ratio_sums_kernel", target_logits.dtype),
            )
    return nodes


def walk(
    nodes: Nodes,
    draft_token_ids: Tensor,
    node_index: Tensor,
    drawn: Tensor,
    noise: Noise,
    *,
    lex: bool = False,
) -> Verified:
    """The tokens of every row of the batch; arguments as `verify_block_triton`."""
    batch, num_paths, length = draft_token_ids.shape
    verifier, call = nodes.verifier, nodes.target.call
    device, dtype = draft_token_ids.device, nodes.target.logits.dtype
    slices, num_groups = call.slices, call.num_groups

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    verified = Verified(
        empty(torch.int64, batch, length + 1),
        empty(torch.int64, batch),
        empty(torch.int64, batch),
        empty(torch.int8, batch),
    )
    if batch == 0:
        return verified
    stop = (
        empty(torch.int32, batch, STOP.value),
        empty(torch.float32, batch),
        empty(torch.float32, batch, KNOTS.value),
    )
    masses = nodes.masses(batch)
    stream_tensors = streams(noise)
    with torch.cuda.device_of(draft_token_ids):
        walk_kernel[(batch,)](
            *nodes.sources(),
            nodes.laws,
            nodes.sums,
            nodes.knots,
            draft_token_ids.contiguous(),
            drawn.contiguous(),
            node_index.contiguous(),
            *stop,
            verified.output_token_ids,
            verified.num_accepted,
            verified.survivor_path,
            verified.status,
            *stream_tensors,
            num_paths,
            length,
            slices,
            VERIFIER=VERIFIERS[verifier].value,
            LEX=lex,
            PATHS=power_of_two(num_paths),
            OUTPUTS=power_of_two(length + 1),
            SLICES=power_of_two(slices),
            num_warps=num_warps(
                "walk_kernel k_seq" if verifier == "k_seq" else "walk_kernel", dtype
            ),
        )
        residual_masses_kernel[(batch, slices)](
            *nodes.sources(),
            nodes.target.state()[-1],
            nodes.laws,
            nodes.knots,
            *stop,
            *masses,
            *stream_tensors,
            call.vocab,
            num_groups,
            num_warps=num_warps("residual_masses_kernel", dtype),
        )
        residual_draw_kernel[(batch,)](
            *nodes.sources(),
            nodes.laws,
            nodes.knots,
            *stop,
            *masses,
            *stream_tensors,
            verified.output_token_ids,
            length,
            call.vocab,
            num_groups,
            slices,
            SLICES=power_of_two(slices),
            num_warps=num_warps("residual_draw_kernel", dtype),
        )
    return verified


def _sides(
    target_logits: Tensor,
    draft_logits: Tensor,
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    valid: Tensor | None,
) -> tuple[_Side, _Side]:
    """The supports of both models' rows, found together where their dtypes allow it."""
    rows = [logits.flatten(0, 1) for logits in (target_logits, draft_logits)]
    counts = [target_logits.shape[1], draft_logits.shape[1]]
    if rows[0].dtype == rows[1].dtype and len(rows[1]) > 0:
        call = _call(rows[0], rows[1], counts, operations, temperature, valid)
        assert call.more_logits is not None
        return (
            _Side(call.logits, counts[0], call, 0),
            _Side(call.more_logits, counts[1], call, len(rows[0])),
        )
    target, draft = (
        _Side(call.logits, count, call, 0)
        for call, count in (
            (_call(side, None, [count], operations, temperature, valid), count)
            for side, count in zip(rows, counts, strict=True)
        )
    )
    return target, draft


def _call(
    logits: Tensor,
    more_logits: Tensor | None,
    counts: list[int],
    operations: tuple[Operation, ...],
    temperature: float | Tensor,
    valid: Tensor | None,
) -> TruncationCall:
    """One resolution, with the parameters of the batch given to all their nodes."""

    def of_nodes(values: Tensor) -> Tensor:
        return torch.cat([values.repeat_interleave(count) for count in counts])

    operations = tuple(
        operation._replace(parameter=of_nodes(operation.parameter))
        if isinstance(operation.parameter, Tensor) and operation.parameter.ndim
        else operation
        for operation in operations
    )
    if isinstance(temperature, Tensor) and temperature.ndim:
        temperature = of_nodes(temperature)
    call = TruncationCall(
        logits,
        operations,
        temperature,
        None if valid is None else of_nodes(valid),
        None,
        None,
        more_logits,
        kept=True,
    )
    call.resolve()
    return call
