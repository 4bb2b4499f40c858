"""Every truncation rule by sorting and scanning in float64, and the rows that it is compared on.

A row in order is `ordered` (logit descending, then token id ascending, -inf left out); a support is
a slice `(start, stop)` of it. A float32 implementation may take the other side where a score is
within BAND nats of its bound, so a rule maps a support to the set of slices that are right.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from warpdraft import (
    Epsilon,
    Eta,
    MinP,
    PLess,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    truncate,
)

BAND = 1e-5

SMALL_VOCABS = (1, 2, 31, 127, 1000)
VOCABS = (*SMALL_VOCABS, 8193, 32000, 128256, 262144)


def one_hot(vocab, rng):
    row = np.full(vocab, -np.inf)
    row[rng.integers(vocab)] = 3.0
    return row


def spike(vocab, rng):
    """One logit 30 above a tail that is almost flat."""
    row = rng.normal(0, 1e-2, vocab)
    row[rng.integers(vocab)] = 30.0
    return row


def uniform(vocab, rng):
    return np.full(vocab, 1.5)


def gaussian(vocab, rng):
    return rng.normal(0, 2.5, vocab)


def zipf(vocab, rng):
    return rng.permutation(-1.1 * np.log(np.arange(1, vocab + 1)))


def bf16_ties(vocab, rng):
    row = torch.from_numpy(rng.normal(0, 1, vocab)).bfloat16()
    return row.double().numpy()


def two_values(vocab, rng):
    """Two large groups of ties."""
    return np.where(rng.random(vocab) < 0.25, 1.0, 0.0)


def masked_tail(vocab, rng):
    """Nine logits of ten are -inf."""
    row = rng.normal(0, 3, vocab)
    row[rng.permutation(vocab)[vocab // 10 + 1 :]] = -np.inf
    return row


def far_apart(vocab, rng):
    """Logits so far apart that all but a few weights vanish in float32."""
    return rng.normal(0, 100, vocab)


KINDS = (
    one_hot,
    spike,
    uniform,
    gaussian,
    zipf,
    bf16_ties,
    two_values,
    masked_tail,
    far_apart,
)
TIE_FREE = (gaussian, zipf, masked_tail)


@functools.cache
def row_of(kind, vocab, seed=0):
    """A float32 row `[1, vocab]`."""
    return torch.from_numpy(kind(vocab, np.random.default_rng(seed)).astype(np.float32))[None]


@functools.cache
def _in_order(kind, vocab):
    return in_order(row_of(kind, vocab)[0])


def in_order(row):
    """The finite logits in order, float64, and their token ids."""
    logits = row.double().numpy()
    ids = np.flatnonzero(logits > -np.inf)
    order = np.argsort(-logits[ids], kind="stable")
    return logits[ids][order], ids[order]


def supports(rule, ordered, start, stop, temperature):
    """The right slices after `rule`, as a set."""
    x = ordered[start:stop]
    z = (x - x[0]) / temperature
    weights = np.exp(z)
    probs = weights / weights.sum()
    counts = _kept_counts(rule, x, z, probs)
    if isinstance(rule, Typical):
        return {(start + first, start + last) for first, last in counts}
    kept = set()
    for count in counts:
        count = max(count, min(rule.min_tokens_to_keep, len(x)))
        if rule.ties == "all":
            count = int(np.count_nonzero(x >= x[count - 1]))
        kept.add((start, start + count))
    return kept


def _kept_counts(rule, x, z, probs):
    if isinstance(rule, Typical):
        return _typical(rule, z, probs)
    if isinstance(rule, TopK):
        return {min(int(rule.top_k), len(x))}
    if isinstance(rule, TopH) and rule.variant == "transformers":
        head = np.exp(z[:100])
        head /= head.sum()
        surprise = -head * np.log(np.where(head > 0, head, 1.0))
        if rule.alpha >= 1:
            return {int(np.count_nonzero(head > 0))}
        return _at_most(np.cumsum(surprise), rule.alpha * surprise.sum(), BAND)
    if isinstance(rule, TopH):
        if rule.alpha >= 1:
            return {len(x)}
        weights = np.exp(z)
        excess = np.append(0.0, np.cumsum(weights[1:]))
        entropy = np.log1p(excess) - np.cumsum(weights * z) / (1 + excess)
        return _at_most(entropy, rule.alpha * entropy[-1], BAND)
    if isinstance(rule, TopP):
        if rule.top_p >= 1:
            return {len(x)}
        before = np.append(0.0, np.cumsum(probs)[:-1])
        least = int(np.count_nonzero(before < rule.top_p * (1 - BAND)))
        most = int(np.count_nonzero(before < rule.top_p * (1 + BAND)))
        return set(range(max(least, 1), max(most, 1) + 1))
    if isinstance(rule, TopNSigma):
        sigma = x.std(ddof=1) if len(x) > 1 else 0.0
        return _at_most(x[0] - x, rule.n_sigma * sigma, BAND * max(sigma, 1.0))
    return _at_most(-np.log(probs[0]) - z, -_least_logprob(rule, z, probs), BAND)


def _least_logprob(rule, z, probs):
    with np.errstate(divide="ignore"):
        if isinstance(rule, MinP):
            return np.log(probs[0]) + np.log(rule.min_p)
        if isinstance(rule, Epsilon):
            return np.log(rule.epsilon_cutoff)
        if isinstance(rule, Eta):
            logprobs = np.log(probs[0]) + z
            entropy = -(probs * logprobs).sum()
            return np.log(min(rule.eta_cutoff, np.sqrt(rule.eta_cutoff) * np.exp(-entropy)))
        if isinstance(rule, TopA):
            return np.log(rule.top_a) + 2 * np.log(probs[0])
        if isinstance(rule, PLess):
            agreement = (probs**2).sum()
            if rule.normalized:
                agreement = max(len(probs) * agreement - 1, 0.0) / max(len(probs) - 1, 1)
            # of a uniform row nothing but rounding is left
            return np.log(agreement) if agreement > 1e-12 else -np.inf
    raise AssertionError(f"no reference for {rule}")


def _at_most(scores, bound, band):
    """All counts of leading scores that are at most `bound`, which may be off by `band`."""
    least = int(np.count_nonzero(scores <= bound - band))
    most = int(np.count_nonzero(scores <= bound + band))
    return set(range(max(least, 1), max(most, 1) + 1))


def _typical(rule, z, probs):
    if rule.typical_p >= 1:
        return {(0, len(z))}
    entropy = np.log(np.exp(z).sum()) - (probs * z).sum()
    distance = np.abs(-np.log(probs[0]) - z - entropy)
    order = np.argsort(distance, kind="stable")
    mass = np.cumsum(probs[order])
    slices = set()
    for off in (-BAND, 0.0, BAND):
        last = int(np.searchsorted(mass, rule.typical_p * (1 + off)))
        last = min(max(last, rule.min_tokens_to_keep - 1), len(z) - 1)
        for apart in (-BAND, 0.0, BAND):
            kept = np.flatnonzero(distance <= distance[order[last]] + apart)
            if len(kept):
                slices.add((int(kept[0]), int(kept[-1]) + 1))
    return slices


def assert_right(masked, row, rules, temperature=1.0, ordered=None):
    """The masked row holds the logits of one of the right supports, and -inf elsewhere."""
    logits, ids = in_order(row) if ordered is None else ordered
    right = {(0, len(logits))}
    for rule in rules:
        right = {
            after
            for start, stop in right
            for after in supports(rule, logits, start, stop, temperature)
        }
    kept = masked > -torch.inf
    assert torch.equal(masked[kept], row[kept])
    found = np.sort(np.flatnonzero(kept.numpy()))
    by_count = [support for support in right if support[1] - support[0] == len(found)]
    assert any(np.array_equal(np.sort(ids[start:stop]), found) for start, stop in by_count), (
        f"{rules} at T = {temperature}: {len(found)} tokens kept, right are {sorted(right)[:9]}"
    )


def assert_right_on(vocab, rule, temperatures=(1.0,)):
    """`truncate` against the reference on a row of every kind, the large ones at one temperature."""
    for kind in KINDS:
        row = row_of(kind, vocab)
        before = row.clone()
        for temperature in temperatures if vocab <= 8193 else temperatures[-1:]:
            masked = truncate(row, rule, temperature=temperature)
            assert torch.equal(row, before)
            assert_right(masked[0], row[0], [rule], temperature, _in_order(kind, vocab))
