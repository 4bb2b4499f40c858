# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Search for the longest prefix of a row's order whose score stays below a bound, behind the candidates.

    A(t)       = {x >= t} of the support;  its score does not decrease as t falls
    value      = the largest logit with not holds(A(value));  all tokens above it are kept
    index      = the id of the last of its ties, in ascending id, that still holds

Where the candidates of kernels/candidate_search_triton.py all hold, the answer lies in [low, T], and the
row is split over its slices again: a round sums A(t) at 16 values t and leaves a fifteenth of the
interval, the last one collects what is inside.

Typical sampling (kernels/typical.py) searches another order, in which a token stands the higher the
nearer it is to the centre c = max + T L / S; the tokens of one distance stay together:
    A(t)       = {standing >= t},  standing = -|x - c|;  holds(A): S(A) < typical_p S, or n < min_tokens
    value, upper = the least and the largest logit of A(t) at the largest standing t that does not hold
No token below T stands higher than T - c: down to there the candidates are all that there is. A bracket
of standings is two bands of logits, one on either side of c.
"""

from __future__ import annotations

from ._triton import jit, kernel, tl
from .bracket_search_triton import COLLECTED, ENDS
from .prefix_score_triton import (
    TOP_K,
    holds,
    omitted,
    operation_at,
    rule_of,
    sought,
)
from .row_stats_triton import (
    BRACKET,
    F_BASE_COUNT,
    F_BASE_EXCESS,
    F_BASE_MOMENT,
    F_BOUND,
    F_CENTRE,
    F_HIGH,
    F_LOG_TOTAL,
    F_LOW,
    F_MAXIMUM,
    F_UPPER,
    F_VALUE,
    I_BRACKETED,
    I_INDEX,
    I_POSITION,
    I_TOP_ID,
    I_WAITING,
    SLICE,
    STATE,
    exponents,
    load_logits,
    scale_of,
    source_pointer,
)

POINTS = tl.constexpr(16)
"""Values t of a round, both ends of the interval among them."""

SUMS_OF_POINT = tl.constexpr(3)


@kernel
def round_kernel(
    logits_ptr,  # [batch, vocab]
    row_stride,
    more_logits_ptr,  # [rows - first_rows, vocab] of the same dtype
    more_row_stride,
    first_rows,
    rows_ptr,  # [rows] int64
    bitmask_ptr,
    bitmask_stride,
    parameters_ptr,  # [1 + 2 rules, rows] float64
    parameter_stride,
    rule_stride,
    program,
    integers_ptr,  # [rows, STATE] int32
    floats_ptr,  # [rows, STATE] float32
    brackets_ptr,  # [rows, rounds, 2] float32
    before_ptr,  # the partials of the round before
    partials_ptr,  # [rows, slices, POINTS, SUMS_OF_POINT] float32
    vocab,
    ROUND: tl.constexpr,
    ROUNDS: tl.constexpr,
    INTERVALS: tl.constexpr,
    SLICES: tl.constexpr,
    HAS_MORE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_BITMASK: tl.constexpr,
):
    """The sums of one slice of a row over A(t), at the points of what the last round has left."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    state_ptr = integers_ptr + row * STATE
    if tl.load(state_ptr + I_WAITING) != BRACKET:
        return
    numbers_ptr = floats_ptr + row * STATE
    slices = tl.num_programs(1)
    _, scale = scale_of(parameters_ptr, parameter_stride, row)
    maximum = tl.load(numbers_ptr + F_MAXIMUM)
    top_id = tl.load(state_ptr + I_TOP_ID)
    if ROUND == 0:
        low = tl.load(numbers_ptr + F_LOW)
        high = tl.load(numbers_ptr + F_HIGH)
    else:
        low, high, _, _, _, _ = replay(
            parameters_ptr,
            parameter_stride,
            rule_stride,
            program,
            state_ptr,
            numbers_ptr,
            brackets_ptr,
            before_ptr,
            row,
            slices,
            ROUND,
            ROUNDS,
            SLICES,
        )
    if part == 0:
        tl.store(brackets_ptr + (row * ROUNDS + ROUND) * 2, low)
        tl.store(brackets_ptr + (row * ROUNDS + ROUND) * 2 + 1, high)

    row_ptr = source_pointer(
        logits_ptr,
        row_stride,
        more_logits_ptr,
        more_row_stride,
        first_rows,
        rows_ptr,
        row,
        HAS_MORE,
        HAS_ROWS,
    )
    tokens = part * SLICE + tl.arange(0, SLICE)
    x = load_logits(row_ptr, tokens, tokens < vocab, bitmask_ptr, bitmask_stride, row, HAS_BITMASK)
    operation = operation_at(program, tl.load(state_ptr + I_POSITION))
    present, standing = sought(
        x,
        tokens,
        tl.load(numbers_ptr + F_VALUE),
        tl.load(state_ptr + I_INDEX),
        tl.load(numbers_ptr + F_UPPER),
        operation,
        maximum,
        tl.load(numbers_ptr + F_CENTRE),
        INTERVALS,
    )
    standing = tl.where(present, standing, -float("inf"))
    z = exponents(x, maximum, scale)
    weights = tl.where(tokens == omitted(operation, top_id), 0.0, tl.exp2(z))
    moments = weights * z
    out_ptr = partials_ptr + (row.to(tl.int64) * slices + part) * (POINTS * SUMS_OF_POINT)
    for point in range(POINTS):
        number = 0 * part + point
        chosen = standing >= point_value(low, high, number)
        tl.store(out_ptr + point, tl.sum(chosen.to(tl.float32), 0))
        tl.store(out_ptr + POINTS + point, tl.sum(tl.where(chosen, weights, 0.0), 0))
        tl.store(out_ptr + 2 * POINTS + point, tl.sum(tl.where(chosen, moments, 0.0), 0))


