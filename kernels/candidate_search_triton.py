# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The candidates of a row and the searches among them: in the registers of one program, on a GPU.

    candidates = the tokens of the 128 groups with the largest maxima, (maximum descending, group ascending):
                 they hold a prefix of the row's order, complete to (T, I), and most answers lie in it
    value      = the largest standing t with not holds({standing >= t});  all tokens above it are kept
    index      = the id of the last of its ties, in ascending id, that still holds

`kernels/prefix_search_triton.py` goes on where the answer lies behind them.
"""

from __future__ import annotations

from ._triton import jit, tl
from .prefix_score_triton import TOP_P, TYPICAL, holds, key_value, middle, ordered_key, sums_of
from .row_stats_triton import (
    F_COMPLETE_VALUE,
    GROUP,
    I_COMPLETE_INDEX,
    in_support,
    load_logits,
)

CANDIDATE_GROUPS = tl.constexpr(128)
"""Groups that a row's program gathers: 4,096 logits, 16 a thread of 8 warps."""

CANDIDATES = tl.constexpr(4096)


@jit
def select_groups(maxima_ptr, chosen_ptr, num_groups, GROUPS: tl.constexpr):
    """Write the ids of the first CANDIDATE_GROUPS groups, ascending, -1 where there are less.

    Returns:
        (T, I): the groups hold every token of the row's order down to it.
    """
    lane = tl.arange(0, GROUPS)
    # a scalar argument of 1 is a constant, but what a loop changes must be a tensor
    zero = tl.full((), 0, tl.int32)
    # the first block of maxima stays in registers: all of them at up to 131,072 tokens
    first = ordered_key(tl.load(maxima_ptr + lane, mask=lane < num_groups, other=-float("inf")))
    low = ordered_key(tl.full((), -float("inf"), tl.float32))
    high = ordered_key(tl.full((), float("inf"), tl.float32)) + 1
    at_least = zero + num_groups
    while (low + 1 < high) & (at_least > CANDIDATE_GROUPS):
        key = middle(low, high)
        reached = (first >= key) & (lane < num_groups)
        count = tl.sum(reached.to(tl.int32), 0)
        start = zero + GROUPS
        while start < num_groups:
            more = tl.load(
                maxima_ptr + start + lane, mask=start + lane < num_groups, other=-float("inf")
            )
            inside = (ordered_key(more) >= key) & (start + lane < num_groups)
            count += tl.sum(inside.to(tl.int32), 0)
            start += GROUPS
        if count >= CANDIDATE_GROUPS:
            low = key
            at_least = count
        else:
            high = key

    # groups above the value all fit; of those at it the first ones
    tl.store(chosen_ptr + tl.arange(0, CANDIDATE_GROUPS), -1)
    above = zero
    start = zero
    while start < num_groups:
        key = ordered_key(
            tl.load(maxima_ptr + start + lane, mask=start + lane < num_groups, other=-float("inf"))
        )
        inside = start + lane < num_groups
        above += tl.sum(((key > low) & inside).to(tl.int32), 0)
        start += GROUPS
    tl.debug_barrier()
    room = zero + CANDIDATE_GROUPS - above
    placed = zero
    ties = zero
    last_tie = zero - 1
    start = zero
    while start < num_groups:
        key = ordered_key(
            tl.load(maxima_ptr + start + lane, mask=start + lane < num_groups, other=-float("inf"))
        )
        inside = start + lane < num_groups
        tied = (key == low) & inside
        tie_rank = ties + tl.cumsum(tied.to(tl.int32), 0)
        taken = ((key > low) & inside) | (tied & (tie_rank <= room))
        place = placed + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(chosen_ptr + place, start + lane, mask=taken)
        last_tie = tl.maximum(last_tie, tl.max(tl.where(tied & taken, start + lane, -1), 0))
        placed += tl.sum(taken.to(tl.int32), 0)
        ties += tl.sum(tied.to(tl.int32), 0)
        start += GROUPS
    tl.debug_barrier()
    # with room for all ties the prefix ends behind the last of them
    last = tl.where(ties <= room, 2147483647, last_tie * GROUP + GROUP - 1)
    return key_value(low), last


@jit
def choose_candidates(
    group_maxima_ptr,
    groups_ptr,
    numbers_ptr,
    state_ptr,
    row,
    num_groups,
    GROUPS: tl.constexpr,
):
    """Write the groups of a row, and (T, I) into its state."""
    maxima_ptr = group_maxima_ptr + row.to(tl.int64) * num_groups
    complete_value, complete_index = select_groups(maxima_ptr, groups_ptr, num_groups, GROUPS)
    tl.store(numbers_ptr + F_COMPLETE_VALUE, complete_value)
    tl.store(state_ptr + I_COMPLETE_INDEX, complete_index)
    return complete_value, complete_index


