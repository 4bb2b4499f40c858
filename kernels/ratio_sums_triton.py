# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The two laws of every node of the draft paths, and their sums at the knots, on a GPU.

With t and d the laws of target and draft at a node, in no memory but registers, and the knots
0 = rho_0 < .. < rho_31 of kernels/ratio_splines.py, each slice of 8,192 tokens sums
    t(x) = 2**((x - max) / (T ln 2)) / S  over the support, else 0;      d(x) likewise
    C_j  = sum min(rho_j d(x), t(x))
These know nothing of survivors or weights, so one launch serves all nodes before the walk begins: what
a verifier needs at a node is linear in C_j. Tokens outside either support add nothing: groups whose
maxima show that none of their tokens lies in both are not read.

Laws and slices are float32: C is wrong by up to 2e-7. What is drawn in the end moves less, for its masses
are non-negative sums: by 2.2e-6 at most in total variation a node, and by 4e-7 at most in the mean of 18 pairs
of gaussian or Zipf rows (32,000 and 262,144 tokens, 2 and 8 paths, all verifiers, the selection's w 1 or 0.4),
with walk_triton.py's EXHAUSTED and NEGLIGIBLE, which move it by as much.
"""

from __future__ import annotations

from ._triton import jit, kernel, tl
from .row_stats_triton import (
    DONE,
    F_KEPT_EXCESS,
    F_MAXIMUM,
    F_UPPER,
    F_VALUE,
    GROUP,
    I_INDEX,
    I_TOP_ID,
    I_WAITING,
    SLICE,
    STATE,
    SUMS,
    exponents,
    in_support,
    merge_stats,
    scale_of,
)

KNOTS = tl.constexpr(32)
"""Knots of a node: one a lane, and 96 instructions a token."""

# columns of a law, float32; a node has two laws, the target's first
LAW = tl.constexpr(8)
L_STATUS = tl.constexpr(0)
L_MAXIMUM = tl.constexpr(1)
L_SCALE = tl.constexpr(2)
L_SHARE = tl.constexpr(3)
L_VALUE = tl.constexpr(4)
L_INDEX = tl.constexpr(5)
L_TOP_ID = tl.constexpr(6)
L_UPPER = tl.constexpr(7)

NO_LAW = tl.constexpr(3)
"""The status EMPTY: what a node without a row of the draft has."""


@jit
def probabilities(row_ptr, tokens, wanted, maximum, scale, share, value, index, upper):
    """The law of a row at some tokens, 0 outside its support."""
    x = tl.load(row_ptr + tokens, mask=wanted, other=-float("inf")).to(tl.float32)
    kept = in_support(x, tokens, value, index) & (x <= upper)
    return tl.where(kept, tl.exp2(exponents(x, maximum, scale)) * share, 0.0)


@jit
def load_law(laws_ptr, node, MODEL: tl.constexpr):
    """max, 1 / (T ln 2), 1 / S and the ends of a node's law; MODEL 0 is the target, 1 the draft."""
    law_ptr = laws_ptr + (node.to(tl.int64) * 2 + MODEL) * LAW
    return (
        tl.load(law_ptr + L_MAXIMUM),
        tl.load(law_ptr + L_SCALE),
        tl.load(law_ptr + L_SHARE),
        tl.load(law_ptr + L_VALUE),
        tl.load(law_ptr + L_INDEX).to(tl.int32, bitcast=True),
        tl.load(law_ptr + L_UPPER),
    )


@jit
def make_law(
    parameters_ptr,
    parameter_stride,
    integers_ptr,
    floats_ptr,
    stats_ptr,
    status_ptr,
    row,
    rows,
    slices,
    wanted,
    WAITS: tl.constexpr,
    SLICES: tl.constexpr,
):
    """What `load_law` finds, from the state of a row; the status first, the likeliest token last."""
    state_ptr = integers_ptr + row * STATE
    numbers_ptr = floats_ptr + row * STATE
    status = tl.load(status_ptr + row, mask=wanted, other=NO_LAW).to(tl.int32)
    sound = status == 0
    _, scale = scale_of(parameters_ptr, parameter_stride, tl.where(wanted, row, 0))
    maximum = tl.load(numbers_ptr + F_MAXIMUM, mask=sound, other=0.0)
    excess = tl.load(numbers_ptr + F_KEPT_EXCESS, mask=sound, other=0.0)
    if WAITS:
        if tl.load(state_ptr + I_WAITING, mask=sound, other=DONE) == SUMS:
            maximum, excess, _, _, _, _ = merge_stats(
                stats_ptr, row, slices, rows, scale, False, False, SLICES
            )
    return (
        status,
        maximum,
        scale,
        1.0 / (1.0 + excess),
        tl.load(numbers_ptr + F_VALUE, mask=sound, other=float("inf")),
        tl.load(state_ptr + I_INDEX, mask=sound, other=-1),
        tl.load(numbers_ptr + F_UPPER, mask=sound, other=-float("inf")),
        tl.load(state_ptr + I_TOP_ID, mask=sound, other=-1),
    )


@jit
def store_law(law_ptr, status, maximum, scale, share, value, index, upper, top_id):
    """Write a law for the launches that follow."""
    tl.store(law_ptr + L_STATUS, status.to(tl.float32))
    tl.store(law_ptr + L_MAXIMUM, maximum)
    tl.store(law_ptr + L_SCALE, scale)
    tl.store(law_ptr + L_SHARE, share)
    tl.store(law_ptr + L_VALUE, value)
    tl.store(law_ptr + L_INDEX, index.to(tl.float32, bitcast=True))
    tl.store(law_ptr + L_UPPER, upper)
    tl.store(law_ptr + L_TOP_ID, top_id.to(tl.float32, bitcast=True))


@jit
def reached_groups(group_maxima_ptr, row, part, num_groups, value):
    """Which groups of a slice hold a token of the support, by their maxima."""
    groups = part * (SLICE // GROUP) + tl.arange(0, SLICE // GROUP)
    maxima_ptr = group_maxima_ptr + row.to(tl.int64) * num_groups + groups
    return tl.load(maxima_ptr, mask=groups < num_groups, other=-float("inf")) >= value


@jit
def tokens_of_groups(chosen):
    """The same for the tokens of a slice."""
    return tl.reshape(tl.broadcast_to(chosen[:, None], (SLICE // GROUP, GROUP)), (SLICE,))


@kernel
def ratio_sums_kernel(
    target_logits_ptr,  # [batch * target_nodes, vocab] float32, bfloat16 or float16
    target_row_stride,
    draft_logits_ptr,  # [batch * draft_nodes, vocab]
    draft_row_stride,
    target_nodes,
    draft_nodes,
    target_parameters_ptr,  # [1 + 2 rules, rows] float64, the temperature first
    target_parameter_stride,
    target_integers_ptr,  # [rows, STATE] int32
    target_floats_ptr,  # [rows, STATE] float32
    target_stats_ptr,  # [PLANES, target_plane, slices] float32
    target_plane,
    target_status_ptr,  # [rows] int8
    target_maxima_ptr,  # [rows, groups] float32
    draft_parameters_ptr,
    draft_parameter_stride,
    draft_integers_ptr,
    draft_floats_ptr,
    draft_stats_ptr,
    draft_plane,
    draft_status_ptr,
    draft_maxima_ptr,
    knots_ptr,  # [KNOTS] float32
    laws_ptr,  # [batch * target_nodes, 2, LAW] float32
    sums_ptr,  # [batch * target_nodes, slices, KNOTS] float32
    vocab,
    num_groups,
    WAITS: tl.constexpr,  # rows may have left their sums in `stats`
    SLICES: tl.constexpr,
):
    """The sums of one slice of a node, and with its first slice the node's laws."""
    node = tl.program_id(0)
    part = tl.program_id(1)
    slices = tl.num_programs(1)
    place = node % target_nodes
    drafted = place < draft_nodes
    draft_row = tl.where(drafted, (node // target_nodes) * draft_nodes + place, 0)
    t_status, t_maximum, t_scale, t_share, t_value, t_index, t_upper, t_top = make_law(
        target_parameters_ptr,
        target_parameter_stride,
        target_integers_ptr,
        target_floats_ptr,
        target_stats_ptr,
        target_status_ptr,
        node,
        target_plane,
        slices,
        True,
        WAITS,
        SLICES,
    )
    d_status, d_maximum, d_scale, d_share, d_value, d_index, d_upper, d_top = make_law(
        draft_parameters_ptr,
        draft_parameter_stride,
        draft_integers_ptr,
        draft_floats_ptr,
        draft_stats_ptr,
        draft_status_ptr,
        draft_row,
        draft_plane,
        slices,
        drafted,
        WAITS,
        SLICES,
    )
    if part == 0:
        law_ptr = laws_ptr + node.to(tl.int64) * 2 * LAW
        store_law(law_ptr, t_status, t_maximum, t_scale, t_share, t_value, t_index, t_upper, t_top)
        store_law(
            law_ptr + LAW, d_status, d_maximum, d_scale, d_share, d_value, d_index, d_upper, d_top
        )
    # a leaf, or a node that no verifier takes
    if (t_status != 0) | (d_status != 0):
        return

    out_ptr = sums_ptr + (node.to(tl.int64) * slices + part) * KNOTS
    both = reached_groups(target_maxima_ptr, node, part, num_groups, t_value)
    both = both & reached_groups(draft_maxima_ptr, draft_row, part, num_groups, d_value)
    if tl.max(both.to(tl.int32), 0) == 0:
        tl.store(out_ptr + tl.arange(0, KNOTS), tl.zeros((KNOTS,), tl.float32))
        return
    tokens = part * SLICE + tl.arange(0, SLICE)
    wanted = tokens_of_groups(both) & (tokens < vocab)
    target_ptr = target_logits_ptr + node.to(tl.int64) * target_row_stride
    draft_ptr = draft_logits_ptr + draft_row.to(tl.int64) * draft_row_stride
    target = probabilities(
        target_ptr, tokens, wanted, t_maximum, t_scale, t_share, t_value, t_index, t_upper
    )
    draft = probabilities(
        draft_ptr, tokens, wanted, d_maximum, d_scale, d_share, d_value, d_index, d_upper
    )
    for knot in range(KNOTS):
        rho = tl.load(knots_ptr + knot)
        tl.store(out_ptr + knot, tl.sum(tl.minimum(rho * draft, target), 0))
