# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Supports on a GPU: the rules in their order by one program a row.

A program is a list of operations of kernels/prefix_score_triton.py, each on the law renormalised to
the support so far, whose sums are those of
    the first operation:        the whole row
    a support of candidates:    the candidates
    any other:                  a second reading, for which the row waits
A search whose crossing lies beyond the candidates waits for its bracket, and so does a threshold that
must keep more tokens than they hold. Every row carries its own position, so rows of one batch wait for
different things; the launches are the same for all of them.

Typical sampling bounds a support from above too, maybe below all candidates: a row that goes on from
there gets the sums, the group maxima and then the candidates of its support alone.
"""

from __future__ import annotations

from ._triton import jit, kernel, tl
from .bracket_search_triton import search_bracket
from .candidate_search_triton import (
    CANDIDATE_GROUPS,
    among,
    choose_candidates,
    covers,
    load_candidates,
    search_candidates,
)
from .draw_triton import (
    BY_COUNT,
    BY_STAGES,
    DIRECT,
    DRAWN,
    NO_TOKEN,
    PLAIN,
    exponential,
    race,
    store_drawn,
)
from .prefix_score_triton import (
    MIN_P,
    PARTIAL_ENTROPY,
    TOP_K,
    TYPICAL,
    holds,
    key_value,
    omitted,
    operation_at,
    ordered_key,
    rule_of,
    standings,
    sums_of,
    with_ties,
)
from .row_stats_triton import (
    BRACKET,
    DONE,
    F_BOUND,
    F_CENTRE,
    F_COMPLETE_VALUE,
    F_EXCESS,
    F_HIGH,
    F_KEPT_EXCESS,
    F_LEAST,
    F_LOG_TOTAL,
    F_LOW,
    F_MAXIMUM,
    F_PRIOR_VALUE,
    F_RAW,
    F_THRESHOLD,
    F_UPPER,
    F_VALUE,
    F_WHOLE_MAXIMUM,
    I_BRACKETED,
    I_COMPLETE_INDEX,
    I_DRAW,
    I_INDEX,
    I_POSITION,
    I_PRIOR_INDEX,
    I_TOP_ID,
    I_WAITING,
    LEAST_FINITE,
    LN2,
    LOG2E,
    STATE,
    SUMS,
    exponents,
    load_plane,
    log1p,
    merge_stats,
    scale_of,
    source_pointer,
)
from .thresholds_triton import least_logit, looser, search_bound, stricter

# as in kernels/support.py
NAN = tl.constexpr(1)
POSITIVE_INFINITY = tl.constexpr(2)
EMPTY = tl.constexpr(3)
BAD_PARAMETER = tl.constexpr(4)

LOWEST_EXPONENT = tl.constexpr(-105.0)
"""exp of less is 0 in float32: no mass lies below it."""

NEARER = tl.constexpr(1e-30)
"""A standing above all: minus the distance of a token is 0 or less."""

LOWEST_PROBABILITY = tl.constexpr(-745.1)
"""exp of less is 0 in float64: transformers' top-H drops such tokens."""