@jit
def load_candidates(
    row_ptr,
    groups_ptr,
    bitmask_ptr,
    bitmask_stride,
    row,
    vocab,
    complete_value,
    complete_index,
    HAS_BITMASK: tl.constexpr,
):
    """Logits and ids of the candidates, ids ascending, and which of them the groups hold completely."""
    place = tl.arange(0, CANDIDATES)
    group = tl.load(groups_ptr + place // GROUP)
    tokens = group * GROUP + place % GROUP
    wanted = (group >= 0) & (tokens < vocab)
    x = load_logits(row_ptr, tokens, wanted, bitmask_ptr, bitmask_stride, row, HAS_BITMASK)
    complete = wanted & in_support(x, tokens, complete_value, complete_index)
    complete = complete & (x > -float("inf"))
    return tl.where(complete, x, -float("inf")), tokens, complete


@jit
def covers(complete_value, complete_index, value, index):
    """Whether the candidates hold every token down to (value, index)."""
    return (
        (value > complete_value)
        | ((value == complete_value) & (index <= complete_index))
        | (complete_value == -float("inf"))
    )


@jit
def among(x, tokens, complete, value, index, upper, INTERVALS: tl.constexpr):
    """Which candidates are in the support."""
    kept = complete & in_support(x, tokens, value, index)
    if INTERVALS:
        kept = kept & (x <= upper)
    return kept


@jit
def search_candidates(
    standing,  # [n] float32: x, or what `standings` makes of it
    x,  # [n] float32
    tokens,  # [n] int32, ascending
    candidates,  # [n] int1, of which the last does not hold
    maximum,
    scale,
    top_id,
    base_count,
    base_excess,
    base_moment,
    operation,
    bound,
    log_total,
    keep,
):
    """The threshold (value, index) of the standings of candidates, given the sums of the tokens above them.

    The index is -1 where no token at the value is kept.
    """
    low = ordered_key(tl.min(tl.where(candidates, standing, float("inf")), 0))
    high = ordered_key(tl.max(tl.where(candidates, standing, -float("inf")), 0)) + 1
    while low + 1 < high:
        cut = key_value(middle(low, high))
        chosen = candidates & (standing >= cut)
        count, excess, moment = sums_of(chosen, x, tokens, maximum, scale, top_id)
        held = holds(
            operation,
            base_count + count,
            base_excess + excess,
            base_moment + moment,
            bound,
            log_total,
            keep,
        )
        # the ends move on to logits that there are: ten steps instead of thirty
        if held:
            below = tl.where(candidates & (standing < cut), standing, -float("inf"))
            high = ordered_key(tl.max(below, 0)) + 1
        else:
            low = ordered_key(tl.min(tl.where(chosen, standing, float("inf")), 0))
    value = key_value(low)
    above = candidates & (standing > value)
    count, excess, moment = sums_of(above, x, tokens, maximum, scale, top_id)
    tied = candidates & (standing == value)
    ties = tl.sum(tied.to(tl.int32), 0)
    kept = ties_that_hold(
        value,
        ties,
        maximum,
        scale,
        base_count + count,
        base_excess + excess,
        base_moment + moment,
        operation,
        bound,
        log_total,
        keep,
    )
    rank = tl.cumsum(tied.to(tl.int32), 0)
    index = tl.max(tl.where(tied & (rank == kept), tokens, -1), 0)
    return value, index


@jit
def ties_that_hold(
    value,
    ties,
    maximum,
    scale,
    count,
    excess,
    moment,
    operation,
    bound,
    log_total,
    keep,
):
    """How many of the equal logits behind a prefix are kept: 0 to `ties`, 1 at least if it is empty."""
    z = tl.maximum((value - maximum) * scale, -200.0)
    weight = tl.exp2(z)
    # the row's first token is the one that S - 1 leaves out
    left_out = tl.where(value == maximum, 1.0, 0.0)
    low = 0 * ties
    high = ties
    while low + 1 < high:
        number = (low + high) // 2
        more = weight * (number.to(tl.float32) - left_out)
        held = holds(
            operation,
            count + number.to(tl.float32),
            excess + more,
            moment + more * z,
            bound,
            log_total,
            keep,
        )
        if held:
            low = number
        else:
            high = number
    # one more where the token that crosses is kept
    crossing = (operation == TOP_P) | (operation == TYPICAL)
    kept = tl.where(crossing, low + 1, low)
    return tl.where((crossing == 0) & (count + kept.to(tl.float32) < 1.0), 1, kept)
