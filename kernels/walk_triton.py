# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The walk down a block's draft paths on a GPU: one program a row of the batch, all its depths.

At a node with n candidates and weight w, m_j the draft's mass at knot rho_j and s_j = 1 + (1 - beta_j) + ..
+ (1 - beta_j)**(n - 1), so that p_acc = beta s and nothing cancels:
    k_seq     1 / rho = mean of 1 / rho_j, 1 / rho_(j+1) with weights lam, 1 - lam;  beta that of C_j / rho_j, ..
              the smallest rho with s <= rho (up to VALID);  accept with a(r), that mean of min(1, r / rho_j), ..
              delta_i = rho_i - a(rho_i) s
    optimal   phi and ranks of selection_triton.py;  psi_j = min(phi_j, w rho_j),  w' = psi(r) / phi(r)
              delta_i = w rho_i - psi_i,  R = w - sum m psi;  accept with w', or carry it down (optimal_block)
    block     stop at the deepest node with v (1 - w + R) < R, unless v < w at the leaf
Since a(r) <= r / rho and psi is a chord of a concave function, every delta is at least 0: the residual is
a law, and the emitted token's law is the target's exactly, whatever the knots. The walk writes what it
accepts and where it stops; kernels/residual_triton.py draws the token there.

A recovered token ends the walk, also where it equals a candidate that was rejected.
"""

from __future__ import annotations

from ._triton import jit, kernel, tl
from .draw_triton import noise_words
from .ratio_sums_triton import KNOTS, L_STATUS, LAW, load_law, probabilities
from .residual_triton import (
    FROM_BONUS,
    FROM_RESIDUAL,
    FROM_TARGET,
    NOTHING,
    S_DEPTH,
    S_KIND,
    S_NODE,
    STOP,
)
from .selection_triton import selection

K_SEQ = tl.constexpr(0)
OPTIMAL = tl.constexpr(1)
OPTIMAL_BLOCK = tl.constexpr(2)

RANK = tl.constexpr(12)
ACCEPT = tl.constexpr(13)
"""Role.RANK and Role.ACCEPT."""

EXHAUSTED = tl.constexpr(1e-6)
"""A residual mass that is all rounding: sums of float32 laws of mass 1 are wrong by as much. A walk stops there with
that chance at most, so the emitted law moves by no more."""

NEGLIGIBLE = tl.constexpr(1e-7)
"""A part of w t that counts as accepted: less than float32 laws tell apart, and else rounding decides which
tokens have a mass at all. Together such parts are at most this share of w."""

VALID = tl.constexpr(1.0 + 1e-6)
"""The most of s / rho that is valid: where the models agree s - rho is flat at its root, and the rounding of
float32 sums would make rho 0.5 % too large. What turns negative by it, at most 1e-6 t, is cut off the residual."""

SEARCHES = tl.constexpr(6)
"""Of lam, 32 values each: 1e-9 apart in the end."""


@jit
def uniforms(seed_ptr, sequence_ptr, step_ptr, row, ROLE: tl.constexpr, depth, path):
    """The numbers in (0, 1) of some paths at a depth, float64."""
    names = tl.zeros_like(path) + (depth << 24)
    place = (path.to(tl.int64) << 16) | (ROLE << 28)
    word = noise_words(seed_ptr, sequence_ptr, step_ptr, row, place, names)
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@jit
def node_sums(sums_ptr, node, slices, lane, SLICES: tl.constexpr):
    """C of a node at the knots of the lanes, 0 where there is no such knot."""
    part = tl.arange(0, SLICES)[:, None]
    inside = (part < slices) & (lane[None, :] >= 0) & (lane[None, :] < KNOTS)
    sums_ptr += (node.to(tl.int64) * slices + part) * KNOTS + lane[None, :]
    return tl.sum(tl.load(sums_ptr, mask=inside, other=0.0).to(tl.float64), 0)


@jit
def tries(beta, n):
    """p_acc / beta = 1 + (1 - beta) + .. + (1 - beta)**(n - 1)."""
    total = 0.0 * beta + 1.0
    number = n
    while number > 1:
        total = total * (1.0 - beta) + 1.0
        number -= 1
    return total


@jit
def k_seq_plan(sums, knots, n):
    """The smallest valid rho.

    Returns:
        lam, rho_j, rho_(j+1), p_acc / beta, p_acc.
    """
    lane = tl.arange(0, KNOTS)
    count = n.to(tl.float64)
    inner = knots >= 1.0
    share = tl.where(inner, sums / tl.where(inner, knots, 1.0), 0.0)
    beta = tl.minimum(share, 1.0)
    valid = inner & ((tries(beta, n) <= knots * VALID) | (knots >= count) | (lane == KNOTS - 1))
    upper = tl.min(tl.where(valid, lane, KNOTS), 0)
    first = tl.min(tl.where(inner, lane, KNOTS), 0)
    lower = tl.maximum(upper - 1, first)
    rho_lower = tl.sum(tl.where(lane == lower, knots, 0.0), 0)
    rho_upper = tl.sum(tl.where(lane == upper, knots, 0.0), 0)
    beta_lower = tl.sum(tl.where(lane == lower, beta, 0.0), 0)
    beta_upper = tl.sum(tl.where(lane == upper, beta, 0.0), 0)
    # lam = 0 is valid, and of growing lam the first ones are
    low = 0.0 * count
    width = 0.0 * count + 1.0
    for _ in range(SEARCHES):
        width = width / KNOTS
        lam = low + width * (lane + 1).to(tl.float64)
        mixed = lam * beta_lower + (1.0 - lam) * beta_upper
        inverse = lam / rho_lower + (1.0 - lam) / rho_upper
        fails = tries(mixed, n) * inverse > VALID
        low = low + width * tl.min(tl.where(fails, lane, KNOTS - 1), 0).to(tl.float64)
    lam = tl.where(lower == upper, 0.0, low)
    mixed = lam * beta_lower + (1.0 - lam) * beta_upper
    total = tries(mixed, n)
    return lam, rho_lower, rho_upper, total, mixed * total


@jit
def k_seq_acceptance(ratio, lam, rho_lower, rho_upper):
    """a(r)."""
    below = tl.minimum(ratio / rho_lower, 1.0)
    return lam * below + (1.0 - lam) * tl.minimum(ratio / rho_upper, 1.0)


@jit
def store_stop(stops_ptr, weights_ptr, deltas_ptr, row, kind, depth, node, weight, deltas):
    """Write where a row stops; a later stop takes its place."""
    tl.store(stops_ptr + row * STOP + S_KIND, kind)
    tl.store(stops_ptr + row * STOP + S_DEPTH, depth)
    tl.store(stops_ptr + row * STOP + S_NODE, node)
    tl.store(weights_ptr + row, weight.to(tl.float32))
    tl.store(deltas_ptr + row * KNOTS + tl.arange(0, KNOTS), deltas.to(tl.float32))


@kernel
def walk_kernel(
    target_logits_ptr,  # [batch * target_nodes, vocab]
    target_row_stride,
    draft_logits_ptr,  # [batch * draft_nodes, vocab]
    draft_row_stride,
    target_nodes,
    draft_nodes,
    laws_ptr,  # [batch * target_nodes, 2, LAW] float32
    sums_ptr,  # [batch * target_nodes, slices, KNOTS] float32
    knots_ptr,  # [KNOTS] float32
    draft_token_ids_ptr,  # [batch, paths, length] int64
    drawn_ptr,  # [batch, paths, length] bool
    node_index_ptr,  # [batch, paths, length + 1] int64
    stops_ptr,  # [batch, STOP] int32
    weights_ptr,  # [batch] float32
    deltas_ptr,  # [batch, KNOTS] float32
    output_ptr,  # [batch, length + 1] int64
    num_accepted_ptr,  # [batch] int64
    survivor_path_ptr,  # [batch] int64
    status_ptr,  # [batch] int8
    seed_ptr,
    sequence_ptr,
    step_ptr,  # [batch] int64
    num_paths,
    length,
    slices,
    VERIFIER: tl.constexpr,
    LEX: tl.constexpr,
    PATHS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SLICES: tl.constexpr,
):
    """The accepted tokens of one row, and where its last token is drawn."""
    row = tl.program_id(0)
    lane = tl.arange(0, KNOTS)
    paths = tl.arange(0, PATHS)
    knots = tl.load(knots_ptr + lane).to(tl.float64)
    zero = tl.full((), 0, tl.int32)
    weight = tl.full((), 1.0, tl.float64)
    nothing = tl.zeros((KNOTS,), tl.float64)
    survivors = (paths < num_paths).to(tl.int32)
    first_path = row.to(tl.int64) * num_paths
    path = zero
    depth = zero
    accepted = zero
    status = zero
    tl.store(stops_ptr + row * STOP + S_KIND, NOTHING)

    walking = zero + 1
    while walking == 1:
        here = (paths < num_paths) & (depth < length)
        token_at = (first_path + paths) * length + depth
        drawn = tl.load(drawn_ptr + token_at, mask=here, other=0).to(tl.int32)
        alive = tl.where(drawn != 0, survivors, 0)
        n = tl.sum(alive, 0)
        node = row * target_nodes + tl.load(
            node_index_ptr + (first_path + path) * (length + 1) + depth
        ).to(tl.int32)
        law_ptr = laws_ptr + node.to(tl.int64) * 2 * LAW
        t_status = tl.load(law_ptr + L_STATUS).to(tl.int32)
        d_status = tl.load(law_ptr + LAW + L_STATUS).to(tl.int32)
        status = tl.where((n > 0) & (d_status != 0), d_status, t_status)
        if status != 0:
            walking = zero
        else:
            if n == 0:
                # a leaf
                walking = zero
                ends = zero + 1
                if VERIFIER == OPTIMAL_BLOCK:
                    number = uniforms(seed_ptr, sequence_ptr, step_ptr, row, ACCEPT, depth, zero)
                    ends = (number < weight).to(tl.int32)
                if ends == 1:
                    accepted = depth
                    store_stop(
                        stops_ptr,
                        weights_ptr,
                        deltas_ptr,
                        row,
                        FROM_BONUS,
                        depth,
                        node,
                        0.0 * weight + 1.0,
                        nothing,
                    )
            else:
                sums = node_sums(sums_ptr, node, slices, lane, SLICES)
                tokens = tl.load(draft_token_ids_ptr + token_at, mask=here, other=-1).to(tl.int32)
                asked = alive != 0
                maximum, scale, share, value, index, upper = load_law(laws_ptr, node, 0)
                row_ptr = target_logits_ptr + node.to(tl.int64) * target_row_stride
                target = probabilities(
                    row_ptr, tokens, asked, maximum, scale, share, value, index, upper
                )
                maximum, scale, share, value, index, upper = load_law(laws_ptr, node, 1)
                draft_row = row * draft_nodes + node % target_nodes
                row_ptr = draft_logits_ptr + draft_row.to(tl.int64) * draft_row_stride
                draft = probabilities(
                    row_ptr, tokens, asked, maximum, scale, share, value, index, upper
                )
                ratio = target.to(tl.float64) / tl.where(draft > 0.0, draft, 1.0).to(tl.float64)
                ratio = tl.where((draft > 0.0) & asked, ratio, 0.0)
                if VERIFIER == K_SEQ:
                    lam, rho_lower, rho_upper, total, chance = k_seq_plan(sums, knots, n)
                    deltas = knots - k_seq_acceptance(knots, lam, rho_lower, rho_upper) * total
                    recovered = 1.0 - chance
                    numbers = uniforms(seed_ptr, sequence_ptr, step_ptr, row, ACCEPT, depth, paths)
                    taken = asked & (numbers < k_seq_acceptance(ratio, lam, rho_lower, rho_upper))
                    chosen = tl.min(tl.where(taken, paths, PATHS), 0)
                    stops = chosen == PATHS
                    below = weight
                else:
                    before = node_sums(sums_ptr, node, slices, lane - 1, SLICES)
                    after = node_sums(sums_ptr, node, slices, lane + 1, SLICES)
                    masses, psi, ranks, weights = selection(
                        before,
                        sums,
                        after,
                        knots_ptr,
                        knots,
                        weight,
                        n,
                        ratio,
                        uniforms(seed_ptr, sequence_ptr, step_ptr, row, RANK, depth, paths),
                        LEX,
                    )
                    deltas = weight * knots - psi
                    recovered = weight - tl.sum(masses * psi, 0)
                    ranks = tl.where(asked, ranks, -1.0)
                    highest = tl.max(ranks, 0)
                    chosen = tl.min(tl.where(ranks == highest, paths, PATHS), 0)
                    number = uniforms(seed_ptr, sequence_ptr, step_ptr, row, ACCEPT, depth, zero)
                    below = tl.sum(tl.where(paths == chosen, weights, 0.0), 0)
                    if VERIFIER == OPTIMAL:
                        stops = number >= below
                        below = weight
                    else:
                        rest = tl.maximum(recovered, 0.0)
                        stops = (number * (1.0 - weight + rest) < rest) | (depth == 0)

                walks_on = stops == 0
                if VERIFIER == OPTIMAL_BLOCK:
                    walks_on = below > 0.0
                if stops:
                    deltas = tl.where(deltas > weight * knots * NEGLIGIBLE, deltas, 0.0)
                    kind = tl.where(recovered > EXHAUSTED, FROM_RESIDUAL, FROM_TARGET)
                    accepted = depth
                    store_stop(
                        stops_ptr, weights_ptr, deltas_ptr, row, kind, depth, node, weight, deltas
                    )
                if walks_on:
                    weight = below
                    token = tl.sum(tl.where(paths == chosen, tokens, 0), 0)
                    tl.store(
                        output_ptr + row.to(tl.int64) * (length + 1) + depth, token.to(tl.int64)
                    )
                    survivors = tl.where(tokens == token, survivors, 0)
                    if VERIFIER == OPTIMAL_BLOCK:
                        path = chosen
                    else:
                        path = tl.min(tl.where(survivors != 0, paths, PATHS), 0)
                    depth += 1
                else:
                    walking = zero
                    if VERIFIER == OPTIMAL_BLOCK:
                        path = chosen

    if status != 0:
        tl.store(stops_ptr + row * STOP + S_KIND, NOTHING)
        accepted = zero
        path = zero
    # behind the accepted tokens, also where the walk had gone further; the last token is still drawn
    tl.debug_barrier()
    column = tl.arange(0, OUTPUTS)
    out_ptr = output_ptr + row.to(tl.int64) * (length + 1) + column
    tl.store(
        out_ptr, tl.zeros((OUTPUTS,), tl.int64) - 1, mask=(column >= accepted) & (column <= length)
    )
    tl.store(num_accepted_ptr + row, accepted.to(tl.int64))
    tl.store(survivor_path_ptr + row, path.to(tl.int64))
    tl.store(status_ptr + row, status.to(tl.int8))
