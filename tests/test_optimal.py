"""Optimal selection at one node: the closed law, and the code that draws."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from enumeration import node_law, random_laws, tuples
from scipy.stats import chisquare
from test_k_seq import NODES, on_counts, on_nodes
from torch.utils._python_dispatch import TorchDispatchMode
from transport_masses import NEARLY, on_bins, on_selectors

import warpdraft.verifiers.optimal as optimal
from warpdraft import optimal_acceptance
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.optimal import (
    SELECTORS,
    Selection,
    plan_selection,
    target_where_exhausted,
)
from warpdraft.kernels.ranks import win_probabilities
from warpdraft.kernels.top_tokens import mass_of, top_tokens, without_tokens
from warpdraft.verifiers.k_seq import KSeq
from warpdraft.verifiers.optimal import Optimal

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


def test_only_rows_without_a_residual_take_the_targets_law():
    target = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.7, 0.3]], dtype=torch.float64)
    residual = torch.tensor([[0.0, 0.2], [0.0, 0.0], [0.3, 0.1]], dtype=torch.float64)
    found = target_where_exhausted(residual, residual.sum(1), target)
    assert found.tolist() == [[0.0, 0.2], [0.1, 0.9], [0.3, 0.1]]


def test_rows_without_a_law_are_passed_over():
    target, draft = random_laws(2, 4, 1), random_laws(2, 4, 2)
    target[0], draft[0] = 0, 0
    plan = plan_selection(target, draft, torch.tensor([3, 3]))
    assert torch.equal(plan.law()[0], draft[0])


def test_number_of_bins_is_checked():
    with pytest.raises(ValueError, match=r"num_bins must be at least 1, or None .* got 0"):
        Optimal(0)
