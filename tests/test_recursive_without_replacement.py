"""Recursive rejection of distinct candidates: exact acceptance, the code that draws, mutations that must show."""

import pytest
import torch
from enumeration import node_law, optimal_acceptance, random_laws, selection_law
from scipy.stats import chisquare
from test_k_seq import NODES, on_counts, on_nodes
from test_recursive import ALIVE, on_selected, rejected_on

import warpdraft.kernels.recursive as kernel
import warpdraft.verifiers.recursive_without_replacement as without_replacement
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.recursive import distinct_acceptance
from warpdraft.verifiers.recursive import Recursive
from warpdraft.verifiers.recursive_without_replacement import RecursiveWithoutReplacement

RULE = RecursiveWithoutReplacement()


def orders(draft, length):
    """The ordered candidates of that number with draft probability."""
    support = draft.nonzero().squeeze(1)
    every = torch.cartesian_prod(*[support] * length).view(-1, length)
    return [row for row in every if len(row.unique()) == length]


def turns(target, draft, candidates, alive):
    """The chance of each living path to be accepted after those before it were not."""
    ratios = {}
    for path in alive:
        token = candidates[path]
        ratios[path] = min(1.0, float(target[token] / draft[token]))
        target = rejected_on(target, draft, token)
        draft = draft.clone()
        draft[token] = 0
        draft = draft / draft.sum()
    return ratios


@on_counts
@on_nodes
def test_emitted_token_has_the_target_law(node, count):
    law, acceptance = node_law(RULE, *node, count)
    torch.testing.assert_close(law, node[0], rtol=0, atol=1e-12)
    target, draft = node
    expected = RULE.expected_acceptance(target[None], draft[None], count)
    assert float(expected) == pytest.approx(acceptance, abs=1e-12)


def test_acceptance_of_many_rows_at_once():
    target, draft = random_laws(30, 5, 11, spread=0.3), random_laws(30, 5, 12, spread=0.3)
    draft[::3, 1] = 0
    target[::2, 4] = 0
    target, draft = (laws / laws.sum(1, keepdim=True) for laws in (target, draft))
    for count in (1, 2, 3, 4, 5, 6):
        expected = [
            node_law(RULE, t, d, count)[1] for t, d in zip(target[:3], draft[:3], strict=True)
        ]
        found = RULE.expected_acceptance(target, draft, count)
        assert found[:3].tolist() == pytest.approx(expected, abs=1e-12)
        assert bool((found <= 1 + 1e-12).all())


def test_two_candidates_of_a_peaked_draft_do_not_cancel():
    # 1 - d(x) is 1e-13 here: read off the largest entry it would hold three digits
    target = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    draft = torch.tensor([[1 - 1e-13, 0.25e-13, 0.75e-13]], dtype=torch.float64)
    # the first is rejected with probability 0.8; then t is (0, 5/8, 3/8) against (0, 1/4, 3/4)
    expected = 0.2 + 0.8 * (0.25 + 0.375)
    assert float(RULE.expected_acceptance(target, draft, 2)) == pytest.approx(expected, abs=1e-12)


def test_all_tokens_of_the_support_are_candidates_beyond_it():
    target = random_laws(1, 6, seed=3)
    draft = random_laws(1, 6, seed=4)
    draft[0, [1, 4]] = 0
    draft = draft / draft.sum()
    covered = float(target[0, [0, 2, 3, 5]].sum())
    for count in (4, 5, 40):
        assert float(RULE.expected_acceptance(target, draft, count)) == pytest.approx(covered)


def test_three_candidates_equal_a_plain_sum_over_the_first():
    target, draft = random_laws(1, 60, 1, spread=0.3), random_laws(1, 60, 2, spread=0.3)
    first = (draft - target).clamp_min(0)[0]
    left, total = rejected_on(target[0], draft[0], None), torch.minimum(target, draft).sum()
    for token in first.nonzero().squeeze(1):
        rest = draft.clone()
        rest[0, token] = 0
        total = total + first[token] * distinct_acceptance(left[None], rest / rest.sum(), 2)[0]
    assert float(RULE.expected_acceptance(target, draft, 3)) == pytest.approx(
        float(total), abs=1e-12
    )


