# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The canonical draw on a GPU: the races of kernels/draw.py, with the same names of the noise.

    E(name) = -ln(1 - v),  v = (w + 0.5) / 2**32,  w = philox4x32_10(counter, key)[0]
    support of at most 1,024: token = the largest 2**z_i / E(i)
    otherwise: slice of 8,192, then group of 32, then token, each by the sum of its 2**z

Supports inside the candidates are drawn by the program that found them. For the others every slice
sums its masses and races its own tokens, and one program a row takes the stage that its count needs.

Accuracy: masses and keys are float32 here, float64 in kernels/draw.py. The tokens are the same but
where two keys lie within a few parts in 10**7, or a mass underflows in one of the two.
"""

from __future__ import annotations

from ._triton import jit, kernel, tl
from .row_stats_triton import (
    F_EXCESS,
    F_MAXIMUM,
    F_RAW,
    F_UPPER,
    F_VALUE,
    F_WHOLE_MAXIMUM,
    GROUP,
    I_DRAW,
    I_INDEX,
    LN2,
    LOG2E,
    SLICE,
    STATE,
    exponents,
    in_support,
    load_logits,
    not_above,
    row_pointer,
    scale_of,
)

DIRECT = tl.constexpr(1024)
"""The largest support that races its tokens directly, as in kernels/draw.py."""

PLAIN = tl.constexpr(9)
"""Role.PLAIN; its slices are 10, its groups 11."""

# how the token of a row is drawn
DRAWN = tl.constexpr(0)
BY_COUNT = tl.constexpr(1)
BY_STAGES = tl.constexpr(2)

NO_TOKEN = tl.constexpr(2147483647)


@jit
def noise_words(seed_ptr, sequence_ptr, step_ptr, row, place, names):
    """The named words, uint32; names are index | depth << 24, the place path << 16 | role << 28."""
    seed = tl.load(seed_ptr + row)
    sequence = tl.load(sequence_ptr + row)
    step = tl.load(step_ptr + row)
    c1 = tl.zeros_like(names) + (step & 0xFFFFFFFF).to(tl.int32)
    c2 = tl.zeros_like(names) + (sequence & 0xFFFFFFFF).to(tl.int32)
    c3 = tl.zeros_like(names) + ((sequence >> 32) | place).to(tl.int32)
    word, _, _, _ = tl.philox(seed, names, c1, c2, c3)
    return word.to(tl.uint32, bitcast=True)


@jit
def exponential(seed_ptr, sequence_ptr, step_ptr, row, role, names):
    """The named exponential numbers in float32: relative error below 1e-6, never 0 or infinite."""
    word = noise_words(seed_ptr, sequence_ptr, step_ptr, row, role << 28, names)
    # the smaller of v and 1 - v, to full precision
    upper = word >= 0x80000000
    less = tl.where(upper, 0xFFFFFFFF - word, word).to(tl.float32)
    less = (less + 0.5) * 2.3283064365386963e-10
    # -ln(1 - v) = 2 artanh(v / (2 - v)): no logarithm of a number near 1
    s = less / (2.0 - less)
    t = s * s
    series = 1.0 / 13 + t * (1.0 / 15)
    series = 1.0 / 11 + t * series
    series = 1.0 / 9 + t * series
    series = 1.0 / 7 + t * series
    series = 1.0 / 5 + t * series
    series = 1.0 / 3 + t * series
    return tl.where(upper, -tl.log(less), 2.0 * s * (1.0 + t * series))


@jit
def race(masses, numbers, names):
    """The name with the largest mass / E, the least of equal ones, and its key; masses of 0 lose."""
    keys = tl.where(masses > 0.0, masses / numbers, -1.0)
    best = tl.max(keys, 0)
    return tl.min(tl.where(keys == best, names, NO_TOKEN), 0), best


@jit
def store_drawn(
    token_ids_ptr,
    logprobs_ptr,
    kept_mass_ptr,
    numbers_ptr,
    row,
    token,
    logit,
    scale,
    kept_excess,
    log_kept,
    whole,
    RAW: tl.constexpr,
):
    """Write a drawn token, its log-probability and the kept mass."""
    maximum = tl.load(numbers_ptr + F_MAXIMUM)
    # an interval may miss the largest logit, to which the sums of the row refer
    whole_maximum = tl.load(numbers_ptr + F_WHOLE_MAXIMUM)
    if RAW:
        logprob = exponents(logit, whole_maximum, LOG2E) * LN2
        logprob -= tl.log(tl.load(numbers_ptr + F_RAW))
    else:
        logprob = exponents(logit, maximum, scale) * LN2 - log_kept
    mass = (1.0 + kept_excess) / (1.0 + tl.load(numbers_ptr + F_EXCESS))
    mass *= tl.exp2(exponents(maximum, whole_maximum, scale))
    tl.store(token_ids_ptr + row, token.to(tl.int64))
    tl.store(logprobs_ptr + row, logprob)
    tl.store(kept_mass_ptr + row, tl.where(whole, 1.0, tl.minimum(mass, 1.0)))


@kernel
def slice_masses_kernel(
    logits_ptr,  # [batch, vocab]
    row_stride,
    bitmask_ptr,
    bitmask_stride,
    parameters_ptr,
    parameter_stride,
    integers_ptr,  # [rows, STATE] int32
    floats_ptr,  # [rows, STATE] float32
    group_masses_ptr,  # [rows, groups] float32, over the maxima
    winners_ptr,  # [rows, slices, 4] float32: mass, tokens, key, token of a slice
    seed_ptr,
    sequence_ptr,
    step_ptr,  # [rows] int64
    vocab,
    num_groups,
    HAS_BITMASK: tl.constexpr,
):
    """The masses of one slice of a row and of its groups, and the winner of its own race."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    state_ptr = integers_ptr + row * STATE
    how = tl.load(state_ptr + I_DRAW)
    if how == DRAWN:
        return
    numbers_ptr = floats_ptr + row * STATE
    _, scale = scale_of(parameters_ptr, parameter_stride, row)
    row_ptr = row_pointer(logits_ptr, row_stride, logits_ptr, row, False)
    tokens = part * SLICE + tl.arange(0, SLICE)
    x = load_logits(row_ptr, tokens, tokens < vocab, bitmask_ptr, bitmask_stride, row, HAS_BITMASK)
    x = not_above(x, tl.load(numbers_ptr + F_UPPER))
    kept = in_support(x, tokens, tl.load(numbers_ptr + F_VALUE), tl.load(state_ptr + I_INDEX))
    masses = tl.exp2(exponents(x, tl.load(numbers_ptr + F_MAXIMUM), scale))
    masses = tl.where(kept, masses, 0.0)
    by_group = tl.sum(tl.reshape(masses, (SLICE // GROUP, GROUP)), 1)
    groups = part * (SLICE // GROUP) + tl.arange(0, SLICE // GROUP)
    group_ptr = group_masses_ptr + row.to(tl.int64) * num_groups + groups
    tl.store(group_ptr, by_group, mask=groups < num_groups)
    count = tl.sum((masses > 0.0).to(tl.int32), 0)
    out_ptr = winners_ptr + (row.to(tl.int64) * tl.num_programs(1) + part) * 4
    tl.store(out_ptr, tl.sum(by_group, 0))
    tl.store(out_ptr + 1, count.to(tl.float32))
    if (how == BY_COUNT) & (count <= DIRECT):
        numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, PLAIN, tokens)
        token, key = race(masses, numbers, tokens)
        tl.store(out_ptr + 2, key)
        tl.store(out_ptr + 3, token.to(tl.int32).to(tl.float32, bitcast=True))


@kernel
def staged_draw_kernel(
    logits_ptr,  # [batch, vocab]
    row_stride,
    bitmask_ptr,
    bitmask_stride,
    parameters_ptr,
    parameter_stride,
    integers_ptr,  # [rows, STATE] int32
    floats_ptr,  # [rows, STATE] float32
    group_masses_ptr,  # [rows, groups] float32
    winners_ptr,  # [rows, slices, 4] float32
    seed_ptr,
    sequence_ptr,
    step_ptr,  # [rows] int64
    token_ids_ptr,  # [rows] int64
    logprobs_ptr,  # [rows] float32
    kept_mass_ptr,  # [rows] float32
    vocab,
    num_groups,
    slices,
    WHOLE: tl.constexpr,  # no rule: nothing was cut
    RAW: tl.constexpr,
    SLICES: tl.constexpr,
    HAS_BITMASK: tl.constexpr,
):
    """The token of one row, from the races or the masses of its slices."""
    row = tl.program_id(0)
    state_ptr = integers_ptr + row * STATE
    if tl.load(state_ptr + I_DRAW) == DRAWN:
        return
    numbers_ptr = floats_ptr + row * STATE
    _, scale = scale_of(parameters_ptr, parameter_stride, row)
    row_ptr = row_pointer(logits_ptr, row_stride, logits_ptr, row, False)
    maximum = tl.load(numbers_ptr + F_MAXIMUM)

    lane = tl.arange(0, SLICES)
    part_ptr = winners_ptr + (row.to(tl.int64) * slices + lane) * 4
    masses = tl.load(part_ptr, mask=lane < slices, other=0.0)
    counts = tl.load(part_ptr + 1, mask=lane < slices, other=0.0)
    total = tl.sum(masses, 0)
    if tl.sum(counts, 0) <= DIRECT:
        keys = tl.load(part_ptr + 2, mask=(lane < slices) & (counts > 0), other=-1.0)
        winners = tl.load(part_ptr + 3, mask=lane < slices, other=0.0).to(tl.int32, bitcast=True)
        token = tl.min(tl.where(keys == tl.max(keys, 0), winners, NO_TOKEN), 0)
    else:
        chosen = tl.full((), 0, tl.int32)
        if slices > 1:
            numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, PLAIN + 1, lane)
            chosen, _ = race(masses, numbers, lane)
        groups = chosen * (SLICE // GROUP) + tl.arange(0, SLICE // GROUP)
        group_ptr = group_masses_ptr + row.to(tl.int64) * num_groups + groups
        by_group = tl.load(group_ptr, mask=groups < num_groups, other=0.0)
        numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, PLAIN + 2, groups)
        group, _ = race(by_group, numbers, groups)
        tokens = group * GROUP + tl.arange(0, GROUP)
        x = load_logits(
            row_ptr, tokens, tokens < vocab, bitmask_ptr, bitmask_stride, row, HAS_BITMASK
        )
        x = not_above(x, tl.load(numbers_ptr + F_UPPER))
        value = tl.load(numbers_ptr + F_VALUE)
        kept = in_support(x, tokens, value, tl.load(state_ptr + I_INDEX))
        weights = tl.where(kept, tl.exp2(exponents(x, maximum, scale)), 0.0)
        numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, PLAIN, tokens)
        token, _ = race(weights, numbers, tokens)
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
        total - 1.0,
        tl.log(total),
        WHOLE,
        RAW,
    )