@kernel
def support_kernel(
    logits_ptr,  # [batch, vocab] float32, bfloat16 or float16
    row_stride,
    more_logits_ptr,  # [rows - first_rows, vocab] of the same dtype
    more_row_stride,
    first_rows,
    rows_ptr,  # [rows] int64
    bitmask_ptr,  # [rows, ceil(vocab / 32)] int32
    bitmask_stride,
    parameters_ptr,  # [1 + 2 rules, rows] float64: temperature, then parameter and tokens to keep
    parameter_stride,
    rule_stride,
    valid_ptr,  # [rows] int8
    program,
    num_rules,
    stats_ptr,  # [PLANES, rows, slices] float32
    group_maxima_ptr,  # [rows, groups] float32
    chosen_ptr,  # [rows, CANDIDATE_GROUPS] int32
    collected_ptr,  # [rows, COLLECTED] int32
    ends_ptr,  # [rows, slices, ENDS] float32
    integers_ptr,  # [rows, STATE] int32
    floats_ptr,  # [rows, STATE] float32
    value_ptr,  # [rows] float32
    index_ptr,  # [rows] int64
    upper_ptr,  # [rows] float32
    status_ptr,  # [rows] int8
    seed_ptr,
    sequence_ptr,
    step_ptr,  # [rows] int64
    token_ids_ptr,  # [rows] int64
    logprobs_ptr,  # [rows] float32
    kept_mass_ptr,  # [rows] float32
    vocab,
    num_groups,
    slices,
    FIRST: tl.constexpr,  # the launch after the statistics of the whole rows
    BRACKETED: tl.constexpr,  # the launch after the rounds of a search
    SQUARES: tl.constexpr,
    DEVIATION: tl.constexpr,
    LEAST: tl.constexpr,
    SAMPLE: tl.constexpr,
    RAW: tl.constexpr,
    INTERVALS: tl.constexpr,  # an operation keeps an interval
    KEPT: tl.constexpr,  # the sum over the support, for which rows may wait in the end
    SLICES: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_MORE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_BITMASK: tl.constexpr,
    HAS_VALID: tl.constexpr,
):
    """The support of one row as far as its sums and candidates carry, and its token if asked for."""
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    state_ptr = integers_ptr + row * STATE
    numbers_ptr = floats_ptr + row * STATE
    groups_ptr = chosen_ptr + row * CANDIDATE_GROUPS
    heat, scale = scale_of(parameters_ptr, parameter_stride, row)
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
    # a scalar argument of 1 is a constant, but what a loop changes must be a tensor
    zero = tl.full((), 0, tl.int32)

    if FIRST:
        whole_maximum, excess, moment, squares, count, deviation = merge_stats(
            stats_ptr, row, slices, rows, scale, SQUARES, DEVIATION, SLICES
        )
        status = status_of(whole_maximum, valid_ptr, row, HAS_VALID)
        tl.store(status_ptr + row, status.to(tl.int8))
        if status != 0:
            tl.store(state_ptr + I_WAITING, DONE)
            tl.store(state_ptr + I_DRAW, DRAWN)
            keep_nothing(value_ptr, index_ptr, upper_ptr, row)
            if SAMPLE:
                draw_nothing(token_ids_ptr, logprobs_ptr, kept_mass_ptr, row)
            return
        maximum = whole_maximum
        tl.store(numbers_ptr + F_WHOLE_MAXIMUM, maximum)
        tl.store(numbers_ptr + F_MAXIMUM, maximum)
        tl.store(numbers_ptr + F_EXCESS, excess)
        if LEAST:
            least_finite = least_of(stats_ptr, row, slices, rows, SLICES)
            tl.store(numbers_ptr + F_LEAST, least_finite)
        if RAW:
            raw = raw_sum(stats_ptr, row, slices, rows, maximum, SLICES)
            tl.store(numbers_ptr + F_RAW, raw)
        complete_value, complete_index = choose_candidates(
            group_maxima_ptr, groups_ptr, numbers_ptr, state_ptr, row, num_groups, GROUPS
        )
        waiting = zero
        position = zero
        value = 0.0 * excess + LEAST_FINITE
        index = zero + vocab - 1
        upper = tl.full((), float("inf"), tl.float32)
        prior_value = value
        prior_index = index
        known = 1 + zero
    else:
        waiting = tl.load(state_ptr + I_WAITING)
        if waiting == DONE:
            return
        maximum = tl.load(numbers_ptr + F_MAXIMUM)
        complete_value = tl.load(numbers_ptr + F_COMPLETE_VALUE)
        complete_index = tl.load(state_ptr + I_COMPLETE_INDEX)
        position = tl.load(state_ptr + I_POSITION)
        value = tl.load(numbers_ptr + F_VALUE)
        index = tl.load(state_ptr + I_INDEX)
        upper = tl.load(numbers_ptr + F_UPPER)
        prior_value = tl.load(numbers_ptr + F_PRIOR_VALUE)
        prior_index = tl.load(state_ptr + I_PRIOR_INDEX)
        excess = 0.0 * heat
        moment = 0.0 * heat
        squares = 0.0 * heat
        count = 0.0 * heat
        deviation = 0.0 * heat
        known = zero
        if BRACKETED == 0:
            # a row that waits for a bracket has nothing to read here
            if waiting != SUMS:
                return
            _, excess, moment, squares, count, deviation = merge_stats(
                stats_ptr, row, slices, rows, scale, SQUARES, DEVIATION, SLICES
            )
            known = 1 + zero
            if INTERVALS:
                # the candidates may lie above the support: it gets its own
                complete_value, complete_index = choose_candidates(
                    group_maxima_ptr, groups_ptr, numbers_ptr, state_ptr, row, num_groups, GROUPS
                )
        else:
            if waiting != BRACKET:
                return

    x, tokens, complete = load_candidates(
        row_ptr,
        groups_ptr,
        bitmask_ptr,
        bitmask_stride,
        row,
        vocab,
        complete_value,
        complete_index,
        HAS_BITMASK,
    )
    top_id = tl.min(tl.where(complete & (x == maximum), tokens, NO_TOKEN), 0)

    if BRACKETED:
        operation, ties_all, parameter, keep = rule_of(
            parameters_ptr, parameter_stride, rule_stride, program, position, row
        )
        crowd = tl.load(state_ptr + I_BRACKETED)
        if crowd > 0:
            found_value, found_index, least, most = search_bracket(
                row_ptr,
                bitmask_ptr,
                bitmask_stride,
                collected_ptr,
                ends_ptr,
                numbers_ptr,
                row,
                slices,
                crowd,
                value,
                index,
                upper,
                maximum,
                scale,
                top_id,
                operation,
                keep,
                vocab,
                INTERVALS,
                SLICES,
                HAS_BITMASK,
            )
            if INTERVALS:
                if operation == TYPICAL:
                    upper = most
                    maximum = most
                    top_id = tl.min(tl.where(complete & (x == most), tokens, NO_TOKEN), 0)
                    # below the candidates another kept token stands for the likeliest one
                    top_id = tl.where(top_id == NO_TOKEN, found_index, top_id)
                    found_value = least
                    found_index = zero + vocab - 1
            if operation < TOP_K:
                least = tl.load(numbers_ptr + F_THRESHOLD)
                found_value, found_index = looser(least, vocab - 1, found_value, found_index)
            found_value, found_index = with_ties(
                found_value, found_index, ties_all, zero + vocab - 1
            )
            prior_value = value
            prior_index = index
            value, index = stricter(value, index, found_value, found_index)
        position += 1
    waiting = zero

    if heat == 0.0:
        # greedy: the lowest id of the largest logit, whatever the rules
        value = maximum
        index = top_id
        position = zero + num_rules
        known = zero

    while (position < num_rules) & (waiting == 0):
        operation, ties_all, parameter, keep = rule_of(
            parameters_ptr, parameter_stride, rule_stride, program, position, row
        )
        inside = covers(complete_value, complete_index, value, index)
        candidates = among(x, tokens, complete, value, index, upper, INTERVALS)
        some_count, some_excess, some_moment = sums_of(
            candidates, x, tokens, maximum, scale, top_id
        )
        if (known == 0) & inside:
            count = some_count
            excess = some_excess
            moment = some_moment
            if SQUARES:
                weights = tl.exp2(exponents(x, maximum, scale))
                squares = tl.sum(tl.where(candidates, weights * weights, 0.0), 0)
            if DEVIATION:
                mean = tl.sum(tl.where(candidates, x, 0.0), 0) / tl.maximum(count, 1.0)
                off = tl.where(candidates, x - mean, 0.0)
                deviation = tl.sum(off * off, 0)
            known = 1 + zero
        needs_sums = (operation != MIN_P) & (operation != TOP_K)
        if INTERVALS:
            # behind an interval there may be other candidates
            before = operation_at(program, tl.maximum(position - 1, 0))
            needs_sums = needs_sums | (before == TYPICAL)
        if (known == 0) & needs_sums:
            waiting = zero + SUMS
        else:
            is_search = operation >= TOP_K
            bound, log_total = search_bound(operation, parameter, excess, moment)
            # the first tokens that a threshold must not drop are the crossing of a top-k
            search = tl.where(is_search, operation, TOP_K)
            bound = tl.where(is_search, bound, keep)
            everything = is_search & (
                ((operation != TOP_K) & (parameter >= 1.0))
                | ((operation == TOP_K) & (parameter >= vocab))
            )
            least = least_logit(
                operation, parameter, maximum, heat, excess, moment, squares, count, deviation
            )
            found_value = value
            found_index = index
            searched = candidates
            standing = x
            left_out = top_id
            centre = heat * LN2 * moment / (1.0 + excess)
            # how near a token must be to be nearer than all that are no candidates
            edge = tl.minimum(complete_value - maximum - centre, 0.0)
            if INTERVALS:
                standing = standings(x, operation, maximum, centre)
                left_out = omitted(operation, top_id)
                hidden = (operation == TYPICAL) & (inside == 0)
                searched = candidates & (standing > tl.where(hidden, edge, -float("inf")))
                some_count, some_excess, some_moment = sums_of(
                    searched, x, tokens, maximum, scale, left_out
                )
            if (is_search | (keep > 1.0)) & (everything == 0):
                all_hold = holds(
                    search, some_count, some_excess, some_moment, bound, log_total, keep
                )
                if all_hold == 0:
                    found_value, found_index = search_candidates(
                        standing,
                        x,
                        tokens,
                        searched,
                        maximum,
                        scale,
                        left_out,
                        0.0 * heat,
                        0.0 * heat,
                        0.0 * heat,
                        search,
                        bound,
                        log_total,
                        keep,
                    )
                    if INTERVALS:
                        if operation == TYPICAL:
                            near = searched & (standing >= found_value)
                            found_value = tl.min(tl.where(near, x, float("inf")), 0)
                            found_index = zero + vocab - 1
                            upper = tl.max(tl.where(near, x, -float("inf")), 0)
                            maximum = upper
                            top_id = tl.min(tl.where(near & (x == upper), tokens, NO_TOKEN), 0)
                else:
                    if inside == 0:
                        waiting = zero + BRACKET
                        low, high = bracket_of(
                            operation,
                            keep,
                            value,
                            complete_value,
                            maximum,
                            heat,
                            centre,
                            edge,
                            numbers_ptr,
                            LEAST,
                            INTERVALS,
                        )
                        if INTERVALS:
                            tl.store(numbers_ptr + F_CENTRE, centre)
                        tl.store(numbers_ptr + F_THRESHOLD, least)
                        tl.store(numbers_ptr + F_LOW, low)
                        tl.store(numbers_ptr + F_HIGH, high)
                        tl.store(numbers_ptr + F_BOUND, bound)
                        tl.store(numbers_ptr + F_LOG_TOTAL, log_total)
            if waiting == 0:
                if is_search == 0:
                    if keep > 1.0:
                        found_value, found_index = looser(
                            least, vocab - 1, found_value, found_index
                        )
                    else:
                        found_value = least
                        found_index = zero + vocab - 1
                    # the most likely token stays
                    found_value, found_index = looser(found_value, found_index, maximum, top_id)
                if (operation == PARTIAL_ENTROPY) & everything:
                    lowest = maximum + heat * LOWEST_PROBABILITY
                    found_value, found_index = stricter(value, index, lowest, vocab - 1)
                found_value, found_index = with_ties(
                    found_value, found_index, ties_all, zero + vocab - 1
                )
                if (operation == PARTIAL_ENTROPY) & (ties_all == 1):
                    # the ties of the last token of the head too, which the head has cut
                    value = prior_value
                    index = prior_index
                prior_value = value
                prior_index = index
                value, index = stricter(value, index, found_value, found_index)
                known = zero
                position += 1

    if KEPT:
        if waiting == 0:
            if known == 0:
                if covers(complete_value, complete_index, value, index):
                    kept = among(x, tokens, complete, value, index, upper, INTERVALS)
                    _, excess, _ = sums_of(kept, x, tokens, maximum, scale, top_id)
                else:
                    waiting = zero + SUMS
            tl.store(numbers_ptr + F_KEPT_EXCESS, excess)

    tl.store(numbers_ptr + F_VALUE, value)
    tl.store(state_ptr + I_INDEX, index)
    tl.store(numbers_ptr + F_UPPER, upper)
    tl.store(numbers_ptr + F_MAXIMUM, maximum)
    tl.store(numbers_ptr + F_PRIOR_VALUE, prior_value)
    tl.store(state_ptr + I_PRIOR_INDEX, prior_index)
    tl.store(state_ptr + I_POSITION, position)
    tl.store(state_ptr + I_WAITING, waiting)
    tl.store(state_ptr + I_TOP_ID, top_id)
    tl.store(state_ptr + I_DRAW, DRAWN)
    if waiting != 0:
        return
    tl.store(value_ptr + row, value)
    tl.store(index_ptr + row, index.to(tl.int64))
    tl.store(upper_ptr + row, upper)

    if SAMPLE:
        kept = among(x, tokens, complete, value, index, upper, INTERVALS)
        if heat == 0.0:
            tl.store(token_ids_ptr + row, top_id.to(tl.int64))
            tl.store(logprobs_ptr + row, greedy_logprob(numbers_ptr, RAW))
            tl.store(kept_mass_ptr + row, 1.0)
        else:
            masses = tl.where(kept, tl.exp2(exponents(x, maximum, scale)), 0.0)
            present = tl.sum((masses > 0.0).to(tl.int32), 0)
            if covers(complete_value, complete_index, value, index) & (present <= DIRECT):
                numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, PLAIN, tokens)
                token, _ = race(masses, numbers, tokens)
                _, kept_excess, _ = sums_of(kept, x, tokens, maximum, scale, top_id)
                logit = tl.load(row_ptr + token).to(tl.float32)
                store_drawn(
                    token_ids_ptr,
                    logprobs_ptr,
                    kept_mass_ptr,
                    numbers_ptr,
                    row,
                    token,
                    logit,
                    scale,
                    kept_excess,
                    log1p(kept_excess),
                    num_rules == 0,
                    RAW,
                )
            else:
                how = tl.where(present > DIRECT, BY_STAGES, BY_COUNT)
                tl.store(state_ptr + I_DRAW, how)