@jit
def replay(
    parameters_ptr,
    parameter_stride,
    rule_stride,
    program,
    state_ptr,
    numbers_ptr,
    brackets_ptr,
    partials_ptr,
    row,
    slices,
    ROUND: tl.constexpr,
    ROUNDS: tl.constexpr,
    SLICES: tl.constexpr,
):
    """What the round before ROUND has left: every program finds it again from the same sums."""
    position = tl.load(state_ptr + I_POSITION)
    operation, _, _, keep = rule_of(
        parameters_ptr, parameter_stride, rule_stride, program, position, row
    )
    # a threshold waits for the first tokens, which it must not drop
    operation = tl.maximum(operation, TOP_K)
    low = tl.load(brackets_ptr + (row * ROUNDS + ROUND - 1) * 2)
    high = tl.load(brackets_ptr + (row * ROUNDS + ROUND - 1) * 2 + 1)
    return next_bracket(
        partials_ptr,
        row,
        slices,
        low,
        high,
        operation,
        tl.load(numbers_ptr + F_BOUND),
        tl.load(numbers_ptr + F_LOG_TOTAL),
        keep,
        SLICES,
    )


@jit
def next_bracket(
    partials_ptr,  # [rows, slices, POINTS, SUMS_OF_POINT] float32
    row,
    slices,
    low,
    high,
    operation,
    bound,
    log_total,
    keep,
    SLICES: tl.constexpr,
):
    """The points of a round on either side of the crossing, from the sums of its slices.

    Returns:
        low, high, number of the low point, -1 if even the first one holds, and n, S - 1 and the
        moment of A(high).
    """
    lane = tl.arange(0, SLICES)[:, None]
    point = tl.arange(0, POINTS)[None, :]
    partial_ptr = partials_ptr + (row.to(tl.int64) * slices + lane) * (POINTS * SUMS_OF_POINT)
    inside = (lane < slices) & (point < POINTS)
    counts = tl.sum(tl.load(partial_ptr + point, mask=inside, other=0.0), 0)
    excesses = tl.sum(tl.load(partial_ptr + POINTS + point, mask=inside, other=0.0), 0)
    moments = tl.sum(tl.load(partial_ptr + 2 * POINTS + point, mask=inside, other=0.0), 0)
    held = holds(operation, counts, excesses, moments, bound, log_total, keep)
    points = tl.arange(0, POINTS)
    # the upper end holds by what the candidates have shown, whatever the rounding here
    last = tl.max(tl.where(held | (points == POINTS - 1), -1, points), 0)
    at_high = points == last + 1
    count = tl.sum(tl.where(at_high, counts, 0.0), 0)
    excess = tl.sum(tl.where(at_high, excesses, 0.0), 0)
    moment = tl.sum(tl.where(at_high, moments, 0.0), 0)
    return (
        point_value(low, high, last),
        point_value(low, high, last + 1),
        last,
        count,
        excess,
        moment,
    )


