"""Laws under rules that change the temperature, by sums in float64 that share nothing with ours."""

from __future__ import annotations

import numpy as np

from warpdraft import (
    DynamicTemperature,
    EntropyDependentTemperature,
    HapoTemperature,
    MinP,
    TopH,
    TopK,
    TopNSigma,
    TopP,
)


def law_of_row(row, rules, temperature):
    """Probabilities of a row, float64, and the temperature of its draw."""
    x = np.asarray(row, dtype=np.float64)
    kept = x > -np.inf
    heat = float(temperature)
    for rule in rules:
        probs = _softmax(x, kept, heat)
        factor = _factor(rule, _entropy(probs), int(kept.sum()))
        if factor is None:
            kept = kept & _kept(rule, x, kept, probs)
        else:
            heat = float(np.clip(heat * factor, *_ENDS))
    return _softmax(x, kept, heat), heat


_ENDS = 1e-30, 1e30


def _softmax(x, kept, heat):
    weights = np.zeros_like(x)
    weights[kept] = np.exp(np.maximum((x[kept] - x[kept].max()) / heat, -800.0))
    return weights / weights.sum()


def _entropy(probs):
    """- sum p ln p, where the largest p is 1 minus the others."""
    others = np.delete(probs, probs.argmax())
    top = -np.log1p(-others.sum()) * (1 - others.sum())
    others = others[others > 0]
    return float(top - (others * np.log(others)).sum())


def _factor(rule, entropy, count):
    if isinstance(rule, DynamicTemperature):
        share = entropy / np.log(count) if count > 1 else 0.0
        span = rule.maximum - rule.minimum
        return rule.minimum + span * min(share, 1.0) ** rule.exponent
    if isinstance(rule, EntropyDependentTemperature):
        power = rule.theta / entropy if entropy > 0 else (np.inf if rule.theta else 0.0)
        return rule.maximum * rule.base**power
    if isinstance(rule, HapoTemperature):
        apart = (np.log(max(entropy, 1e-6)) - rule.median) / (rule.std + 1e-6)
        apart *= rule.positive_scale if apart > 0 else rule.negative_scale
        return 1 + rule.strength * np.clip(apart, -1, 1)
    return None


def _kept(rule, x, kept, probs):
    if isinstance(rule, TopNSigma):
        sigma = x[kept].std(ddof=1) if kept.sum() > 1 else 0.0
        return x >= x[kept].max() - rule.n_sigma * sigma
    if isinstance(rule, MinP):
        return probs >= rule.min_p * probs.max()
    order = np.argsort(-np.where(kept, x, -np.inf), kind="stable")
    if isinstance(rule, TopK):
        size = min(rule.top_k, int(kept.sum()))
    elif isinstance(rule, TopP):
        size = 1 + int(np.searchsorted(np.cumsum(probs[order]), rule.top_p))
    else:
        assert isinstance(rule, TopH)
        tau = rule.alpha * _entropy(probs)
        size = 1
        while size < kept.sum():
            prefix = probs[order[: size + 1]]
            if _entropy(prefix / prefix.sum()) > tau:
                break
            size += 1
    chosen = np.zeros_like(kept)
    chosen[order[:size]] = True
    return chosen
