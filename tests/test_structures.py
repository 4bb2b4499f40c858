"""Draft structures: how many tokens every node draws, and with what law."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from warpdraft.draft_tree import DraftTree
from warpdraft.kernels.noise import Noise
from warpdraft.laws import Law
from warpdraft.structures import (
    Beam,
    LevelLaws,
    Paths,
    Rollover,
    StochasticBeam,
    get_drafter,
    share_out,
)

# about 20 comparisons: less than one false alarm in a million runs with other seeds
ALARM = 1e-6 / 20
VOCAB = 5


def chain(seed: int, *, zeros: bool = False) -> torch.Tensor:
    """Next-token laws `[VOCAB + 1, VOCAB]` after each token; the last line is the root's."""
    laws = np.random.default_rng(seed).dirichlet(np.ones(VOCAB), VOCAB + 1)
    if zeros:
        laws[::2, 1] = 0
    return torch.from_numpy(laws / laws.sum(1, keepdims=True))


def grow(drafter, laws: torch.Tensor, batch: int, length: int, seed: int = 0) -> DraftTree:
    """Draft from a Markov chain instead of a model."""
    tree = DraftTree(batch, torch.device("cpu"))
    noise = Noise.create(batch, seed=seed, device="cpu")
    for depth in range(length):
        if depth == 0:
            last = torch.full((batch, 1), VOCAB)
            filled = torch.ones_like(last, dtype=torch.bool)
        else:
            last, filled = tree.levels[-1].token_ids, tree.levels[-1].filled
        row = torch.where(filled, (filled.flatten().cumsum(0) - 1).view_as(last), -1)
        tree.grow(drafter.draws(tree, LevelLaws(Law.of_probs(laws[last[filled]]), row), noise))
    return tree


def probability(laws: torch.Tensor, token_ids) -> float:
    """Of one path of the chain."""
    last, chance = VOCAB, 1.0
    for token in token_ids:
        chance *= float(laws[last, token])
        last = token
    return chance


def p_value(counts: Counter, law: dict, rows: int) -> float:
    assert np.isclose(sum(law.values()), 1)
    if any(law.get(outcome, 0) == 0 for outcome in counts):
        return 0.0
    common = [outcome for outcome, chance in law.items() if chance * rows >= 5]
    observed = [counts[outcome] for outcome in common]
    expected = [law[outcome] * rows for outcome in common]
    observed.append(rows - sum(observed))
    expected.append(rows - sum(expected))
    pairs = [pair for pair in zip(observed, expected, strict=True) if pair[1] > 1e-6]
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs)
    return float(chi2.sf(statistic, len(pairs) - 1))


def outcomes(tree: DraftTree) -> Counter:
    return Counter(tuple(map(tuple, paths)) for paths in tree.token_ids.tolist())


# ---- paths


def test_paths_are_independent_samples_of_the_draft() -> None:
    laws, rows = chain(0), 20_000
    tree = grow(Paths(2), laws, rows, 2)
    assert tree.drawn.all()
    every = list(itertools.product(range(VOCAB), repeat=2))
    law = {
        (one, other): probability(laws, one) * probability(laws, other)
        for one, other in itertools.product(every, repeat=2)
    }
    assert p_value(outcomes(tree), law, rows) > ALARM


def test_top_tokens_come_first_and_the_rest_excludes_them() -> None:
    laws, rows = chain(1), 20_000
    tree = grow(Paths(4, num_top=2), laws, rows, 2)
    top = laws[VOCAB].argsort(descending=True)[:2].tolist()
    assert (tree.token_ids[:, 0, 0] == top[0]).all()
    assert (tree.token_ids[:, 1, 0] == top[1]).all()
    rest = laws[VOCAB].clone()
    rest[top] = 0
    rest /= rest.sum()
    counts = Counter(map(tuple, tree.token_ids[:, 2:, 0].tolist()))
    law = {(a, b): float(rest[a] * rest[b]) for a, b in itertools.product(range(VOCAB), repeat=2)}
    assert p_value(counts, law, rows) > ALARM
    second = Counter(tree.token_ids[:, 0, 1].tolist())
    assert p_value(second, dict(enumerate(laws[top[0]].tolist())), rows) > ALARM


