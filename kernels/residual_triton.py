# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The token behind the accepted ones, on a GPU: the canonical draw from a residual or from a target law.

At the node where the walk has stopped, with r = t / d, w the weight there and delta_j >= 0 at the knots,
    residual(x) = d(x) delta(r(x))                              r below the last knot, delta linear between
                = d(x) delta_last + w (t(x) - rho_last d(x))    above it, and where d(x) = 0
    bonus(x)    = t(x)
Where both knots around a token have delta = 0 its mass is 0 exactly. Slices sum their masses and race
their own tokens; one program a row then takes the stage that its count needs, as kernels/draw.py does.
"""

from __future__ import annotations

from ._triton import jit, kernel, tl
from .draw_triton import DIRECT, NO_TOKEN, exponential, race
from .ratio_sums_triton import (
    KNOTS,
    L_TOP_ID,
    LAW,
    load_law,
    probabilities,
    reached_groups,
    tokens_of_groups,
)
from .row_stats_triton import GROUP, SLICE

# columns of a stop, int32
STOP = tl.constexpr(4)
S_KIND = tl.constexpr(0)
S_DEPTH = tl.constexpr(1)
S_NODE = tl.constexpr(2)

# what is drawn at a stop; a residual that rounding has emptied is drawn from the target's law
NOTHING = tl.constexpr(0)
FROM_RESIDUAL = tl.constexpr(1)
FROM_TARGET = tl.constexpr(2)
FROM_BONUS = tl.constexpr(3)

RESIDUAL = tl.constexpr(3)
BONUS = tl.constexpr(6)
"""Role.RESIDUAL and Role.BONUS; slices and groups are the next two numbers."""


@jit
def masses_at(
    tokens,
    wanted,
    kind,
    node,
    target_logits_ptr,
    target_row_stride,
    draft_logits_ptr,
    draft_row_stride,
    target_nodes,
    draft_nodes,
    laws_ptr,
    knots_ptr,
    deltas_ptr,
    weight,
):
    """The mass of some tokens of a node."""
    maximum, scale, share, value, index, upper_end = load_law(laws_ptr, node, 0)
    row_ptr = target_logits_ptr + node.to(tl.int64) * target_row_stride
    target = probabilities(row_ptr, tokens, wanted, maximum, scale, share, value, index, upper_end)
    # a leaf has no row of the draft's
    recovered = kind == FROM_RESIDUAL
    draft_row = (node // target_nodes) * draft_nodes + node % target_nodes
    maximum, scale, share, value, index, upper_end = load_law(laws_ptr, node, 1)
    row_ptr = draft_logits_ptr + draft_row.to(tl.int64) * draft_row_stride
    drafted = wanted & (target > 0.0) & (recovered != 0)
    draft = probabilities(row_ptr, tokens, drafted, maximum, scale, share, value, index, upper_end)

    ratio = target / tl.where(draft > 0.0, draft, 1.0)
    lower = tl.zeros_like(tokens)
    for halving in tl.static_range(5):
        higher = lower + (KNOTS >> (halving + 1))
        lower = tl.where(ratio >= tl.load(knots_ptr + higher), higher, lower)
    upper = tl.minimum(lower + 1, KNOTS - 1)
    low = tl.load(knots_ptr + lower)
    width = tl.load(knots_ptr + upper) - low
    part = (ratio - low) / tl.where(width > 0.0, width, 1.0)
    between = (1.0 - part) * tl.load(deltas_ptr + lower) + part * tl.load(deltas_ptr + upper)
    last = tl.load(knots_ptr + KNOTS - 1)
    above = draft * tl.load(deltas_ptr + KNOTS - 1)
    above += weight * tl.maximum(target - last * draft, 0.0)
    inner = (draft > 0.0) & (lower < KNOTS - 1)
    masses = tl.where(inner, draft * between, above)
    return tl.where(recovered, tl.where(target > 0.0, masses, 0.0), target)


@jit
def names_at(kind, depth, index):
    """Role and names of a stop's numbers."""
    role = tl.where(kind == FROM_BONUS, BONUS, RESIDUAL).to(tl.int64)
    return role, index | (depth << 24)


