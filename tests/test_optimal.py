"""Optimal selection at one node: the transport problem, ranks, the grid, the closed law, and the code that draws."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from enumeration import node_law, random_laws, tuples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from test_k_seq import NODES, on_counts, on_nodes
from torch.utils._python_dispatch import TorchDispatchMode

import warpdraft.verifiers.optimal as optimal
from warpdraft import optimal_acceptance
from warpdraft.kernels.concave_majorant import slopes_by_chords, slopes_by_merging
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.optimal import SELECTORS, Selection, plan_selection
from warpdraft.kernels.ranks import exchange, mean_over, win_probabilities
from warpdraft.kernels.ratio_grid import GridPlaces, SortedPlaces, interpolate, knot_masses
from warpdraft.kernels.top_tokens import mass_of, top_tokens, without_tokens
from warpdraft.verifiers.k_seq import KSeq
from warpdraft.verifiers.optimal import Optimal

# their masses lie below the tolerances of the linear programme, and beside the margins of scripted numbers
NEARLY = ["nearly equal", "nearly disjoint"]
on_selectors = pytest.mark.parametrize("selector", ["clip", "lex"])
on_bins = pytest.mark.parametrize("num_bins", [None, 1, 4, 64], ids="bins={}".format)


def atoms(size, seed, spread, weight=1.0, tiny=0.0):
    """Draft and target masses in ascending order of their ratio."""
    generator = np.random.default_rng(seed)
    draft = np.maximum(generator.dirichlet(np.full(size, spread)), 1e-300) + tiny
    draft /= draft.sum()
    target = weight * generator.dirichlet(np.full(size, spread))
    order = np.argsort(target / draft, kind="stable")
    return draft[order], target[order]


def selection_law(selector, draft, target, n):
    """p / draft of one row of masses."""
    masses = (torch.from_numpy(each)[None] for each in (draft, target))
    return SELECTORS[selector](*masses, torch.tensor([n]))[0].numpy()


def subsets(size):
    return [list(each) for k in range(size + 1) for each in itertools.combinations(range(size), k)]


# ---- the transport problem


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


# ---- ranks


MASSES = {
    "few": (5, 1.0, 0.0),
    "peaked": (8, 0.05, 0.0),
    "many": (200, 0.5, 0.0),
    "many, some of no visible mass": (200, 0.01, 1e-25),
    "one": (1, 1.0, 0.0),
}


def assert_ranks_are_sound(ranks, num_drafts):
    """Every atom's rank lies somewhere, ranks are uniform over all tokens, and `phi` is what they realise."""
    every = torch.arange(ranks.mass.shape[1]).expand_as(ranks.mass)
    laws = ranks.laws(every)
    assert bool((laws >= 0).all())
    torch.testing.assert_close(laws.sum(2), torch.ones_like(ranks.mass), rtol=0, atol=1e-15)
    arriving = (ranks.mass[:, :, None] * laws).sum(1)
    torch.testing.assert_close(arriving, ranks.mass, rtol=0, atol=1e-15)
    home = mean_over(ranks.start, ranks.mass, num_drafts[:, None])
    means = (laws * home[:, None]).sum(2)
    torch.testing.assert_close(ranks.phi * ranks.mass, means * ranks.mass, rtol=0, atol=1e-15)
    # capacity: nobody swaps more than it has
    for atom in (ranks.raised, ranks.lowered):
        given = torch.zeros_like(ranks.mass).scatter_add_(1, atom, ranks.swapped)
        assert bool((given <= ranks.mass * (1 + 1e-15)).all())
    assert bool((ranks.swapped >= 0).all())


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0], ids="w={}".format)
@pytest.mark.parametrize("n", [2, 3, 8, 32], ids="n={}".format)
@pytest.mark.parametrize(("size", "spread", "tiny"), MASSES.values(), ids=MASSES.keys())
@on_selectors
def test_ranks_are_uniform_and_realise_the_law(selector, size, spread, tiny, n, weight):
    draft, target = atoms(size, 3, spread, weight, tiny)
    ratio, mass = selection_law(selector, draft, target, n), torch.from_numpy(draft)[None]
    ranks = exchange(mass, torch.from_numpy(ratio)[None], torch.tensor([n]))
    assert_ranks_are_sound(ranks, torch.tensor([n]))
    realised = ranks.phi[0].numpy()
    np.testing.assert_allclose(realised * draft, ratio * draft, rtol=0, atol=2e-14)
    falls = np.minimum(np.diff(realised), 0) * np.minimum(draft[1:], draft[:-1])
    np.testing.assert_allclose(falls, 0, rtol=0, atol=2e-14)


