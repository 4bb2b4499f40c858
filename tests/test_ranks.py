"""Ranks of the candidates: uniform over all tokens, and the selection law is what they realise."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transport_masses import atoms, on_selectors, selection_law

from warpdraft.kernels.ranks import exchange, mean_over, win_probabilities

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
