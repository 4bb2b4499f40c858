"""Verification on fixed knots: the sums, the masses, both kinds of plan, and exact laws on tiny vocabularies."""

import itertools

import pytest
import torch
from enumeration import random_laws, tuples
from test_k_seq import NODES

from warpdraft import optimal_acceptance
from warpdraft.kernels.k_seq import k_seq_plan
from warpdraft.kernels.ranks import win_probabilities
from warpdraft.kernels.ratio_splines import (
    evaluate,
    k_seq_spline,
    knot_masses,
    knots,
    place,
    ratio_sums,
    residual_mass,
    selection_spline,
)

on_counts = pytest.mark.parametrize("count", [1, 2, 3, 4], ids="n={}".format)
on_nodes = pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())
on_selectors = pytest.mark.parametrize("selector", ["clip", "lex"])
on_weights = pytest.mark.parametrize("weight", [0.0, 1e-3, 0.4, 1.0], ids="w={}".format)
VERIFIERS = ("k_seq", "optimal", "optimal_block")


def ratios(target, draft):
    """r of tokens; of one that is never drafted any."""
    return torch.where(draft > 0, target / draft, 0.0)


def pairs(rows, vocab, seed):
    """Laws of several kinds, `[kinds * rows, vocab]` both: unrelated ones, and noisy copies."""
    found = []
    for number, spread in enumerate((0.1, 1.0, 10.0)):
        found.append([random_laws(rows, vocab, seed + number + k, spread=spread) for k in (0, 50)])
    generator = torch.Generator().manual_seed(seed)
    for spread, noise in itertools.product((1.0, 4.0), (0.1, 0.5, 2.0)):
        logits = torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * spread
        other = torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * noise
        found.append([logits.softmax(1), (logits + other).softmax(1)])
    return (torch.cat(each) for each in zip(*found, strict=True))


# ---- knots


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("num_drafts", [1, 2, 3, 8, 64, 4096])
def test_knots_ascend_from_zero_through_one_to_the_number_of_drafts(num_drafts, verifier):
    for num_knots in (16, 32):
        found = knots(num_drafts, num_knots, verifier)
        assert found.shape == (num_knots,)
        assert found[0] == 0
        assert bool((found == 1).any())
        assert bool((found.diff() > 0).all())
        assert float(found[-1]) >= num_drafts * (1 - 1e-12)


