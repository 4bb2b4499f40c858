# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The mask of a support on a GPU: one program a slice of a row.

    out = x where (x > value or x = value and id <= index) and x <= upper, else -inf
A group of 32 tokens whose maximum lies below the value is written, and not read.
"""

from __future__ import annotations

from ._triton import kernel, tl
from .row_stats_triton import GROUP, SLICE, in_support, load_logits, not_above, row_pointer


@kernel
def mask_kernel(
    logits_ptr,  # [batch, vocab]
    row_stride,
    out_ptr,  # [batch, vocab], maybe the logits themselves
    out_stride,
    rows_ptr,  # [rows] int64
    bitmask_ptr,
    bitmask_stride,
    group_maxima_ptr,  # [rows, groups] float32
    value_ptr,  # [rows] float32
    index_ptr,  # [rows] int64
    upper_ptr,  # [rows] float32
    vocab,
    num_groups,
    INTERVALS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_BITMASK: tl.constexpr,
):
    """One slice of a row with -inf outside the support."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    value = tl.load(value_ptr + row)
    index = tl.load(index_ptr + row)
    groups = part * (SLICE // GROUP) + tl.arange(0, SLICE // GROUP)
    maxima_ptr = group_maxima_ptr + row.to(tl.int64) * num_groups + groups
    maxima = tl.load(maxima_ptr, mask=groups < num_groups, other=-float("inf"))
    # a group without a kept token is not read again
    reached = tl.broadcast_to((maxima >= value)[:, None], (SLICE // GROUP, GROUP))
    tokens = part * SLICE + tl.arange(0, SLICE)
    wanted = (tokens < vocab) & tl.reshape(reached, (SLICE,))
    row_ptr = row_pointer(logits_ptr, row_stride, rows_ptr, row, HAS_ROWS)
    x = load_logits(row_ptr, tokens, wanted, bitmask_ptr, bitmask_stride, row, HAS_BITMASK)
    if INTERVALS:
        x = not_above(x, tl.load(upper_ptr + row))
    kept = tl.where(in_support(x, tokens, value, index), x, -float("inf"))
    target_ptr = row_pointer(out_ptr, out_stride, rows_ptr, row, HAS_ROWS)
    tl.store(target_ptr + tokens, kept.to(out_ptr.dtype.element_ty), mask=tokens < vocab)