@kernel
def residual_masses_kernel(
    target_logits_ptr,  # [batch * target_nodes, vocab]
    target_row_stride,
    draft_logits_ptr,  # [batch * draft_nodes, vocab]
    draft_row_stride,
    target_nodes,
    draft_nodes,
    target_maxima_ptr,  # [batch * target_nodes, groups] float32
    laws_ptr,  # [batch * target_nodes, 2, LAW] float32
    knots_ptr,  # [KNOTS] float32
    stops_ptr,  # [batch, STOP] int32
    weights_ptr,  # [batch] float32
    deltas_ptr,  # [batch, KNOTS] float32
    group_masses_ptr,  # [batch, groups] float32
    winners_ptr,  # [batch, slices, 4] float32: mass, tokens, key, token of a slice
    seed_ptr,
    sequence_ptr,
    step_ptr,  # [batch] int64
    vocab,
    num_groups,
):
    """The masses of one slice of a stop and of its groups, and the winner of its own race."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    kind = tl.load(stops_ptr + row * STOP + S_KIND)
    if kind == NOTHING:
        return
    node = tl.load(stops_ptr + row * STOP + S_NODE)
    depth = tl.load(stops_ptr + row * STOP + S_DEPTH)
    _, _, _, value, _, _ = load_law(laws_ptr, node, 0)
    reached = reached_groups(target_maxima_ptr, node, part, num_groups, value)
    groups = part * (SLICE // GROUP) + tl.arange(0, SLICE // GROUP)
    group_ptr = group_masses_ptr + row.to(tl.int64) * num_groups + groups
    out_ptr = winners_ptr + (row.to(tl.int64) * tl.num_programs(1) + part) * 4
    if tl.max(reached.to(tl.int32), 0) == 0:
        tl.store(group_ptr, tl.zeros_like(groups).to(tl.float32), mask=groups < num_groups)
        tl.store(out_ptr, 0.0)
        tl.store(out_ptr + 1, 0.0)
        return
    tokens = part * SLICE + tl.arange(0, SLICE)
    masses = masses_at(
        tokens,
        tokens_of_groups(reached) & (tokens < vocab),
        kind,
        node,
        target_logits_ptr,
        target_row_stride,
        draft_logits_ptr,
        draft_row_stride,
        target_nodes,
        draft_nodes,
        laws_ptr,
        knots_ptr,
        deltas_ptr + row * KNOTS,
        tl.load(weights_ptr + row),
    )
    by_group = tl.sum(tl.reshape(masses, (SLICE // GROUP, GROUP)), 1)
    tl.store(group_ptr, by_group, mask=groups < num_groups)
    count = tl.sum((masses > 0.0).to(tl.int32), 0)
    tl.store(out_ptr, tl.sum(by_group, 0))
    tl.store(out_ptr + 1, count.to(tl.float32))
    if (count > 0) & (count <= DIRECT):
        role, names = names_at(kind, depth, tokens)
        numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, role, names)
        token, key = race(masses, numbers, tokens)
        tl.store(out_ptr + 2, key)
        tl.store(out_ptr + 3, token.to(tl.int32).to(tl.float32, bitcast=True))


@kernel
def residual_draw_kernel(
    target_logits_ptr,  # [batch * target_nodes, vocab]
    target_row_stride,
    draft_logits_ptr,  # [batch * draft_nodes, vocab]
    draft_row_stride,
    target_nodes,
    draft_nodes,
    laws_ptr,  # [batch * target_nodes, 2, LAW] float32
    knots_ptr,  # [KNOTS] float32
    stops_ptr,  # [batch, STOP] int32
    weights_ptr,  # [batch] float32
    deltas_ptr,  # [batch, KNOTS] float32
    group_masses_ptr,  # [batch, groups] float32
    winners_ptr,  # [batch, slices, 4] float32
    seed_ptr,
    sequence_ptr,
    step_ptr,  # [batch] int64
    output_ptr,  # [batch, length + 1] int64
    length,
    vocab,
    num_groups,
    slices,
    SLICES: tl.constexpr,
):
    """The last token of one row, from the races or the masses of its slices."""
    row = tl.program_id(0)
    kind = tl.load(stops_ptr + row * STOP + S_KIND)
    if kind == NOTHING:
        return
    node = tl.load(stops_ptr + row * STOP + S_NODE)
    depth = tl.load(stops_ptr + row * STOP + S_DEPTH)
    lane = tl.arange(0, SLICES)
    part_ptr = winners_ptr + (row.to(tl.int64) * slices + lane) * 4
    masses = tl.load(part_ptr, mask=lane < slices, other=0.0)
    counts = tl.load(part_ptr + 1, mask=lane < slices, other=0.0)
    role, slice_names = names_at(kind, depth, lane)
    count = tl.sum(counts, 0)
    if count <= DIRECT:
        keys = tl.load(part_ptr + 2, mask=(lane < slices) & (counts > 0), other=-1.0)
        winners = tl.load(part_ptr + 3, mask=(lane < slices) & (counts > 0), other=0.0)
        winners = winners.to(tl.int32, bitcast=True)
        token = tl.min(tl.where(keys == tl.max(keys, 0), winners, NO_TOKEN), 0)
        if count == 0:
            # the walk saw mass where every token's own has rounded to 0
            top_ptr = laws_ptr + node.to(tl.int64) * 2 * LAW + L_TOP_ID
            token = tl.load(top_ptr).to(tl.int32, bitcast=True)
    else:
        chosen = tl.full((), 0, tl.int32)
        if slices > 1:
            numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, role + 1, slice_names)
            chosen, _ = race(masses, numbers, lane)
        groups = chosen * (SLICE // GROUP) + tl.arange(0, SLICE // GROUP)
        group_ptr = group_masses_ptr + row.to(tl.int64) * num_groups + groups
        by_group = tl.load(group_ptr, mask=groups < num_groups, other=0.0)
        _, group_names = names_at(kind, depth, groups)
        numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, role + 2, group_names)
        group, _ = race(by_group, numbers, groups)
        tokens = group * GROUP + tl.arange(0, GROUP)
        weights = masses_at(
            tokens,
            tokens < vocab,
            kind,
            node,
            target_logits_ptr,
            target_row_stride,
            draft_logits_ptr,
            draft_row_stride,
            target_nodes,
            draft_nodes,
            laws_ptr,
            knots_ptr,
            deltas_ptr + row * KNOTS,
            tl.load(weights_ptr + row),
        )
        _, token_names = names_at(kind, depth, tokens)
        numbers = exponential(seed_ptr, sequence_ptr, step_ptr, row, role, token_names)
        token, _ = race(weights, numbers, tokens)
    tl.store(output_ptr + row.to(tl.int64) * (length + 1) + depth, token.to(tl.int64))