@jit
def status_of(maximum, valid_ptr, row, HAS_VALID: tl.constexpr):
    """Why a row has no support; 0 where it has one."""
    status = tl.full((), 0, tl.int32)
    status = tl.where(maximum == -float("inf"), EMPTY, status)
    status = tl.where(maximum == float("inf"), POSITIVE_INFINITY, status)
    status = tl.where(maximum != maximum, NAN, status)
    if HAS_VALID:
        valid = tl.load(valid_ptr + row).to(tl.int32)
        status = tl.where(valid == 0, BAD_PARAMETER, status)
    return status


@jit
def keep_nothing(value_ptr, index_ptr, upper_ptr, row):
    """The support of a row that has none."""
    tl.store(value_ptr + row, float("inf"))
    tl.store(index_ptr + row, -1)
    tl.store(upper_ptr + row, -float("inf"))


@jit
def draw_nothing(token_ids_ptr, logprobs_ptr, kept_mass_ptr, row):
    """The token of a row that has none."""
    tl.store(token_ids_ptr + row, -1)
    tl.store(logprobs_ptr + row, float("nan"))
    tl.store(kept_mass_ptr + row, float("nan"))


@jit
def least_of(stats_ptr, row, slices, rows, SLICES: tl.constexpr):
    """The least finite logit of a row."""
    lane = tl.arange(0, SLICES)
    leasts = load_plane(stats_ptr, row, slices, rows, 7, SLICES)
    return tl.min(tl.where(lane < slices, leasts, float("inf")), 0)