HOSTILE_MASSES = st.sampled_from([0.0, 5e-324, 1e-300, 1e-200, 1e-17, 1e-16, 1e-12, 1e-6, 0.1, 1.0])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    masses=st.lists(
        st.tuples(HOSTILE_MASSES, st.floats(0, 1)) | st.tuples(st.floats(0, 1), HOSTILE_MASSES),
        min_size=1,
        max_size=12,
    ),
    num_drafts=st.sampled_from([1, 2, 3, 7, 100, 4096]),
    weight=st.sampled_from([0.0, 1e-300, 0.3, 1.0]),
    selector=st.sampled_from(["clip", "lex"]),
)
def test_ranks_of_hostile_masses_are_sound(masses, num_drafts, weight, selector):
    draft, target = np.array(masses).T
    assume(draft.sum() > 1e-3)
    draft, target = draft / draft.sum(), weight * target / max(target.sum(), 1e-3)
    with np.errstate(over="ignore"):
        ratio = target / np.where(draft > 0, draft, np.inf)
    order = np.argsort(ratio, kind="stable")
    draft, target = draft[order], target[order]
    ratio, count = selection_law(selector, draft, target, num_drafts), torch.tensor([num_drafts])
    assert np.isfinite(ratio).all()
    ranks = exchange(torch.from_numpy(draft)[None], torch.from_numpy(ratio)[None], count)
    assert_ranks_are_sound(ranks, count)
    # n D^(n-1) feels the rounding of D n times
    realised = ranks.phi[0].numpy()
    np.testing.assert_allclose(
        realised * draft, ratio * draft, rtol=0, atol=1e-14 * max(1, num_drafts)
    )


def test_any_wanted_means_give_sound_ranks():
    # not even a law: what cannot be swapped is left, and the realised means say so
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(50, 20, generator=generator, dtype=torch.float64) ** 8
    mass = mass / mass.sum(1, keepdim=True)
    count = torch.arange(50) % 7 + 1
    for wanted in (torch.zeros_like(mass), 5 * torch.rand_like(mass), mass.flip(1)):
        assert_ranks_are_sound(exchange(mass, wanted, count), count)


def test_means_of_rare_tokens_do_not_cancel():
    # (b^n - a^n) / (b - a) in floating point would be 0 here
    start, length = torch.tensor([[0.5, 0.0, 1.0, 0.0]]).double(), torch.tensor([[1e-20] * 4])
    length = length.double().clone()
    length[0, 3] = 1.0
    means = mean_over(start, length, torch.tensor([[4]]))
    assert means[0].tolist() == pytest.approx([4 * 0.5**3, 1e-60, 4.0, 1.0], rel=1e-14)
    assert mean_over(start, length, torch.tensor([[1]]))[0].tolist() == [1.0] * 4
    nothing = torch.zeros_like(start)
    assert mean_over(start, nothing, torch.tensor([[3]]))[0].tolist() == [0.75, 0, 3, 0]


def by_hand():
    """Two atoms of 1/2 and n = 2: home means 1/2 and 3/2, and both want 1: each spends half its time at the other's."""
    mass = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    return exchange(mass, torch.ones_like(mass), torch.tensor([2]))


def test_two_atoms_swap_half_of_their_ranks():
    ranks = by_hand()
    assert ranks.phi.tolist() == [[1.0, 1.0]]
    assert ranks.laws(torch.tensor([[0, 1]])).tolist() == [[[0.5, 0.5], [0.5, 0.5]]]


