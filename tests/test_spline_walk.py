"""The walk on fixed knots, which the kernels follow: its exact law, and mutations that must show."""

import pytest
import spline_walk
import torch
from enumeration import Tables, independent
from spline_enumeration import deviation
from test_k_seq import NODES

CHOICES = [
    (verifier, selector)
    for verifier in ("optimal", "optimal_block")
    for selector in ("clip", "lex")
]
on_choices = pytest.mark.parametrize(("verifier", "selector"), [("k_seq", "clip"), *CHOICES])

# vocabulary, K, L
SIZES = [(2, 2, 2), (3, 2, 2), (2, 3, 2), (3, 3, 1), (4, 2, 1), (2, 1, 2), (3, 1, 1)]

HOSTILE = [node for node in NODES.values() if len(node[0]) == 4]


@pytest.fixture
def exact(monkeypatch):
    """No mass is too small to count."""
    monkeypatch.setattr(spline_walk, "EXHAUSTED", 1e-15)
    monkeypatch.setattr(spline_walk, "NEGLIGIBLE", 1e-15)


def hostile(length, first):
    """Every prefix has another pair of hostile laws."""
    levels, number = [], first
    for depth in range(length + 1):
        pairs = [HOSTILE[(number + k) % len(HOSTILE)] for k in range(4**depth)]
        levels.append([torch.stack(laws) for laws in zip(*pairs, strict=True)])
        number += 4**depth
    target, draft = ([level[model] for level in levels] for model in range(2))
    return Tables(target, draft[:length], draft[:length])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("vocab", "num_drafts", "length"), SIZES)
@on_choices
def test_the_walk_has_the_target_law(verifier, selector, vocab, num_drafts, length):
    for seed in (0, 1):
        tables = Tables.random(vocab, length, seed, zeros=seed == 1 and vocab > 2)
        assert deviation(tables, verifier, selector, independent(num_drafts)) < 1e-12


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("first", range(0, len(HOSTILE), 2))
@on_choices
def test_the_walk_of_hostile_laws_has_the_target_law(verifier, selector, first):
    assert deviation(hostile(1, first), verifier, selector, independent(3)) < 1e-12
    if first < 4:
        assert deviation(hostile(2, first), verifier, selector, independent(2)) < 1e-12


@pytest.mark.usefixtures("exact")
@on_choices
def test_paths_that_branch_off_and_end_keep_the_law(verifier, selector):
    tables = Tables.random(3, 2, 1, zeros=True)
    # the first of two paths draws two tokens more, then one while the other has ended
    for more in ([0, 0, 1], [0]):
        assert (
            deviation(
                tables,
                verifier,
                selector,
                lambda paths, more=more: [0, 0] if paths == ((),) else more,
            )
            < 1e-12
        )


@on_choices
def test_what_the_kernels_neglect_moves_no_probability_by_more_than_a_millionth(verifier, selector):
    for first in range(0, len(HOSTILE), 3):
        assert deviation(hostile(1, first), verifier, selector, independent(2)) < 1e-6


def of_two(mass, knots, weight, count, selector):
    return PLAN(mass, knots, weight, torch.full_like(count, 2), selector)


def of_the_root(mass, knots, weight, count, selector):
    return PLAN(mass, knots, torch.ones_like(weight), count, selector)


def without_weight(target, draft, weight, accepted, knots):
    return RESIDUAL(target, draft, torch.ones_like(weight), accepted, knots)


def of_the_target(target, draft, weight, accepted, knots):
    return target


PLAN, RESIDUAL = spline_walk.selection_spline, spline_walk.residual_mass
MUTATIONS = {
    "another count": ("selection_spline", of_two),
    "weight of the root": ("selection_spline", of_the_root),
    "residual without its weight": ("residual_mass", without_weight),
    "no residual": ("residual_mass", of_the_target),
}


@pytest.mark.parametrize(("name", "wrong"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_mutations_are_noticed(monkeypatch, name, wrong):
    tables = Tables.random(3, 2, 1, zeros=False)
    monkeypatch.setattr(spline_walk, name, wrong)
    assert deviation(tables, "optimal_block", "clip", independent(2)) > 1e-2