@jit
def raw_sum(stats_ptr, row, slices, rows, maximum, SLICES: tl.constexpr):
    """The sum of exp(x - max) over a row, at temperature 1."""
    maxima = load_plane(stats_ptr, row, slices, rows, 0, SLICES)
    raw = load_plane(stats_ptr, row, slices, rows, 8, SLICES)
    return tl.sum(raw * tl.exp2(exponents(maxima, maximum, LOG2E)), 0)


@jit
def bracket_of(
    operation,
    keep,
    value,
    complete_value,
    maximum,
    heat,
    centre,
    edge,
    numbers_ptr,
    LEAST: tl.constexpr,
    INTERVALS: tl.constexpr,
):
    """The standings (low, high) between which a prefix may end that holds all candidates.

    Down to the last mass, or to the last token where a number of them is asked for.
    """
    high = key_value(ordered_key(complete_value) + 1)
    low = value
    if LEAST:
        low = tl.maximum(low, tl.load(numbers_ptr + F_LEAST))
    by_count = (operation == TOP_K) | (keep > 1.0)
    least_mass = tl.maximum(low, maximum + heat * LOWEST_EXPONENT)
    low = tl.minimum(tl.where(by_count, low, least_mass), complete_value)
    if INTERVALS:
        if operation == TYPICAL:
            # no nearer than the farther end of the support
            low = tl.minimum((low - maximum) - centre, -tl.abs(centre))
            low = tl.maximum(tl.minimum(low, edge), LEAST_FINITE)
            high = key_value(ordered_key(edge) + 1)
            high = tl.where(edge < 0.0, high, NEARER)
    return low, high


@jit
def greedy_logprob(numbers_ptr, RAW: tl.constexpr):
    """Of the most likely token at temperature 0: that of temperature 1 where it is asked for."""
    if RAW:
        logprob = -tl.log(tl.load(numbers_ptr + F_RAW))
    else:
        logprob = tl.full((), 0.0, tl.float32)
    return logprob