def test_one_number_chooses_the_interval_and_the_place():
    uniforms = torch.tensor([[0.0, 0.25, 0.5 - 1e-12, 0.5, 0.75, 1 - 1e-12]], dtype=torch.float64)
    # away first: the lower atom's ranks begin in the upper half, the upper one's in the lower half
    for atom, expected in (
        (0, [0.5, 0.75, 1.0, 0.0, 0.25, 0.5]),
        (1, [0, 0.25, 0.5, 0.5, 0.75, 1]),
    ):
        atoms_of = torch.full((1, 6), atom)
        found = by_hand().rank(atoms_of, uniforms)[0].tolist()
        assert found == pytest.approx(expected, abs=1e-10)


def test_drawn_ranks_have_their_law():
    draft, target = atoms(9, 2, 0.5)
    mass = torch.from_numpy(draft)[None]
    ratio = torch.from_numpy(selection_law("lex", draft, target, 3))[None]
    ranks = exchange(mass, ratio, torch.tensor([3]))
    # the midpoints of a million equal parts in place of uniform numbers
    uniform = (torch.arange(1_000_000, dtype=torch.float64)[None] + 0.5) * 1e-6
    ends = ranks.start[0, 1:].contiguous()
    for atom in range(9):
        drawn = ranks.rank(torch.full((1, 1_000_000), atom), uniform)[0]
        interval = torch.searchsorted(ends, drawn, right=True)
        found = interval.bincount(minlength=9) * 1e-6
        law = ranks.laws(torch.tensor([[atom]]))[0, 0]
        torch.testing.assert_close(found.double(), law, rtol=0, atol=4e-6)
        inside = (drawn - ranks.start[0, interval]) / mass[0, interval]
        for each in law.gt(1e-4).nonzero().flatten().tolist():
            part = inside[interval == each].sort().values
            assert float((part - torch.linspace(0, 1, len(part))).abs().max()) < 0.02


def test_win_probabilities_of_hand_made_ranks():
    low, high, both = torch.eye(2).double()[0], torch.eye(2).double()[1], torch.full((2,), 0.5)

    def winning(*laws):
        return win_probabilities(torch.stack([law.double() for law in laws]))

    assert winning(both) == pytest.approx([1.0], abs=1e-15)
    assert winning(low, high) == pytest.approx([0.0, 1.0], abs=1e-15)
    assert winning(low, both) == pytest.approx([0.25, 0.75], abs=1e-15)
    assert winning(both, both, both) == pytest.approx([1 / 3] * 3, abs=1e-15)


# ---- the grid


def test_places_on_the_grid_are_ratios():
    target = torch.tensor([[0.5, 0.2, 0.0, 0.3, 0.0, 0.0]], dtype=torch.float64)
    draft = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0, 0.0]], dtype=torch.float64)
    weight, count = torch.tensor([0.5], dtype=torch.float64), torch.tensor([4])
    places = GridPlaces.create(target, draft, weight, count, 8)
    place = places.of(slice(None))
    assert torch.equal(places.at(torch.tensor([[3, 1]])), place[:, [3, 1]])
    assert place[0, :4].tolist() == pytest.approx([5.0, 0.5, 0.0, 1.0])
    assert bool(((place >= 0) & (place <= 8)).all())
    mass = knot_masses(draft, places)
    assert mass[0].tolist() == pytest.approx([0.4, 0.5, 0, 0, 0, 0.1, 0, 0, 0])
    # a linear function is interpolated exactly
    ratio = interpolate(torch.arange(9, dtype=torch.float64)[None] / 2, place)
    assert ratio[0, :4].tolist() == pytest.approx([2.5, 0.25, 0.0, 0.5])


def test_ratios_beyond_the_grid_stand_on_its_last_knot():
    target = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64)
    draft = torch.tensor([[1e-3, 0.0, 0.999]], dtype=torch.float64)
    places = GridPlaces.create(target, draft, torch.ones(1), torch.tensor([2]), 4)
    assert places.of(slice(None))[0].tolist() == [4.0, 4.0, 0.0]
    assert knot_masses(draft, places)[0].tolist() == pytest.approx([0.999, 0, 0, 0, 1e-3])


def test_sorted_places_put_tokens_that_are_never_drafted_last():
    target = torch.tensor([[0.2, 0.0, 0.5, 0.0, 0.3]], dtype=torch.float64)
    draft = torch.tensor([[0.4, 0.3, 0.0, 0.0, 0.3]], dtype=torch.float64)
    assert SortedPlaces.create(target, draft).place.tolist() == [[1, 0, 3, 4, 2]]


