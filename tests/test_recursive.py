"""Recursive rejection of i.i.d. candidates: the published acceptance, the code that draws, mutations that must show."""

from dataclasses import replace

import pytest
import torch
from enumeration import (
    node_law,
    optimum_of_drafts,
    random_laws,
    selection_law,
    transport_optimum,
    tuples,
)
from test_k_seq import NODES, on_counts, on_nodes

import warpdraft.verifiers.recursive as recursive
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.recursive import acceptance_ratio, residual_law
from warpdraft.verifiers.recursive import Recursive

# no probability of theirs lies beside the margins of scripted numbers
SELECTED = {
    name: node
    for name, node in NODES.items()
    if name not in ("five tokens", "nearly equal", "nearly disjoint")
}
on_selected = pytest.mark.parametrize("node", SELECTED.values(), ids=SELECTED.keys())
ALIVE = ([0, 1, 2], [1, 2], [0, 2], [1], [])


def rejected_on(target, draft, token):
    """What is left of the target after one rejection, straight from the paper; any law where nothing is."""
    left = (target - draft).clamp_min(0)
    return left / left.sum() if left.sum() > 0 else target


def turns(target, draft, candidates, alive):
    """The chance of each living path to be accepted after those before it were not."""
    ratios = {}
    for path in alive:
        token = candidates[path]
        ratios[path] = min(1.0, float(target[token] / draft[token]))
        target = rejected_on(target, draft, token)
    return ratios


@on_counts
@on_nodes
def test_acceptance_is_the_published_one(node, count):
    target, draft = node
    law, acceptance = node_law(Recursive(), target, draft, count)
    torch.testing.assert_close(law, target, rtol=0, atol=1e-12)
    left, all_rejected = target, 1.0
    for _ in range(count):
        all_rejected *= 1 - float(torch.minimum(left, draft).sum())
        left = rejected_on(left, draft, None)
    assert acceptance == pytest.approx(1 - all_rejected, abs=1e-12)
    expected = Recursive().expected_acceptance(target[None], draft[None], count)
    assert float(expected) == pytest.approx(acceptance, abs=1e-12)


def test_the_optimum_of_the_drafts_is_the_linear_programme():
    for name, (target, draft) in SELECTED.items():
        if len(target) <= 4:
            programme = transport_optimum(target, draft, 3)
            cut = optimum_of_drafts(Recursive(), target, draft, 3)
            assert cut == pytest.approx(programme, abs=1e-9), name


@on_selected
def test_select_follows_the_closed_law(node):
    target, draft = node
    for candidates in tuples(len(target), 3):
        if float(draft[candidates].prod()) == 0:
            continue
        for alive in ALIVE:
            ratios = turns(target, draft, candidates, alive)
            law = selection_law(Recursive(), target, draft, candidates, ratios, depth=1)
            closed = Recursive().law(target, draft, candidates[alive])
            torch.testing.assert_close(law, closed, rtol=0, atol=1e-12)


def test_rows_do_not_depend_on_their_neighbours():
    target, draft = random_laws(40, 6, seed=1), random_laws(40, 6, seed=2)
    candidates = torch.randint(6, (40, 4), generator=torch.Generator().manual_seed(0))
    alive = tuples(2, 4)[torch.arange(40) % 16] == 1
    noise = Noise.create(40, seed=3, device="cpu")
    together = Recursive().select(target, draft, candidates, alive, noise, 2)
    for row in range(40):
        one = torch.tensor([row])
        alone = Recursive().select(
            target[one], draft[one], candidates[one], alive[one], noise.select(one), 2
        )
        assert alone.tolist() == together[one].tolist()


def test_inputs_are_left_as_they_were():
    arguments = [random_laws(9, 5, seed=1), random_laws(9, 5, seed=2)]
    arguments += [torch.zeros(9, 3, dtype=torch.int64), torch.ones(9, 3, dtype=torch.bool)]
    before = [tensor.clone() for tensor in arguments]
    Recursive().select(*arguments, Noise.create(9, seed=0, device="cpu"), 0)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(arguments, before, strict=True))


def test_float32_laws_keep_their_scale():
    target, draft = random_laws(1, 300, seed=5), random_laws(1, 300, seed=6)
    single, double = target, draft
    left_single, left_double = target.float(), target
    for _ in range(3):
        left_single = residual_law(left_single, draft.float())
        left_double = residual_law(left_double, draft)
        assert left_single.dtype == torch.float32
        torch.testing.assert_close(left_single.double(), left_double, rtol=0, atol=1e-6)
    expected = [
        Recursive().expected_acceptance(single.to(dtype), double.to(dtype), 3)
        for dtype in (torch.float32, torch.float64)
    ]
    assert expected[0].dtype == torch.float64
    torch.testing.assert_close(*expected, rtol=0, atol=1e-6)


# ---- mutations


class WithTheFirstResidual(Recursive):
    """Each rejection is taken from the target, not from what the rejections before have left."""

    def law(self, target_probs, draft_probs, candidates, depth=0):
        self.first = residual_law(target_probs[None], draft_probs[None])
        return super().law(target_probs, draft_probs, candidates, depth)

    def after(self, node, rejected):
        return replace(node, target=self.first)


class WithTheTarget(Recursive):
    """Nothing is taken from the target."""

    def after(self, node, rejected):
        return node


@pytest.mark.parametrize("mutant", [WithTheFirstResidual, WithTheTarget])
def test_the_residual_of_another_step_is_noticed(mutant):
    target, draft = NODES["random"]
    law, _ = node_law(mutant(), target, draft, 3)
    assert float((law - target).abs().max()) > 1e-3


def test_a_ratio_of_the_first_step_is_noticed(monkeypatch):
    target, draft = NODES["random"]
    monkeypatch.setattr(
        recursive,
        "acceptance_ratio",
        lambda t, d, tokens: acceptance_ratio(target[None], d, tokens),
    )
    law, _ = node_law(Recursive(), target, draft, 3)
    assert float((law - target).abs().max()) > 1e-3
