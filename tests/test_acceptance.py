"""alpha*: the bound against all sets of tokens, and against linear programmes over the drafts themselves."""

import itertools

import numpy as np
import pytest
import torch
from enumeration import random_laws, transport_optimum
from scipy.optimize import linprog
from test_k_seq import NODES, on_counts, on_nodes
from test_optimal import hybrid_drafts
from transport_masses import NEARLY, subsets

from warpdraft import optimal_acceptance


@on_counts
@on_nodes
def test_bound_is_the_minimum_over_all_sets(node, count):
    target, draft = node
    bound = float(optimal_acceptance(target[None], draft[None], count))
    cuts = [float(target[each].sum() - draft[each].sum() ** count) for each in subsets(len(target))]
    assert bound == pytest.approx(1 + min(cuts), abs=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3], ids="n={}".format)
@pytest.mark.parametrize("name", [name for name in NODES if name not in (*NEARLY, "five tokens")])
def test_bound_equals_the_linear_programme(name, n):
    target, draft = NODES[name]
    bound = float(optimal_acceptance(target[None], draft[None], n))
    assert bound == pytest.approx(transport_optimum(target, draft, n), abs=1e-12)


def optimum_of(drafts, target):
    """The linear programme over all couplings of the sets of candidates, with their chances, and the token."""
    drafts = list(drafts)
    vocab, size = len(target), len(drafts)
    hit = [[token in candidates for token in range(vocab)] for candidates, _ in drafts]
    of_draft = np.repeat(np.eye(size), vocab, axis=1)
    of_token = np.tile(np.eye(vocab), size)
    # the last equation follows from the others, and rounding must not contradict it
    solution = linprog(
        -np.array(hit, dtype=float).reshape(-1),
        A_eq=np.vstack([of_draft, of_token])[:-1],
        b_eq=np.concatenate([[chance for _, chance in drafts], target.numpy()])[:-1],
        method="highs",
    )
    assert solution.status == 0, solution.message
    return float(-solution.fun)


@pytest.mark.parametrize(("num_top", "n"), [(0, 2), (1, 2), (1, 3), (2, 3), (3, 4), (9, 3)])
@pytest.mark.parametrize("name", [name for name in NODES if name not in NEARLY])
def test_bound_of_hybrid_drafts_equals_the_linear_programme(name, num_top, n):
    target, draft = NODES[name]
    bound = float(optimal_acceptance(target[None], draft[None], n, "hybrid", num_top))
    optimum = optimum_of(hybrid_drafts(draft, min(num_top, n - 1), n), target)
    assert bound == pytest.approx(optimum, abs=1e-12)
    if num_top == n - 1:
        assert float(optimal_acceptance(target[None], draft[None], n, "greedy")) == bound
    if num_top == 0:
        assert float(optimal_acceptance(target[None], draft[None], n)) == bound


EQUAL = torch.full((1, 4), 0.25)


def test_bound_at_the_extremes():
    one, other = torch.eye(4, dtype=torch.float64)[:2, None]
    assert optimal_acceptance(EQUAL, EQUAL, 3).tolist() == [1.0]
    assert optimal_acceptance(one, other, 3).tolist() == [0.0]
    assert optimal_acceptance(one, one, 3).tolist() == [1.0]
    assert optimal_acceptance(EQUAL, one, 9).tolist() == [0.25]
    # a drafted token that the target always wants: 1 - (1 - d)^n
    assert float(optimal_acceptance(one, EQUAL, 2)) == pytest.approx(1 - 0.75**2)


def test_bound_grows_with_the_drafts_and_is_speculative_sampling_for_one():
    target, draft = random_laws(40, 30, 1, spread=0.2), random_laws(40, 30, 2, spread=0.2)
    bounds = [optimal_acceptance(target, draft, n) for n in range(1, 9)]
    torch.testing.assert_close(bounds[0], torch.minimum(target, draft).sum(1))
    assert all(bool((after >= before).all()) for before, after in itertools.pairwise(bounds))


@pytest.mark.parametrize(
    ("target", "draft", "num_drafts", "error", "message"),
    [
        (
            EQUAL,
            EQUAL[:, :3],
            2,
            ValueError,
            r"one shape \[rows, vocab\] .*got \[1, 4\] and \[1, 3\]",
        ),
        (EQUAL[0], EQUAL[0], 2, ValueError, r"one shape \[rows, vocab\] .*got \[4\]"),
        (EQUAL, EQUAL, 0, ValueError, "num_drafts must be at least 1, got 0"),
        (
            EQUAL * 2,
            EQUAL,
            2,
            ValueError,
            "target_probs must sum to 1 in each row, got 2.0 in row 0",
        ),
        (EQUAL, EQUAL - 1, 2, ValueError, "draft_probs must hold probabilities >= 0"),
        (EQUAL * torch.nan, EQUAL, 2, ValueError, "target_probs must hold probabilities >= 0"),
        (EQUAL.tolist(), EQUAL, 2, TypeError, "target_probs must be a tensor, got list"),
        (EQUAL, None, 2, TypeError, "draft_probs must be a tensor, got NoneType"),
        (EQUAL[:, :0], EQUAL[:, :0], 2, ValueError, r"vocab >= 1, got \[1, 0\]"),
        (EQUAL, EQUAL.to("meta"), 2, ValueError, "target_probs are on cpu, draft_probs on meta"),
        (EQUAL, EQUAL, 1 << 63, ValueError, r"num_drafts must be in \[1, 9223372036854775807\]"),
        (EQUAL.long(), EQUAL, 2, TypeError, "target_probs must be floating point, got torch.int64"),
    ],
)
def test_bound_checks_its_arguments(target, draft, num_drafts, error, message):
    with pytest.raises(error, match=message):
        optimal_acceptance(target, draft, num_drafts)


def test_bound_checks_the_drafts():
    with pytest.raises(ValueError, match=r"drafts must be one of \['greedy', 'hybrid', 'iid'\]"):
        optimal_acceptance(EQUAL, EQUAL, 2, "best")
    with pytest.raises(ValueError, match="num_top must be at least 0, got -1"):
        optimal_acceptance(EQUAL, EQUAL, 2, "hybrid", -1)
    with pytest.raises(ValueError, match=r"drafts must be one of"):
        optimal_acceptance(EQUAL, EQUAL, 2, ["iid"])


def test_the_bound_of_more_drafts_than_a_float_counts():
    assert optimal_acceptance(EQUAL, EQUAL, (1 << 63) - 1).tolist() == [1.0]