# ---- the closed law


class ByMultiset(Optimal):
    """`Optimal`, its law computed once for each multiset: ranks are i.i.d., so the order does not matter."""

    def __init__(self, *options):
        super().__init__(*options)
        self._laws = {}

    def law(self, target_probs, draft_probs, candidates, depth=0):
        key = tuple(sorted(candidates.tolist()))
        if key not in self._laws:
            self._laws[key] = super().law(target_probs, draft_probs, candidates)
        return self._laws[key]


def test_order_of_the_candidates_does_not_matter():
    target, draft = NODES["random"]
    laws = [
        Optimal().law(target, draft, torch.tensor(each))
        for each in itertools.permutations([0, 2, 3])
    ]
    for law in laws:
        torch.testing.assert_close(law, laws[0], rtol=0, atol=1e-15)


@on_selectors
@on_bins
@on_counts
@on_nodes
def test_emitted_token_has_the_target_law(node, count, num_bins, selector):
    target, draft = node
    law, acceptance = node_law(ByMultiset(num_bins, selector), target, draft, count)
    torch.testing.assert_close(law, target, rtol=0, atol=1e-12)
    bound = float(optimal_acceptance(target[None], draft[None], count))
    expected = float(
        Optimal(num_bins, selector).expected_acceptance(target[None], draft[None], count)
    )
    # with a grid, a recovered token may be a candidate too
    assert expected - 1e-12 <= acceptance <= bound + 1e-12
    if num_bins is None:
        assert acceptance == pytest.approx(bound, abs=1e-12)
        assert expected == pytest.approx(bound, abs=1e-12)


@pytest.mark.parametrize("spread", [0.05, 0.5, 5.0], ids="spread={}".format)
def test_accepts_at_least_as_often_as_k_seq(spread):
    target, draft = random_laws(200, 50, 1, spread=spread), random_laws(200, 50, 2, spread=spread)
    for n in (1, 2, 4, 8):
        baseline = KSeq().expected_acceptance(target, draft, n)
        bound = optimal_acceptance(target, draft, n)
        for selector in SELECTORS:
            exact = Optimal(None, selector).expected_acceptance(target, draft, n)
            torch.testing.assert_close(exact, bound, rtol=0, atol=1e-12)
            assert bool((exact >= baseline - 1e-12).all())