@jit
def point_value(low, high, number):
    """The value t of a point; the ends exactly."""
    share = number.to(tl.float32) / (POINTS - 1)
    inner = tl.minimum(tl.maximum(low * (1.0 - share) + high * share, low), high)
    return tl.where(number <= 0, low, tl.where(number >= POINTS - 1, high, inner))


@kernel
def collect_kernel(
    logits_ptr,  # [batch, vocab]
    row_stride,
    more_logits_ptr,  # [rows - first_rows, vocab] of the same dtype
    more_row_stride,
    first_rows,
    rows_ptr,
    bitmask_ptr,
    bitmask_stride,
    parameters_ptr,
    parameter_stride,
    rule_stride,
    program,
    integers_ptr,  # [rows, STATE] int32
    floats_ptr,  # [rows, STATE] float32
    brackets_ptr,  # [rows, rounds, 2] float32
    partials_ptr,  # [rows, slices, POINTS, SUMS_OF_POINT] float32, of the last round
    collected_ptr,  # [rows, COLLECTED] int32
    ends_ptr,  # [rows, slices, ENDS] float32
    vocab,
    ROUNDS: tl.constexpr,
    INTERVALS: tl.constexpr,
    SLICES: tl.constexpr,
    HAS_MORE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_BITMASK: tl.constexpr,
):
    """The tokens of one slice of a row that the last round has left, in ascending id."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    state_ptr = integers_ptr + row * STATE
    if tl.load(state_ptr + I_WAITING) != BRACKET:
        return
    numbers_ptr = floats_ptr + row * STATE
    slices = tl.num_programs(1)
    low, high, last, count, excess, moment = replay(
        parameters_ptr,
        parameter_stride,
        rule_stride,
        program,
        state_ptr,
        numbers_ptr,
        brackets_ptr,
        partials_ptr,
        row,
        slices,
        ROUNDS,
        ROUNDS,
        SLICES,
    )
    lane = tl.arange(0, SLICES)
    counts_ptr = partials_ptr + (row.to(tl.int64) * slices + lane) * (POINTS * SUMS_OF_POINT)
    present = (lane < slices) & (last >= 0)
    counts = tl.load(counts_ptr + last, mask=present, other=0.0)
    counts -= tl.load(counts_ptr + last + 1, mask=present, other=0.0)
    total = tl.sum(counts, 0).to(tl.int32)
    first = tl.sum(tl.where(lane < part, counts, 0.0), 0).to(tl.int32)
    if part == 0:
        tl.store(numbers_ptr + F_BASE_COUNT, count)
        tl.store(numbers_ptr + F_BASE_EXCESS, excess)
        tl.store(numbers_ptr + F_BASE_MOMENT, moment)
        # the low end that holds: everything is kept
        tl.store(state_ptr + I_BRACKETED, tl.where(last < 0, 0, total))

    row_ptr = source_pointer(
        logits_ptr,
        row_stride,
        more_logits_ptr,
        more_row_stride,
        first_rows,
        rows_ptr,
        row,
        HAS_MORE,
        HAS_ROWS,
    )
    tokens = part * SLICE + tl.arange(0, SLICE)
    x = load_logits(row_ptr, tokens, tokens < vocab, bitmask_ptr, bitmask_stride, row, HAS_BITMASK)
    end_ptr = ends_ptr + (row.to(tl.int64) * slices + part) * ENDS
    present, standing = sought(
        x,
        tokens,
        tl.load(numbers_ptr + F_VALUE),
        tl.load(state_ptr + I_INDEX),
        tl.load(numbers_ptr + F_UPPER),
        operation_at(program, tl.load(state_ptr + I_POSITION)),
        tl.load(numbers_ptr + F_MAXIMUM),
        tl.load(numbers_ptr + F_CENTRE),
        INTERVALS,
    )
    if INTERVALS:
        above = present & (standing >= high)
        tl.store(end_ptr + 2, tl.min(tl.where(above, x, float("inf")), 0))
        tl.store(end_ptr + 3, tl.max(tl.where(above, x, -float("inf")), 0))
    inside = (standing >= low) & (standing < high) & present
    tl.store(end_ptr, tl.min(tl.where(inside, standing, float("inf")), 0))
    tl.store(end_ptr + 1, tl.max(tl.where(inside, standing, -float("inf")), 0))
    place = first + tl.cumsum(inside.to(tl.int32), 0) - 1
    fits = inside & (place < COLLECTED)
    tl.store(collected_ptr + row.to(tl.int64) * COLLECTED + place, tokens, mask=fits)