def test_top_tokens_without_a_rest_leave_the_other_paths_undrawn() -> None:
    laws = torch.zeros(VOCAB + 1, VOCAB, dtype=torch.float64)
    laws[:, 2], laws[:, 4] = 0.7, 0.3
    tree = grow(Paths(4, num_top=3), laws, 1, 1)
    assert tree.token_ids[0, :, 0].tolist() == [2, 4, -1, -1]
    assert tree.drawn[0, :, 0].tolist() == [True, True, False, False]


# ---- rollover


@given(
    draws=st.integers(0, 40),
    shares=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8),
)
@settings(deadline=None, derandomize=True)
def test_shares_are_met_to_within_the_nodes(draws: int, shares: list[float]) -> None:
    counts = share_out(draws, shares)
    assert sum(counts) == draws
    # Webster's method: no node could give a draw to another that is worse off
    for (got, share), (other, rival) in itertools.permutations(zip(counts, shares, strict=True), 2):
        if got > 0:
            assert share / (got - 0.5) >= rival / (other + 0.5) * (1 - 1e-12)


@pytest.mark.parametrize(("budget", "length"), [(4, 4), (9, 3), (16, 4), (20, 6)])
def test_rollover_stays_within_its_budget_and_spends_it(budget: int, length: int) -> None:
    laws = chain(2, zeros=True)
    tree = grow(Rollover(budget, length), laws, 200, length)
    nodes = sum(level.filled.sum(1) for level in tree.levels)
    assert int(nodes.max()) <= budget
    draws = tree.drawn.sum(1)
    assert (draws[:, 0] == budget // length).all()
    # a level never draws less than the one above: duplicates only give
    assert (draws[:, 1:] >= draws[:, :-1]).all()
    above = torch.cat([torch.zeros(200, 1), *(x.filled.sum(1)[:, None] for x in tree.levels)], 1)
    left = budget - above.cumsum(1)
    for depth in range(length):
        assert torch.equal(draws[:, depth], left[:, depth].long() // (length - depth))


def test_rollover_without_duplicates_is_plain_paths() -> None:
    # a vocabulary that never repeats: every path its own token, then chains
    laws = torch.full((VOCAB + 1, VOCAB), 1 / VOCAB, dtype=torch.float64)
    tree = grow(Rollover(6, 3), laws, 400, 3)
    distinct = torch.stack([x.filled.sum(1) for x in tree.levels], 1)
    plain = (distinct == 2).all(1)
    assert plain.any()
    assert tree.drawn[plain][:, :2].all()
    assert not tree.drawn[plain][:, 2:].any()


def test_rollover_draws_follow_the_draft() -> None:
    laws, rows = chain(3), 20_000
    tree = grow(Rollover(4, 2), laws, rows, 2)
    # path 0 is drawn at every depth that it has, and by i.i.d. draws alone
    counts = Counter(tuple(path) for path in tree.token_ids[:, 0].tolist() if path[1] >= 0)
    every = itertools.product(range(VOCAB), repeat=2)
    law = {path: probability(laws, path) for path in every}
    assert p_value(counts, law, sum(counts.values())) > ALARM


# ---- without replacement


def test_root_draws_are_those_without_replacement() -> None:
    laws, rows = chain(4), 20_000
    tree = grow(StochasticBeam(3), laws, rows, 1)
    root = laws[VOCAB].tolist()
    law = {}
    for first, second, third in itertools.permutations(range(VOCAB), 3):
        chance = root[first] * root[second] / (1 - root[first])
        law[(first,), (second,), (third,)] = chance * root[third] / (1 - root[first] - root[second])
    assert p_value(outcomes(tree), law, rows) > ALARM


def test_a_beam_is_a_draw_of_texts_without_replacement() -> None:
    # the set of K prefixes of a level has the law of K successive draws of whole prefixes without replacement
    laws, rows = chain(5, zeros=True), 30_000
    tree = grow(StochasticBeam(2), laws, rows, 2)
    counts = Counter(
        frozenset(tuple(path) for path in paths if path[-1] >= 0)
        for paths in tree.token_ids.tolist()
    )
    texts = {path: probability(laws, path) for path in itertools.product(range(VOCAB), repeat=2)}
    law: dict[frozenset, float] = {}
    for one, other in itertools.permutations(texts, 2):
        chance = texts[one] * texts[other] / (1 - texts[one])
        law[frozenset({one, other})] = law.get(frozenset({one, other}), 0.0) + chance
    assert p_value(counts, law, rows) > ALARM


def test_a_second_candidate_given_the_first_is_a_plain_draw_of_the_rest() -> None:
    # what a verifier relies on; the first, given that there are two, is no plain draw: a rare one leaves more to come
    laws, rows = chain(6), 30_000
    tree = grow(StochasticBeam(3), laws, rows, 2)
    for token in range(VOCAB):
        pairs = Counter()
        for tokens, drawn in zip(tree.token_ids.tolist(), tree.drawn.tolist(), strict=True):
            below = [
                path[1]
                for path, own in zip(tokens, drawn, strict=True)
                if path[0] == token and own[1]
            ]
            if len(below) == 2:
                pairs[tuple(below)] += 1
        law = {
            (a, b): float(laws[token, a] * laws[token, b] / (1 - laws[token, a]))
            for a, b in itertools.permutations(range(VOCAB), 2)
        }
        assert sum(pairs.values()) > 250
        firsts = Counter()
        for (first, _), number in pairs.items():
            firsts[first] += number
        seconds = p_value(pairs, _given_first(law, firsts), sum(pairs.values()))
        assert seconds > ALARM


def _given_first(law: dict, firsts: Counter) -> dict:
    """The law of the pairs, their first tokens as often as they were seen."""
    total = sum(firsts.values())
    first_law = Counter()
    for (first, _), chance in law.items():
        first_law[first] += chance
    return {
        (first, second): chance / first_law[first] * firsts[first] / total
        for (first, second), chance in law.items()
    }


def test_candidates_of_a_node_are_distinct_and_end_with_its_tokens() -> None:
    laws = torch.zeros(VOCAB + 1, VOCAB, dtype=torch.float64)
    laws[:, 0], laws[:, 3] = 0.9, 0.1
    tree = grow(StochasticBeam(4), laws, 50, 3)
    for tokens, drawn in zip(tree.token_ids.tolist(), tree.drawn.tolist(), strict=True):
        at_root = [path[0] for path, own in zip(tokens, drawn, strict=True) if own[0]]
        assert sorted(at_root) == [0, 3]
    for paths in tree.token_ids.tolist():
        whole = [tuple(path) for path in paths if path[-1] >= 0]
        assert len(set(whole)) == len(whole) == 4


# ---- the most likely prefixes


@pytest.mark.parametrize("seed", range(5))
def test_beam_keeps_the_most_likely_children_of_the_level_above(seed: int) -> None:
    laws = chain(seed, zeros=True)
    tree = grow(Beam(3), laws, 2, 3)
    kept = [()]
    for depth in range(1, 4):
        children = [(*path, token) for path in kept for token in range(VOCAB)]
        kept = sorted(children, key=lambda path: -probability(laws, path))[:3]
        found = {tuple(path[:depth]) for path in tree.token_ids[0].tolist() if path[depth - 1] >= 0}
        assert found == set(kept)
    assert torch.equal(tree.token_ids[0], tree.token_ids[1])


# ---- the door

DOOR = {"structure": "paths", "num_drafts": 4, "draft_length": 4, "num_top": 0, "node_budget": None}


@pytest.mark.parametrize(
    ("drafts", "change", "message"),
    [
        ("iid", {"structure": "tree"}, "structure must be one of"),
        ("iid", {"node_budget": 8}, "belongs to structure"),
        ("beam", {"structure": "rollover"}, "i.i.d."),
        ("iid", {"structure": "rollover", "num_top": 1}, "i.i.d."),
        ("iid", {"structure": "rollover", "node_budget": 3}, r"node_budget must be in \[4, 2048\]"),
        ("beam", {"num_drafts": 1024}, "at most 2048"),
    ],
)
def test_what_does_not_fit_is_refused(drafts, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        get_drafter(drafts, **DOOR | change)