def large_rows(spread, noise, seed, vocab=32_000):
    """Logits of two models that agree up to noise, as float32 laws `[1, vocab]`."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(vocab, generator=generator) * spread
    draft = target + torch.randn(vocab, generator=generator) * noise
    return target.softmax(0)[None], draft.softmax(0)[None]


@pytest.mark.parametrize("noise", [0.03, 0.3, 1.0, 2.0], ids="noise={}".format)
@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0, 10.0], ids="spread={}".format)
@on_selectors
def test_grid_is_within_a_hundredth_of_a_percent_of_the_bound(selector, spread, noise):
    for n in (2, 4, 8):
        target, draft = large_rows(spread, noise, seed=n)
        bound = float(optimal_acceptance(target, draft, n))
        attained = float(Optimal(selector=selector).expected_acceptance(target, draft, n))
        # a float32 softmax misses 1 by up to 3e-6 here
        assert bound - 1e-4 <= attained <= bound + 1e-5


# ---- the code that draws


class Scripted:
    """Noise of given acceptance numbers `[rows]`."""

    def __init__(self, numbers):
        self.numbers = numbers

    def uniform(self, role, index, *, depth):
        assert role is Role.ACCEPT
        assert depth == 2
        assert bool((index == 0).all())
        return self.numbers[:, None]

    def select(self, rows):
        return Scripted(self.numbers[rows])


def enumerated_selection(monkeypatch, target, draft, candidates, alive, num_bins, selector="clip"):
    """Law of `Optimal.select` at one node: every selected path, accepted and rejected.

    The acceptance numbers lie 1e-9 on either side of min(1, target / p), p being computed here.
    """
    survivors = alive.nonzero().squeeze(1)
    plan = plan_selection(
        target[None],
        draft[None],
        torch.tensor([len(survivors)]),
        num_bins=num_bins,
        selector=selector,
    )
    chances = win_probabilities(plan.rank_laws(candidates[None, survivors])[0])
    law = plan.law()[0]
    rows, recovered = [], []
    for path, chance in zip(survivors.tolist(), chances, strict=True):
        ratio = min(1.0, float(target[candidates[path]] / law[candidates[path]]))
        rows.append((path, ratio * (1 - 1e-9), chance * ratio))
        if ratio < 1:
            rows.append((path, ratio + (1 - ratio) * 1e-9, chance * (1 - ratio)))
    winners = torch.tensor([row[0] for row in rows])

    def draw(mass, noise, role, *, depth, token_ids=None):
        assert role is Role.RESIDUAL
        assert depth == 2
        recovered.extend(mass / mass.sum(1, keepdim=True))
        return torch.full((len(mass),), -1)

    monkeypatch.setattr(optimal, "draw", draw)
    monkeypatch.setattr(Selection, "select", lambda *_: winners)
    tokens = Optimal(num_bins, selector).select(
        *(column.expand(len(rows), -1) for column in (target, draft, candidates, alive)),
        Scripted(torch.tensor([row[1] for row in rows], dtype=torch.float64)),
        depth=2,
    )
    emitted, laws = torch.zeros_like(target), iter(recovered)
    for token, (_, _, weight) in zip(tokens.tolist(), rows, strict=True):
        if token < 0:
            emitted += weight * next(laws)
        else:
            emitted[token] += weight
    return emitted


SELECTED = [name for name in NODES if name not in NEARLY]
SURVIVORS = ([True, True, True], [False, True, True], [True, False, False])


@on_selectors
@pytest.mark.parametrize("num_bins", [None, 4], ids="bins={}".format)
@pytest.mark.parametrize("name", SELECTED)
def test_select_follows_the_closed_law(monkeypatch, name, num_bins, selector):
    target, draft = NODES[name]
    every = [each for each in tuples(len(target), 3) if float(draft[each].prod()) > 0]
    for candidates in every[:: max(1, len(every) // 20)]:
        for alive in map(torch.tensor, SURVIVORS):
            emitted = enumerated_selection(
                monkeypatch, target, draft, candidates, alive, num_bins, selector
            )
            closed = Optimal(num_bins, selector).law(target, draft, candidates[alive])
            torch.testing.assert_close(emitted, closed, rtol=0, atol=1e-12)


MUTATIONS = {
    "the number of all paths": lambda t, d, count, **options: plan_selection(
        t, d, torch.full_like(count, 3), **options
    ),
    "one candidate": lambda t, d, count, **options: plan_selection(
        t, d, torch.ones_like(count), **options
    ),
    "the law wanted instead of the law realised": lambda t, d, count, **options: wanted(
        plan_selection(t, d, count, **options)
    ),
}


def wanted(plan):
    return replace(plan, phi=plan.phi * 1.01)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_wrong_plan_is_noticed(monkeypatch, mutation):
    target, draft = NODES["random"]
    candidates, alive = torch.tensor([0, 1, 2]), torch.tensor([True, False, True])
    closed = Optimal().law(target, draft, candidates[alive])
    monkeypatch.setattr(optimal, "plan_selection", mutation)
    emitted = enumerated_selection(monkeypatch, target, draft, candidates, alive, 64)
    assert float((emitted - closed).abs().max()) > 1e-3


def test_a_residual_that_is_not_cut_at_zero_is_noticed(monkeypatch):
    target, draft = NODES["random"]
    monkeypatch.setattr(Selection, "residual", lambda plan: (plan.target_probs - plan.law()).abs())
    law, _ = node_law(Optimal(), target, draft, 3)
    assert float((law - target).abs().max()) > 1e-3


# ---- ranks drawn from noise


def repeated(plan, rows):
    """The plan of one row for many."""
    return plan.only(torch.zeros(rows, dtype=torch.int64))


# a chi-square test rejects a sound verifier with probability 1e-6; the seeds are fixed
FALSE_ALARM = 1e-6


@on_bins
@pytest.mark.parametrize("n", [2, 3], ids="n={}".format)
@on_selectors
def test_largest_rank_follows_the_selection_law(selector, n, num_bins):
    rows = 10_000
    target, draft = random_laws(2, 5, 7)
    generator = torch.Generator().manual_seed(n)
    candidates = torch.multinomial(draft.expand(rows, -1), n, replacement=True, generator=generator)
    plan = plan_selection(
        target[None], draft[None], torch.tensor([n]), num_bins=num_bins, selector=selector
    )
    noise = Noise.create(rows, seed=11, device="cpu")
    path = repeated(plan, rows).select(candidates, candidates >= 0, noise, 3)
    tokens = candidates.gather(1, path[:, None]).squeeze(1)
    law = plan.law()[0]
    assert float((law - draft).abs().max()) > 0.05
    assert chisquare(tokens.bincount(minlength=5), rows * law).pvalue > FALSE_ALARM


def test_largest_rank_follows_the_closed_law_of_given_candidates():
    rows = 10_000
    target, draft = random_laws(2, 5, 7)
    candidates, alive = torch.tensor([[0, 2, 0, 4]]), torch.tensor([[True, True, False, True]])
    plan = plan_selection(target[None], draft[None], torch.tensor([3]), num_bins=4)
    chances = win_probabilities(plan.rank_laws(candidates[:, [0, 1, 3]])[0])
    noise = Noise.create(rows, seed=12, device="cpu")
    path = repeated(plan, rows).select(
        candidates.expand(rows, -1), alive.expand(rows, -1), noise, 0
    )
    counts = path.bincount(minlength=4)
    assert int(counts[2]) == 0
    assert chisquare(counts[[0, 1, 3]], rows * np.array(chances)).pvalue > FALSE_ALARM


class Recorded:
    """Noise that answers 1/2 and records what it is asked."""

    def __init__(self):
        self.asked = []

    def uniform(self, role, index, *, depth, path):
        self.asked += [
            (role, depth, *pair) for pair in zip(index[0].tolist(), path[0].tolist(), strict=True)
        ]
        return torch.full(index.shape, 0.5, dtype=torch.float64)


def test_ranks_have_a_name_of_their_own_and_equal_ones_go_to_the_lowest_path():
    target, draft = random_laws(2, 5, 7)
    plan = plan_selection(target[None], draft[None], torch.tensor([3]))
    noise = Recorded()
    alive = torch.tensor([[False, True, True]])
    assert plan.select(torch.tensor([[2, 2, 2]]), alive, noise, 5).tolist() == [1]
    assert noise.asked == [(Role.RANK, 5, 0, path) for path in range(3)]


# ---- hybrid drafts


def hybrid_drafts(draft, num_top, count):
    """Every set of candidates and its chance, by the definition of hybrid drafts."""
    order = sorted(range(len(draft)), key=lambda token: (-float(draft[token]), token))
    top, others = order[:num_top], order[num_top:]
    mass = float(draft[others].sum())
    if mass == 0:
        # the draft has no other token: there are no random candidates
        yield torch.tensor([token for token in top if draft[token] > 0]), 1.0
        return
    for drawn in itertools.product(others, repeat=count - num_top):
        chance = float((draft[list(drawn)] / mass).prod())
        if chance > 0:
            yield torch.tensor([*top, *drawn]), chance


def hybrid_law(verifier, target, draft, num_top, count):
    """Law of the token that a root with hybrid drafts emits, and the chance that it is a candidate."""
    law, acceptance = torch.zeros_like(target), 0.0
    for candidates, chance in hybrid_drafts(draft, num_top, count):
        outcome = verifier.law(target, draft, candidates, 0)
        law += chance * outcome
        acceptance += chance * float(outcome[candidates.unique()].sum())
    return law, acceptance


on_hybrids = pytest.mark.parametrize(("num_top", "count"), [(1, 2), (1, 3), (2, 3), (1, 4), (3, 4)])


@on_hybrids
@on_nodes
@pytest.mark.parametrize(
    "options", [(None, "clip"), (None, "lex"), (4, "clip"), (64, "lex")], ids=str
)
def test_token_of_hybrid_drafts_has_the_target_law(options, node, num_top, count):
    target, draft = node
    verifier = Optimal(*options, num_top=num_top)
    assert verifier.num_top(count) == num_top
    law, acceptance = hybrid_law(verifier, target, draft, num_top, count)
    torch.testing.assert_close(law, target, rtol=0, atol=1e-12)
    laws = target[None], draft[None]
    bound = float(optimal_acceptance(*laws, count, "hybrid", num_top))
    expected = float(verifier.expected_acceptance(*laws, count))
    assert expected - 1e-12 <= acceptance <= bound + 1e-12
    if options[0] is None:
        assert acceptance == pytest.approx(bound, abs=1e-12)
        assert expected == pytest.approx(bound, abs=1e-12)


def test_hybrid_drafts_with_the_law_of_plain_drafts_are_noticed():
    target, draft = NODES["random"]
    law, _ = hybrid_law(Optimal(None), target, draft, 1, 3)
    assert float((law - target).abs().max()) > 1e-2


def test_a_law_is_that_of_the_root_where_no_depth_is_given():
    target, draft = NODES["random"]
    verifier = Optimal(None, num_top=1)
    differ = False
    for tokens in itertools.product(range(len(target)), repeat=3):
        candidates = torch.tensor(tokens)
        at_root, below = (verifier.law(target, draft, candidates, depth) for depth in (0, 1))
        differ |= not torch.equal(at_root, below)
        assert torch.equal(verifier.law(target, draft, candidates), at_root)
    assert differ


def test_below_the_root_hybrid_drafts_are_plain():
    target, draft = NODES["random"]
    candidates = torch.tensor([0, 2, 3])
    hybrid, plain = Optimal(num_top=1), Optimal()
    deep = hybrid.law(target, draft, candidates, 1)
    assert torch.equal(deep, plain.law(target, draft, candidates, 1))
    assert not torch.equal(deep, hybrid.law(target, draft, candidates, 0))


class Half:
    """Noise of one number for everything."""

    def uniform(self, role, index, **_):
        return torch.full(index.shape, 0.5, dtype=torch.float64)

    def select(self, rows):
        return self


@pytest.mark.parametrize("seed", range(4))
def test_select_of_hybrid_drafts_follows_the_closed_law(seed):
    rows = 3_000
    target, draft = random_laws(2, 5, 40 + seed)
    top = int(draft.argmax())
    rest = draft.clone()
    rest[top] = 0
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(rest, 2, generator=generator).tolist()
    candidates = torch.tensor([top, *drawn]).expand(rows, -1)
    noise = Noise.create(rows, seed=seed, device="cpu")
    laws = target.expand(rows, -1), draft.expand(rows, -1)
    verifier = Optimal(num_top=1)
    tokens = verifier.select(*laws, candidates, torch.ones_like(candidates) > 0, noise, 0)
    law = verifier.law(target, draft, candidates[0], 0)
    counts = tokens.bincount(minlength=5)
    assert not counts[law == 0].any()
    assert int((law > 0).sum()) > 1
    assert chisquare(counts[law > 0], rows * law[law > 0]).pvalue > FALSE_ALARM


def test_without_random_candidates_the_token_is_drawn_from_the_target(monkeypatch):
    target = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    draft = torch.tensor([[0.0, 0.7, 0.3, 0.0]], dtype=torch.float64)
    masses = []
    monkeypatch.setattr(
        optimal, "draw", lambda mass, *_, **__: masses.append(mass) or torch.tensor([3])
    )
    alive = torch.tensor([[True, True, False, False]])
    candidates = torch.tensor([[1, 2, -1, -1]]).clamp_min(0)
    assert Optimal(num_top=2).select(target, draft, candidates, alive, Half(), 0).tolist() == [3]
    assert torch.equal(masses[0], target)


def test_top_tokens_are_those_of_the_draft_lowest_id_first():
    probs = torch.tensor([[0.2, 0.3, 0.2, 0.3], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert top_tokens(probs, 3).tolist() == [[1, 3, 0], [0, 1, 2]]
    assert top_tokens(probs, 0).shape == (2, 0)
    assert top_tokens(probs, 9).shape == (2, 4)
    target = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    assert mass_of(target, top_tokens(probs, 2), probs).tolist() == pytest.approx([0.6, 0.4])
    rest = without_tokens(probs, top_tokens(probs, 2))
    assert rest.tolist() == [[0.5, 0.0, 0.5, 0.0], [0.0] * 4]


def test_number_of_top_candidates_leaves_one_random():
    assert [Optimal(num_top=2).num_top(count) for count in (1, 2, 3, 8)] == [0, 1, 2, 2]
    with pytest.raises(ValueError, match="num_top must be at least 0, got -1"):
        Optimal(num_top=-1)
    with pytest.raises(TypeError, match=r"num_top must be an int, got 1\.5"):
        Optimal(num_top=1.5)


# ---- batches, types and errors


@on_bins
def test_rows_of_a_batch_are_planned_as_if_alone(num_bins):
    target, draft = random_laws(12, 6, 1), random_laws(12, 6, 2)
    count = torch.arange(12) % 4 + 1
    weight = torch.linspace(0, 1, 12, dtype=torch.float64)
    plan = plan_selection(target, draft, count, weight=weight, num_bins=num_bins)
    law, tokens = plan.law(), torch.tensor([[0, 3]])
    for row in range(12):
        one = slice(row, row + 1)
        alone = plan_selection(
            target[one], draft[one], count[one], weight=weight[one], num_bins=num_bins
        )
        torch.testing.assert_close(law[one], alone.law(), rtol=0, atol=1e-15)
        some = plan.only(torch.tensor([row]))
        assert int(count[row]) == 1 or torch.equal(some.rank_laws(tokens), alone.rank_laws(tokens))
        assert float(plan.probs_of(torch.full((12,), 3))[row]) == pytest.approx(
            float(law[row, 3]), abs=1e-15
        )
        if int(count[row]) == 1:
            assert torch.equal(law[row], draft[row])


@on_bins
def test_two_rows_are_planned_as_if_alone(num_bins):
    target, draft, count = random_laws(2, 6, 3), random_laws(2, 6, 4), torch.tensor([3, 3])
    law = plan_selection(target, draft, count, num_bins=num_bins).law()
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = plan_selection(target[one], draft[one], count[one], num_bins=num_bins).law()
        torch.testing.assert_close(law[one], alone, rtol=0, atol=1e-15)


@on_bins
def test_a_row_without_candidates_selects_nothing_beside_others(num_bins):
    target, draft = random_laws(2, 6, 1), random_laws(2, 6, 2)
    draft[0] = 0
    none, one = (
        plan_selection(target, draft, torch.tensor([count, 3]), num_bins=num_bins).law()
        for count in (0, 1)
    )
    assert torch.equal(none, one)
    assert torch.equal(none[0], torch.zeros(6, dtype=torch.float64))


class Waits(TorchDispatchMode):
    """Counts what a host would wait for on a GPU: single numbers, and shapes that depend on values."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += any(name in str(function) for name in self.OPERATIONS)
        return function(*args, **(kwargs or {}))


