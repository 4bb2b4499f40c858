# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The sums of whole rows on a GPU: one read, a program for every 8,192 tokens.

With T the temperature of a row, m the largest logit of a slice and z_i = (x_i - m) / (T ln 2), each
slice writes
    m,  S - 1,  sum 2**z z,  sum 4**z,  n,  mean x,  sum (x - mean)**2,  least x     over finite x
and the largest logit of every 32 tokens. Slices with maxima m <= M are merged by c = 2**((m - M) / (T ln 2)):
    S += c S_m,   L += c (L_m + S_m log2 c),   Q += c**2 Q_m

A slice has the same length whatever the batch, so a row's sums are the same bits in every batch.
One token at the maximum is left out of S, not subtracted: S - 1 keeps its digits on a one-hot row.
Exponents have base 2, the chip's own, and the temperature is folded into their factor.
"""

from __future__ import annotations

from ._triton import jit, kernel, tl

SLICE = tl.constexpr(8192)
"""Tokens a program reads: 32 a thread stay in registers, more spill."""

GROUP = tl.constexpr(32)
"""Tokens that share a maximum: 3 % more to write, one word of a bitmask, one warp of a gather."""

PLANES = tl.constexpr(9)
"""Numbers a slice writes, each kind in a plane of its own: consecutive programs write side by side."""

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

LEAST_EXPONENT = tl.constexpr(-200.0)
"""2**-200 is 0 in float32, and 0 * -200 is 0 where 0 * -inf would be NaN."""

LEAST_FINITE = tl.constexpr(-3.4028234663852886e38)

# what a row waits for; DONE rows are skipped by every launch
DONE = tl.constexpr(0)
SUMS = tl.constexpr(1)
BRACKET = tl.constexpr(2)

# columns of the state of a row, int32 and float32
STATE = tl.constexpr(20)
I_WAITING = tl.constexpr(0)
I_POSITION = tl.constexpr(1)
I_TOP_ID = tl.constexpr(2)
I_INDEX = tl.constexpr(3)
I_COMPLETE_INDEX = tl.constexpr(4)
I_PRIOR_INDEX = tl.constexpr(5)
I_DRAW = tl.constexpr(6)
I_BRACKETED = tl.constexpr(7)
F_MAXIMUM = tl.constexpr(0)
F_VALUE = tl.constexpr(1)
F_COMPLETE_VALUE = tl.constexpr(2)
F_EXCESS = tl.constexpr(3)
F_BOUND = tl.constexpr(4)
F_LOG_TOTAL = tl.constexpr(5)
F_PRIOR_VALUE = tl.constexpr(6)
F_BASE_COUNT = tl.constexpr(7)
F_BASE_EXCESS = tl.constexpr(8)
F_BASE_MOMENT = tl.constexpr(9)
F_LOW = tl.constexpr(10)
F_HIGH = tl.constexpr(11)
F_RAW = tl.constexpr(12)
F_LEAST = tl.constexpr(13)
F_KEPT_EXCESS = tl.constexpr(14)
F_UPPER = tl.constexpr(15)
F_WHOLE_MAXIMUM = tl.constexpr(16)
F_CENTRE = tl.constexpr(17)
F_THRESHOLD = tl.constexpr(18)


@jit
def log1p(x):
    """ln(1 + x) for x >= 0, without the digits that 1 + x loses."""
    u = 1.0 + x
    near = u == 1.0
    return tl.where(near, x, tl.log(u) * (x / tl.where(near, 1.0, u - 1.0)))


@jit
def scale_of(parameters_ptr, parameter_stride, row):
    """The temperature of a row and the factor 1 / (T ln 2) of its exponents."""
    heat = tl.load(parameters_ptr + row * parameter_stride).to(tl.float32)
    safe = tl.where(heat > 0, heat, 1.0)
    return heat, (1.0 / safe) * LOG2E


@jit
def exponents(logits, maximum, scale):
    """(x - max) / (T ln 2), not below the exponent whose power is 0."""
    return tl.maximum((logits - maximum) * scale, LEAST_EXPONENT)


@jit
def row_pointer(logits_ptr, row_stride, rows_ptr, row, HAS_ROWS: tl.constexpr):
    """Where a row starts; rows_ptr [rows] int64 names the rows of a call that takes only some."""
    if HAS_ROWS:
        source = tl.load(rows_ptr + row).to(tl.int64)
    else:
        source = row.to(tl.int64)
    return logits_ptr + source * row_stride


@jit
def source_pointer(
    logits_ptr,
    row_stride,
    more_logits_ptr,
    more_row_stride,
    first_rows,
    rows_ptr,
    row,
    HAS_MORE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
):
    """Where a row starts when, behind the `first_rows` of one tensor, those of another one follow."""
    start_ptr = row_pointer(logits_ptr, row_stride, rows_ptr, row, HAS_ROWS)
    if HAS_MORE:
        if row >= first_rows:
            start_ptr = more_logits_ptr + (row - first_rows).to(tl.int64) * more_row_stride
    return start_ptr


@jit
def load_logits(
    row_ptr, tokens, wanted, bitmask_ptr, bitmask_stride, row, HAS_BITMASK: tl.constexpr
):
    """Float32 logits of some tokens, -inf where they are not wanted or the bitmask forbids them."""
    logits = tl.load(row_ptr + tokens, mask=wanted, other=-float("inf")).to(tl.float32)
    if HAS_BITMASK:
        word_ptr = bitmask_ptr + row.to(tl.int64) * bitmask_stride + tokens // GROUP
        word = tl.load(word_ptr, mask=wanted, other=0)
        logits = tl.where(((word >> (tokens % GROUP)) & 1) == 1, logits, -float("inf"))
    return logits


@jit
def in_support(logits, tokens, value, index):
    """Whether tokens are kept by the threshold."""
    return (logits > value) | ((logits == value) & (tokens <= index))


@jit
def not_above(logits, upper):
    """The logits, -inf for those above an interval."""
    return tl.where(logits <= upper, logits, -float("inf"))


@kernel
def row_stats_kernel(
    logits_ptr,  # [batch, vocab] float32, bfloat16 or float16
    row_stride,
    more_logits_ptr,  # [rows - first_rows, vocab] of the same dtype
    more_row_stride,
    first_rows,
    rows_ptr,  # [rows] int64
    bitmask_ptr,  # [rows, ceil(vocab / 32)] int32
    bitmask_stride,
    parameters_ptr,  # [1 + 2 rules, rows] float64, the temperature first
    parameter_stride,
    stats_ptr,  # [PLANES, rows, slices] float32
    group_maxima_ptr,  # [rows, groups] float32
    integers_ptr,  # [rows, STATE] int32
    floats_ptr,  # [rows, STATE] float32
    vocab,
    num_groups,
    RESTRICTED: tl.constexpr,  # over the support so far, of rows that wait for its sums
    INTERVALS: tl.constexpr,  # which may be an interval: its groups have other maxima
    SQUARES: tl.constexpr,  # sum 4**z
    DEVIATION: tl.constexpr,  # mean and sum of squares about it
    LEAST: tl.constexpr,  # the least finite logit
    RAW: tl.constexpr,  # S at temperature 1
    HAS_MORE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_BITMASK: tl.constexpr,
):
    """The sums of one slice of a row, and the maxima of its groups."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    if RESTRICTED:
        if tl.load(integers_ptr + row * STATE + I_WAITING) != SUMS:
            return
    _, scale = scale_of(parameters_ptr, parameter_stride, row)
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
    # a maximum ignores NaN, so it is looked for
    broken = tl.max((x != x).to(tl.int32), 0)
    if RESTRICTED:
        value = tl.load(floats_ptr + row * STATE + F_VALUE)
        index = tl.load(integers_ptr + row * STATE + I_INDEX)
        x = tl.where(in_support(x, tokens, value, index), x, -float("inf"))
        if INTERVALS:
            x = not_above(x, tl.load(floats_ptr + row * STATE + F_UPPER))
    if INTERVALS or not RESTRICTED:
        groups = part * (SLICE // GROUP) + tl.arange(0, SLICE // GROUP)
        maxima = tl.max(tl.reshape(x, (SLICE // GROUP, GROUP)), 1)
        maxima_ptr = group_maxima_ptr + row.to(tl.int64) * num_groups + groups
        tl.store(maxima_ptr, maxima, mask=groups < num_groups)

    maximum = tl.max(x, 0)
    # the maximum of a slice without a finite logit would make NaN of every difference
    anchor = tl.where(tl.abs(maximum) < float("inf"), maximum, 0.0)
    z = exponents(x, anchor, scale)
    weights = tl.exp2(z)
    at_maximum = x == anchor
    repeats = tl.sum(at_maximum.to(tl.float32), 0)
    excess = tl.sum(tl.where(at_maximum, 0.0, weights), 0) + tl.maximum(repeats - 1.0, 0.0)
    moment = tl.sum(weights * z, 0)
    finite = x > -float("inf")
    count = tl.sum(finite.to(tl.float32), 0)

    plane = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    out_ptr = stats_ptr + row.to(tl.int64) * tl.num_programs(1) + part
    tl.store(out_ptr, tl.where(broken > 0, float("nan"), maximum))
    tl.store(out_ptr + plane, excess)
    tl.store(out_ptr + 2 * plane, moment)
    tl.store(out_ptr + 4 * plane, count)
    if SQUARES:
        tl.store(out_ptr + 3 * plane, tl.sum(weights * weights, 0))
    if DEVIATION:
        mean = tl.sum(tl.where(finite, x, 0.0), 0) / tl.maximum(count, 1.0)
        off = tl.where(finite, x - mean, 0.0)
        tl.store(out_ptr + 5 * plane, mean)
        tl.store(out_ptr + 6 * plane, tl.sum(off * off, 0))
    if LEAST:
        tl.store(out_ptr + 7 * plane, tl.min(tl.where(finite, x, float("inf")), 0))
    if RAW:
        raw = tl.exp2(exponents(x, anchor, LOG2E))
        tl.store(out_ptr + 8 * plane, tl.sum(tl.where(finite, raw, 0.0), 0))


@jit
def load_plane(stats_ptr, row, slices, rows, PLANE: tl.constexpr, SLICES: tl.constexpr):
    """One number of every slice of a row, 0 beyond the last."""
    lane = tl.arange(0, SLICES)
    plane_ptr = stats_ptr + (rows.to(tl.int64) * PLANE + row) * slices
    return tl.load(plane_ptr + lane, mask=lane < slices, other=0.0)


@jit
def merge_stats(
    stats_ptr,
    row,
    slices,
    rows,
    scale,
    SQUARES: tl.constexpr,
    DEVIATION: tl.constexpr,
    SLICES: tl.constexpr,
):
    """The sums of a row from those of its slices.

    Returns:
        maximum (NaN if the row holds one), S - 1, moment, Q, count, sum of squared deviations.
    """
    lane = tl.arange(0, SLICES)
    maxima = load_plane(stats_ptr, row, slices, rows, 0, SLICES)
    maxima = tl.where(lane < slices, maxima, -float("inf"))
    broken = tl.max((maxima != maxima).to(tl.int32), 0)
    maximum = tl.max(maxima, 0)
    anchor = tl.where(tl.abs(maximum) < float("inf"), maximum, 0.0)
    counts = load_plane(stats_ptr, row, slices, rows, 4, SLICES)
    shift = exponents(maxima, anchor, scale)
    share = tl.where(counts > 0, tl.exp2(shift), 0.0)
    excesses = load_plane(stats_ptr, row, slices, rows, 1, SLICES)
    moments = load_plane(stats_ptr, row, slices, rows, 2, SLICES)
    # the slice whose maximum is the token that S - 1 leaves out
    leader = tl.min(tl.where(maxima == anchor, lane, SLICES), 0)
    totals = tl.where(lane == leader, excesses, 1.0 + excesses)
    excess = tl.sum(share * totals, 0)
    moment = tl.sum(share * (moments + (1.0 + excesses) * shift), 0)
    count = tl.sum(counts, 0)
    squares = 0.0
    if SQUARES:
        squares = tl.sum(share * share * load_plane(stats_ptr, row, slices, rows, 3, SLICES), 0)
    deviation = 0.0
    if DEVIATION:
        means = load_plane(stats_ptr, row, slices, rows, 5, SLICES)
        mean = tl.sum(counts * means, 0) / tl.maximum(count, 1.0)
        apart = counts * (means - mean) * (means - mean)
        deviation = tl.sum(load_plane(stats_ptr, row, slices, rows, 6, SLICES) + apart, 0)
    maximum = tl.where(broken > 0, float("nan"), maximum)
    return maximum, excess, moment, squares, count, deviation