def test_a_spline_is_evaluated_between_its_knots():
    table = torch.tensor([0.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    spline = torch.tensor([[0.0, 0.0, 3.0, 9.0]], dtype=torch.float64)
    ratio = torch.tensor([[0.0, 0.3, 0.5, 0.75, 1.0, 2.0, 4.0, 1e300]], dtype=torch.float64)
    assert evaluate(spline, table, ratio).tolist() == [[0, 0, 0, 1.5, 3, 5, 9, 9]]
    lower, share = place(ratio, table)
    assert lower.tolist() == [[0, 0, 1, 1, 2, 2, 2, 2]]
    assert bool(((share >= 0) & (share <= 1)).all())


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_masses_weigh_every_spline_exactly(verifier):
    target, draft = pairs(4, 300, 1)
    table = knots(4, 32, verifier)
    sums = ratio_sums(target, draft, table)
    for knot in (0, 1, 9, 31):
        direct = torch.minimum(table[knot] * draft, target).sum(1)
        torch.testing.assert_close(sums[:, knot], direct, rtol=0, atol=1e-14)
    mass = knot_masses(sums, table)
    assert bool((mass >= 0).all())
    # the hats themselves
    for knot in range(32):
        hat = torch.zeros(len(target), 32, dtype=torch.float64)
        hat[:, knot] = 1
        weighed = (draft * evaluate(hat, table, ratios(target, draft))).sum(1)
        torch.testing.assert_close(mass[:, knot], weighed, rtol=0, atol=3e-14)


@on_nodes
def test_masses_of_hostile_laws_are_those_of_the_hats(node):
    target, draft = (law[None] for law in node)
    for verifier in VERIFIERS:
        table = knots(3, 32, verifier)
        mass = knot_masses(ratio_sums(target, draft, table), table)
        hats = torch.eye(32, dtype=torch.float64)
        weighed = [
            float((draft * evaluate(hat[None], table, ratios(target, draft))).sum()) for hat in hats
        ]
        torch.testing.assert_close(mass[0], mass.new_tensor(weighed), rtol=0, atol=3e-14)


def test_float32_laws_are_summed_in_float64():
    target, draft = pairs(2, 40_000, 3)
    table = knots(4)
    single = ratio_sums(target.float(), draft.float(), table)
    direct = ratio_sums(target.float().double(), draft.float().double(), table)
    torch.testing.assert_close(single, direct, rtol=0, atol=1e-13)


# ---- plans: valid everywhere, exactly weighed, and what they cost


def assert_plan_is_valid(target, draft, table, weight, accepted, chance, most=None):
    """The accepted part is no larger than its bounds, weighs `chance`, and the residual is what is left."""
    ratio = ratios(target, draft)
    part = evaluate(accepted, table, ratio)
    assert bool((part >= 0).all())
    bound = (
        weight[:, None] * ratio if most is None else torch.minimum(most, weight[:, None] * ratio)
    )
    assert bool((part <= bound * (1 + 1e-12) + 1e-13).all())
    torch.testing.assert_close((draft * part).sum(1), chance, rtol=0, atol=1e-13)
    residual = residual_mass(target, draft, weight, accepted, table)
    assert bool((residual >= 0).all())
    left = weight[:, None] * target - draft * part
    torch.testing.assert_close(residual, left, rtol=0, atol=1e-13)
    torch.testing.assert_close(residual.sum(1), weight - chance, rtol=0, atol=1e-13)


@pytest.mark.parametrize("count", range(1, 9), ids="n={}".format)
def test_k_seq_plans_are_valid(count):
    target, draft = pairs(20, 60, count)
    for verifier in ("k_seq", "optimal_block"):
        table = knots(8, 32, verifier)
        number = torch.full((len(target),), count)
        plan = k_seq_spline(ratio_sums(target, draft, table), table, number)
        ratio = evaluate(plan.ratio, table, ratios(target, draft))
        assert bool(((ratio >= 0) & (ratio <= 1)).all())
        torch.testing.assert_close((draft * ratio).sum(1), plan.beta, rtol=0, atol=1e-13)
        weight = torch.ones(len(target), dtype=torch.float64)
        assert_plan_is_valid(target, draft, table, weight, plan.accepted, plan.acceptance)
        # a valid plan, so never more than the best one
        exact = k_seq_plan(target, draft, number).acceptance
        assert bool((plan.acceptance <= exact + 1e-12).all())
        if count == 1:
            torch.testing.assert_close(plan.acceptance, exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("count", range(2, 9), ids="n={}".format)
def test_k_seq_on_its_knots_is_within_a_thousandth(count):
    target, draft = pairs(10, 2000, count)
    table, number = knots(count, 32, "k_seq"), torch.full((len(target),), count)
    plan = k_seq_spline(ratio_sums(target, draft, table), table, number)
    loss = k_seq_plan(target, draft, number).acceptance - plan.acceptance
    # one heavy token at the bend of a row costs most
    assert float(loss.max()) < 2e-3
    assert float(loss.quantile(0.95)) < 5e-4
    assert float(loss.mean()) < 1e-4


@on_weights
@pytest.mark.parametrize("count", range(1, 9), ids="n={}".format)
@on_selectors
def test_selections_are_valid(selector, count, weight):
    target, draft = pairs(20, 60, count)
    table, number = knots(8), torch.full((len(target),), count)
    weights = torch.full((len(target),), weight, dtype=torch.float64)
    mass = knot_masses(ratio_sums(target, draft, table), table)
    plan = selection_spline(mass, table, weights, number, selector)
    phi = evaluate(plan.ranks.phi, table, ratios(target, draft))
    torch.testing.assert_close((draft * phi).sum(1), torch.ones(len(target)).double())
    chance = weights - plan.rest
    assert_plan_is_valid(target, draft, table, weights, plan.accepted, chance, most=phi)
    if count == 1:
        alone = torch.minimum(draft, weight * target).sum(1)
        # a chord below 1 / w: the bend is a knot only where w is 1
        assert bool((chance <= alone + 1e-13).all())
        if weight == 1:
            torch.testing.assert_close(chance, alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("count", [2, 4, 8], ids="n={}".format)
@on_selectors
def test_selection_is_within_a_thousandth_of_the_optimum(selector, count):
    target, draft = pairs(10, 2000, count)
    number, weight = torch.full((len(target),), count), torch.ones(len(target)).double()
    bound = optimal_acceptance(target, draft, count)
    for verifier in ("optimal", "optimal_block"):
        table = knots(count, 32, verifier)
        mass = knot_masses(ratio_sums(target, draft, table), table)
        loss = bound - 1 + selection_spline(mass, table, weight, number, selector).rest
        assert float(loss.min()) > -1e-12
        assert float(loss.max()) < 1e-3
        assert float(loss.mean()) < 2e-4


# ---- exact laws


@on_counts
@on_nodes
@pytest.mark.parametrize("num_knots", [16, 32])
def test_k_seq_emits_the_target_law(num_knots, node, count):
    target, draft = node
    table = knots(4, num_knots, "k_seq")
    sums = ratio_sums(target[None], draft[None], table)
    plan = k_seq_spline(sums, table, torch.tensor([count]))
    ratio = evaluate(plan.ratio, table, ratios(target, draft)[None])[0]
    weight = torch.ones(1, dtype=torch.float64)
    residual = residual_mass(target[None], draft[None], weight, plan.accepted, table)[0]
    law = torch.zeros_like(target)
    for candidates in tuples(len(target), count).tolist():
        reached = float(draft[candidates].prod())
        for token in candidates:
            law[token] += reached * ratio[token]
            reached *= 1 - float(ratio[token])
        if reached > 0:
            law += reached * (residual / residual.sum() if residual.sum() > 0 else target)
    torch.testing.assert_close(law, target, rtol=0, atol=2e-14)


@on_weights
@on_counts
@on_nodes
@on_selectors
def test_selection_emits_the_target_law(selector, node, count, weight):
    """The accepted part and what is recovered are w t together, candidates drawn and ranked one by one."""
    target, draft = node
    table, weights = knots(4), torch.tensor([weight], dtype=torch.float64)
    mass = knot_masses(ratio_sums(target[None], draft[None], table), table)
    plan = selection_spline(mass, table, weights, torch.tensor([count]), selector)
    ratio = ratios(target, draft)[None]
    lower, share = place(ratio, table)
    laws = torch.lerp(plan.ranks.laws(lower), plan.ranks.laws(lower + 1), share[..., None])[0]
    phi = evaluate(plan.ranks.phi, table, ratio)[0]
    psi = evaluate(plan.accepted, table, ratio)[0]
    behind = torch.where(phi > 0, psi / phi, 0.0)
    assert bool((behind <= 1 + 1e-15).all())
    selected, law = torch.zeros_like(target), torch.zeros_like(target)
    for candidates in tuples(len(target), count).tolist():
        chance = float(draft[candidates].prod())
        if chance > 0:
            for token, wins in zip(candidates, win_probabilities(laws[candidates]), strict=True):
                selected[token] += chance * wins
                law[token] += chance * wins * behind[token]
    torch.testing.assert_close(selected, draft * phi, rtol=0, atol=1e-14)
    law += residual_mass(target[None], draft[None], weights, plan.accepted, table)[0]
    torch.testing.assert_close(law, weight * target, rtol=0, atol=1e-14)
