"""The transport problem of one node: which draft tokens are selected how often, against a linear programme."""

import itertools

import numpy as np
import pytest
import torch
from transport_masses import atoms, on_selectors, selection_law, subsets

from warpdraft.kernels.concave_majorant import slopes_by_chords, slopes_by_merging


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0], ids="w={}".format)
@pytest.mark.parametrize("n", [2, 3, 5], ids="n={}".format)
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0], ids="spread={}".format)
@on_selectors
def test_selection_law_is_feasible_and_attains_the_minimum_cut(selector, spread, n, weight):
    for seed in range(20):
        draft, target = atoms(5, seed, spread, weight)
        ratio = selection_law(selector, draft, target, n)
        law = ratio * draft
        assert law.sum() == pytest.approx(1, abs=1e-14)
        assert np.all(np.diff(ratio) >= 0)
        cuts = [target[each].sum() - draft[each].sum() ** n for each in subsets(5)]
        assert np.minimum(law, target).sum() == pytest.approx(1 + min(cuts), abs=1e-13)
        slack = [law[each].sum() - draft[each].sum() ** n for each in subsets(5)]
        assert min(slack) >= -1e-14


@on_selectors
def test_selection_law_of_one_draft_is_the_draft(selector):
    draft, target = atoms(6, 0, 1.0)
    ratio = selection_law(selector, draft, target, 1)
    np.testing.assert_allclose(ratio, 1, rtol=0, atol=1e-13)


def lex_optimum(draft, target, n):
    """The least concave majorant at every G_j by brute force: the best chord over it; then its slopes."""
    points = np.concatenate(([0.0], np.cumsum(target)))
    levels = np.concatenate(([0.0], np.minimum(np.cumsum(draft), 1.0))) ** n
    majorant = []
    for j, point in enumerate(points):
        above = [levels[j]]
        for i, k in itertools.combinations(range(len(points)), 2):
            if i <= j <= k and points[k] > points[i]:
                share = (point - points[i]) / (points[k] - points[i])
                above.append(levels[i] + share * (levels[k] - levels[i]))
        majorant.append(max(above))
    return np.diff(majorant)


@pytest.mark.parametrize("n", [2, 3, 5], ids="n={}".format)
@pytest.mark.parametrize("spread", [0.3, 1.0, 10.0], ids="spread={}".format)
def test_lex_selection_law_is_the_slope_of_the_majorant(spread, n):
    for seed in range(20):
        draft, target = atoms(6, seed, spread, 0.7)
        # ratios beyond n are capped: nothing hangs on them
        target = np.minimum(target, n * draft)
        law = selection_law("lex", draft, target, n) * draft
        np.testing.assert_allclose(law, lex_optimum(draft, target, n), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5], ids="n={}".format)
def test_lex_selection_law_is_best_for_every_concave_value_of_the_weight(n):
    values = [lambda w: np.minimum(1, w), np.sqrt, lambda w: 1 - np.exp(-3 * w), np.log1p]
    differs = 0.0
    for seed in range(20):
        draft, target = atoms(6, seed, 1.0, 0.8)
        target = np.minimum(target, n * draft)
        lex, clip = (selection_law(name, draft, target, n) * draft for name in ("lex", "clip"))
        for value in values:
            gain = (lex * value(target / lex)).sum() - (clip * value(target / clip)).sum()
            assert gain >= -1e-12
            differs = max(differs, gain)
    assert differs > 1e-3


def test_lex_selection_law_of_tokens_that_the_target_never_wants():
    draft, target = np.array([0.2, 0.3, 0.1, 0.4]), np.array([0.0, 0.0, 0.4, 0.6])
    ratio = selection_law("lex", draft, target, 2)
    # the first two rise by 0.5^2 in all, shared as they are drafted
    np.testing.assert_allclose(ratio[:2], 0.25 / 0.5, rtol=1e-14)
    assert (ratio * draft).sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("n", [2, 3, 32], ids="n={}".format)
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_slopes_of_few_and_of_many_atoms_agree(size, n):
    generator = np.random.default_rng(size)
    rise, width = torch.from_numpy(generator.dirichlet(np.full(size, 0.2), (2, 5)) + 1e-20)
    torch.testing.assert_close(
        slopes_by_chords(rise, width), slopes_by_merging(rise, width), rtol=1e-12, atol=0
    )


@on_selectors
def test_atoms_without_draft_mass_change_nothing(selector):
    generator = np.random.default_rng(0)
    draft, target = atoms(6, 1, 0.5, 0.8)
    kept = np.sort(generator.choice(20, 6, replace=False))
    spread = np.zeros((2, 20))
    spread[:, kept] = draft, target
    # the target may want what is never drafted
    spread[1, -1] += 0.1 if kept[-1] < 19 else 0.0
    ratio = selection_law(selector, *spread, 3)
    assert np.isfinite(ratio).all()
    np.testing.assert_allclose(
        ratio[kept], selection_law(selector, draft, target, 3), rtol=0, atol=1e-14
    )


@on_selectors
def test_masses_that_sums_do_not_see_cost_nothing(selector):
    # beside 1 - 1e-17 = 1 the first and the last atom stand anywhere in the cumulated order
    draft = np.array([1e-40, 0.3, 1e-18, 0.7, 1e-25, 1e-300])
    target = np.array([0.0, 0.1, 5e-19, 0.6, 0.1, 0.2])
    for n in (2, 8, 4096):
        law = selection_law(selector, draft, target, n) * draft
        clean = selection_law(selector, draft[[1, 3]], target[[1, 3]], n) * draft[[1, 3]]
        np.testing.assert_allclose(law[[1, 3]], clean, rtol=0, atol=1e-14)
