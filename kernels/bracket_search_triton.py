# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The end of a search of kernels/prefix_search_triton.py: a threshold among the tokens that its rounds have left.

    bracket    = {low <= standing < high}: gathered by id where there are at most 2,048 of them
    value, index of its first token in the row's order that does not hold, given the sums above the bracket
A bracket of more tokens is halved by value, in readings of the row, until they fit or are all equal.
"""

from __future__ import annotations

from ._triton import jit, tl
from .candidate_search_triton import CANDIDATES, search_candidates, ties_that_hold
from .prefix_score_triton import (
    TOP_K,
    holds,
    key_value,
    middle,
    omitted,
    ordered_key,
    sought,
    standings,
    sums_of,
)
from .row_stats_triton import (
    F_BASE_COUNT,
    F_BASE_EXCESS,
    F_BASE_MOMENT,
    F_BOUND,
    F_CENTRE,
    F_LOG_TOTAL,
    load_logits,
)

COLLECTED = tl.constexpr(2048)
"""Tokens of a bracket that are gathered by id: 8 KiB of workspace a row."""

ENDS = tl.constexpr(4)
"""Of a slice: the least and the largest standing in the bracket, and logit of those above the bracket."""


@jit
def search_bracket(
    row_ptr,
    bitmask_ptr,
    bitmask_stride,
    collected_ptr,  # [rows, COLLECTED] int32
    ends_ptr,  # [rows, slices, ENDS] float32
    numbers_ptr,
    row,
    slices,
    crowd,  # tokens of the bracket, 1 at least
    value,
    index,
    upper,
    maximum,
    scale,
    top_id,
    operation,
    keep,
    vocab,
    INTERVALS: tl.constexpr,
    SLICES: tl.constexpr,
    HAS_BITMASK: tl.constexpr,
):
    """The threshold (value, index) in a bracket, and of an interval the least and the largest kept logit."""
    # a threshold waits for the first tokens, which it must not drop
    search = tl.maximum(operation, TOP_K)
    bound = tl.load(numbers_ptr + F_BOUND)
    log_total = tl.load(numbers_ptr + F_LOG_TOTAL)
    base_count = tl.load(numbers_ptr + F_BASE_COUNT)
    base_excess = tl.load(numbers_ptr + F_BASE_EXCESS)
    base_moment = tl.load(numbers_ptr + F_BASE_MOMENT)
    ids_ptr = collected_ptr + row.to(tl.int64) * COLLECTED
    parts_ptr = ends_ptr + row.to(tl.int64) * slices * ENDS
    equal = crowd < 0
    found_value = value
    found_index = index
    centre = 0.0 * scale
    least = centre
    most = centre
    if INTERVALS:
        centre = tl.load(numbers_ptr + F_CENTRE)
        lane = tl.arange(0, SLICES)
        leasts = tl.load(parts_ptr + lane * ENDS + 2, mask=lane < slices, other=float("inf"))
        mosts = tl.load(parts_ptr + lane * ENDS + 3, mask=lane < slices, other=-float("inf"))
        least = tl.min(leasts, 0)
        most = tl.max(mosts, 0)
    left_out = omitted(operation, top_id)
    if crowd > COLLECTED:
        (
            equal,
            found_value,
            found_index,
            crowd,
            base_count,
            base_excess,
            base_moment,
            least,
            most,
        ) = settle_crowd(
            row_ptr,
            bitmask_ptr,
            bitmask_stride,
            row,
            slices,
            ids_ptr,
            parts_ptr,
            crowd,
            value,
            index,
            upper,
            maximum,
            centre,
            scale,
            left_out,
            base_count,
            base_excess,
            base_moment,
            search,
            bound,
            log_total,
            keep,
            vocab,
            INTERVALS,
            SLICES,
            HAS_BITMASK,
        )
    if equal == 0:
        spot = tl.arange(0, COLLECTED)
        ids = tl.load(ids_ptr + spot, mask=spot < crowd, other=0)
        y = load_logits(row_ptr, ids, spot < crowd, bitmask_ptr, bitmask_stride, row, HAS_BITMASK)
        standing = y
        if INTERVALS:
            standing = standings(y, operation, maximum, centre)
        found_value, found_index = search_candidates(
            standing,
            y,
            ids,
            spot < crowd,
            maximum,
            scale,
            left_out,
            base_count,
            base_excess,
            base_moment,
            search,
            bound,
            log_total,
            keep,
        )
        if INTERVALS:
            near = (spot < crowd) & (standing >= found_value)
            least = tl.minimum(least, tl.min(tl.where(near, y, float("inf")), 0))
            most = tl.maximum(most, tl.max(tl.where(near, y, -float("inf")), 0))
    return found_value, found_index, least, most


@jit
def settle_crowd(
    row_ptr,
    bitmask_ptr,
    bitmask_stride,
    row,
    slices,
    collected_ptr,  # [COLLECTED] int32
    ends_ptr,  # [slices, ENDS] float32
    crowd,
    value,
    index,
    upper,
    maximum,
    centre,
    scale,
    top_id,
    count,
    excess,
    moment,
    operation,
    bound,
    log_total,
    keep,
    vocab,
    INTERVALS: tl.constexpr,
    SLICES: tl.constexpr,
    HAS_BITMASK: tl.constexpr,
):
    """Narrow a bracket of more than COLLECTED tokens until they fit or are all equal.

    Only thousands of logits within a 225th of the row's interval come here. Each sweep halves the
    bracket by value and moves its ends to logits of the row: bfloat16 needs one or two.

    Returns:
        Whether all are equal; their standing and the last kept of them, the number of tokens
        collected, the sums of the tokens above them, and the least and the largest logit of those
        that are kept without them, or with them if they are equal and an interval is sought.
    """
    lane = tl.arange(0, SLICES)
    zero = tl.full((), 0, tl.int32)
    low = tl.min(tl.load(ends_ptr + ENDS * lane, mask=lane < slices, other=float("inf")), 0)
    high = tl.max(tl.load(ends_ptr + ENDS * lane + 1, mask=lane < slices, other=-float("inf")), 0)
    offsets = tl.arange(0, CANDIDATES)
    while (crowd > COLLECTED) & (low < high):
        # above low, and not above high
        cut = key_value(middle(ordered_key(low), ordered_key(high)) + 1)
        upper_count = 0.0 * count
        upper_excess = 0.0 * count
        upper_moment = 0.0 * count
        below_cut = low
        above_cut = high
        start = zero
        while start < vocab:
            tokens = start + offsets
            x = load_logits(
                row_ptr, tokens, tokens < vocab, bitmask_ptr, bitmask_stride, row, HAS_BITMASK
            )
            present, standing = sought(
                x, tokens, value, index, upper, operation, maximum, centre, INTERVALS
            )
            inside = (standing >= low) & (standing <= high) & present
            reached = inside & (standing >= cut)
            some, more, turned = sums_of(reached, x, tokens, maximum, scale, top_id)
            upper_count += some
            upper_excess += more
            upper_moment += turned
            others = tl.where(inside & (standing < cut), standing, -float("inf"))
            below_cut = tl.maximum(below_cut, tl.max(others, 0))
            above_cut = tl.minimum(above_cut, tl.min(tl.where(reached, standing, float("inf")), 0))
            start += CANDIDATES
        held = holds(
            operation,
            count + upper_count,
            excess + upper_excess,
            moment + upper_moment,
            bound,
            log_total,
            keep,
        )
        if held:
            count += upper_count
            excess += upper_excess
            moment += upper_moment
            crowd -= upper_count.to(tl.int32)
            high = below_cut
        else:
            crowd = upper_count.to(tl.int32)
            low = above_cut

    kept = ties_that_hold(
        low,
        crowd,
        maximum,
        scale,
        count,
        excess,
        moment,
        operation,
        bound,
        log_total,
        keep,
    )
    # either the tokens of the bracket, or the last kept one of its equal tokens
    placed = zero
    last = zero - 1
    least = 0.0 * count + float("inf")
    most = -least
    # equal tokens of an interval stay together
    kept_from = tl.where(low == high, low, key_value(ordered_key(high) + 1))
    start = zero
    while start < vocab:
        tokens = start + offsets
        x = load_logits(
            row_ptr, tokens, tokens < vocab, bitmask_ptr, bitmask_stride, row, HAS_BITMASK
        )
        present, standing = sought(
            x, tokens, value, index, upper, operation, maximum, centre, INTERVALS
        )
        if INTERVALS:
            near = present & (standing >= kept_from)
            least = tl.minimum(least, tl.min(tl.where(near, x, float("inf")), 0))
            most = tl.maximum(most, tl.max(tl.where(near, x, -float("inf")), 0))
        inside = (standing >= low) & (standing <= high) & present
        rank = placed + tl.cumsum(inside.to(tl.int32), 0)
        tl.store(collected_ptr + rank - 1, tokens, mask=inside & (rank <= COLLECTED))
        last = tl.maximum(last, tl.max(tl.where(inside & (rank == kept), tokens, -1), 0))
        placed += tl.sum(inside.to(tl.int32), 0)
        start += CANDIDATES
    tl.debug_barrier()
    equal = low == high
    return equal, low, last, crowd, count, excess, moment, least, most