def test_chunks_of_the_enumeration_add_up(monkeypatch):
    target, draft = random_laws(2, 20, 1), random_laws(2, 20, 2)
    whole = RULE.expected_acceptance(target, draft, 4)
    monkeypatch.setattr(kernel, "_AT_ONCE", 100)
    torch.testing.assert_close(RULE.expected_acceptance(target, draft, 4), whole)


def test_too_many_orders_are_refused():
    target, draft = random_laws(1, 20_000, 1), random_laws(1, 20_000, 2)
    assert 0 < float(RULE.expected_acceptance(target, draft, 2)) < 1
    with pytest.raises(
        ValueError, match="3 candidates drawn without replacement takes 20000 orders"
    ):
        RULE.expected_acceptance(target, draft, 3)


def test_distinct_candidates_can_beat_the_optimum_of_independent_ones():
    # the cover property (arXiv 2402.12374): all of the draft's support is tried
    target, draft = NODES["one-hot target"][0], torch.tensor([0.5, 0.5, 0.0, 0.0]).double()
    assert float(RULE.expected_acceptance(target[None], draft[None], 2)) == pytest.approx(1)
    assert optimal_acceptance(target, draft, 2) == pytest.approx(0.75)


@on_selected
def test_select_follows_the_closed_law(node):
    target, draft = node
    for candidates in orders(draft, 3):
        for alive in ALIVE:
            ratios = turns(target, draft, candidates, alive)
            law = selection_law(RULE, target, draft, candidates, ratios, depth=1)
            closed = RULE.law(target, draft, candidates[alive])
            torch.testing.assert_close(law, closed, rtol=0, atol=1e-12)


def test_select_on_real_noise_has_the_target_law():
    # false-alarm rate 1e-4 with any seed; the seed is fixed
    target, draft = NODES["random"]
    rows = 40_000
    noise = Noise.create(rows, seed=8, device="cpu")
    race = torch.rand(rows, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    candidates = (race.log() / draft).topk(3, dim=1).indices
    alive = torch.ones_like(candidates, dtype=torch.bool)
    laws = [law.expand(rows, -1) for law in (target, draft)]
    tokens = RULE.select(*laws, candidates, alive, noise, 0)
    assert chisquare(tokens.bincount(minlength=4), target * rows).pvalue > 1e-4
    # the same candidates tried against a law that is not renormalised would fail this
    wrong = Recursive().select(*laws, candidates, alive, noise, 0)
    assert chisquare(wrong.bincount(minlength=4), target * rows).pvalue < 1e-9


# ---- mutations


def deviation(rule):
    target, draft = NODES["random"]
    law, _ = node_law(rule, target, draft, 3)
    return float((law - target).abs().max())


def not_renormalised(draft_probs, tokens):
    return draft_probs.scatter(1, tokens, 0)


class InReverse(RecursiveWithoutReplacement):
    """Tries the candidates in another order than they were drawn in."""

    def law(self, target_probs, draft_probs, candidates, depth=0):
        return super().law(target_probs, draft_probs, candidates.flip(0), depth)


class Sorted(RecursiveWithoutReplacement):
    """Tries the candidates in the order of their token ids, as a tree that is sorted would."""

    def law(self, target_probs, draft_probs, candidates, depth=0):
        return super().law(target_probs, draft_probs, candidates.sort().values, depth)


def test_a_draft_law_that_is_not_renormalised_is_noticed(monkeypatch):
    assert deviation(RULE) < 1e-12
    monkeypatch.setattr(without_replacement, "without_tokens", not_renormalised)
    assert deviation(RULE) > 1e-3


def test_a_draft_law_that_keeps_its_tokens_is_noticed(monkeypatch):
    monkeypatch.setattr(without_replacement, "without_tokens", lambda draft, _: draft)
    assert deviation(RULE) > 1e-3


@pytest.mark.parametrize("mutant", [InReverse, Sorted])
def test_another_order_of_the_candidates_is_noticed(mutant):
    assert deviation(mutant()) > 1e-3
