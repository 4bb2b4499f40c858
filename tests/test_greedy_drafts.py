"""Greedy drafts: their optimum, the code that draws, drafts of few tokens, mutations that must show."""

import pytest
import torch
from enumeration import (
    Tables,
    block_law,
    candidate_sets,
    draft_sets,
    independent,
    node_law,
    optimum_of_drafts,
    random_laws,
    selection_law,
)
from test_k_seq import NODES, on_counts, on_nodes
from test_recursive import on_selected

from warpdraft.kernels.noise import Noise
from warpdraft.kernels.top_tokens import without_tokens
from warpdraft.verifiers.greedy_drafts import GreedyDrafts
from warpdraft.verifiers.recursive import Recursive

RULE = GreedyDrafts()


@on_counts
@on_nodes
def test_acceptance_is_the_optimum_of_the_drafts(node, count):
    law, acceptance = node_law(RULE, *node, count)
    torch.testing.assert_close(law, node[0], rtol=0, atol=1e-12)
    target, draft = node
    expected = RULE.expected_acceptance(target[None], draft[None], count)
    assert float(expected) == pytest.approx(acceptance, abs=1e-12)
    assert acceptance == pytest.approx(optimum_of_drafts(RULE, target, draft, count), abs=1e-12)


def test_acceptance_of_many_rows_at_once():
    target, draft = random_laws(8, 5, 11, spread=0.3), random_laws(8, 5, 12, spread=0.3)
    for count in (1, 2, 4, 5, 6, 9):
        expected = [node_law(RULE, t, d, count)[1] for t, d in zip(target, draft, strict=True)]
        found = RULE.expected_acceptance(target, draft, count)
        assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
@on_selected
def test_select_follows_the_closed_law_at_the_root(node, count):
    target, draft = node
    for candidates, _ in candidate_sets(RULE, draft, count):
        # without a further token in the draft's support the last paths are not there
        padded = torch.tensor([*candidates, *[0] * (count - len(candidates))])
        rest = draft.clone()
        rest[list(candidates[: count - 1])] = 0
        ratios, alive = {}, torch.arange(count) < len(candidates)
        if len(candidates) == count:
            drawn = candidates[-1]
            ratios = {count - 1: min(1.0, float(target[drawn] * rest.sum() / rest[drawn]))}
        law = selection_law(RULE, target, draft, padded, ratios, depth=0, alive=alive)
        closed = RULE.law(target, draft, torch.tensor(candidates))
        torch.testing.assert_close(law, closed, rtol=0, atol=1e-12)


def test_below_the_root_each_path_is_a_single_draft():
    target, draft = (laws.expand(50, -1) for laws in NODES["random"])
    candidates = torch.arange(50)[:, None] % 4
    arguments = candidates, torch.ones_like(candidates, dtype=torch.bool)
    noise = Noise.create(50, seed=1, device="cpu")
    expected = Recursive().select(target, draft, *arguments, noise, 3)
    assert torch.equal(RULE.select(target, draft, *arguments, noise, 3), expected)
    closed = Recursive().law(target[0], draft[0], candidates[0])
    assert torch.equal(RULE.law(target[0], draft[0], candidates[0], depth=3), closed)


# ---- mutations


class WithTheDraft(GreedyDrafts):
    """Verifies the drawn candidate against the law before the top tokens were taken out."""

    def law(self, target_probs, draft_probs, candidates, depth=0):
        return Recursive.law(self, target_probs, draft_probs, candidates[-1:], depth)


class WithoutTheTopInTheResidual(GreedyDrafts):
    """Recovers a token of the rest only."""

    def law(self, target_probs, draft_probs, candidates, depth=0):
        top, drawn = candidates[:-1], candidates[-1:]
        rest = without_tokens(draft_probs[None], top[None])[0]
        cut = without_tokens(target_probs[None], top[None])[0]
        return Recursive.law(self, cut, rest, drawn, depth)


@pytest.mark.parametrize("mutant", [WithTheDraft, WithoutTheTopInTheResidual])
def test_another_residual_is_noticed(mutant):
    target, draft = NODES["random"]
    law, _ = node_law(mutant(), target, draft, 3)
    assert float((law - target).abs().max()) > 1e-3


class AsTheRoot(GreedyDrafts):
    """Takes the last of a lower node's survivors for the drawn one too."""

    def law(self, target_probs, draft_probs, candidates, depth=0):
        return super().law(target_probs, draft_probs, candidates, 0)


def test_a_block_whose_lower_nodes_are_taken_for_the_root_is_noticed():
    # two draws below a root candidate: i.i.d. there, so the first is no top token
    tables = Tables.random(3, 2, seed=0, zeros=False)

    def sources(paths):
        return [0, 0] if paths == ((),) else [0, 0, 1]

    for rule, lossless in ((RULE, True), (AsTheRoot(), False)):
        drafts = draft_sets(rule, tables, sources)
        deviation = block_law(rule, tables, 2, drafts).deviation
        assert deviation < 1e-12 if lossless else deviation > 1e-3
    drafts = draft_sets(RULE, tables, independent(2))
    assert block_law(RULE, tables, 2, drafts).deviation < 1e-12
