"""Truncation and sampling on a GPU: supports, masked logits or tokens of a batch in one call each.

    support   (value, index, upper) of every row: what kernels/support.py finds in plain torch
    truncate  x inside the support, -inf outside
    sample    one token a row from its support, without masked logits or probabilities in memory

`truncation_call.py` holds the launches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Noise
from .support import Support
from .truncation_call import TruncationCall
from .truncation_plan import Operation


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
        logits: `[batch, vocab]` float32, bfloat16 or float16, any row stride; vocab at most 2**24.
        operations: the program of all rows.
        temperature: at least 0, a number or `[batch]`.
        valid: bool `[batch]`, rows whose parameters lie in their ranges; None for all.
        token_bitmask: int32 `[batch, ceil(vocab / 32)]`; tokens whose bit is 0 count as -inf.
    """
    call = TruncationCall(logits, operations, temperature, valid, token_bitmask, None)
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
        logits: `[batch, vocab]` float32, bfloat16 or float16, any row stride; vocab at most 2**24.
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
    call = TruncationCall(logits, operations, temperature, valid, token_bitmask, row_indices)
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
        logits: `[batch, vocab]` float32, bfloat16 or float16, any row stride; vocab at most 2**24.
        operations: the program of all rows.
        temperature: at least 0, a number or `[batch]`.
        noise: the streams of the rows.
        raw: log-probabilities of the logits at temperature 1, before any rule.
        valid: bool `[batch]`, as above.
        token_bitmask: int32 `[batch, ceil(vocab / 32)]`, as above.
    """
    call = TruncationCall(logits, operations, temperature, valid, token_bitmask, None)
    call.resolve(noise, raw=raw)
    call.draw(noise, raw=raw)
    return Drawn(call.token_ids, call.logprobs, call.kept_mass, call.status)