@on_selectors
def test_a_grid_is_planned_and_selected_from_without_waiting(selector):
    target, draft = random_laws(5, 40, 1), random_laws(5, 40, 2)
    candidates = torch.randint(40, (5, 3))
    with Waits() as waits:
        plan = plan_selection(target, draft, torch.tensor([1, 2, 3, 3, 3]), selector=selector)
        plan.select(candidates, candidates >= 0, Half(), 0)
        plan.residual(), plan.probs_of(candidates[:, 0])
    # whether any row has a choice, which is asked on a CPU only
    assert waits.count == 1


def test_float32_rows_accept_as_often_as_float64():
    target, draft = random_laws(50, 300, 1, spread=0.1), random_laws(50, 300, 2, spread=0.1)
    for num_bins in (None, 64):
        double = Optimal(num_bins).expected_acceptance(target, draft, 4)
        single = Optimal(num_bins).expected_acceptance(target.float(), draft.float(), 4)
        torch.testing.assert_close(single, double, rtol=0, atol=1e-6)


def test_rows_without_a_law_are_passed_over():
    target, draft = random_laws(2, 4, 1), random_laws(2, 4, 2)
    target[0], draft[0] = 0, 0
    plan = plan_selection(target, draft, torch.tensor([3, 3]))
    assert torch.equal(plan.law()[0], draft[0])


def test_number_of_bins_is_checked():
    with pytest.raises(ValueError, match=r"num_bins must be at least 1, or None .* got 0"):
        Optimal(0)
