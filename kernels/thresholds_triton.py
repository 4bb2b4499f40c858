# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Bounds and thresholds of the rules on a GPU, from the sums of a support.

The formulas are those of the files of the rules, with d = x - max:
    min-p        d >= T ln min_p                       epsilon   d >= T (ln S + ln epsilon)
    top-n-sigma  d >= -n std                           eta       d >= T (ln S + min(ln eta, ln(eta) / 2 - H))
    top-a        d >= T (ln a - ln S)                  p-less    d >= T min(ln(c S), 0), c = Q / S**2
    top-h        H(A) <= alpha H                       top-p, typical    S(A) < p S
A threshold is a logit and, among those equal to it, the last token id that is kept.
"""

from __future__ import annotations

from ._triton import jit, tl
from .prefix_score_triton import (
    EPSILON,
    ETA,
    N_SIGMA,
    P_LESS,
    P_LESS_NORMALIZED,
    TOP_A,
    TOP_H,
    TOP_K,
    TOP_P,
    TYPICAL,
)
from .row_stats_triton import LN2, log1p


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
