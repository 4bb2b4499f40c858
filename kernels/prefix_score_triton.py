# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""What a search of kernels/prefix_search.py compares, on a GPU: order, sums and bound of a prefix.

    A(t)     = {standing >= t} of the support;  its score does not decrease as t falls
    standing = x, or for typical sampling -|x - c| with the centre c = max + T L / S
    n, S - 1, L of A(t) : sum 1, sum w - 1, sum w log2 w with w = 2**(scale (x - max))
    holds(A) : score(n, S - 1, L) <= bound, or n <= min_tokens_to_keep;  S(A) < bound for top-p and typical

Sums only grow by terms of one sign, so a prefix found from float32 sums is right but where the score
is within rounding of its bound, an interval but for tokens within rounding of its ends.
"""

from __future__ import annotations

from ._triton import jit, tl
from .row_stats_triton import LN2, exponents, in_support, log1p

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
