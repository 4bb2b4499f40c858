# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Search for the longest prefix of a row's order whose score stays below a bound, on a GPU.

    A(t)       = {x >= t} of the support;  its score does not decrease as t falls
    holds(A)   : score(n, S - 1, L) <= bound, or n <= min_tokens_to_keep
    value      = the largest logit with not holds(A(value));  all tokens above it are kept
    index      = the id of the last of its ties, in ascending id, that still holds

Candidates first: the 128 groups with the largest maxima, (maximum descending, group ascending), hold
a prefix of the row's order, complete to (T, I); most answers lie in it, in the registers of one
program. Else the answer lies in [low, T], and the row is split over its slices again: a round sums
A(t) at 16 values t and leaves a fifteenth of the interval, the last one collects what is inside.

Typical sampling (kernels/typical.py) searches another order, in which a token stands the higher the
nearer it is to the centre c = max + T L / S; the tokens of one distance stay together:
    A(t)       = {standing >= t},  standing = -|x - c|;  holds(A): S(A) < typical_p S, or n < min_tokens
    value, upper = the least and the largest logit of A(t) at the largest standing t that does not hold
No token below T stands higher than T - c: down to there the candidates are all that there is. A bracket
of standings is two bands of logits, one on either side of c.

Sums only grow by terms of one sign, so a prefix found from float32 sums is right but where the score
is within rounding of its bound, an interval but for tokens within rounding of its ends.
"""

from __future__ import annotations

from ._triton import jit, kernel, tl
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
    GROUP,
    I_BRACKETED,
    I_INDEX,
    I_POSITION,
    I_TOP_ID,
    I_WAITING,
    LN2,
    SLICE,
    STATE,
    exponents,
    in_support,
    load_logits,
    log1p,
    scale_of,
    source_pointer,
)

CANDIDATE_GROUPS = tl.constexpr(128)
"""Groups that a row's program gathers: 4,096 logits, 16 a thread of 8 warps."""

CANDIDATES = tl.constexpr(4096)

COLLECTED = tl.constexpr(2048)
"""Tokens of a bracket that are gathered by id: 8 KiB of workspace a row."""

POINTS = tl.constexpr(16)
"""Values t of a round, both ends of the interval among them."""

SUMS_OF_POINT = tl.constexpr(3)

ENDS = tl.constexpr(4)
"""Of a slice: the least and the largest standing in the bracket, and logit of those above the bracket."""

# operations of a program; a packed program holds five bits each: the operation, and 16 for ties="all"
MIN_P = tl.constexpr(1)
N_SIGMA = tl.constexpr(2)
EPSILON = tl.constexpr(3)
ETA = tl.constexpr(4)
TOP_A = tl.constexpr(5)
P_LESS = tl.constexpr(6)
P_LESS_NORMALIZED = tl.constexpr(7)
TOP_K = tl.constexpr(8)
TOP_P = tl.constexpr(9)
TOP_H = tl.constexpr(10)
PARTIAL_ENTROPY = tl.constexpr(11)
TYPICAL = tl.constexpr(12)
OPERATION_BITS = tl.constexpr(5)


@jit
def ordered_key(logits):
    """An int32 that orders like the float32; -0.0 counts as 0.0."""
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@jit
def key_value(key):
    """The float32 of an ordered key."""
    return tl.where(key >= 0, key, key ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@jit
def middle(low, high):
    """The mean of two keys, rounded down, where their sum may not fit."""
    return (low & high) + ((low ^ high) >> 1)


@jit
def holds(operation, count, excess, moment, bound, log_total, keep):
    """Whether prefixes with these sums stay below the bound; scalars or blocks.

    PARTIAL_ENTROPY: sum -p ln p = (S ln Z - L) / Z over the prefix, Z the sum over the support; its
    bound is multiplied by Z. Without entropy there is no second token to keep. TYPICAL: the excess is
    all of S, as an interval may miss the largest logit.
    """
    entropy = log1p(excess) - moment * LN2 / (1.0 + excess)
    partial = (1.0 + excess) * log_total - moment * LN2
    # not a block & a scalar of a float comparison, which the interpreter refuses
    reachable = tl.where(bound > 0.0, bound, -1.0)
    below = tl.where(operation == TOP_H, entropy, partial) <= reachable
    below = tl.where(operation == TOP_P, 1.0 + excess < bound, below)
    below = tl.where(operation == TOP_K, count <= bound, below)
    below = tl.where(operation == TYPICAL, excess < bound, below)
    return (count <= keep) | below


@jit
def standings(x, operation, maximum, centre):
    """What a search orders tokens by: their logit, or minus its distance from maximum + centre."""
    return tl.where(operation == TYPICAL, -tl.abs((x - maximum) - centre), x)


@jit
def omitted(operation, top_id):
    """The token that the excess of a search leaves out of S; none of an interval's."""
    return tl.where(operation == TYPICAL, -1, top_id)


@jit
def sought(x, tokens, value, index, upper, operation, maximum, centre, INTERVALS: tl.constexpr):
    """Which tokens are in the support, and their standings."""
    inside = in_support(x, tokens, value, index)
    if INTERVALS:
        return inside & (x <= upper), standings(x, operation, maximum, centre)
    return inside, x


@jit
def sums_of(chosen, x, tokens, maximum, scale, top_id):
    """n, S - 1 and the moment of some tokens; S - 1 leaves the row's first token out.

    The weights are worked out again each time: registers are what a row's program has least of.
    """
    z = exponents(x, maximum, scale)
    weights = tl.where(chosen & (tokens != top_id), tl.exp2(z), 0.0)
    return tl.sum(chosen.to(tl.float32), 0), tl.sum(weights, 0), tl.sum(weights * z, 0)


@jit
def with_ties(value, index, ties_all, last_token):
    """The threshold that ties="all" makes of one; index -1 keeps none of the tokens at its value."""
    above = tl.where(index < 0, key_value(ordered_key(value) + 1), value)
    value = tl.where(ties_all == 1, above, value)
    return value, tl.where(ties_all == 1, last_token, index)


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
def operation_at(program, position):
    """The code of the operation at a position."""
    return (program >> (position.to(tl.int64) * OPERATION_BITS)).to(tl.int32) & 15


@jit
def rule_of(parameters_ptr, parameter_stride, rule_stride, program, position, row):
    """The operation at a position: its code, ties="all", parameter, tokens that hold unasked."""
    word = (program >> (position.to(tl.int64) * OPERATION_BITS)).to(tl.int32)
    operation = word & 15
    parameter_ptr = parameters_ptr + (1 + 2 * position) * rule_stride + row * parameter_stride
    parameter = tl.load(parameter_ptr).to(tl.float32)
    keep = tl.load(parameter_ptr + rule_stride).to(tl.float32)
    # these keep the token that crosses, so one more than hold
    crossing = (operation == TOP_P) | (operation == TYPICAL)
    keep = tl.where(crossing, keep - 1.0, keep)
    return operation, (word >> 4) & 1, parameter, keep


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
