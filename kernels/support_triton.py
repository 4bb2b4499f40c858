# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Supports on a GPU: the rules in their order by one program a row, and the mask they leave.

A program is a list of operations of kernels/prefix_search_triton.py, each on the law renormalised to
the support so far, whose sums are those of
    the first operation:        the whole row
    a support of candidates:    the candidates
    any other:                  a second reading, for which the row waits
A search whose crossing lies beyond the candidates waits for its bracket, and so does a threshold that
must keep more tokens than they hold. Every row carries its own position, so rows of one batch wait for
different things; the launches are the same for all of them.

Typical sampling bounds a support from above too, maybe below all candidates: a row that goes on from
there gets the sums, the group maxima and then the candidates of its support alone.

The formulas of the thresholds are those of the files of the rules, with d = x - max:
    min-p        d >= T ln min_p                       epsilon   d >= T (ln S + ln epsilon)
    top-n-sigma  d >= -n std                           eta       d >= T (ln S + min(ln eta, ln(eta) / 2 - H))
    top-a        d >= T (ln a - ln S)                  p-less    d >= T min(ln(c S), 0), c = Q / S**2
"""

from __future__ import annotations

from ._triton import jit, kernel, tl
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
from .prefix_search_triton import (
    CANDIDATE_GROUPS,
    CANDIDATES,
    COLLECTED,
    ENDS,
    EPSILON,
    ETA,
    MIN_P,
    N_SIGMA,
    P_LESS,
    P_LESS_NORMALIZED,
    PARTIAL_ENTROPY,
    TOP_A,
    TOP_H,
    TOP_K,
    TOP_P,
    TYPICAL,
    holds,
    key_value,
    omitted,
    operation_at,
    ordered_key,
    rule_of,
    search_candidates,
    select_groups,
    settle_crowd,
    standings,
    sums_of,
    with_ties,
)
from .row_stats_triton import (
    BRACKET,
    DONE,
    F_BASE_COUNT,
    F_BASE_EXCESS,
    F_BASE_MOMENT,
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
    GROUP,
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
    SLICE,
    STATE,
    SUMS,
    exponents,
    in_support,
    load_logits,
    load_plane,
    log1p,
    merge_stats,
    not_above,
    row_pointer,
    scale_of,
    source_pointer,
)

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


@jit
def least_logit(operation, parameter, maximum, heat, excess, moment, squares, count, deviation):
    """The least kept logit of a threshold rule."""
    log_total = log1p(excess)
    log_parameter = tl.log(parameter)
    level = log_parameter
    level = tl.where(operation == EPSILON, log_total + log_parameter, level)
    entropy = log_total - moment * LN2 / (1.0 + excess)
    log_eta = tl.minimum(log_parameter, 0.5 * log_parameter - entropy)
    level = tl.where(operation == ETA, log_total + log_eta, level)
    level = tl.where(operation == TOP_A, log_parameter - log_total, level)
    agreement = squares / ((1.0 + excess) * (1.0 + excess))
    uneven = tl.maximum(count * agreement - 1.0, 0.0) / tl.maximum(count - 1.0, 1.0)
    agreement = tl.where(operation == P_LESS_NORMALIZED, uneven, agreement)
    together = tl.minimum(tl.log(agreement) + log_total, 0.0)
    is_p_less = (operation == P_LESS) | (operation == P_LESS_NORMALIZED)
    level = tl.where(is_p_less, together, level)
    sigma = tl.sqrt(deviation / tl.maximum(count - 1.0, 1.0))
    return maximum + tl.where(operation == N_SIGMA, -parameter * sigma, heat * level)


@jit
def search_bound(operation, parameter, excess, moment):
    """The bound of a search rule and the ln Z of its score."""
    total = 1.0 + excess
    log_total = log1p(excess)
    entropy = log_total - moment * LN2 / total
    partial = total * log_total - moment * LN2
    bound = parameter * tl.where(operation == TOP_H, entropy, partial)
    by_mass = (operation == TOP_P) | (operation == TYPICAL)
    bound = tl.where(by_mass, parameter * total, bound)
    return tl.where(operation == TOP_K, parameter, bound), log_total


@jit
def looser(value, index, other_value, other_index):
    """The looser of two thresholds."""
    other = (other_value < value) | ((other_value == value) & (other_index > index))
    return tl.where(other, other_value, value), tl.where(other, other_index, index)


@jit
def stricter(value, index, other_value, other_index):
    """The stricter of two thresholds."""
    other = (other_value > value) | ((other_value == value) & (other_index < index))
    return tl.where(other, other_value, value), tl.where(other, other_index, index)


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
        status = zero
        status = tl.where(whole_maximum == -float("inf"), EMPTY, status)
        status = tl.where(whole_maximum == float("inf"), POSITIVE_INFINITY, status)
        status = tl.where(whole_maximum != whole_maximum, NAN, status)
        if HAS_VALID:
            valid = tl.load(valid_ptr + row).to(tl.int32)
            status = tl.where(valid == 0, BAD_PARAMETER, status)
        tl.store(status_ptr + row, status.to(tl.int8))
        if status != 0:
            tl.store(state_ptr + I_WAITING, DONE)
            tl.store(state_ptr + I_DRAW, DRAWN)
            tl.store(value_ptr + row, float("inf"))
            tl.store(index_ptr + row, -1)
            tl.store(upper_ptr + row, -float("inf"))
            if SAMPLE:
                tl.store(token_ids_ptr + row, -1)
                tl.store(logprobs_ptr + row, float("nan"))
                tl.store(kept_mass_ptr + row, float("nan"))
            return
        maximum = whole_maximum
        tl.store(numbers_ptr + F_WHOLE_MAXIMUM, maximum)
        tl.store(numbers_ptr + F_MAXIMUM, maximum)
        tl.store(numbers_ptr + F_EXCESS, excess)
        lane = tl.arange(0, SLICES)
        if LEAST:
            leasts = load_plane(stats_ptr, row, slices, rows, 7, SLICES)
            least_finite = tl.min(tl.where(lane < slices, leasts, float("inf")), 0)
            tl.store(numbers_ptr + F_LEAST, least_finite)
        if RAW:
            maxima = load_plane(stats_ptr, row, slices, rows, 0, SLICES)
            raw = load_plane(stats_ptr, row, slices, rows, 8, SLICES)
            raw = tl.sum(raw * tl.exp2(exponents(maxima, maximum, LOG2E)), 0)
            tl.store(numbers_ptr + F_RAW, raw)
        maxima_ptr = group_maxima_ptr + row.to(tl.int64) * num_groups
        complete_value, complete_index = select_groups(maxima_ptr, groups_ptr, num_groups, GROUPS)
        tl.store(numbers_ptr + F_COMPLETE_VALUE, complete_value)
        tl.store(state_ptr + I_COMPLETE_INDEX, complete_index)
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
                maxima_ptr = group_maxima_ptr + row.to(tl.int64) * num_groups
                complete_value, complete_index = select_groups(
                    maxima_ptr, groups_ptr, num_groups, GROUPS
                )
                tl.store(numbers_ptr + F_COMPLETE_VALUE, complete_value)
                tl.store(state_ptr + I_COMPLETE_INDEX, complete_index)
        else:
            if waiting != BRACKET:
                return

    # the candidates: a prefix of the row's order, in the registers of this program
    place = tl.arange(0, CANDIDATES)
    group = tl.load(groups_ptr + place // GROUP)
    tokens = group * GROUP + place % GROUP
    wanted = (group >= 0) & (tokens < vocab)
    x = load_logits(row_ptr, tokens, wanted, bitmask_ptr, bitmask_stride, row, HAS_BITMASK)
    complete = wanted & in_support(x, tokens, complete_value, complete_index)
    complete = complete & (x > -float("inf"))
    x = tl.where(complete, x, -float("inf"))
    top_id = tl.min(tl.where(complete & (x == maximum), tokens, NO_TOKEN), 0)

    if BRACKETED:
        operation, ties_all, parameter, keep = rule_of(
            parameters_ptr, parameter_stride, rule_stride, program, position, row
        )
        search = tl.maximum(operation, TOP_K)
        crowd = tl.load(state_ptr + I_BRACKETED)
        if crowd > 0:
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
            centre = 0.0 * heat
            least = centre
            most = centre
            if INTERVALS:
                centre = tl.load(numbers_ptr + F_CENTRE)
                lane = tl.arange(0, SLICES)
                leasts = tl.load(
                    parts_ptr + lane * ENDS + 2, mask=lane < slices, other=float("inf")
                )
                mosts = tl.load(
                    parts_ptr + lane * ENDS + 3, mask=lane < slices, other=-float("inf")
                )
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
                y = load_logits(
                    row_ptr, ids, spot < crowd, bitmask_ptr, bitmask_stride, row, HAS_BITMASK
                )
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
    if BRACKETED == 0:
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
        inside = (
            (value > complete_value)
            | ((value == complete_value) & (index <= complete_index))
            | (complete_value == -float("inf"))
        )
        candidates = complete & in_support(x, tokens, value, index)
        if INTERVALS:
            candidates = candidates & (x <= upper)
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
                        # above all candidates that the prefix may end with, down to the last mass,
                        # or to the last token where a number of them is asked for
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
                inside = (
                    (value > complete_value)
                    | ((value == complete_value) & (index <= complete_index))
                    | (complete_value == -float("inf"))
                )
                if inside:
                    kept = complete & in_support(x, tokens, value, index)
                    if INTERVALS:
                        kept = kept & (x <= upper)
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
        inside = (
            (value > complete_value)
            | ((value == complete_value) & (index <= complete_index))
            | (complete_value == -float("inf"))
        )
        kept = complete & in_support(x, tokens, value, index)
        if INTERVALS:
            kept = kept & (x <= upper)
        masses = tl.where(kept, tl.exp2(exponents(x, maximum, scale)), 0.0)
        present = tl.sum((masses > 0.0).to(tl.int32), 0)
        if heat == 0.0:
            tl.store(token_ids_ptr + row, top_id.to(tl.int64))
            if RAW:
                tl.store(logprobs_ptr + row, -tl.log(tl.load(numbers_ptr + F_RAW)))
            else:
                tl.store(logprobs_ptr + row, 0.0)
            tl.store(kept_mass_ptr + row, 1.0)
        else:
            if inside & (present <= DIRECT):
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
